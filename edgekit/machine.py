"""What this computer is, and what it is doing right now: read from ``/proc`` and ``/sys``, never changed.

Every read goes through :func:`sysroot`, so tests (and a person who debugs a board's copy of
``/sys``) can point ``EDGEKIT_SYSROOT`` at another tree. What can't be read is None: a virtual
machine hides its frequency, and "unknown" is the honest word for that.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from edgekit.store import sha256_json

SYSROOT = "EDGEKIT_SYSROOT"

# Flags that decide which kernels a runtime picks; the others are noise in a record.
KERNEL_FLAGS = (
    *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq"),
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "fphp"),
)

PACKAGES = (
    *("numpy", "torch", "torchvision", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu"),
    *("openvino", "tensorrt", "accelerate", "safetensors", "scikit-learn", "pydantic", "altair", "vl-convert-python"),
)


def sysroot() -> Path:
    """Where ``/proc`` and ``/sys`` are read from: ``EDGEKIT_SYSROOT``, else ``/``."""
    return Path(os.environ.get(SYSROOT) or "/")


def read(path: str) -> str | None:
    """The stripped text of a file under :func:`sysroot`, or None where it can't be read."""
    try:
        return (sysroot() / path.lstrip("/")).read_text(errors="replace").strip()
    except OSError:
        return None


def read_int(path: str) -> int | None:
    """A file under :func:`sysroot` as a whole number, or None."""
    text = read(path)
    try:
        return int(text.split()[0], 0) if text else None
    except ValueError:
        return None


