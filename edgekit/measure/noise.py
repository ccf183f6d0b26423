"""What disturbed a measurement, and how to say so in plain words.

A disturbed run is kept: it takes part in pairs and widens the interval, which is the honest
effect. Only what can hit one model and spare the other (heat, frequency) makes the comparison
one that is not to be trusted.
"""

from __future__ import annotations

import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit import machine

# Limits above which a run counts as disturbed.
STEAL = 0.02  # share of CPU time that other guests of the host took
WAITED = 0.05  # share of the time that a thread was ready but had no core
SWITCHES = 25.0  # involuntary context switches a second and core
FREQUENCY = 0.10  # relative change of the clock frequency


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What happened around one block. Shares are 0 to 1; None: this machine does not say.

    Attributes:
        steal: Share of all CPU time taken by the host's other guests.
        waited: Time that this process's threads waited for a core, over wall time.
        switches: Involuntary context switches a second.
        frequency_mhz: After the block. frequency_change: Relative to before it.
        temperature_c: Hottest zone after the block.
        throttled: How often the machine slowed itself down in between.
    """

    steal: float | None
    waited: float | None
    switches: float
    frequency_mhz: float | None
    frequency_change: float | None
    temperature_c: float | None
    throttled: int | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Watch:
    """Reads the machine's counters when made, and again in :meth:`noise`."""

    def __init__(self) -> None:
        self._throttle = machine.throttle_count()
        self._cores = machine.available_cores()  # the worker is pinned: those that it measures on
        self._frequency = machine.core_frequency(self._cores)
        self._times = machine.cpu_times()
        self._waited = _waited_ns()
        self._switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        self._start = time.perf_counter()

    def noise(self) -> Noise:
        """What happened since."""
        wall = max(time.perf_counter() - self._start, 1e-9)
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - self._switches
        waited, times = _waited_ns(), machine.cpu_times()
        frequency, throttle = machine.core_frequency(self._cores), machine.throttle_count()
        return Noise(
            steal=_share(self._times, times),
            waited=None if waited is None or self._waited is None else (waited - self._waited) / 1e9 / wall,
            switches=switches / wall,
            frequency_mhz=frequency,
            frequency_change=abs(frequency / self._frequency - 1) if frequency and self._frequency else None,
            temperature_c=machine.temperature(),
            throttled=None if throttle is None or self._throttle is None else throttle - self._throttle,
        )


def _share(before: dict[str, int] | None, after: dict[str, int] | None) -> float | None:
    if not before or not after or after["total"] <= before["total"]:
        return None
    return (after["steal"] - before["steal"]) / (after["total"] - before["total"])


def _waited_ns() -> int | None:
    """Nanoseconds that all threads of this process waited for a core (Linux's run-queue statistics)."""
    total = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            total += int((task / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return total


def untrusted(runs: list[Noise]) -> str:
    """Why a comparison of these runs is not to be trusted, in words; empty: it is."""
    if throttled := sum(1 for n in runs if n.throttled):
        return f"the machine slowed itself down (heat or power) in {throttled} of {len(runs)} runs"
    frequencies = [n.frequency_mhz for n in runs if n.frequency_mhz]
    moved = max((n.frequency_change or 0.0 for n in runs), default=0.0)
    if frequencies:
        moved = max(moved, max(frequencies) / min(frequencies) - 1)
    if moved > FREQUENCY:
        return f"the clock frequency moved by {moved:.0%} while it was measured"
    return ""


def warnings(runs: list[Noise], cores: int) -> list[str]:
    """What a reader must know of these runs, each with what to do."""
    found: list[str] = []
    if reason := untrusted(runs):
        found.append(f"{reason}: times are not comparable; cool the board, fix its frequency, or measure again later")
    busy = [n for n in runs if (n.waited or 0.0) > WAITED or n.switches > SWITCHES * cores]
    if len(busy) * 4 > len(runs):
        found.append(
            f"other programs ran on the measured cores in {len(busy)} of {len(runs)} runs; "
            "close them for narrower intervals"
        )
    stolen = max((n.steal or 0.0 for n in runs), default=0.0)
    if stolen > STEAL:
        found.append(f"the host gave up to {stolen:.0%} of this virtual machine's time to others; absolute times vary")
    return found


def machine_warnings(threads: int) -> list[str]:
    """What of the machine itself makes times vary, before anything ran."""
    found: list[str] = []
    governor = machine.governor()
    if governor and governor != "performance":
        found.append(f"the frequency governor is '{governor}': times depend on load; set 'performance' to compare runs")
    usable = machine.usable_threads()
    load = machine.load()
    if load is not None and load > max(1, usable - threads + 1) + 0.5:
        found.append(f"the machine was busy before the measurement began (load {load:.1f}, {usable} cores usable)")
    return found
