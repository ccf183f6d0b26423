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
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from edgekit import child, rooms
from edgekit.backends._inputs import check_feeds, check_file, check_source, read_feeds, run_batched, zero_feeds
from edgekit.backends._protocol import Backend, Feeds, LayerPrecision, LayerTime, Port, Session
from edgekit.errors import InputError, StageError, UnavailableError
from edgekit.target import Target, check_table, lacks

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "Backend",
    "Feeds",
    "LayerPrecision",
    "LayerTime",
    "Port",
    "Session",
    "check_feeds",
    "check_file",
    "check_source",
    "conversions",
    "int8_macs_share",
    "load",
    "options_of",
    "prove_sound",
    "read_feeds",
    "run_batched",
    "zero_feeds",
]

Table = TypeVar("Table", bound="BaseModel")

CHECK_S = 300.0  # for one file's check
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


def int8_macs_share(layers: Iterable[LayerPrecision]) -> float | None:
    """Share of the multiply-adds that run in integers; None where there are none at all."""
    macs = [(layer.macs, layer.precision) for layer in layers]
    total = sum(count for count, _ in macs)
    return sum(count for count, precision in macs if precision in INTEGER) / total if total else None


def conversions(layers: Iterable[LayerPrecision]) -> dict[str, int]:
    """How many conversions of type or layout are left in a compiled graph, by operator."""
    return dict(Counter(layer.operator for layer in layers if layer.operator in CONVERSIONS))


def probe_job(name: str) -> dict[str, str]:
    """Facts about a backend that works here (see :meth:`Backend.probe`)."""
    return load(name).probe()


def prove_sound(model: Path) -> None:
    """:func:`check_source` in a process of its own, for a file that the user gave: parsers are native code.

    Raises:
        InputError: What is wrong with it, also where it kills the parser.
    """
    try:
        child.call("edgekit.backends:check_source_job", model=str(model), timeout_s=CHECK_S)
    except StageError as error:
        raise InputError(
            f"this ONNX file can't be read: {error.problem}",
            where=str(model),
            remedy="export it again; if it was downloaded, compare its checksum with the publisher's",
            details=error.details,
        ) from error


def check_source_job(model: str) -> None:
    """See :func:`check_source`."""
    check_source(Path(model))


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
    aim, folder, source = Target.model_validate(target), Path(out), Path(model)
    check_source(source)
    backend = load(aim.backend)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    if aim.compile_on_device and lacks(aim):
        main, version = _copied(source, folder), ""
    else:
        main, version = backend.compile_model(source, aim, folder), backend.version()
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
