"""The statistics of comparing two models' times. Pure functions: numbers in, numbers out.

The unit is a *pair of processes*: what differs from process to process (memory layout, neighbours,
frequency) is larger than what differs within one, so only fresh processes count as repetitions.
A pair's datum is ``ln(median time of this / median time of the reference)``.

"Different" means that the exact order-statistic interval of the median of these excludes 0. It
assumes no distribution, only that the pairs are independent: ``P(median < k-th of n) = P(Bin(n, 1/2) < k)``.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.99  # of "different"
LEAST_PAIRS = 8  # under which no exact interval of that confidence exists: 2 * 2**-7 > 0.01
SHOWN = 0.95  # of the interval that is shown
RESAMPLES = 2000
POWER = 0.95  # with which the smallest provable change would have been proved

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One model's time over the reference's, from paired processes.

    Attributes:
        ratio: Median of the paired ratios; above 1 is slower.
        ci95: Bootstrap interval of it, to read.
        ci99: Exact interval of it, to decide by; None where the pairs are too few for one.
        different: Whether ``ci99`` excludes 1; None where there is none.
        mde: The smallest change that these pairs could have proved, as a fraction (0.02: 2 %); None as above.
        pairs: How many pairs.
        drift: Whether neighbouring pairs resemble each other more than chance has it (at 1 %): not independent.
        ratios: Each pair's own, in the order in which they ran.
    """

    ratio: float
    ci95: Interval
    ci99: Interval | None
    different: bool | None
    mde: float | None
    pairs: int
    drift: bool
    ratios: tuple[float, ...]


def compare(reference: Sequence[float], times: Sequence[float], *, seed: int = 0, looks: int = 1) -> Comparison:
    """Compare paired times (any unit, one median for each process, same order in both).

    Args:
        reference: The reference's medians, all positive.
        times: This model's medians from the same pairs.
        seed: Of the bootstrap.
        looks: How often this run may look before it stops; the error is split over them.
    """
    logs = [math.log(b / a) for a, b in zip(reference, times, strict=True)]
    confidence = split(looks)
    exact = order_interval(logs, confidence)
    low, high = bootstrap_interval(logs, seed=seed)
    return Comparison(
        ratio=math.exp(statistics.median(logs)),
        ci95=(math.exp(low), math.exp(high)),
        ci99=(math.exp(exact[0]), math.exp(exact[1])) if exact else None,
        different=not exact[0] <= 0 <= exact[1] if exact else None,
        mde=math.expm1(least) if (least := provable(logs, confidence)) is not None else None,
        pairs=len(logs),
        drift=len(logs) >= LEAST_PAIRS and autocorrelation(logs) > 2.33 / math.sqrt(len(logs)),
        ratios=tuple(math.exp(log) for log in logs),
    )


def split(looks: int) -> float:
    """The confidence of each look where several share :data:`CONFIDENCE`'s error."""
    return 1 - (1 - CONFIDENCE) / looks


def sign_probability(ratios: Sequence[float], limit: float) -> float:
    """How likely at least so many ratios above ``limit`` are where their median is the limit: the exact sign test."""
    above = sum(ratio > limit for ratio in ratios)
    return 1 - binomial_below(len(ratios), 0.5, above)


def holm(probabilities: Sequence[float], error: float = 1 - CONFIDENCE) -> list[bool]:
    """Which of several hypotheses are rejected, with at most that error for all of them together (Holm 1979)."""
    rejected = [False] * len(probabilities)
    for place, index in enumerate(sorted(range(len(probabilities)), key=lambda i: probabilities[i])):
        if probabilities[index] > error / (len(probabilities) - place):
            break
        rejected[index] = True
    return rejected


def pairs_for(hypotheses: int, error: float = 1 - CONFIDENCE) -> int:
    """The fewest pairs with which :func:`holm` can reject each of so many, were all their ratios beyond the limit."""
    return max(LEAST_PAIRS, math.ceil(math.log2(hypotheses / error)))


