"""Joules while something runs, from whatever counter or sensor this machine has; no sensor, no number.

RAPL (x86) counts energy itself; the INA3221 of Jetson boards tells volts and amperes, which a thread reads
a hundred times a second. Each result carries its sensor's name and what that sensor covers.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass

from edgekit import machine

PERIOD_S = 0.01
NONE = "no energy counter can be read here (RAPL is for root only, virtual machines and most boards have none)"


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What a meter read.

    Attributes:
        joules: In all. seconds: How long.
        sensor: Its name and what it covers.
    """

    joules: float
    seconds: float
    sensor: str

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / max(self.seconds, 1e-9)


class Meter:
    """Counts from when it is made to :meth:`stop`."""

    def __init__(self) -> None:
        self._counters = machine.energy_counters()
        self._start = time.monotonic()
        self._samples: list[tuple[float, float]] = []  # seconds, watts
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if not self._counters and machine.power_rails():
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()

    def stop(self) -> Energy | None:
        """The energy since it was made; None where this machine has no sensor."""
        seconds = time.monotonic() - self._start
        if self._counters:
            zones = ", ".join(self._counters)
            joules = machine.joules(self._counters, machine.energy_counters())
            return Energy(
                joules=joules, seconds=seconds, sensor=f"RAPL: {zones} (processor; not memory, board or supply)"
            )
        if self._thread is None:
            return None
        self._ended.set()
        self._thread.join()
        rails = ", ".join(machine.power_rails())
        joules = integral(self._samples)
        return Energy(joules=joules, seconds=seconds, sensor=f"INA3221: {rails} (module; not the carrier board)")

    def _sample(self) -> None:
        while not self._ended.is_set():
            self._samples.append((time.monotonic(), machine.total_watts(machine.power_rails())))
            self._ended.wait(PERIOD_S)
        self._samples.append((time.monotonic(), machine.total_watts(machine.power_rails())))


def integral(samples: list[tuple[float, float]]) -> float:
    """Joules of (seconds, watts) in order, by trapezoids."""
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in itertools.pairwise(samples))
