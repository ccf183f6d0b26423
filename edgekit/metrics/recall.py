"""Recall: the share of a class that was found, 0 to 1, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.metrics import _classes

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

HIGHER_IS_BETTER = True


def per_sample(
    outputs: Sequence[Array], labels: Array, ignore: int | None = None, threshold: float | None = None
) -> Array:
    """Label and decision at each position, integers (N, 2, P)."""
    return _classes.pairs(outputs, labels, ignore, threshold)


def combine(parts: Array, average: str | None = None) -> float:
    """Recall over what :func:`per_sample` gave."""
    return _classes.prf(parts, average)[1]


def score(
    outputs: Sequence[Array],
    labels: Array,
    average: str | None = None,
    ignore: int | None = None,
    threshold: float | None = None,
) -> float:
    """Recall of ``outputs[0]``, scores or classes, against ``labels``.

    Args:
        outputs: Arrays (N, …). labels: Integers (N, …).
        average: ``binary``, ``macro``, ``micro`` or ``weighted``; None: ``binary`` for two classes, else ``macro``.
        ignore: A label that does not count. threshold: Of a binary decision.
    """
    return combine(per_sample(outputs, labels, ignore, threshold), average)
