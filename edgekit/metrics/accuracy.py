"""Accuracy: the share of labels that the model's top class hits, 0 to 1.

For outputs by pixel or token it is the mean over the samples of each sample's share.
"""

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
    """The share of each sample's labels that is hit, float64 (N,): 0 or 1 where a sample has one label."""
    found = _classes.positions(outputs, labels, ignore)
    return _classes.share(_classes.decisions(found, threshold) == found.labels, found.counted)


def score(outputs: Sequence[Array], labels: Array, ignore: int | None = None, threshold: float | None = None) -> float:
    """Accuracy of ``outputs[0]``, scores or classes, against ``labels``.

    Args:
        outputs: Arrays (N, …). labels: Integers (N, …).
        ignore: A label that does not count. threshold: Of a binary decision.
    """
    return float(per_sample(outputs, labels, ignore, threshold).mean())
