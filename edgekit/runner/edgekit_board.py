# ruff: noqa: UP006, UP035, UP045  (a board may have Python 3.8)
"""What this machine is and does, how its time is taken, and how trouble is told."""

from __future__ import annotations

import math
import os
import platform
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

P99_RUNS = 662  # inferences that a 99th percentile needs (MLPerf's early stopping)


class BundleError(Exception):
    """What went wrong, what to do about it, and the exit code."""

    def __init__(self, code: int, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.code, self.problem, self.remedy = code, problem, remedy


def readings(*patterns: str) -> List[str]:
    """The texts of the system files of these patterns that can be read, under EDGEKIT_SYSROOT (/)."""
    root, texts = Path(os.environ.get("EDGEKIT_SYSROOT") or "/"), []
    for path in (path for pattern in patterns for path in sorted(root.glob(pattern))):
        try:
            texts.append(path.read_text(errors="replace").strip("\0\n "))
        except OSError:
            continue
    return texts


def read(*patterns: str) -> Optional[str]:
    """The first of :func:`readings`, or None."""
    return next(iter(readings(*patterns)), None)


def device() -> Dict[str, Any]:
    """What this machine is. Unknown is None."""
    info = read("proc/cpuinfo") or ""
    fields = [line.partition(":") for line in info.splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in reversed(fields)}
    return {
        "arch": platform.machine(),
        "cpu": facts.get("model name") or facts.get("Model") or facts.get("Hardware"),
        "board": read("proc/device-tree/model", "sys/firmware/devicetree/base/model"),
        "flags": sorted((facts.get("flags") or facts.get("Features") or "").split()),
        "cores": os.cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "emulated": emulated(info),
    }


def emulated(info: str) -> bool:
    """Whether a CPU emulator runs this: what it says of time is then about the emulator."""
    if os.environ.get("EDGEKIT_EMULATED"):
        return True
    arm = platform.machine().startswith(("aarch64", "arm"))
    if arm and ("GenuineIntel" in info or "AuthenticAMD" in info):
        return True
    try:  # qemu hides itself in /proc/self/exe, but not here
        return "qemu-" in os.readlink(f"/proc/self/task/{os.getpid()}/exe")  # noqa: PTH115
    except OSError:
        return False


def state() -> Dict[str, Any]:
    """Temperature, clock, governor and throttling now. Unknown is None."""
    zones = numbers(readings("sys/class/thermal/thermal_zone*/temp"))
    clocks = numbers(readings("sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq"))
    return {
        "temperature_c": max(zones) / 1000 if zones else None,
        "frequency_mhz": max(clocks) / 1000 if clocks else None,
        "governor": read("sys/devices/system/cpu/cpufreq/policy*/scaling_governor"),
        "throttled": read(
            "sys/devices/platform/soc/soc:firmware/get_throttled",  # Raspberry Pi: bits, now and since boot
            "sys/class/hwmon/hwmon*/oc*_throt_cnt",  # Jetson: how often over its current
            "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count",
        ),
    }


def numbers(texts: List[str]) -> List[float]:
    """Those of the texts that are numbers."""
    return [float(text) for text in texts if text.lstrip("-").isdigit()]


def stranger(manifest: Dict[str, Any], here: Dict[str, Any]) -> str:
    """Why this is not the device that the bundle was made for; empty: it is."""
    wanted = manifest["target"]["device"]
    if here["emulated"]:
        return "this processor is emulated"
    if here["arch"] != wanted["arch"]:
        return f"this processor is {here['arch']}, the target's is {wanted['arch']}"
    names = f"{here['cpu'] or ''} {here['board'] or ''}".lower()
    if wanted.get("cpu") and wanted["cpu"].lower() not in names:
        return f"this machine is '{names.strip() or 'unknown'}', the target is '{wanted['cpu']}'"
    if not here["flags"]:
        return ""
    if missing := [flag for flag in wanted.get("isa", []) if flag not in here["flags"]]:
        return f"this processor lacks {', '.join(missing)}"
    extra = [flag for flag in wanted.get("isa_absent", []) if flag in here["flags"]]
    return f"this processor has {', '.join(extra)}, which the target lacks" if extra else ""


def reset_peak() -> Optional[int]:
    """Set the kernel's peak of this process's memory back; what it holds now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak()


def peak() -> Optional[int]:
    """Peak memory of this process in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None


def peak_above(base: Optional[int]) -> Optional[int]:
    """Peak memory since :func:`reset_peak` above what was held then."""
    now = peak()
    return None if base is None or now is None else max(0, now - base)


def timed(call: Callable[[], Any], seconds: float) -> List[float]:
    """Seconds of each inference: warm-up of at least 20 and 0.2 s, then at least 100 or until time is up."""
    clock = time.perf_counter
    times: List[float] = []
    start = clock()
    while len(times) < 20 or clock() - start < 0.2:
        times.append(clock())
        call()
        if clock() - start > seconds:
            break
    times = []
    start = clock()
    while (len(times) < 100 or clock() - start < seconds) and not (len(times) >= 5 and clock() - start > 10 * seconds):
        before = clock()
        call()
        times.append(clock() - before)
    return times


def summary(times: List[float]) -> Dict[str, Any]:
    """Median, its 95 % interval by order statistics, and percentiles of these times in milliseconds."""
    ordered, n = sorted(times), len(times)
    half = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half) - 1), min(n - 1, math.ceil(n / 2 + half))
    return {
        "median": (ordered[(n - 1) // 2] + ordered[n // 2]) / 2,
        "p90": ordered[min(n - 1, math.ceil(0.9 * n) - 1)],
        "p99": ordered[math.ceil(0.99 * n) - 1] if n >= P99_RUNS else None,
        "ci95": [ordered[low], ordered[high]],
        "runs": n,
    }
