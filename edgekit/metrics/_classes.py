"""What the classification metrics share: the model's first output beside its labels, position by position.

A *position* is what carries one label: the sample itself, or each pixel or token of it. Outputs may be

* scores by class: (N, C), (N, C, H, W, …) or, for tokens, (N, T, C);
* one score for a binary decision: (N,), (N, 1), (N, 1, H, W), or (N, L) beside labels (N, L);
* the classes themselves, as integers, where the model ends in an arg-max.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_SLACK = 0.01  # an int8 sigmoid may end a step outside of [0, 1]


@dataclass(frozen=True)
class Positions:
    """Scores and labels by position.

    Attributes:
        scores: (N, P, C) scores by class; C is 1 for a binary decision.
        labels: (N, P) integers.
        counted: (N, P) whether the position counts (its label is not the one to ignore).
        decided: The outputs are classes already: ``scores`` holds them, C is 1.
    """

    scores: Array
    labels: Array
    counted: Array
    decided: bool = False

    @property
    def binary(self) -> bool:
        """Whether one score decides between two classes."""
        return self.scores.shape[2] == 1 and not self.decided


def positions(outputs: Sequence[Array], labels: Array, ignore: int | None = None) -> Positions:
    """Bring the first output and the labels into one shape.

    Args:
        outputs: The model's outputs, arrays (N, …); the first one is used.
        labels: Integers (N, …), one-hot rows (N, C), or 0 and 1 for each of L binary decisions (N, L).
        ignore: Label of the positions that don't count (255 in many segmentation sets, -100 for tokens).

    Raises:
        InputError: Shapes that don't fit, labels that are no whole numbers, or out of range.
    """
    import numpy as np

    first = outputs[0]
    scores, labels = _shapes(first, _whole(_one_hot(first, labels)))
    decided = bool(np.issubdtype(first.dtype, np.integer)) and scores.shape[2] == 1
    counted = np.ones(labels.shape, bool) if ignore is None else labels != ignore
    if not counted.any():
        raise InputError("every label is the one to ignore", remedy="check [metric] options.ignore and the labels")
    found = Positions(scores, labels, counted, decided)
    _check_range(found)
    return found


def decisions(found: Positions, threshold: float | None = None) -> Array:
    """The class decided at each position, integers (N, P); of equal scores the first class wins.

    Args:
        found: What :func:`positions` gave.
        threshold: Of a binary decision; None: 0.5 where every score is a probability, else 0.
    """
    import numpy as np

    if found.decided:
        return found.scores[..., 0].astype(np.int64)
    if not found.binary:
        return found.scores.argmax(axis=2)
    scores = found.scores[..., 0]
    limit = threshold if threshold is not None else (0.5 if is_probability(scores) else 0.0)
    return (scores > limit).astype(np.int64)


def is_probability(scores: Array) -> bool:
    """Whether every score lies in [0, 1], give or take one step of an int8 output."""
    return bool(scores.min() >= -_SLACK and scores.max() <= 1 + _SLACK)


def pairs(outputs: Sequence[Array], labels: Array, ignore: int | None, threshold: float | None) -> Array:
    """Label and decision at each position, integers (N, 2, P); both are -1 where the position doesn't count."""
    import numpy as np

    found = positions(outputs, labels, ignore)
    both = np.stack([found.labels, decisions(found, threshold)], axis=1)
    return np.where(found.counted[:, None], both, -1)


def confusion(parts: Array) -> tuple[Array, Array, Array]:
    """The cells of the confusion matrix that are not empty: label, decision, count, each (cells,)."""
    import numpy as np

    truth, decided = parts[:, 0].ravel(), parts[:, 1].ravel()
    classes = int(max(truth.max(), decided.max())) + 1
    counted = truth >= 0
    cells = np.bincount(truth[counted] * classes + decided[counted], minlength=1)
    (used,) = cells.nonzero()
    return used // classes, used % classes, cells[used]


