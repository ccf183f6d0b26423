"""The user's model and data, turned into artifacts that every later stage reads.

The functions that end in ``_job`` run in a child process where the recipe names entries,
and in this process where it holds live objects.
"""

from __future__ import annotations

import hashlib
import inspect
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnxfile, rooms
from edgekit.console import track
from edgekit.errors import EdgekitError, InputError
from edgekit.onnxfile import adopt as onnxadopt
from edgekit.recipe import ExportSection, ModelSection, Preprocess
from edgekit.workload import spool
from edgekit.workload.weights import load_weights

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    Array = np.ndarray[Any, Any]

SPLITS = ("train", "calibration", "validation", "test")


def is_live(value: Any) -> bool:
    """Whether an entry is an object of this process, which no child can reach."""
    return value is not None and not isinstance(value, str)


# ── the model ────────────────────────────────────────────────────────────────────────────


def fingerprint_job(model: dict[str, Any], base: str, seed: int) -> dict[str, str]:
    """What the model is, by content: weights, example inputs and the source files of its classes.

    Returns:
        ``{"kind": "torch" or "onnx", "digest": hex, "weights": hex}``.
    """
    section = ModelSection.model_validate(model)
    if path := _model_file(section, Path(base)):
        digest = _files_digest(path)
        return {"kind": "onnx" if onnxfile.sniff(path) == "onnx" else "torch", "digest": digest, "weights": digest}
    module, example = build(section, Path(base), seed)
    weights = _state_digest(module)
    parts = [weights, _describe(example), *_sources(module, Path(base))]
    return {"kind": "torch", "digest": hashlib.sha256("\n".join(parts).encode()).hexdigest(), "weights": weights}


def load_job(model: dict[str, Any], base: str, seed: int, export: dict[str, Any], out: str) -> dict[str, Any]:
    """Write the model as ``model.pt2`` or ``model.onnx`` into the folder ``out``.

    Returns:
        ``{"path": name, "kind": "torch" or "onnx"}``; of an ONNX file also ``parity`` with the user's.

    Raises:
        InputError: The model can't be built, loaded or exported; with the module and line of the user's code.
    """
    section, settings = ModelSection.model_validate(model), ExportSection.model_validate(export)
    path = _model_file(section, Path(base))
    if path and onnxfile.sniff(path) == "onnx":
        return _load_onnx(path, settings, Path(out))
    from edgekit import exported

    if path:
        captured = exported.load(path)
        if settings.preprocess:
            captured, _ = _with_preprocessing(captured, None, settings.preprocess)
    else:
        module, example = build(section, Path(base), seed)
        if settings.preprocess:
            module, example = _with_preprocessing(module, example, settings.preprocess)
        captured = exported.capture(
            module, example, dynamic_batch=settings.dynamic_batch, dynamic_axes=settings.dynamic_axes or None
        )
    exported.save(captured, Path(out) / "model.pt2")
    return {"path": "model.pt2", "kind": "torch"}


def _load_onnx(path: Path, settings: ExportSection, out: Path) -> dict[str, Any]:
    facts = onnxadopt.normalize(path, out / "model.onnx", settings)
    return {"path": "model.onnx", "kind": "onnx", "parity": facts["parity"]}


def _model_file(section: ModelSection, base: Path) -> Path | None:
    """The ``path`` of ``[model]``, checked; None where there is an entry."""
    if section.path and section.entry is not None:
        raise InputError("[model] has both 'entry' and 'path'", remedy="keep one of them")
    if section.entry is not None:
        return None
    if not section.path:
        raise InputError("[model] names no model", remedy="add entry = 'model.py:build', or path = 'model.onnx'")
    path = base / section.path
    kind = onnxfile.sniff(path)
    if kind not in ("onnx", "pt2"):
        raise InputError(
            f"this is {kind}, not an exported program (.pt2) or an ONNX model",
            where=str(path),
            remedy="for weights alone, give the model's entry and name this file as [model] weights",
        )
    return path


def build(section: ModelSection, base: Path, seed: int) -> tuple[nn.Module, Any]:
    """Call the user's entry and load the weights; check what came back by running it once."""
    from torch import nn

    _seed(seed)
    made = section.entry
    if isinstance(made, str):
        made = rooms.call_entry(made, base, "[model]")
    elif callable(made) and not isinstance(made, nn.Module):
        made = made()
    if not (isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise InputError(
            f"[model] entry returned {type(made).__name__}, not a module and its example inputs",
            where=str(section.entry),
            remedy="return (module, example_inputs), where the example is a tensor, a tuple or a dict",
        )
    module, example = made
    if section.weights:
        load_weights(module, base / section.weights)
    return module, example


def _with_preprocessing(module: nn.Module, example: Any, settings: Preprocess) -> tuple[nn.Module, Any]:
    """Wrap the model so that its input is what the device feeds: raw uint8."""
    from edgekit.exporting.preprocessing import with_preprocessing

    return with_preprocessing(module, example, settings)


def _state_digest(module: nn.Module) -> str:
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name}{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()


def _describe(value: Any) -> str:
    """Shapes and dtypes of example inputs, as text."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ",".join(map(_describe, value)) + ")"
    return f"{getattr(value, 'dtype', type(value).__name__)}{tuple(getattr(value, 'shape', ()))}"


def _sources(module: nn.Module, base: Path) -> list[str]:
    """The hashes of the source files that the model's behaviour depends on, besides installed packages."""
    files = set()
    for part in module.modules():
        try:
            files.add(Path(inspect.getsourcefile(type(part)) or ""))
        except (TypeError, OSError):
            continue  # a class made at run time has no file
    for loaded in list(sys.modules.values()):
        place = getattr(loaded, "__file__", None)
        if place and Path(place).suffix == ".py" and base.resolve() in Path(place).resolve().parents:
            files.add(Path(place))
    own = sorted(f for f in files if f.is_file() and "site-packages" not in f.parts)
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in own]


