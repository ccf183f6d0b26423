"""Confidence intervals, each for one value and for the difference of two on the same samples.

Shares of hits get Wilson's interval and, for a difference, Newcombe's; everything else a
percentile bootstrap over the samples, seeded, so that the same outputs give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LEVEL = 0.95
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
_DEFINED = 0.9  # share of the resamples in which the metric must be defined


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927, JASA 22:209)."""
    share, spread = hits / total, _Z**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(one: Array, other: Array) -> tuple[float, float]:
    """Interval of ``one``'s share of hits minus ``other``'s on the same samples.

    Newcombe 1998, Statistics in Medicine 17:2635, method 10: both Wilson intervals, squared and
    added, less what the pairing shares.

    Args:
        one: Whether each sample was hit, bool (N,). other: The same of the other model.
    """
    n = len(one)
    both, only_one = int((one & other).sum()), int((one & ~other).sum())
    only_other, none = int((~one & other).sum()), int((~one & ~other).sum())
    p1, p2 = (both + only_one) / n, (both + only_other) / n
    (low1, high1), (low2, high2) = wilson(both + only_one, n), wilson(both + only_other, n)
    phi = _phi(both, only_one, only_other, none)
    down = (p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2
    up = (p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2
    delta = p1 - p2
    return delta - math.sqrt(max(0.0, down)), delta + math.sqrt(max(0.0, up))


def _phi(both: int, only_one: int, only_other: int, none: int) -> float:
    """The correlation of the pairs, with Newcombe's correction for continuity."""
    margins = (both + only_one) * (only_other + none) * (both + only_other) * (only_one + none)
    if not margins:
        return 0.0
    cross, n = both * none - only_one * only_other, both + only_one + only_other + none
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    return corrected / math.sqrt(margins)


def mcnemar(one: Array, other: Array) -> float:
    """Exact two-sided p-value that both models hit as often, from the samples that only one of them hits.

    Args:
        one: Whether each sample was hit, bool (N,). other: The same of the other model.
    """
    from scipy.stats import binomtest

    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    if only_one + only_other == 0:
        return 1.0
    return float(binomtest(only_one, only_one + only_other).pvalue)


def bootstrap(
    score: Callable[[Array], tuple[float, ...]], samples: int, resamples: int, seed: int
) -> list[tuple[float, float] | None]:
    """Percentile intervals of what ``score`` gives for resampled samples.

    Args:
        score: ``score(rows) -> values`` for indices (N,) drawn with replacement.
        samples: N. resamples: How often to draw. seed: Of the drawing.

    Returns:
        ``(low, high)`` for each value; None where the metric is not defined on too many resamples.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    drawn: list[tuple[float, ...]] = []
    for _ in range(resamples):
        rows = rng.integers(0, samples, samples)
        try:
            drawn.append(score(rows))
        except EdgekitError:  # a resample without any sample of some class
            continue
    if len(drawn) < _DEFINED * resamples:
        return [None] * (len(drawn[0]) if drawn else 2)
    edges = np.quantile(np.array(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [(float(low), float(high)) for low, high in edges.T]