def share(hit: Array, counted: Array) -> Array:
    """Each sample's share of hits among the positions that count, float64 (N,).

    A sample without any such position has no share; it gets the mean of the others, which changes nothing.
    """
    import numpy as np

    total = counted.sum(axis=1)
    shares = (hit & counted).sum(axis=1) / np.maximum(total, 1)
    return np.where(total > 0, shares, shares[total > 0].mean())


def prf(parts: Array, average: str | None) -> tuple[float, float, float]:
    """Precision, recall and F1 by scikit-learn over :func:`pairs`, whose cells it weighs.

    Args:
        parts: Integers (N, 2, P).
        average: As scikit-learn's; None: ``binary`` where there are two classes at most, else ``macro``.
    """
    from sklearn.metrics import precision_recall_fscore_support

    truth, decided, count = confusion(parts)
    chosen = average or ("binary" if max(truth.max(), decided.max()) <= 1 else "macro")
    values = precision_recall_fscore_support(truth, decided, average=chosen, sample_weight=count, zero_division=0.0)
    return float(values[0]), float(values[1]), float(values[2])


def _one_hot(first: Array, labels: Array) -> Array:
    """Labels (N,) of one-hot rows (N, C); other labels as they are."""
    import numpy as np

    same = labels.ndim == 2 and labels.shape == first.shape and labels.shape[1] > 1
    if same and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
        return labels.argmax(axis=1)
    return labels


def _whole(labels: Array) -> Array:
    import numpy as np

    if labels.dtype.kind not in "biuf":
        raise InputError(f"the labels are of type {labels.dtype}", remedy="give the classes as integers, from 0 on")
    whole = labels.astype(np.int64)
    if labels.dtype.kind == "f" and (whole != labels).any():
        bad = int((whole != labels).reshape(len(labels), -1).any(axis=1).argmax())
        raise InputError(
            f"the label of sample {bad} is {np.ravel(labels[bad])[0]}: no whole number, so no class",
            remedy="give the classes as integers, from 0 on; for values to be predicted choose mse, rmse, mae or r2",
        )
    return whole


def _shapes(first: Array, labels: Array) -> tuple[Array, Array]:
    """Scores (N, P, C) and labels (N, P), by the shapes alone."""
    import numpy as np

    n = len(labels)
    if labels.ndim > 1 and labels.shape[1] == 1:
        labels = labels[:, 0] if first.ndim == labels.ndim or labels.ndim == 2 else labels
    flat = labels.reshape(n, -1)
    if first.ndim == labels.ndim + 1 and first.shape[2:] == labels.shape[1:]:  # torch's way: (N, C, …)
        return np.moveaxis(first.reshape(n, first.shape[1], -1), 1, 2), flat
    if first.ndim == labels.ndim + 1 and first.shape[1:-1] == labels.shape[1:]:  # tokens: (N, T, C)
        return first.reshape(n, -1, first.shape[-1]), flat
    if first.size == flat.size:
        return first.reshape(n, -1, 1), flat
    raise InputError(
        f"outputs of shape {first.shape} and labels of shape {labels.shape} don't fit together",
        remedy="classes need outputs (N, C) or (N, C, H, W) and labels (N,) or (N, H, W); or write your own metric",
    )


def _check_range(found: Positions) -> None:
    top = max(int(found.scores.max()), int(found.labels.max()))  # classes decided inside of the model have no other end
    classes = top + 1 if found.decided else max(2, found.scores.shape[2])
    wrong = found.counted & ((found.labels < 0) | (found.labels >= classes))
    if not wrong.any():
        return
    sample = int(wrong.any(axis=1).argmax())
    label = int(found.labels[sample][wrong[sample]][0])
    what = "one score for two classes" if found.binary else f"{classes} classes"
    raise InputError(
        f"the label of sample {sample} is {label}, but the model's output has {what} (labels 0 to {classes - 1})",
        remedy="check the data set's labels and the model's number of classes; "
        "for positions that don't count set [metric] options.ignore to their label",
    )
