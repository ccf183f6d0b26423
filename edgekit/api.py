"""The Python verbs that make a file: ``edgekit.export`` and ``edgekit.compile``."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import child
from edgekit.errors import InputError
from edgekit.recipe import ExportSection
from edgekit.store import copy_file
from edgekit.target import Target, checked, load_target

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Made:
    """A file that edgekit made.

    Attributes:
        path: The file itself.
        files: All files that belong to it.
        report: What its making told: ``parity``, ``nodes``, ``opset`` of an export; ``seconds``,
            ``version`` of a compilation.
    """

    path: Path
    files: tuple[Path, ...]
    report: dict[str, Any] = field(repr=False)


def export(
    model: nn.Module | str | Path, example_inputs: Any = None, out: str | Path = "model.onnx", **settings: Any
) -> Made:
    """Export a torch module to ONNX, simplify it, and check that each step computes the same.

    Args:
        model: A trained module (it is not changed), one that :func:`edgekit.prune` or :func:`edgekit.load` gave,
            or the path of a ``.pt2`` or ``.onnx`` file.
        example_inputs: A tensor, tuple or dict that ``model`` can be called with; not needed for an exported
            module or a file.
        out: The file to write; weights over 2 GiB lie in ``OUT.data`` beside it.
        **settings: As in a recipe's ``[export]``: ``opset``, ``dynamic_batch``, ``dynamic_axes``, ``shapes``,
            ``simplify``, ``preprocess``.

    Returns:
        The file, and ``report["parity"]``: the greatest absolute and relative difference from the module.

    Raises:
        InputError: The model can't be exported; with the module and line of the user's code.
        StageError: The graph computes something else; with the first node that does.
    """
    section = checked(ExportSection, settings, Path("export(…)"))
    target = Path(out)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        raw, simple = Path(folder, "raw", target.name), Path(folder, "simple", target.name)
        report = _to_onnx(model, example_inputs, section, raw)
        if section.simplify:
            simplified = child.call("edgekit.exporting:simplify_job", model=str(raw), out=str(simple))
            report = {**report, **simplified, "parity": _worse(report["parity"], simplified["parity"])}
        files = _delivered((simple if section.simplify else raw).parent, target)
    return Made(target, files, report)


def compile(model_path: str | Path, target: str | Target = "x86-cpu", out: str | Path = "compiled") -> Made:
    """Compile an ONNX file for a target.

    Args:
        model_path: The ONNX file.
        target: A target's name, the path of its ``.toml``, or a :class:`~edgekit.target.Target`.
        out: The folder for the artifact.

    Returns:
        The artifact; measure it with :func:`edgekit.benchmark`.

    Raises:
        InputError: No sound ONNX file, or no such target.
        UnavailableError: The target's runtime can't be used here.
        StageError: The runtime failed.
    """
    from edgekit import backends

    aim = target if isinstance(target, Target) else load_target(target)
    backends.prove_sound(Path(model_path))
    report = child.call(
        "edgekit.backends:compile_job", model=str(model_path), target=aim.model_dump(mode="json"), out=str(out)
    )
    folder = Path(out)
    return Made(folder / report["path"], tuple(folder / name for name in report["files"]), report)


def _to_onnx(model: Any, example: Any, section: ExportSection, out: Path) -> dict[str, Any]:
    """Write the unsimplified graph."""
    from edgekit import exported, onnxfile

    settings = section.model_dump(mode="json")
    if isinstance(model, str | Path):
        if onnxfile.sniff(model) == "onnx":
            return onnxfile.normalize(model, out, section)
        model = exported.load(model)
    source = _captured(model, example, section, out.parent.parent)
    return child.call("edgekit.exporting:export_job", model=str(source), settings=settings, out=str(out))


def _captured(model: nn.Module, example: Any, section: ExportSection, folder: Path) -> Path:
    from edgekit import exported
    from edgekit.exporting.preprocessing import with_preprocessing

    if example is None and exported.is_exported(model):
        example = exported.signature(model).example
    if example is None:
        raise InputError(
            "no example inputs were given", remedy="pass a tensor, tuple or dict that the model can be called with"
        )
    if section.preprocess:
        model, example = with_preprocessing(model, example, section.preprocess)
    if not exported.is_exported(model):
        model = exported.capture(
            model, example, dynamic_batch=section.dynamic_batch, dynamic_axes=section.dynamic_axes or None
        )
    return exported.save(model, folder / "captured.pt2")


def _worse(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, Any]:
    """The sum of two steps' differences bounds the difference over both."""
    a, b = a or {}, b or {}
    both = {key: a.get(key, 0.0) + b.get(key, 0.0) for key in ("max_abs", "max_rel")}
    return {**both, "samples": max(a.get("samples", 0), b.get("samples", 0))}


def _delivered(folder: Path, target: Path) -> tuple[Path, ...]:
    """Copy finished files to where the user wants them, the graph itself last."""
    found = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
    return tuple(copy_file(file, target.parent / file.name) for file in found)
