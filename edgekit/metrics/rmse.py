"""Root of the mean squared error, in the labels' own units; lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.metrics import _values

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

HIGHER_IS_BETTER = False


def per_sample(outputs: Sequence[Array], labels: Array) -> Array:
    """The mean squared error of each sample, float64 (N,)."""
    both = _values.pairs(outputs, labels)
    return ((both[:, 1] - both[:, 0]) ** 2).mean(axis=1)


def combine(parts: Array) -> float:
    """The root of the mean of what :func:`per_sample` gave."""
    return float(parts.mean() ** 0.5)


def score(outputs: Sequence[Array], labels: Array) -> float:
    """Root of the mean squared error of ``outputs[0]`` (N, …) against ``labels`` (N, …)."""
    return combine(per_sample(outputs, labels))
