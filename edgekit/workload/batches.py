"""A user's batch, whatever its form, as arrays by input name that fit the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnxfile
from edgekit.errors import InputError
from edgekit.workload import spool

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Converter:
    """Turns batches ``(inputs, labels)`` or ``inputs`` into ``(feeds, labels)``.

    Args:
        model: The loaded model, ``.pt2`` or ``.onnx``, whose inputs the batches must fit.
    """

    def __init__(self, model: Path) -> None:
        if model.suffix == ".pt2":
            from edgekit import exported

            self._captured: Any = exported.load(model)
            signature = exported.signature(self._captured)
            self._wanted = {
                name: (
                    str(value.dtype).removeprefix("torch."),
                    tuple(None if axis in signature.dynamic.get(name, {}) else n for axis, n in enumerate(value.shape)),
                )
                for name, value in signature.example.items()
            }
        else:
            self._captured = None
            self._wanted = {port.name: (port.dtype, port.shape) for port in onnxfile.inputs(model)}

    def __call__(self, batch: Any, where: str) -> tuple[dict[str, Array], Array | None]:
        """Convert one batch.

        Raises:
            InputError: An input that is missing, has another shape or dtype, or holds NaN or infinity.
        """
        inputs, labels = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
        feeds = self._by_name(inputs, where)
        for name, (dtype, shape) in self._wanted.items():
            self._check(name, feeds.get(name), dtype, shape, where)
        target = None if labels is None else as_array(labels)
        if target is not None and len(target) != len(next(iter(feeds.values()))):
            raise InputError(
                f"{len(target)} labels for {len(next(iter(feeds.values())))} samples",
                where=where,
                remedy="give one label for each sample",
            )
        return {name: feeds[name] for name in self._wanted}, target

    def _by_name(self, inputs: Any, where: str) -> dict[str, Array]:
        if self._captured is not None:
            from edgekit import exported

            try:
                return {name: as_array(value) for name, value in exported.feeds_of(self._captured, inputs).items()}
            except InputError as error:
                raise InputError(error.problem, where=where, remedy=error.remedy) from error
        if isinstance(inputs, Mapping):
            return {name: as_array(value) for name, value in inputs.items()}
        values = inputs if isinstance(inputs, tuple | list) else (inputs,)
        return {name: as_array(value) for name, value in zip(self._wanted, values, strict=False)}

    @staticmethod
    def _check(name: str, value: Array | None, dtype: str, shape: tuple[int | None, ...], where: str) -> None:
        import numpy as np

        if value is None:
            raise InputError(f"the input '{name}' is missing", where=where, remedy="give every input of the model")
        if str(value.dtype) != dtype:
            raise InputError(
                f"the input '{name}' is {value.dtype}; the model takes {dtype}",
                where=where,
                remedy=f"convert it, for example with .astype('{dtype}') or .to(torch.{dtype})",
            )
        rest = zip(value.shape[1:], shape[1:], strict=False)  # the batch is the data's own affair
        if value.ndim != len(shape) or any(wanted not in (None, n) for n, wanted in rest):
            wanted = " × ".join("any" if n is None else str(n) for n in shape)
            raise InputError(
                f"the input '{name}' has shape {tuple(value.shape)}; the model takes {wanted}",
                where=where,
                remedy="give it that shape, or make the axis free with [export] dynamic_axes",
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            bad = int(np.argwhere(~np.isfinite(value.reshape(len(value), -1)))[0][0])
            raise InputError(
                f"the input '{name}' holds NaN or infinity (sample {bad} of the batch)",
                where=where,
                remedy="clean the data; one such value spoils every range that is measured on it",
            )


def spooled(batches: Iterable[Any], convert: Converter, folder: Path, limit: int | None = None) -> spool.Spool:
    """Write batches to disk until there are ``limit`` samples: an endless iterator is no problem."""

    def enough() -> Iterator[Any]:
        count = 0
        for number, batch in enumerate(batches):
            feeds, labels = convert(batch, f"{folder.name} batch {number}")
            yield feeds, labels
            count += len(next(iter(feeds.values())))
            if limit is not None and count >= limit:
                return

    return spool.write(enough(), folder)


def as_array(value: Any) -> Array:
    """A tensor, array, list or number as a numpy array, at least one-dimensional."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.atleast_1d(np.asarray(value))
