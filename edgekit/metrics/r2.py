"""R²: the share of the labels' variance that the model explains, at most 1, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.metrics import _values

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

HIGHER_IS_BETTER = True


def per_sample(outputs: Sequence[Array], labels: Array) -> Array:
    """True and predicted values of each sample, float64 (N, 2, D)."""
    return _values.pairs(outputs, labels)


def combine(parts: Array) -> float:
    """R² over what :func:`per_sample` gave, the mean over the D values of a sample.

    Raises:
        InputError: The labels of some value are all the same: it has no variance to explain.
    """
    from sklearn.metrics import r2_score

    if (parts[:, 0].min(axis=0) == parts[:, 0].max(axis=0)).any():
        raise InputError(
            "R² is not defined here: a value's labels are all the same",
            remedy="give more samples, or choose mse, rmse or mae",
        )
    return float(r2_score(parts[:, 0], parts[:, 1]))


def score(outputs: Sequence[Array], labels: Array) -> float:
    """R² of ``outputs[0]`` (N, …) against ``labels`` (N, …)."""
    return combine(per_sample(outputs, labels))
