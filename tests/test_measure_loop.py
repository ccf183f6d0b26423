"""The timing loop, on a clock that moves only when the model does: nothing here sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from edgekit.measure import loop
from edgekit.measure.loop import Effort


class Fake:
    """A clock in nanoseconds, and a model that takes as long as it is told."""

    def __init__(self, times_ns: Callable[[int], int], step_ns: int = 1) -> None:
        self.now, self.calls, self.step, self.times = 0, 0, step_ns, times_ns

    def clock(self) -> int:
        return self.now // self.step * self.step

    def call(self) -> None:
        self.now += self.times(self.calls)
        self.calls += 1

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


MS = 1_000_000


def test_warm_up_runs_until_count_time_and_steadiness_are_met() -> None:
    fast = Fake(lambda n: MS // 10)
    times, steady = loop.warm_up(fast.call, fast.clock, Effort())
    assert steady
    assert len(times) == 2000  # 200 ms of 0.1 ms
    slow = Fake(lambda n: 50 * MS)
    times, steady = loop.warm_up(slow.call, slow.clock, Effort())
    assert steady
    assert len(times) == 20


def test_warm_up_goes_on_while_times_still_fall() -> None:
    falling = Fake(lambda n: max(MS, round(10 * MS * 0.97**n)))
    times, steady = loop.warm_up(falling.call, falling.clock, Effort())
    assert steady
    assert sum(times) > 300 * MS
    assert max(times[-10:]) < 1.1 * MS


def test_warm_up_of_a_restless_model_ends_and_says_so() -> None:
    restless = Fake(lambda n: MS * (1 + n))  # slower with every call, as a throttled board gets
    times, steady = loop.warm_up(restless.call, restless.clock, Effort())
    assert not steady
    assert sum(times) <= 6000 * MS


def test_a_very_slow_model_is_limited_to_what_the_budget_allows() -> None:
    slow = Fake(lambda n: 2000 * MS)
    effort = Effort(limit_ms=3000)
    assert len(loop.warm_up(slow.call, slow.clock, effort)[0]) == 2
    assert len(loop.block(slow.call, slow.clock, effort)) == 2


@pytest.mark.parametrize(("each_ms", "count"), [(0.1, 500), (1.0, 50), (10.0, 30)])
def test_block_is_long_enough_in_time_and_in_number(each_ms: float, count: int) -> None:
    model = Fake(lambda n: round(each_ms * MS))
    samples = loop.block(model.call, model.clock, Effort())
    assert len(samples) == count
    assert set(samples) == {each_ms * MS}


def test_a_coarse_clock_gets_longer_samples_and_right_times() -> None:
    """A clock of 1 ms steps and a model of 0.02 ms: single calls would read 0 or 1 ms."""
    model = Fake(lambda n: 20_000, step_ns=MS)
    calls = loop.calls_per_sample(20_000, MS)
    assert calls >= 5000
    samples = loop.block(model.call, model.clock, Effort(), calls)
    assert all(abs(s - 20_000) < 20_000 * 0.02 for s in samples)
    assert loop.calls_per_sample(20_000, 40) == 1


def test_resolution_is_the_clocks_smallest_step() -> None:
    ticks: Iterator[int] = iter([0, 0, 0, 15, 15, 15, 30, 30, 70, 70, 85] * 10)
    assert loop.resolution(lambda: next(ticks), steps=3) == 15


def test_paced_waits_between_frames_and_counts_late_ones() -> None:
    camera = Fake(lambda n: 5 * MS)
    samples, late = loop.paced(camera.call, camera.clock, camera.sleep, interval_ms=33, count=10)
    assert samples == [5 * MS] * 10
    assert late == 0
    assert camera.now == 10 * 33 * MS + 5 * MS  # the first frame is due after one interval
    slow = Fake(lambda n: 80 * MS if n == 3 else 5 * MS)
    samples, late = loop.paced(slow.call, slow.clock, slow.sleep, interval_ms=33, count=10)
    assert late == 2  # 80 ms miss two slots of 33 ms
    assert max(samples) == 80 * MS


def test_the_loop_adds_two_clock_reads_and_nothing_else() -> None:
    reads = 0
    model = Fake(lambda n: MS)

    def clock() -> int:
        nonlocal reads
        reads += 1
        return model.clock()

    samples = loop.block(model.call, clock, Effort())
    assert reads == 2 * len(samples) + 1
