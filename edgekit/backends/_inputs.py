"""What goes into a runtime, checked before native code sees it: model files and feeds."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekit.backends._protocol import Feeds, Port, Session
from edgekit.errors import InputError

if TYPE_CHECKING:
    import numpy as np


def check_file(artifact: Path, kinds: Iterable[str]) -> None:
    """Refuse what can't be a model, before a native library opens it.

    Args:
        artifact: The file.
        kinds: Endings that the runtime reads: ``.onnx``, ``.xml`` …

    Raises:
        InputError: Missing, a folder, empty, a Git LFS pointer, a web page, or of another runtime.
    """
    where = str(artifact)
    if not artifact.is_file():
        what = "this is a folder, not a model file" if artifact.is_dir() else "no such file"
        raise InputError(what, where=where, remedy="give the path of the model file")
    if artifact.suffix not in kinds:
        raise InputError(
            f"this runtime does not read '{artifact.suffix or artifact.name}' files",
            where=where,
            remedy=f"give it one that ends in {', '.join(sorted(kinds))}, or choose another backend",
        )
    with artifact.open("rb") as file:
        head = file.read(512).lstrip()
    if not head:
        raise InputError("this file is empty", where=where, remedy="make or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise InputError("this is a Git LFS pointer, not the model", where=where, remedy="run: git lfs pull")
    if head[:15].lower().startswith((b"<!doctype", b"<html")):
        raise InputError("this is a web page, not a model", where=where, remedy="download the file itself")


def check_source(model: Path) -> None:
    """Refuse an ONNX file that is damaged, reaches outside its folder or is newer than all that is known.

    Where the onnx package is not installed (a board), the runtime's own checks have to do.

    Raises:
        InputError: What is wrong with it.
    """
    check_file(model, (".onnx",))
    if importlib.util.find_spec("onnx") is None:
        return
    import onnx

    from edgekit import onnxfile

    proto = onnxfile.read_model(model, weights=False)
    newest = onnx.defs.onnx_opset_version()
    asked = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if asked > newest:
        raise InputError(
            f"the model's operator set {asked} is newer than any that is known here ({newest})",
            where=str(model),
            remedy="export with a lower opset, or install newer onnx and runtime packages",
        )


def check_feeds(inputs: Sequence[Port], feeds: Feeds) -> None:
    """Compare feeds with a model's inputs before anything runs.

    Raises:
        InputError: A name, type or shape differs; the message holds both sides.
    """
    known = {port.name: port for port in inputs}
    if set(known) != set(feeds):
        raise InputError(
            f"the model's inputs are {sorted(known)}, but {sorted(feeds)} were given",
            remedy="name the inputs as the model does",
        )
    for name, value in feeds.items():
        port = known[name]
        if value.dtype != port.dtype:
            raise InputError(
                f"input '{name}' is {value.dtype}, the model wants {port.dtype}", remedy=f"convert it to {port.dtype}"
            )
        fits = len(value.shape) == len(port.shape) and all(
            want in (None, got) for want, got in zip(port.shape, value.shape, strict=True)
        )
        if not fits:
            want = tuple("any" if size is None else size for size in port.shape)
            raise InputError(
                f"input '{name}' has the shape {value.shape}, the model wants {want}", remedy="reshape the input"
            )


def zero_feeds(inputs: Sequence[Port], *, batch: int = 1, free: int = 32) -> dict[str, np.ndarray[Any, Any]]:
    """Zeros for every input: ``batch`` for a free first size, ``free`` for any other."""
    import numpy as np

    def sizes(port: Port) -> tuple[int, ...]:
        return tuple((batch if axis == 0 else free) if n is None else n for axis, n in enumerate(port.shape))

    return {port.name: np.zeros(sizes(port), port.dtype) for port in inputs}


def read_feeds(file: str | Path | None, inputs: Sequence[Port], batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Feeds from an ``.npz`` (input name → array), checked; zeros without one.

    Raises:
        InputError: No such file, or not what the model takes.
    """
    import numpy as np

    if file is None:
        return zero_feeds(inputs, batch=batch)
    try:
        with np.load(file, allow_pickle=False) as archive:
            values = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise InputError(
            f"can't read these inputs: {error}", where=str(file), remedy="write them with numpy.savez, by input name"
        ) from error
    check_feeds(inputs, values)
    return values


def run_batched(session: Session, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
    """One inference of any batch (N, …), in pieces where the compiled model's batch is fixed.

    A last piece that is too short is filled up with its last sample; the filling is cut off again.
    """
    import numpy as np

    fixed = {port.shape[0] for port in session.inputs if port.shape} - {None}
    total = max((len(value) for value in feeds.values() if value.ndim), default=1)
    size = cast("int", next(iter(fixed), None))
    if len(fixed) != 1 or size == total:
        return session.run(feeds)
    pieces = []
    for start in range(0, total, size):
        piece = {name: value[start : start + size] for name, value in feeds.items()}
        missing = size - min(total - start, size)
        if missing:
            piece = {n: np.concatenate([v, np.repeat(v[-1:], missing, axis=0)]) for n, v in piece.items()}
        pieces.append([out[: size - missing] for out in session.run(piece)])
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