def order_rank(n: int, confidence: float = CONFIDENCE) -> int:
    """The greatest k for which [k-th smallest, k-th greatest] of n holds the median that surely; 0: none does."""
    tail = (1 - confidence) / 2
    below, rank = 0.0, 0
    for k in range(n // 2 + 1):
        below += math.comb(n, k) / 2**n
        if below > tail * (1 + 1e-12):
            break
        rank = k + 1
    return rank


def order_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """The exact, distribution-free interval of the median; None where the values are too few (99 %: 8)."""
    rank = order_rank(len(values), confidence)
    ordered = sorted(values)
    return (ordered[rank - 1], ordered[-rank]) if rank else None


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = SHOWN, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Percentile bootstrap of the median (Efron 1979), seeded."""
    draw = random.Random(seed)
    n = len(values)
    medians = sorted(statistics.median(draw.choices(values, k=n)) for _ in range(resamples))
    return quantile(medians, (1 - confidence) / 2), quantile(medians, (1 + confidence) / 2)


def provable(values: Sequence[float], confidence: float = CONFIDENCE, power: float = POWER) -> float | None:
    """The smallest shift that values with this scatter prove, with this power; None where there is no interval.

    A shift s is proved when the k-th smallest residual is above -s. With a share p of the residuals
    below -s that has probability P(Bin(n, p) < k), so s is minus the p-quantile for the p that gives
    ``power``; the worse of both sides counts.
    """
    n = len(values)
    rank = order_rank(n, confidence)
    if not rank:
        return None
    centre = statistics.median(values)
    residuals = sorted(v - centre for v in values)
    low, high = 0.0, 0.5
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_below(n, middle, rank) >= power else (low, middle)
    return max(0.0, -quantile(residuals, low), quantile(residuals, 1 - low))


def binomial_below(n: int, p: float, k: int) -> float:
    """P(Bin(n, p) < k)."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return 1.0 if k > n else 0.0
    log_p, log_q, log_n = math.log(p), math.log1p(-p), math.lgamma(n + 1)
    total = 0.0
    for i in range(k):
        total += math.exp(log_n - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q)
    return min(1.0, total)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of values in ascending order, interpolated linearly between neighbours."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def early_stopping(times: Sequence[float], percentile: float, confidence: float = 0.99) -> float | None:
    """MLPerf's early-stopping estimate of a latency percentile: an upper bound of it, that surely.

    Of n times the t-1 slowest are put aside and the next is the estimate, where t is the greatest number
    with ``P(Bin(n, 1 - percentile) <= t) <= 1 - confidence`` (MLPerf Inference Rules, appendix "Early stopping
    criterion", tolerance 0). None where no t is left: 64 times at the 90th, 662 at the 99th percentile are the least.
    """
    discard = discardable(len(times), percentile, confidence)
    return sorted(times)[-discard] if discard else None


def discardable(n: int, percentile: float, confidence: float = 0.99) -> int:
    """How many of n times may lie above the percentile (the rule's t); 0: n is too small."""
    over, limit = 1 - percentile, 1 - confidence
    log_p, log_q, log_n = math.log(over), math.log1p(-over), math.lgamma(n + 1)
    total, t = 0.0, -1
    while t < n:
        k = t + 1
        total += math.exp(log_n - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q)
        if total > limit:
            break
        t = k
    return max(0, t)


def autocorrelation(values: Sequence[float]) -> float:
    """Correlation of each value with the next; 0 where there are fewer than three or none differs."""
    if len(values) < 3:
        return 0.0
    mean = statistics.fmean(values)
    spread = sum((v - mean) ** 2 for v in values)
    return sum((a - mean) * (b - mean) for a, b in itertools.pairwise(values)) / spread if spread else 0.0


def scatter(values: Sequence[float]) -> float:
    """Relative scatter that outliers don't move: 1.4826 times the median deviation, over the median."""
    centre = statistics.median(values)
    return 1.4826 * statistics.median(abs(v - centre) for v in values) / centre if centre else 0.0


def is_stable(times: Sequence[float], tolerance: float = 0.05) -> bool:
    """Whether warm-up is over: the last quarter's median is within ``tolerance`` of the quarter before it."""
    quarter = len(times) // 4
    if quarter < 2:
        return False
    last, before = statistics.median(times[-quarter:]), statistics.median(times[-2 * quarter : -quarter])
    return abs(last - before) <= tolerance * before
