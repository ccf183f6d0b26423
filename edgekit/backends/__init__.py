"""The runtimes. A file here is one: it satisfies the protocol :class:`Backend` as a module.

Everything here is native code that can abort, so callers go through :mod:`edgekit.child`
or a measuring worker, never through their own process: the ``*_job`` functions are what
:func:`edgekit.child.call` starts.
"""

from __future__ import annotations

import base64
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from edgekit import rooms
from edgekit.errors import InputError, StageError, UnavailableError
from edgekit.target import Target, check_table, lacks

if TYPE_CHECKING:
    import numpy as np
    from pydantic import BaseModel

Table = TypeVar("Table", bound="BaseModel")

Feeds = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a compiled model; ``None`` in ``shape`` is a free size (the batch)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Time of one layer in one inference, from the runtime's own profiler.

    Attributes:
        name: The layer's name in the compiled graph.
        operator: Its kind: ``QLinearConv``, ``Convolution`` …
        milliseconds: Over the profiled inferences, as the runtime tells it.
        precision: What it computes in: ``int8``, ``fp32`` …
        bytes_moved: Activations and weights that it reads and writes, where the runtime tells; else 0.
    """

    name: str
    operator: str
    milliseconds: float
    precision: str
    bytes_moved: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerPrecision:
    """What one layer of a compiled graph computes in.

    Attributes:
        name: The layer's name. operator: Its kind.
        macs: Multiply-adds of one sample; 0 for all but convolutions and matrix products.
        precision: ``int8``, ``fp32`` …
        reason: Why it stayed float, in words; empty for int8.
    """

    name: str
    operator: str
    macs: int
    precision: str
    reason: str = ""


class Session(Protocol):
    """A loaded model. ``run`` is what is measured: nothing in it but the runtime's own call."""

    inputs: Sequence[Port]
    outputs: Sequence[Port]

    def run(self, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
        """One inference; arrays in the order of ``outputs``."""
        ...


class Backend(Protocol):
    """What a file in this folder offers."""

    EXTRA: str  # the extra of the distribution that installs the runtime
    PACKAGE: str  # its import name; "" where it needs none
    TESTED: tuple[str, str]  # the oldest and newest version that edgekit was tested with
    DEVICES: Mapping[str, dict[str, Any]]  # what ``doctor`` proves: a device's name → the options that choose it
    Options: type[BaseModel]  # what a target's ``[options]`` may say

    def probe(self) -> dict[str, str]:
        """Facts (``version``, ``devices`` …) where the runtime works here.

        Raises:
            UnavailableError: Not installed, does not load, no device, or a device too old; each with its remedy.
        """
        ...

    def version(self) -> str:
        """The runtime's version; "" where it can't be told."""
        ...

    def compile_model(self, model: Path, target: Target, out: Path) -> Path:
        """Compile an ONNX file into the folder ``out``; return the artifact's main file."""
        ...

    def open_model(self, artifact: Path, target: Target) -> Session:
        """Load an artifact that :meth:`compile_model` made, or any model file the runtime reads."""
        ...

    def profile(self, artifact: Path, target: Target, feeds: Feeds) -> list[LayerTime]:
        """Time by layer, in execution order."""
        ...

    def layers(self, artifact: Path, target: Target) -> list[LayerPrecision]:
        """What each layer of the compiled graph computes in, conversions included."""
        ...


def load(name: str, *, base: Path | None = None) -> Backend:
    """The backend of that name, or the user's own by path.

    Raises:
        InputError: No such backend.
    """
    return cast("Backend", rooms.load("backends", name, base=base))


def options_of(model: type[Table], target: Target) -> Table:
    """A target's ``[options]``, checked by its backend.

    Raises:
        InputError: An unknown option (the nearest is offered) or a wrong value, with the key.
    """
    return check_table(model, target.options, Path(f"{target.name}.toml"), "options")


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


def int8_macs_share(layers: Iterable[LayerPrecision]) -> float | None:
    """Share of the multiply-adds that run in integers; None where there are none at all."""
    macs = [(layer.macs, layer.precision) for layer in layers]
    total = sum(count for count, _ in macs)
    return sum(count for count, precision in macs if precision in INTEGER) / total if total else None


def conversions(layers: Iterable[LayerPrecision]) -> dict[str, int]:
    """How many conversions of type or layout are left in a compiled graph, by operator."""
    return dict(Counter(layer.operator for layer in layers if layer.operator in CONVERSIONS))


INTEGER = frozenset({"int4", "int8", "uint8", "i4", "i8", "u4", "u8"})
CONVERSIONS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ReorderInput", "ReorderOutput", "Cast"}
    | {"Transpose", "Reorder", "Convert", "FakeQuantize", "Reformat", "MemcpyToHost", "MemcpyFromHost"}
)


