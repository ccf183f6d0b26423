"""The timing loop: warm up until steady, then time a block. Pure but for the clock it is given.

The loop adds two clock reads to a call of the runtime and nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgekit.measure.statistics import is_stable

Clock = Callable[[], int]  # monotonic, nanoseconds
Call = Callable[[], object]

TICKS_PER_SAMPLE = 100  # a sample is at least that many steps of the clock long


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long one process warms up and measures.

    Attributes:
        warm_inferences, warm_ms: Warm-up at least; then until the times are steady.
        inferences, block_ms: The measured block at least.
        limit_ms: Warm-up at most, and the block at most, however slow the model is (but each once).
    """

    warm_inferences: int = 20
    warm_ms: float = 200.0
    inferences: int = 30
    block_ms: float = 50.0
    limit_ms: float = 5000.0


def resolution(clock: Clock = time.perf_counter_ns, steps: int = 20) -> int:
    """The clock's smallest step in nanoseconds, as seen: the least of ``steps`` differences that are not 0."""
    least = 1_000_000_000
    for _ in range(steps):
        start = now = clock()
        while now == start:
            now = clock()
        least = min(least, now - start)
    return least


def warm_up(call: Call, clock: Clock, effort: Effort) -> tuple[list[int], bool]:
    """Call until ``effort`` is met and the times are steady; return the times (ns) and whether they became so."""
    times: list[int] = []
    start = last = clock()
    while True:
        call()
        now = clock()
        times.append(now - last)
        last = now
        spent_ms = (now - start) / 1e6
        enough = len(times) >= effort.warm_inferences and spent_ms >= effort.warm_ms
        if enough and is_stable(times):
            return times, True
        # Not steady after five times the least: more would not help, the block says how it scatters.
        if spent_ms >= effort.limit_ms or (enough and spent_ms >= 5 * effort.warm_ms and len(times) >= 100):
            return times, is_stable(times)


def calls_per_sample(call_ns: float, step_ns: int) -> int:
    """How many calls one sample must hold so that the clock's step is at most a hundredth of it."""
    return max(1, round(TICKS_PER_SAMPLE * step_ns / max(call_ns, 1.0) + 0.499))


def block(call: Call, clock: Clock, effort: Effort, calls: int = 1) -> list[float]:
    """Time calls until the block is long enough; return nanoseconds for one call, one value a sample."""
    samples: list[float] = []
    start = clock()
    while True:
        if calls == 1:
            before = clock()
            call()
            after = clock()
            samples.append(after - before)
        else:
            before = clock()
            for _ in range(calls):
                call()
            after = clock()
            samples.append((after - before) / calls)
        spent_ms = (after - start) / 1e6
        enough = len(samples) * calls >= effort.inferences and spent_ms >= effort.block_ms
        if enough or spent_ms >= effort.limit_ms:
            return samples


def paced(
    call: Call, clock: Clock, sleep: Callable[[float], None], *, interval_ms: float, count: int
) -> tuple[list[int], int]:
    """Call once every ``interval_ms``, as a camera does; return the times (ns) and how many frames came too late.

    A call that overruns its slot drops the frames that it missed, as a live pipeline does.
    """
    samples: list[int] = []
    interval = round(interval_ms * 1e6)
    due, late = clock() + interval, 0
    while len(samples) < count:
        if (wait := due - clock()) > 0:
            sleep(wait / 1e9)
        before = clock()
        call()
        after = clock()
        samples.append(after - before)
        missed = max(0, (after - due) // interval)
        late += missed
        due += (missed + 1) * interval
    return samples, late


def median_ms(samples: list[float] | list[int]) -> float:
    """The median of nanoseconds, in milliseconds."""
    return statistics.median(samples) / 1e6
