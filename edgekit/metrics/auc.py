"""AUC: the area under the ROC curve, 0 to 1, by scikit-learn; for many classes one against the rest, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.metrics import _classes

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

HIGHER_IS_BETTER = True


def per_sample(outputs: Sequence[Array], labels: Array) -> Array:
    """Label and scores of each sample, float64 (N, 1 + S): S is 1 for two classes, else C.

    Raises:
        InputError: The output has no scores, or more than one label a sample.
    """
    import numpy as np

    found = _classes.positions(outputs, labels)
    if found.decided or found.labels.shape[1] > 1:
        raise InputError(
            "AUC needs scores and one label for each sample",
            remedy="let the model return its scores, not the class; or choose accuracy or f1",
        )
    scores = found.scores[:, 0].astype(np.float64)
    if scores.shape[1] == 2:
        scores = scores[:, 1:] - scores[:, :1]
    elif scores.shape[1] > 2:
        scores = _shares(scores)
    return np.concatenate([found.labels, scores], axis=1)


def combine(parts: Array, average: str = "macro") -> float:
    """AUC over what :func:`per_sample` gave.

    Raises:
        InputError: A class has no sample, so that its curve is not defined.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score

    labels, scores = parts[:, 0].astype(np.int64), parts[:, 1:]
    classes = max(2, scores.shape[1])
    if missing := sorted(set(range(classes)) - set(labels.tolist())):
        raise InputError(
            f"AUC is not defined here: no sample has the label {missing[0]}",
            remedy="give samples of every class, or choose accuracy or f1",
        )
    if scores.shape[1] == 1:
        return float(roc_auc_score(labels, scores[:, 0]))
    return float(roc_auc_score(labels, scores, multi_class="ovr", average=average, labels=np.arange(classes)))


def score(outputs: Sequence[Array], labels: Array, average: str = "macro") -> float:
    """AUC of ``outputs[0]``, scores (N,), (N, 1) or (N, C), against ``labels``, integers (N,).

    Args:
        outputs: Arrays (N, …). labels: Integers (N,).
        average: For more than two classes: ``macro`` or ``weighted``.
    """
    return combine(per_sample(outputs, labels), average)


def _shares(scores: Array) -> Array:
    """Scores as probabilities (N, C): as they are where each row is one already, else their softmax."""
    import numpy as np

    rows = scores.sum(axis=1, keepdims=True)
    if scores.min() >= 0 and np.abs(rows - 1).max() < 0.05:  # int8 probabilities don't add up to the last digit
        return scores / rows
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