# x (1, 4) times w (4, 2), w counting from 1: an ONNX file as bytes, for a board has no onnx package.
PROOF_MODEL = (
    "CAgSB2VkZ2VraXQ6eAoYCgF4CgF3EgF5GgVwcm9vZiIGTWF0TXVsEgVwcm9vZiorCAQIAhABQgF3SiAAAIA/AAAAQAAAQEAAAIBAAACgQAAAwEAA"
    "AOBAAAAAQVoTCgF4Eg4KDAgBEggKAggBCgIIBGITCgF5Eg4KDAgBEggKAggBCgIIAkIECgAQDQ=="
)


def probe_job(name: str) -> dict[str, str]:
    """Facts about a backend that works here (see :meth:`Backend.probe`)."""
    return load(name).probe()


def version_job(name: str) -> str:
    """A runtime's version; loading it is what may fail."""
    return load(name).version()


def prove_job(backend: str, options: dict[str, Any]) -> dict[str, str]:
    """Compile and run a one-operator model; return the backend's facts.

    Args:
        backend: A backend's name or path.
        options: A target's options, for the device that they name.

    Raises:
        UnavailableError: Not here. InputError: A wrong option. StageError: It computes something wrong.
    """
    import numpy as np

    runtime = load(backend)
    proof = Target.model_validate(
        {"name": "proof", "title": "", "source": "", "backend": backend, "options": options, "device": {"arch": ""}}
    )
    options_of(runtime.Options, proof)
    facts = runtime.probe()
    with tempfile.TemporaryDirectory(prefix="edgekit-proof-") as folder:
        model, out = Path(folder, "proof.onnx"), Path(folder, "out")
        model.write_bytes(base64.b64decode(PROOF_MODEL))
        out.mkdir()
        session = runtime.open_model(runtime.compile_model(model, proof, out), proof)
        x = np.array([[1, 2, 3, 4]], np.float32)
        (y,) = session.run({"x": x})
    if not np.allclose(y, [[50, 60]], rtol=1e-2):
        raise StageError(
            f"the runtime computes a product of matrices wrongly: {y.tolist()}, not [[50, 60]]",
            where=backend,
            remedy="install another version of it",
        )
    return facts


def compile_job(model: str, target: dict[str, Any], out: str) -> dict[str, Any]:
    """Compile ``model`` into the folder ``out``; where the device must compile itself, put the ONNX file there.

    Returns:
        ``path`` (the main file's name), ``files`` (all names), ``seconds``, ``version`` of the runtime.
    """
    aim, folder = Target.model_validate(target), Path(out)
    backend = load(aim.backend)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    if aim.compile_on_device and lacks(aim):
        main, version = _copied(Path(model), folder), ""
    else:
        main, version = backend.compile_model(Path(model), aim, folder), backend.version()
    seconds = time.perf_counter() - start
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return {"path": main.name, "files": files, "seconds": seconds, "version": version}


def _copied(model: Path, folder: Path) -> Path:
    """The ONNX file as ``model.onnx``, with the files that its weights lie in."""
    from edgekit import onnxfile

    main = folder / "model.onnx"
    shutil.copyfile(model, main)
    for file in onnxfile.external_files(model):
        beside = folder / file.relative_to(model.parent)
        beside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, beside)
    return main


def layers_job(artifact: str, target: dict[str, Any]) -> list[dict[str, Any]]:
    """What each layer computes in, as JSON (see :class:`LayerPrecision`)."""
    aim = Target.model_validate(target)
    return [asdict(layer) for layer in load(aim.backend).layers(Path(artifact), aim)]


def profile_job(artifact: str, target: dict[str, Any], feeds: str | None = None) -> list[dict[str, Any]]:
    """Time by layer, as JSON (see :class:`LayerTime`); ``feeds``: an ``.npz`` by input name, or zeros.

    Raises:
        UnavailableError: This machine is not the target's device, so its times would not be the device's.
    """
    aim = Target.model_validate(target)
    if lacking := lacks(aim):
        raise UnavailableError(
            f"can't profile for {aim.name} here, because {lacking}", remedy="profile on the device itself"
        )
    backend = load(aim.backend)
    values = read_feeds(feeds, backend.open_model(Path(artifact), aim).inputs, aim.run.batch)
    return [asdict(layer) for layer in backend.profile(Path(artifact), aim, values)]
