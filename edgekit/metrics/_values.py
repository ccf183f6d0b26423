"""What the regression metrics share: the model's first output beside its labels, value by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError, StageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def pairs(outputs: Sequence[Array], labels: Array) -> Array:
    """True and predicted values, float64 (N, 2, D).

    Args:
        outputs: The model's outputs, arrays (N, …); the first one is used.
        labels: Values (N, …), as many a sample as the output has.

    Raises:
        InputError: Another number of values than labels.
        StageError: An output is infinite.
    """
    import numpy as np

    first = outputs[0]
    if first.size != labels.size:
        raise InputError(
            f"outputs of shape {first.shape} and labels of shape {labels.shape} don't fit together",
            remedy="a regression needs one label for each value of the first output; for classes choose accuracy or f1",
        )
    n = len(labels)
    both = np.stack([labels.reshape(n, -1), first.reshape(n, -1)], axis=1).astype(np.float64)
    if not np.isfinite(both[:, 1]).all():
        bad = int((~np.isfinite(both[:, 1])).any(axis=1).argmax())
        raise StageError(
            f"the model's output for sample {bad} is infinite",
            remedy="look at the stage before: weights or a layer's range went wrong there",
        )
    return both
