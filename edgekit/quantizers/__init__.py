"""Quantizers. A file here is one: it edits an ONNX graph by the target's scheme.

**The static Q/DQ form** (read by the quantization-aware training, and by everyone who wonders):

- An activation ``T`` that is integer has one ``QuantizeLinear`` named ``T_q`` and one ``DequantizeLinear``
  named ``T_dq`` behind it, with a scalar initializer ``L_scale`` (float32). ``L`` is the value that leads the group:
  ``T`` itself, or for what only moves numbers (MaxPool, Reshape …) the value that was moved, so both Q/DQ read the
  very same initializer. Zero points (the scheme's integer type) are initializers that all equal ones share.
- Where ``T`` is made by a Relu or Clip that the integers' saturation replaces, Q reads the Relu's input, and the
  Relu is gone.
- A weight ``W`` is an int8 initializer ``W_q`` (within ±127, or ±63 with 7 bits) read through ``DequantizeLinear``
  ``W_dq`` with ``W_scale`` (a vector along ``axis``, the output channels, or a scalar) and a zero point of 0.
- A bias of node ``N`` is an int32 initializer ``N_bias_q`` read through ``DequantizeLinear`` ``N_bias_dq``, whose scale
  ``N_bias_scale`` is the input's scale times the weight's, axis 0; no zero point. (Scheme ``bias = "float"``:
  left alone.)
- A constant operand ``C`` of an Add or Mul is an initializer ``C_operand_q`` of the activations' type, read through
  ``C_operand_dq``.
- A table ``E`` that a Gather takes rows of is an int8 initializer ``E_q``; behind the Gather, whose integers are now
  named ``G_integers``, a DequantizeLinear with the scalar ``E_scale`` makes the floats, named ``G`` as before.
- Graph inputs and outputs keep their names, types and free batch; the opset is 13 or above.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import child, console, onnxfile, rooms
from edgekit.errors import InputError
from edgekit.recipe import ExportSection, MetricSection, QuantizeSection
from edgekit.target import Target, checked, load_target
from edgekit.workload import spool

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.quantizers._job import Job


@dataclass(frozen=True)
class Quantized:
    """What :func:`quantize` hands back.

    Attributes:
        path: The quantized ONNX file.
        report: What was done, layer by layer (JSON).
    """

    path: Path
    report: dict[str, Any] = field(repr=False)


def quantize(
    model: Any,
    calibration: Iterable[Any],
    *,
    target: str | Target = "x86-cpu",
    method: str = "auto",
    out: str | Path = "model.onnx",
    validation: Iterable[Any] | None = None,
    metric: str | MetricSection | None = None,
    opset: int = 18,
    **settings: Any,
) -> Quantized:
    """Quantize a model for a target.

    Args:
        model: A torch module, or the path of an ``.onnx`` or ``.pt2`` file.
        calibration: Input batches (array, tensor, tuple or dict, or pairs with labels); read once, never kept whole
            in memory.
        target: A target's name, the path of its file, or a :class:`Target`.
        method: A member of ``edgekit/quantizers``, or ``auto``.
        out: The ONNX file to write.
        validation, metric: Labelled batches and the metric by which ``auto`` and ``max_drop`` judge; without them,
            signal-to-noise on held-out calibration data does.
        opset: Of the export, where ``model`` is torch.
        **settings: The other keys of the recipe's ``[quantize]``: ``calibration``, ``samples``, ``max_drop`` … (the
            way in which ranges are found is ``ranges=``, as ``calibration`` is taken).

    Raises:
        InputError: A model, target, setting or sample that is wrong.
        StageError: The quantized model is bad, or ``max_drop`` can't be held.
    """
    from edgekit.workload.batches import Converter, spooled

    chosen = target if isinstance(target, Target) else load_target(target)
    section = _section(method, settings)
    wanted = MetricSection(name=metric) if isinstance(metric, str) else metric
    with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
        folder = Path(name)
        batches, first = _peek(calibration)
        source = _source(model, first, folder, opset)
        convert = Converter(source)
        split = spooled(batches, convert, folder / "calibration", section.samples)
        judged = spooled(validation, convert, folder / "validation") if validation is not None else None
        report = child.call(
            "edgekit.quantizers:quantize_job",
            model=str(_onnx(source, folder, opset)),
            out=str(Path(out).resolve()),
            calibration=str(split.folder),
            target=chosen.model_dump(mode="json"),
            settings=section.model_dump(mode="json"),
            metric=wanted.model_dump(mode="json") if wanted and judged else None,
            validation=str(judged.folder) if judged else None,
            base=str(Path.cwd()),
        )
    return Quantized(Path(out), report)


def _section(method: str, settings: dict[str, Any]) -> QuantizeSection:
    if "ranges" in settings:
        settings = {**settings, "calibration": settings["ranges"]}
        del settings["ranges"]
    return checked(QuantizeSection, {"method": method, **settings}, Path("quantize(…)"))


def _peek(batches: Iterable[Any]) -> tuple[Iterator[Any], Any]:
    """The batches again, and the first of them."""
    try:
        iterator = iter(batches)
        first = next(iterator)
    except TypeError:
        raise InputError(
            f"the calibration data are {batches!r}"[:200], remedy="give a list or another iterable of input batches"
        ) from None
    except StopIteration:
        raise InputError(
            "the calibration data have no batch",
            remedy="give a few hundred samples of real inputs; a used-up iterator is empty",
        ) from None
    return itertools.chain([first], iterator), first


def _source(model: Any, first: Any, folder: Path, opset: int) -> Path:
    """The model as edgekit's own ``.pt2`` or ``.onnx`` file, as the recipe's line loads it.

    A torch module is captured with the first batch as its example.
    """
    if isinstance(model, str | Path) and onnxfile.sniff(model) == "onnx":
        onnxfile.normalize(model, folder / "model.onnx", ExportSection(opset=opset), _batch_shapes(first))
        return folder / "model.onnx"
    from edgekit import exported

    if isinstance(model, str | Path):
        model = exported.load(model)
    if not exported.is_exported(model):
        inputs = first[0] if isinstance(first, tuple | list) and len(first) == 2 else first
        model = exported.capture(model, _tensors(inputs))
    return exported.save(model, folder / "model.pt2")


def _batch_shapes(batch: Any) -> dict[str, list[int]] | list[list[int]]:
    """The shapes of a batch's inputs, by name where they are named."""
    from edgekit.workload.batches import as_array

    inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
    if isinstance(inputs, Mapping):
        return {name: list(as_array(value).shape) for name, value in inputs.items()}
    values = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return [list(as_array(value).shape) for value in values]


