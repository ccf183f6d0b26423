"""Top-k accuracy: the share of labels among the model's k highest classes, 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.metrics import _classes

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

HIGHER_IS_BETTER = True


def per_sample(outputs: Sequence[Array], labels: Array, k: int = 5, ignore: int | None = None) -> Array:
    """The share of each sample's labels that is among the top k, float64 (N,).

    Raises:
        InputError: ``k`` is not between 1 and the number of classes less one (then it would always be 1).
    """
    import numpy as np

    found = _classes.positions(outputs, labels, ignore)
    classes = found.scores.shape[2]
    if not 1 <= k < classes:
        raise InputError(
            f"top_k with k = {k} says nothing about a model with {classes} classes",
            where="[metric] options.k",
            remedy=f"choose k from 1 to {classes - 1}" if classes > 1 else "choose accuracy: the output has one score",
        )
    safe = np.where(found.counted, found.labels, 0)[..., None]
    own = np.take_along_axis(found.scores, safe, axis=2)
    ahead = (found.scores > own) | ((found.scores == own) & (np.arange(classes) < safe))  # as arg-max breaks ties
    return _classes.share(ahead.sum(axis=2) < k, found.counted)


def score(outputs: Sequence[Array], labels: Array, k: int = 5, ignore: int | None = None) -> float:
    """Top-k accuracy of ``outputs[0]``, scores (N, C, …), against ``labels``, integers (N, …)."""
    return float(per_sample(outputs, labels, k, ignore).mean())
