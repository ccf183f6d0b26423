"""From what was seen of a tensor to the range that its integers will span.

``minmax``      all that was seen
``average``     the mean over samples of each sample's least and greatest value
``percentile``  all but the outermost 0.01 %
``entropy``     least Kullback-Leibler divergence (Migacz, "8-bit inference with TensorRT", GTC 2017)
``mse``         least squared error of rounding and clipping together
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
    return _least(seen, scheme, _divergence)


METHODS: dict[str, Callable[[Statistics, Scheme], Range]] = {
    "minmax": _minmax,
    "average": _average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}


def _least(seen: Statistics, scheme: Scheme, cost: Callable[[Array, Array, Range, Scheme], float]) -> Range:
    """The candidate range with the least cost."""
    if seen.exponent is None or seen.counts is None:
        return seen.low, seen.high
    import numpy as np

    used = np.flatnonzero(seen.counts)
    part = slice(used[0], used[-1] + 1)
    centres = ((np.arange(2 * BINS) - BINS + 0.5) * 2.0**seen.exponent)[part]
    counts = seen.counts[part].astype(np.float64)
    return min(_candidates(seen, scheme), key=lambda r: cost(centres, counts, r, scheme))


def _candidates(seen: Statistics, scheme: Scheme) -> Iterator[Range]:
    """Ranges from all that was seen down to a fifth of it; each side by itself where the scheme allows."""
    import numpy as np

    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    one_sided = low == 0 or high == 0 or scheme.symmetric_activations
    if one_sided:
        peak = max(-low, high) if scheme.symmetric_activations else 0.0
        for factor in np.linspace(1, 0.2, 81):
            yield (max(low, -peak * factor), min(high, peak * factor)) if peak else (low * factor, high * factor)
        return
    for below in np.linspace(1, 0.2, 17):
        for above in np.linspace(1, 0.2, 17):
            yield low * below, high * above


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