def _files_digest(path: Path) -> str:
    """Hash of a model file and, for ONNX, of the external data beside it."""
    digest = hashlib.sha256(path.read_bytes())
    if onnxfile.sniff(path) == "onnx":
        for extra in onnxfile.external_files(path):
            digest.update(extra.read_bytes())
    return digest.hexdigest()


def _seed(seed: int) -> None:
    """Make the user's own random numbers repeatable."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


# ── the data ─────────────────────────────────────────────────────────────────────────────


def digest_job(data: Any, base: str, model: str, seed: int, limits: dict[str, int | None]) -> dict[str, Any]:
    """Read every split in ``limits`` once; tell its content's hash and size.

    Args:
        data: The recipe's ``[data] entry``, or a live object.
        base: The recipe's folder.
        model: The loaded model's file: its inputs' names, shapes and dtypes are what the batches must fit.
        seed: Set before each pass, so that the user's augmentation is repeatable.
        limits: Split → samples at most (None: all).

    Returns:
        Split → ``{"digest", "samples", "labelled"}``, None where the user gives no such split; and
        ``overlaps``: sentences about samples that the test split shares with another.

    Raises:
        InputError: No samples, NaN or infinity, a shape or dtype that does not fit the model; with batch and input.
    """
    splits = obtain_data(data, base, seed)
    found: dict[str, Any] = {}
    hashes: dict[str, list[str]] = {}
    for name, limit in limits.items():
        if split(splits, name) is None:
            found[name] = None
            continue
        digest, labelled = hashlib.sha256(), True
        hashes[name] = []
        for feeds, labels in _batches(splits, name, model, seed, limit):
            labelled = labelled and labels is not None
            hashes[name] += [spool.hash_sample(feeds, row) for row in range(len(next(iter(feeds.values()))))]
            digest.update(b"" if labels is None else labels.tobytes())
        if not hashes[name]:
            raise InputError(
                f"the split '{name}' has no samples",
                where="[data]",
                remedy="return at least one batch; an iterator can be read once only: return a list or a class",
            )
        digest.update("".join(hashes[name]).encode())
        found[name] = {"digest": digest.hexdigest(), "samples": len(hashes[name]), "labelled": labelled}
    return {**found, "overlaps": _overlaps(hashes)}


def _overlaps(hashes: dict[str, list[str]]) -> list[str]:
    """What to say of samples that the test split shares with a split that the model is fitted on."""
    test = set(hashes.get("test", ()))
    others = {name: test.intersection(hashes.get(name, ())) for name in ("train", "calibration", "validation")}
    return [
        f"{len(shared)} of {len(test)} test samples are in the '{name}' split too: "
        "the metric is told too well; keep them apart"
        for name, shared in others.items()
        if shared
    ]


def spool_job(data: Any, base: str, model: str, seed: int, limits: dict[str, int | None], out: str) -> dict[str, Any]:
    """Write each split in ``limits`` as a :class:`~edgekit.workload.spool.Spool` into ``out/SPLIT``.

    Returns:
        Split → how many samples.
    """
    splits = obtain_data(data, base, seed)
    return {
        name: spool.write(_batches(splits, name, model, seed, limit), Path(out) / name).samples
        for name, limit in limits.items()
    }


def obtain_data(data: Any, base: str, seed: int) -> Any:
    """The user's splits: what the entry returns, or the live object itself."""
    _seed(seed)
    if isinstance(data, str):
        return rooms.call_entry(data, Path(base), "[data]")
    return data() if callable(data) else data


def split(splits: Any, name: str) -> Iterable[Any] | None:
    """One split of what the data entry returned, or None; training data serve for calibration where that is missing."""
    found = splits.get(name) if isinstance(splits, Mapping) else getattr(splits, name, None)
    return split(splits, "train") if found is None and name == "calibration" else found


def _batches(
    splits: Any, name: str, model: str, seed: int, limit: int | None
) -> Iterator[tuple[dict[str, Array], Array | None]]:
    """The checked batches of a split as arrays, at most ``limit`` samples."""
    from edgekit.workload.batches import Converter

    convert = Converter(Path(model))
    _seed(seed)
    left = limit if limit is not None else sys.maxsize
    source = split(splits, name)
    assert source is not None
    for number, batch in zip(count(), track(_guarded(source, name), f"reading {name}"), strict=False):
        feeds, labels = convert(batch, f"[data] {name}, batch {number}")
        size = len(next(iter(feeds.values())))
        if size > left:
            feeds = {key: value[:left] for key, value in feeds.items()}
            labels = None if labels is None else labels[:left]
        yield feeds, labels
        left -= size
        if left <= 0:
            return


def _guarded(source: Iterable[Any], name: str) -> Iterator[Any]:
    """Iterate the user's split; what it raises is told with the batch at which it did."""
    number = 0
    try:
        for number, batch in enumerate(source):  # noqa: B007
            yield batch
    except EdgekitError:
        raise
    except Exception as error:
        raise InputError(
            f"the split '{name}' raises {type(error).__name__} after batch {number}: {error}",
            where="[data]",
            remedy="iterate it alone and mend what it says",
        ) from error
