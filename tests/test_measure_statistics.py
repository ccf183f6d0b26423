"""The statistics, against exact values, brute force and simulation."""

from __future__ import annotations

import math
import random
import re
import statistics as std
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.measure import statistics as s

FLOATS = st.floats(-1e3, 1e3, allow_nan=False)


@pytest.mark.parametrize(("n", "confidence"), [(8, 0.99), (11, 0.99), (20, 0.99), (40, 0.99), (40, 0.995), (25, 0.95)])
def test_order_rank_is_the_greatest_that_covers_enough(n: int, confidence: float) -> None:
    def coverage(k: int) -> float:  # of [k-th smallest, k-th greatest], by the binomial law
        return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n

    rank = s.order_rank(n, confidence)
    assert coverage(rank) >= confidence > coverage(rank + 1)


def test_under_eight_pairs_there_is_no_99_percent_interval() -> None:
    assert s.order_interval([1.0] * 7) is None
    assert s.order_interval(list(range(s.LEAST_PAIRS))) == (0, 7)


@given(st.lists(FLOATS, min_size=8, max_size=60), st.randoms(use_true_random=False))
def test_order_interval_holds_the_median_and_ignores_order(values: list[float], draw: random.Random) -> None:
    interval = s.order_interval(values)
    assert interval is not None
    assert interval[0] <= std.median(values) <= interval[1]
    shuffled = values[:]
    draw.shuffle(shuffled)
    assert s.order_interval(shuffled) == interval
    wider = s.order_interval(values, 0.999)
    assert wider is None or (wider[0] <= interval[0] and interval[1] <= wider[1])


def test_order_interval_covers_the_true_median_of_a_skewed_law() -> None:
    draw, truth, missed, runs = random.Random(5), math.log(2), 0, 4000
    for _ in range(runs):
        low, high = s.order_interval([draw.expovariate(1) for _ in range(12)]) or (0, 0)
        missed += not low <= truth <= high
    assert missed / runs <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / runs)


@given(st.lists(FLOATS, min_size=1, max_size=30), st.integers(0, 5))
def test_bootstrap_is_seeded_and_inside_the_data(values: list[float], seed: int) -> None:
    low, high = s.bootstrap_interval(values, seed=seed, resamples=200)
    assert min(values) <= low <= high <= max(values)
    assert (low, high) == s.bootstrap_interval(values, seed=seed, resamples=200)


@given(st.lists(st.floats(0.1, 10), min_size=8, max_size=30), st.floats(0.2, 5))
def test_compare_finds_a_pure_factor_whatever_the_scatter_of_the_machine(times: list[float], factor: float) -> None:
    found = s.compare(times, [t * factor for t in times])
    assert found.ratio == pytest.approx(factor)
    assert found.ci95 == pytest.approx((factor, factor))
    assert found.mde == pytest.approx(0, abs=1e-9)
    assert found.different is (abs(math.log(factor)) > 1e-12)


@given(st.lists(st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)), min_size=8, max_size=20))
def test_compare_is_antisymmetric(pairs: list[tuple[float, float]]) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    one, other = s.compare(a, b), s.compare(b, a)
    assert one.ratio == pytest.approx(1 / other.ratio)
    assert one.ci99 == pytest.approx((1 / other.ci99[1], 1 / other.ci99[0]))  # type: ignore[index]
    assert one.different is other.different


def test_compare_with_too_few_pairs_can_prove_nothing() -> None:
    found = s.compare([1.0] * 7, [2.0] * 7)
    assert (found.ratio, found.ci99, found.different, found.mde) == (2.0, None, None, None)


def test_provable_is_proved_with_its_power() -> None:
    """A shift as large as ``provable`` says is found in about 95 % of runs drawn from the same law."""
    draw = random.Random(3)
    pool = [draw.gauss(0, 0.02) for _ in range(400)]
    shift = std.median(s.provable([draw.gauss(0, 0.02) for _ in range(40)]) or 0 for _ in range(100))
    found = 0
    for _ in range(1000):
        low, high = s.order_interval([v + shift for v in draw.choices(pool, k=40)]) or (0, 0)
        found += not low <= 0 <= high
    assert 0.90 <= found / 1000 <= 0.995


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.integers(0, 61))
def test_binomial_below_is_the_sum_of_the_law(n: int, p: float, k: int) -> None:
    expected = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(min(k, n + 1)))
    assert s.binomial_below(n, p, min(k, n + 1)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("percentile", "least"), [(0.90, 64), (0.95, 130), (0.99, 662), (0.999, 6636)], ids=["p90", "p95", "p99", "p99.9"]
)
def test_early_stopping_needs_as_many_queries_as_mlperf_says(percentile: float, least: int) -> None:
    assert s.discardable(least - 1, percentile) == 0
    assert s.discardable(least, percentile) == 1
    times = [float(i) for i in range(least)]
    assert s.early_stopping(times, percentile) == least - 1
    assert s.early_stopping(times[:-1], percentile) is None


def test_early_stopping_bounds_the_true_percentile() -> None:
    """The estimate is below the true 90th percentile in about 1 % of runs, by its design."""
    draw, truth, below, runs = random.Random(11), -math.log(0.1), 0, 3000
    for _ in range(runs):
        below += (s.early_stopping([draw.expovariate(1) for _ in range(100)], 0.90) or math.inf) < truth
    assert below / runs <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / runs)