def describe() -> dict[str, Any]:
    """This computer, for the record. Sizes in bytes, frequencies in MHz, temperatures in degrees Celsius.

    Keys: ``arch``, ``cpu``, ``board``, ``isa`` (the flags that decide kernels), ``cores`` {``physical``, ``logical``,
    ``available``, ``cgroup_limit``}, ``governor``, ``frequency_mhz`` {``min``, ``max``, ``now``}, ``virtual``,
    ``os``, ``kernel``, ``libc``, ``memory_bytes``, ``temperature_c``, ``throttled``. Unknown is None.
    """
    info = read("proc/cpuinfo") or ""
    flags = cpu_flags(info)
    return {
        "arch": platform.machine(),
        "cpu": cpu_name(info),
        "board": board(),
        "isa": [flag for flag in KERNEL_FLAGS if flag in flags],
        "cores": {
            "physical": physical_cores(info),
            "logical": os.cpu_count(),
            "available": len(available_cores()),
            "cgroup_limit": cgroup_limit(),
        },
        "governor": governor(),
        "frequency_mhz": frequency(info),
        "virtual": "hypervisor" in flags or None,
        "os": _os_name(),
        "kernel": platform.release(),
        "libc": " ".join(filter(None, platform.libc_ver())) or None,
        "memory_bytes": memory_bytes(),
        "temperature_c": temperature(),
        "throttled": throttled(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, edgekit and every library that can change a result; those not installed are left out."""
    import edgekit

    found = {"python": platform.python_version(), "edgekit": edgekit.__version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def fingerprint() -> str:
    """Hex hash of what decides speed here (CPU, flags, cores, memory): measured rows are keyed by it."""
    facts = describe()
    return sha256_json({key: facts[key] for key in ("arch", "cpu", "board", "isa", "cores", "memory_bytes")})


def cpu_flags(info: str | None = None) -> set[str]:
    """Every CPU flag of ``/proc/cpuinfo`` (``flags`` on x86, ``Features`` on Arm)."""
    text = (read("proc/cpuinfo") or "") if info is None else info
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def cpu_name(info: str | None = None) -> str:
    """The CPU's name; on Arm boards, which do not say it, the implementer's part number."""
    text = (read("proc/cpuinfo") or "") if info is None else info
    for key in ("model name", "Model", "Hardware"):
        if found := re.search(rf"^{key}\s*:\s*(\S.*)$", text, re.MULTILINE):
            return found[1].strip()
    part = re.search(r"^CPU part\s*:\s*(\S+)$", text, re.MULTILINE)
    return f"Arm part {part[1]}" if part else (platform.processor() or platform.machine())


def board() -> str | None:
    """The board's name from its device tree: ``Raspberry Pi 5 Model B Rev 1.0``."""
    text = read("proc/device-tree/model") or read("sys/firmware/devicetree/base/model")
    return text.strip("\0 ") if text else None


def physical_cores(info: str | None = None) -> int | None:
    """Cores without their hardware threads, or None where that is not said."""
    text = (read("proc/cpuinfo") or "") if info is None else info
    pairs = re.findall(r"^physical id\s*:\s*(\d+)(?:\n.+)*?\ncore id\s*:\s*(\d+)", text, re.MULTILINE)
    return len(set(pairs)) or None


def available_cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cgroup_limit() -> float | None:
    """CPUs that the container may use (1.5: one and a half), or None where it is not limited."""
    if text := read("sys/fs/cgroup/cpu.max"):  # cgroup v2
        quota, _, period = text.partition(" ")
        return None if quota == "max" else int(quota) / int(period or 100_000)
    quota_us = read_int("sys/fs/cgroup/cpu/cpu.cfs_quota_us")  # cgroup v1
    period_us = read_int("sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return quota_us / period_us if quota_us and quota_us > 0 and period_us else None


def usable_threads() -> int:
    """How many threads can run at once here: affinity and container limit, at least 1."""
    limit = cgroup_limit()
    cores = len(available_cores())
    return max(1, min(cores, int(limit)) if limit is not None else cores)


def pick_cores(threads: int) -> list[int]:
    """The core set that a benchmark of ``threads`` threads is pinned to.

    Fastest cores first (``cpu_capacity`` of big.LITTLE), one hardware thread of each core before
    the second of any, high numbers first: core 0 serves most interrupts.
    """
    cores = available_cores()

    def rank(core: int) -> tuple[int, int, int]:
        base = f"sys/devices/system/cpu/cpu{core}"
        siblings = re.findall(r"\d+", read(f"{base}/topology/thread_siblings_list") or str(core))
        return (
            siblings.index(str(core)) if str(core) in siblings else 0,
            -(read_int(f"{base}/cpu_capacity") or 0),
            -core,
        )

    return sorted(sorted(cores, key=rank)[: max(1, min(threads, len(cores)))])


def governor() -> str | None:
    """The frequency governor (several, if the cores differ), or None where the kernel hides it."""
    found = {read(f"{p.relative_to(sysroot())}/scaling_governor") for p in _policies()} - {None}
    return ", ".join(sorted(str(f) for f in found)) or None


def frequency(info: str | None = None) -> dict[str, float | None]:
    """Lowest, highest and present frequency in MHz; ``now`` is the mean over the cores."""
    base = [str(p.relative_to(sysroot())) for p in _policies()]

    def values(name: str) -> list[float]:
        return [v / 1000 for p in base if (v := read_int(f"{p}/{name}")) is not None]

    low, high, now = values("scaling_min_freq"), values("scaling_max_freq"), values("scaling_cur_freq")
    if not now:
        text = (read("proc/cpuinfo") or "") if info is None else info
        now = [float(v) for v in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return {
        "min": min(low, default=None),
        "max": max(high, default=None),
        "now": sum(now) / len(now) if now else None,
    }


def core_frequency(cores: list[int]) -> float | None:
    """Present frequency in MHz, mean over these cores alone: idle ones rest at another; None where it is hidden."""
    values = [read_int(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    known = [value / 1000 for value in values if value is not None]
    if not known:
        listed = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", read("proc/cpuinfo") or "", re.MULTILINE)
        known = [float(listed[core]) for core in cores if core < len(listed)]
    return sum(known) / len(known) if known else None


def _policies() -> list[Path]:
    return sorted((sysroot() / "sys/devices/system/cpu/cpufreq").glob("policy*"))


def memory_bytes() -> int | None:
    """RAM in bytes, or the container's limit where that is lower."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", read("proc/meminfo") or "", re.MULTILINE)
    total = int(found[1]) * 1024 if found else None
    limit = read("sys/fs/cgroup/memory.max")
    if limit and limit.isdigit() and total:
        return min(total, int(limit))
    return total


def temperature() -> float | None:
    """The hottest thermal zone in degrees Celsius, or None."""
    zones = (sysroot() / "sys/class/thermal").glob("thermal_zone*")
    values = [read_int(f"{z.relative_to(sysroot())}/temp") for z in zones]
    return max((v / 1000 for v in values if v is not None), default=None)


def throttled() -> bool | None:
    """Whether the machine says that it is, or was, slowed down by heat or power; None where it says nothing.

    Raspberry Pi: the firmware's bits (now and since boot); x86: the package's throttle counters;
    Jetson: the over-current counters. Counters only grow, so a benchmark compares before and after
    (:func:`throttle_count`).
    """
    count = throttle_count()
    return None if count is None else count > 0


def throttle_count() -> int | None:
    """The sum of all throttling counters and bits that can be read, or None."""
    root = sysroot()
    patterns = (
        "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count",
        "sys/devices/platform/soc/soc:firmware/get_throttled",
        "sys/class/hwmon/hwmon*/oc*_throt_cnt",
        "sys/class/hwmon/hwmon*/in0_lcrit_alarm",
    )
    values: list[int] = []
    for pattern in patterns:
        for path in root.glob(pattern):
            text = read(str(path.relative_to(root)))
            with contextlib.suppress(ValueError):
                values.append(int(text or "", 16 if path.name == "get_throttled" else 10))
    return sum(values) if values else None


def cpu_times() -> dict[str, int] | None:
    """Clock ticks since boot of all cores: ``total``, ``idle``, ``steal`` (taken by the host's other guests)."""
    first = (read("proc/stat") or "").partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu":
        return None
    ticks = [int(v) for v in first[1:9]]  # user nice system idle iowait irq softirq steal
    return {"total": sum(ticks), "idle": ticks[3] + ticks[4], "steal": ticks[7]}


def load() -> float | None:
    """Processes that wanted to run, mean of the last minute."""
    text = read("proc/loadavg")
    return float(text.split()[0]) if text else None


def energy_counters() -> dict[str, tuple[int, int]]:
    """RAPL's counters where they can be read: name → (microjoules, where it wraps)."""
    found: dict[str, tuple[int, int]] = {}
    root = sysroot()
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:?")):
        base = str(zone.relative_to(root))
        value, wrap = read_int(f"{base}/energy_uj"), read_int(f"{base}/max_energy_range_uj")
        if value is not None and wrap:
            found[read(f"{base}/name") or zone.name] = (value, wrap)
    return found


def power_rails() -> dict[str, float]:
    """Watts of each rail of the board's INA3221 sensors (Jetson): name → watts; empty where there are none."""
    found: dict[str, float] = {}
    root = sysroot()
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        base = str(chip.relative_to(root))
        if "ina3221" not in (read(f"{base}/name") or ""):
            continue
        for channel in (1, 2, 3):
            millivolts, milliamperes = (read_int(f"{base}/{kind}{channel}_input") for kind in ("in", "curr"))
            if millivolts is not None and milliamperes is not None:
                found[read(f"{base}/in{channel}_label") or f"{chip.name}:{channel}"] = millivolts * milliamperes / 1e6
    return found


def total_watts(rails: dict[str, float]) -> float:
    """The board's power: of the rail that feeds all others where it is measured, else of all rails together."""
    whole = [watts for name, watts in rails.items() if name in ("VDD_IN", "POM_5V_IN")]
    return whole[0] if whole else sum(rails.values())


def joules(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float:
    """The growth of RAPL's counters, which wrap around; packages only, for the other zones lie inside them."""
    total = 0
    for name in before.keys() & after.keys():
        if name.startswith("package") or not any(n.startswith("package") for n in before):
            (start, wrap), (end, _) = before[name], after[name]
            total += end - start if end >= start else end - start + wrap
    return total / 1e6


def _os_name() -> str:
    text = read("etc/os-release") or ""
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)"?$', text, re.MULTILINE)
    return found[1] if found else f"{platform.system()} {sys.platform}"
