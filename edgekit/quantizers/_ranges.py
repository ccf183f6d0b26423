"""From what was seen of a tensor to the range that its integers will span.

``minmax``      all that was seen
``average``     the mean over samples of each sample's least and greatest value
``percentile``  all but the outermost 0.01 %
``entropy``     least Kullback-Leibler divergence (Migacz, "8-bit inference with TensorRT", GTC 2017)
``mse``         least squared error of rounding and clipping together
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.errors import StageError
from edgekit.quantizers import _integers
from edgekit.quantizers._calibrate import BINS, Statistics

if TYPE_CHECKING:
    import numpy as np

    from edgekit.scheme import Scheme

    Array = np.ndarray[Any, Any]

KEPT = 0.9999  # share of the values that the percentile method spans
LEVELS = 256
COARSE, FINE = 0.1, 0.0125  # steps of the shares of what was seen that are tried as a range, from 0.2 to 1
Range = tuple[float, float]


def ranges(statistics: Mapping[str, Statistics], names: Iterable[str], method: str, scheme: Scheme) -> dict[str, Range]:
    """The range of every value.

    Args:
        statistics: By value.
        names: The values.
        method: One of :data:`METHODS`.
        scheme: The target's.

    Raises:
        StageError: No number of a tensor was seen.
    """
    found: dict[str, Range] = {}
    for name in names:
        if not statistics[name].samples:
            raise StageError(
                f"no number of tensor '{name}' was seen in calibration",
                remedy="calibrate with samples that reach this part of the model",
            )
        low, high = METHODS[method](statistics[name], scheme)
        found[name] = float(low), float(high)
    return found


def _minmax(seen: Statistics, scheme: Scheme) -> Range:
    return seen.low, seen.high


def _average(seen: Statistics, scheme: Scheme) -> Range:
    return seen.low_sum / seen.samples, seen.high_sum / seen.samples


def _percentile(seen: Statistics, scheme: Scheme) -> Range:
    import numpy as np

    if seen.exponent is None or seen.counts is None:
        return seen.low, seen.high
    share = np.cumsum(seen.counts) / seen.counts.sum()
    sides = (seen.low < 0) + (seen.high > 0)
    cut = (1 - KEPT) / max(sides, 1)
    width = 2.0**seen.exponent
    low = (np.searchsorted(share, cut, side="right") - BINS) * width if seen.low < 0 else seen.low
    high = (np.searchsorted(share, 1 - cut, side="left") + 1 - BINS) * width if seen.high > 0 else seen.high
    return max(float(low), seen.low), min(float(high), seen.high)


def _mse(seen: Statistics, scheme: Scheme) -> Range:
    return _least(seen, scheme, _squared_error)


def _entropy(seen: Statistics, scheme: Scheme) -> Range:
    return _least(_without_zeros(seen), scheme, _divergence)


def _without_zeros(seen: Statistics) -> Statistics:
    """The zeros that a Relu makes, which any range tells exactly, would be smeared over the bins beside them.

    So Migacz gives the first bin the second one's count; here no more than its fuller neighbour's.
    """
    if seen.counts is None:
        return seen
    counts = seen.counts.copy()
    counts[BINS] = min(counts[BINS], max(counts[BINS - 1], counts[BINS + 1]))
    return replace(seen, counts=counts)


METHODS: dict[str, Callable[[Statistics, Scheme], Range]] = {
    "minmax": _minmax,
    "average": _average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}


def _least(seen: Statistics, scheme: Scheme, cost: Callable[[Array, Array, Range, Scheme], float]) -> Range:
    """The range with the least cost: tried coarsely from all that was seen down to a fifth of it, then finer."""
    if seen.exponent is None or seen.counts is None:
        return seen.low, seen.high
    import numpy as np

    used = np.flatnonzero(seen.counts)
    part = slice(used[0], used[-1] + 1)
    centres = ((np.arange(2 * BINS) - BINS + 0.5) * 2.0**seen.exponent)[part]
    counts = seen.counts[part].astype(np.float64)
    found: dict[tuple[float, float], float] = {}

    def price(shares: tuple[float, float]) -> float:
        if shares not in found:
            found[shares] = cost(centres, counts, _shrunk(seen, scheme, shares), scheme)
        return found[shares]

    best, step = min(_around((0.6, 0.6), COARSE, 4, seen, scheme), key=price), COARSE
    while step > FINE:
        step /= 2
        best = min(_around(best, step, 1, seen, scheme), key=price)
    return _shrunk(seen, scheme, best)


def _around(
    middle: tuple[float, float], step: float, reach: int, seen: Statistics, scheme: Scheme
) -> list[tuple[float, float]]:
    """Shares of the least and the greatest value seen, near ``middle``; both sides alike where the scheme ties them."""
    moves = [round(step * i, 6) for i in range(-reach, reach + 1)]
    low, high = ([s for m in moves if 0 < (s := round(c + m, 6)) <= 1] for c in middle)
    one_sided = seen.low >= 0 or seen.high <= 0 or scheme.symmetric_activations
    return [(s, s) for s in high] if one_sided else [(below, above) for below in low for above in high]


def _shrunk(seen: Statistics, scheme: Scheme, shares: tuple[float, float]) -> Range:
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    peak = max(-low, high)
    if scheme.symmetric_activations:
        return max(low, -peak * shares[0]), min(high, peak * shares[1])
    return low * shares[0], high * shares[1]


def _squared_error(centres: Array, counts: Array, span: Range, scheme: Scheme) -> float:
    affine = _integers.activation(*span, scheme)
    error = centres - _integers.dequantize(_integers.quantize(centres, affine), affine)
    return float(counts @ (error * error))


def _divergence(centres: Array, counts: Array, span: Range, scheme: Scheme) -> float:
    """KL(P‖Q): P is what was seen with the outliers at the edges, Q what the integers can tell apart of it."""
    import numpy as np

    affine = _integers.activation(*span, scheme)
    level = _integers.quantize(centres, affine).astype(np.int64)
    level -= level.min()
    least, greatest = affine.bounds()
    inside = (centres >= least - affine.scale / 2) & (centres <= greatest + affine.scale / 2)
    if not inside.any():
        return float("inf")
    first, last = np.flatnonzero(inside)[[0, -1]]
    P = np.where(inside, counts, 0.0)
    P[first] += counts[:first].sum()
    P[last] += counts[last + 1 :].sum()
    seen = np.where(inside, counts, 0.0)
    filled = (seen > 0).astype(np.float64)
    mass, bins = np.bincount(level, seen, LEVELS), np.bincount(level, filled, LEVELS)
    Q = filled * (mass / np.maximum(bins, 1))[level]
    both = (P > 0) & (Q > 0)
    missing = P[(P > 0) & ~both].sum() / P.sum()
    P, Q = P / P.sum(), Q / max(Q.sum(), 1.0)
    return float((P[both] * np.log(P[both] / Q[both])).sum() + missing * 20)
