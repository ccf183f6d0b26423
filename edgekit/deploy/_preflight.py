"""What a device is and has, looked at before anything is sent: a POSIX shell is all that it needs for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.deploy._remote import Remote

OLDEST_PYTHON = (3, 8)
OLDEST_GLIBC = (2, 17)
ROOM = 20 * 1024 * 1024  # bytes beside the bundle itself
ENVIRONMENT = 600 * 1024 * 1024  # bytes of an environment with numpy and a runtime

_LOOK = """
say() {{ printf '%s=%s\\n' "$1" "$2"; }}
say arch "$(uname -m)"
say kernel "$(uname -r)"
say os "$(. /etc/os-release 2>/dev/null && echo "$PRETTY_NAME")"
say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
say cores "$(getconf _NPROCESSORS_ONLN 2>/dev/null)"
say memory_kb "$(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo 2>/dev/null)"
say cpu "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)"
say board "$(tr -d '\\000' </proc/device-tree/model 2>/dev/null)"
say governor "$(cat /sys/devices/system/cpu/cpufreq/policy0/scaling_governor 2>/dev/null)"
say features "$(sed -n -e 's/^flags[^:]*: *//p' -e 's/^Features[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)"
for sensor in /sys/class/powercap/intel-rapl:0/energy_uj /sys/class/hwmon/hwmon*/curr1_input; do
  if [ -r $sensor ]; then say power $sensor; break; fi
done
say throttled "$(cat /sys/devices/platform/soc/soc:firmware/get_throttled 2>/dev/null)"
say temperature "$(cat /sys/class/thermal/thermal_zone0/temp 2>/dev/null)"
cd || exit 0
if mkdir -p {home} 2>/dev/null && echo >{home}/.try 2>/dev/null; then say writable yes; fi
printf '#!/bin/sh\\nexit 0\\n' >{home}/.try 2>/dev/null; chmod 700 {home}/.try 2>/dev/null
if {home}/.try 2>/dev/null; then say executable yes; fi
rm -f {home}/.try
set -- $(df -Pk {home} 2>/dev/null | tail -n 1); say free_kb "${{4:-}}"
if [ -f {home}/busy/pid ] && kill -0 "$(cat {home}/busy/pid)" 2>/dev/null; then say busy "$(cat {home}/busy/pid)"; fi
python=$(command -v python3 2>/dev/null) || exit 0
say python "$python"
"$python" -c '
import sys
print("python_version=%d.%d.%d" % sys.version_info[:3])
print("python_tag=cp%d%d" % sys.version_info[:2])
try:
    import importlib.metadata as have
    for name in ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt"):
        try:
            print("has_%s=%s" % (name, have.version(name)))
        except have.PackageNotFoundError:
            pass
except ImportError:
    pass
' 2>/dev/null
"""


@dataclass(frozen=True)
class Check:
    """One line of the table: what was looked at, what was found, whether it will do, and else what to do."""

    name: str
    value: str
    ok: bool = True
    remedy: str = ""


def look(remote: Remote, home: str) -> dict[str, str]:
    """The device's facts by name; one that is not there could not be told.

    Raises:
        DroppedError, UnavailableError: As :meth:`Remote.script`.
    """
    answer = remote.script(_LOOK.format(home=home))
    pairs = [line.partition("=") for line in answer.out.splitlines()]
    room = {"features": 8000}  # the CPU's flags are long
    return {
        key: value.strip()[: room.get(key, 200)]
        for key, _, value in pairs
        if key.replace("_", "").replace("-", "").isalnum()
    }


def judge(facts: dict[str, str], manifest: dict[str, Any], size: int, install: bool) -> list[Check]:
    """The facts as a table, each held against what the bundle needs.

    Args:
        facts: What :func:`look` found. manifest: The bundle's. size: Its bytes.
        install: Whether the runtime will be installed.
    """
    checks = [
        _arch(facts, manifest),
        _python(facts),
        _libc(facts),
        _disk(facts, size, install),
        _folder(facts, install),
    ]
    checks.append(_busy(facts))
    if not install:
        checks += [_package(facts, name, manifest) for name in ("numpy", manifest["backend"])]
    told: tuple[tuple[str, str], ...] = (
        ("board", "board"),
        ("cpu", "cpu"),
        ("os", "os"),
        ("cores", "cores"),
        ("memory_kb", "memory (KiB)"),
    )
    told += (("governor", "governor"), ("temperature", "temperature (m°C)"), ("throttled", "throttled"))
    return [*checks, *(Check(label, facts[key]) for key, label in told if facts.get(key))]


def _arch(facts: dict[str, str], manifest: dict[str, Any]) -> Check:
    wanted, found = manifest["target"]["device"]["arch"], facts.get("arch", "unknown")
    return Check("processor", found, found == wanted, f"the bundle is for {wanted}; make one for this device's target")


def _python(facts: dict[str, str]) -> Check:
    version = facts.get("python_version", "")
    if not version:
        return Check(
            "Python", "none", False, "install Python 3.8 or newer on the device (on Debian: apt install python3)"
        )
    return Check("Python", version, numbers(version) >= OLDEST_PYTHON, "install Python 3.8 or newer on the device")


def _libc(facts: dict[str, str]) -> Check:
    found = facts.get("libc", "")
    version = numbers(found.rpartition(" ")[2])
    remedy = "the runtimes' wheels need glibc 2.17 or newer: use a newer system, or build the runtime there"
    return Check("C library", found or "not told", not version or version >= OLDEST_GLIBC, remedy)


def _disk(facts: dict[str, str], size: int, install: bool) -> Check:
    free = facts.get("free_kb", "")
    needed = size + ROOM + (ENVIRONMENT if install else 0)
    if not free.isdigit():
        return Check("free disk", "not told")
    enough = int(free) * 1024 >= needed
    return Check("free disk", f"{int(free) // 1024} MiB", enough, f"free {needed // 2**20 + 1} MiB in the home folder")


def _folder(facts: dict[str, str], install: bool) -> Check:
    if facts.get("writable") != "yes":
        return Check("~/.cache/edgekit", "can't be written", False, "make the home folder writable for this user")
    if install and facts.get("executable") != "yes":
        return Check(
            "~/.cache/edgekit", "nothing may run from it (noexec)", False, "mount the home folder without noexec"
        )
    return Check("~/.cache/edgekit", "writable")


def _busy(facts: dict[str, str]) -> Check:
    running = facts.get("busy")
    return Check("at work", f"another deploy (process {running}); this one waits for it" if running else "no")


def _package(facts: dict[str, str], name: str, manifest: dict[str, Any]) -> Check:
    found = facts.get(f"has_{name}") or (facts.get("has_onnxruntime-gpu") if name == "onnxruntime" else None)
    version = manifest["versions"].get(name)
    wanted = f"{name}=={version}" if version else name
    remedy = f"deploy with --install, or on the device: python3 -m pip install {wanted}"
    return Check(name, found or "not installed", bool(found) or name == "tensorrt", remedy)


def numbers(version: str) -> tuple[int, ...]:
    """``3.11.2`` as numbers; empty where it is none."""
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
