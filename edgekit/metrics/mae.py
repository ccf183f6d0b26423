"""Mean absolute error, in the labels' own units; lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.metrics import _values

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

HIGHER_IS_BETTER = False


def per_sample(outputs: Sequence[Array], labels: Array) -> Array:
    """The mean absolute error of each sample, float64 (N,)."""
    import numpy as np

    both = _values.pairs(outputs, labels)
    return np.abs(both[:, 1] - both[:, 0]).mean(axis=1)


def score(outputs: Sequence[Array], labels: Array) -> float:
    """Mean absolute error of ``outputs[0]`` (N, …) against ``labels`` (N, …)."""
    return float(per_sample(outputs, labels).mean())