def _onnx(source: Path, folder: Path, opset: int) -> Path:
    """The simplified ONNX file of a source."""
    simple = folder / "simple.onnx"
    if source.suffix == ".pt2":
        settings = ExportSection(opset=opset).model_dump(mode="json")
        child.call("edgekit.exporting:export_job", model=str(source), settings=settings, out=str(folder / "raw.onnx"))
        source = folder / "raw.onnx"
    child.call("edgekit.exporting:simplify_job", model=str(source), out=str(simple))
    return simple


def _tensors(inputs: Any) -> Any:
    import torch

    if isinstance(inputs, dict):
        return {key: _tensors(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_tensors(value) for value in inputs)
    return torch.as_tensor(inputs)


def quantize_job(
    model: str,
    out: str,
    calibration: str | None,
    target: dict[str, Any],
    settings: dict[str, Any],
    metric: dict[str, Any] | None = None,
    validation: str | None = None,
    base: str = "",
    draft: bool = False,
) -> dict[str, Any]:
    """Quantize the ONNX file ``model`` into ``out``; meant for :func:`edgekit.child.call`.

    Args:
        model, out: ONNX files.
        calibration, validation: Spool folders.
        target, settings, metric: A :class:`Target`, :class:`QuantizeSection` and :class:`MetricSection` as JSON.
        base: The recipe's folder.
        draft: Training follows, elsewhere: what is noise so far is not refused.

    Returns:
        The report (JSON), as the quantizer wrote it.
    """
    from edgekit.quantizers import _graph
    from edgekit.quantizers._job import Job

    job = Job(
        calibration=spool.read(calibration) if calibration else None,
        target=Target.model_validate(target),
        settings=QuantizeSection.model_validate(settings),
        metric=MetricSection.model_validate(metric) if metric else None,
        validation=spool.read(validation) if validation else None,
        base=Path(base),
        draft=draft,
    )
    graph = _graph.load(Path(model))
    if found := _graph.integer_operators(graph):
        return _as_it_is(Path(model), Path(out), found, graph.producer_name or "another tool")
    method = _method(graph, job)
    room = rooms.load("quantizers", method, base=job.base)
    if job.settings.finetune and method != "qat":
        done, report = rooms.load("quantizers", "qat").trained(graph, job, method)
    else:
        done, report = room.quantize(graph, job)
    _graph.save(done, Path(out))
    return {**report, **_sizes(Path(model), Path(out))}


def _method(model: ir.Model, job: Job) -> str:
    """The member that does the work: ``auto`` is static, or dynamic where the work is an LSTM's."""
    if job.settings.method != "auto":
        return job.settings.method
    operators = {node.op_type for node in model.graph}
    if job.target.backend == "onnxruntime" and "LSTM" in operators and not operators & {"Conv"}:
        return "dynamic"
    return "static"


def _as_it_is(model: Path, out: Path, found: dict[str, int], producer: str) -> dict[str, Any]:
    """A model that another tool quantized is taken as it is: measured, explained, fine-tuned and gated like ours."""
    onnxfile.write_model(onnxfile.read_model(model), out)
    console.note(
        f"already quantized by {producer}: {', '.join(f'{n} {op}' for op, n in found.items())}; taken as it is"
    )
    return {"method": "as_it_is", "producer": producer, "operators": found, **_sizes(model, out)}


def _sizes(before: Path, after: Path) -> dict[str, int]:
    """Bytes of the model before and after, with the weights that lie beside an edgekit file."""
    parts = [[path, path.with_name(f"{path.name}.data")] for path in (before, after)]
    sizes = [sum(part.stat().st_size for part in pair if part.exists()) for pair in parts]
    return {"size_bytes_before": sizes[0], "size_bytes": sizes[1]}