LOADGEN = """
import sys, time
import mlperf_loadgen as lg

def issue(queries):
    for query in queries:
        start = time.perf_counter_ns()
        while time.perf_counter_ns() - start < 50_000 + query.id % 7 * 9_000:
            pass
        lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0)])

sut, library = lg.ConstructSUT(issue, lambda: None), lg.ConstructQSL(64, 64, lambda s: None, lambda s: None)
settings, log, place = lg.TestSettings(), lg.LogSettings(), lg.LogOutputSettings()
settings.scenario, settings.mode = lg.TestScenario.SingleStream, lg.TestMode.PerformanceOnly
settings.single_stream_expected_latency_ns, settings.min_duration_ms, settings.min_query_count = 60_000, 500, 64
place.outdir, place.copy_summary_to_stdout, log.log_output, log.enable_trace = sys.argv[1], False, place, False
lg.StartTestWithLogSettings(sut, library, settings, log, "")
"""


def test_early_stopping_agrees_with_mlperfs_loadgen(tmp_path: Path) -> None:
    """The official load generator, in a process of its own (it crashes on exit at times), discards as many."""
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    subprocess.run([sys.executable, "-c", LOADGEN, str(tmp_path)], timeout=60, check=False, capture_output=True)
    log = (tmp_path / "mlperf_log_summary.txt").read_text()
    queries = re.search(r"Processed at least 64 queries \((\d+)\)", log)
    discarded = re.search(r"Would discard (\d+) highest latency", log)
    assert queries
    assert discarded
    assert s.discardable(int(queries[1]), 0.90) - 1 == int(discarded[1])


def test_autocorrelation() -> None:
    assert s.autocorrelation([1, 2]) == 0
    assert s.autocorrelation([3.0] * 9) == 0
    assert s.autocorrelation([float(i) for i in range(50)]) > 0.9
    assert s.autocorrelation([(-1.0) ** i for i in range(50)]) < -0.9


def test_drift_is_told_and_noise_is_not() -> None:
    still = [1.0] * 40
    drifting = [math.exp(0.001 * i) for i in range(40)]
    assert s.compare(still, drifting).drift
    draw, told = random.Random(2), 0
    for _ in range(300):
        told += s.compare(still, [math.exp(draw.gauss(0, 0.02)) for _ in range(40)]).drift
    assert told / 300 < 0.04


def test_quantile_and_scatter() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    assert [s.quantile(values, q) for q in (0, 0.5, 1)] == [1, 2.5, 4]
    assert s.quantile([7.0], 0.99) == 7
    assert s.scatter([5.0, 5.0, 5.0, 1e6]) == 0
    draw = random.Random(1)
    assert s.scatter([draw.gauss(100, 3) for _ in range(5000)]) == pytest.approx(0.03, rel=0.1)


def test_is_stable() -> None:
    assert not s.is_stable([1.0] * 7)
    assert s.is_stable([1.0] * 8)
    assert not s.is_stable([8, 7, 6, 5, 4, 3, 2, 1.0])


def test_the_benchmark_of_that_name_hides_no_standard_library(tmp_path: Path) -> None:
    """``benchmarks/statistics.py`` lies beside other scripts, which import the standard library's module."""
    benchmarks = Path(__file__).parent.parent / "benchmarks"
    code = (
        f"import sys; sys.path.insert(0, {str(benchmarks)!r}); import statistics; print(statistics.median([1, 2, 9]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "2"


@pytest.mark.parametrize(("above", "n", "p"), [(8, 8, 1 / 256), (7, 8, 9 / 256), (0, 8, 1.0), (5, 5, 1 / 32)])
def test_the_sign_test_is_exact(above: int, n: int, p: float) -> None:
    ratios = [1.1] * above + [1.0] * (n - above)
    assert s.sign_probability(ratios, 1.05) == pytest.approx(p)


def test_holm_rejects_step_by_step() -> None:
    """0.005 against 0.05 / 4, 0.01 against 0.05 / 3, then 0.03 against 0.05 / 2 fails, and all after it."""
    assert s.holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert s.holm([0.04], 0.05) == [True]
    assert s.holm([], 0.05) == []
    assert s.holm([0.2, 0.01], 0.05) == [False, True]


def test_false_alarms_of_many_hypotheses_together_stay_within_the_error() -> None:
    draw = random.Random(3)
    alarms = 0
    for _ in range(2000):
        chances = []
        for _ in range(10):
            ratios = [math.exp(draw.gauss(math.log(1.05), 0.02)) for _ in range(s.pairs_for(10))]
            chances.append(s.sign_probability(ratios, 1.05))
        alarms += any(s.holm(chances))
    assert alarms / 2000 <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 2000)


def test_enough_pairs_can_reject_every_one() -> None:
    for count in (1, 2, 3, 14, 200):
        n = s.pairs_for(count)
        assert all(s.holm([s.sign_probability([2.0] * n, 1.05)] * count))
        assert n == 8 or not all(s.holm([s.sign_probability([2.0] * (n - 1), 1.05)] * count))
