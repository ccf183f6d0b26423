"""Half precision by casts in the graph: weights stored in 16 bits, inputs and outputs as they were.

Since TensorRT 11 a network's precision is what its graph says, so it must stand there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError, StageError
from edgekit.quantizers import _graph, _score
from edgekit.quantizers._calibrate import Collector
from edgekit.quantizers._job import Job
from edgekit.quantizers._samples import Samples

if TYPE_CHECKING:
    import onnx_ir as ir

BFLOAT16_OPSET = 22  # the first in which convolutions and pools know it
RANGED = 32  # samples on which float16's range is checked
# Operators that stay float32: indices and sizes need the digits, or the standard knows no 16-bit form.
KEPT = frozenset(("CumSum", "NonMaxSuppression", "Range", "Resize", "RoiAlign", "TopK", "Upsample"))


def halve(model: ir.Model, job: Job, name: str) -> tuple[ir.Model, dict[str, Any]]:
    """Store weights and compute in ``float16`` or ``bfloat16``.

    Raises:
        InputError: Control flow in the graph, which is named.
        StageError: A weight beyond float16's range, or outputs that overflow on the calibration data.
    """
    import onnx_ir as ir

    if name == "bfloat16":
        model = _graph.at_least(model, BFLOAT16_OPSET)
    reference = model.clone()
    half = ir.DataType.FLOAT16 if name == "float16" else ir.DataType.BFLOAT16
    _refuse_subgraphs(model)
    nodes = list(model.graph)
    _halve_initializers(model.graph, half)
    for value in list(model.graph.inputs):
        if value.dtype == ir.DataType.FLOAT:
            _after(model.graph, value, half)
    for node in nodes:
        _halve_node(model.graph, node, half)
    for index, value in enumerate(list(model.graph.outputs)):
        if value.dtype == half:
            _restore_output(model.graph, index, value)
    report: dict[str, Any] = {"method": "fp16" if name == "float16" else "bf16"}
    if job.calibration is not None and name == "float16":  # no CPU runtime computes bfloat16, so that is not judged
        _require_range(reference, Samples(job.calibration, job.settings.samples))
        report |= _score.judged(reference, model, job)
    return model, report


def _require_range(model: ir.Model, data: Samples) -> None:
    """Refuse activations beyond float16: CPU runtimes compute it in float32, and so would not show the overflow."""
    import numpy as np
    import onnx_ir as ir

    makers = {v.name or "": n for n in model.graph for v in n.outputs if v.dtype == ir.DataType.FLOAT}
    collector = Collector(model, list(makers), histogram=False)
    collector.run(replace(data, limit=min(data.limit, RANGED)))
    limit = float(np.finfo(np.float16).max)
    for name, seen in collector.statistics.items():
        if max(-seen.low, seen.high) > limit and seen.samples:
            raise StageError(
                f"tensor '{name}', made by node '{makers[name].name}' ({makers[name].op_type}), reaches "
                f"{max(-seen.low, seen.high):.3g} on the calibration data, beyond float16's 65504",
                remedy="use method = 'bf16', which has float32's range",
            )


def _refuse_subgraphs(model: ir.Model) -> None:
    for node in model.graph:
        if any(attr.type.name in ("GRAPH", "GRAPHS") for attr in node.attributes.values()):
            raise InputError(
                f"the node '{node.name}' ({node.op_type}) holds a graph of its own; casts are not carried into it",
                remedy="export the model without control flow, or use another precision for this target",
            )


def _halve_initializers(graph: ir.Graph, half: ir.DataType) -> None:
    import numpy as np
    import onnx_ir as ir

    for value in graph.initializers.values():
        if value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
            continue
        if any(node.op_type in KEPT for node in value.consumers()):
            continue
        array = value.const_value.numpy()
        if (
            half == ir.DataType.FLOAT16
            and np.abs(array[np.isfinite(array)]).max(initial=0.0) > np.finfo(np.float16).max
        ):
            raise StageError(
                f"the weight '{value.name}' holds {np.abs(array).max():.3g}, beyond float16's 65504",
                remedy="use method = 'bf16', which has float32's range",
            )
        value.const_value = ir.Tensor(array.astype(half.numpy()), dtype=half, name=value.name)
        value.type = ir.TensorType(half)


def _halve_node(graph: ir.Graph, node: ir.Node, half: ir.DataType) -> None:
    """Make a node compute in half precision; one that must not gets casts around it."""
    import onnx_ir as ir

    if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", half)
    fill = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and (fill is None or fill.as_tensor().dtype == ir.DataType.FLOAT):
        array = [0.0] if fill is None else fill.as_tensor().numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array, dtype=half))
    if node.op_type in KEPT:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == half:
                node.replace_input_with(index, _cast(graph, node, value, ir.DataType.FLOAT, f"{node.name}_in{index}"))
    for out in node.outputs:
        if out.dtype != ir.DataType.FLOAT:
            continue
        if node.op_type in KEPT:
            _after(graph, out, half)
        else:
            out.type = ir.TensorType(half)


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
    import onnx_ir as ir

    made = ir.node("Cast", [value], {"to": to}, name=name)
    made.outputs[0].name, made.outputs[0].type, made.outputs[0].shape = name, ir.TensorType(to), value.shape
    graph.insert_before(before, made)
    return made.outputs[0]


def _after(graph: ir.Graph, value: ir.Value, half: ir.DataType) -> None:
    """Let every reader of a float value read it in half precision."""
    import onnx_ir as ir

    uses = [(u.node, u.idx) for u in value.uses()]
    if not uses:
        return
    made = ir.node("Cast", [value], {"to": half}, name=f"{value.name}_half")
    out = made.outputs[0]
    out.name, out.type, out.shape = f"{value.name}_half", ir.TensorType(half), value.shape
    maker = value.producer()
    if maker is None:
        graph.insert_before(graph[0], made)
    else:
        graph.insert_after(maker, made)
    for node, index in uses:
        node.replace_input_with(index, out)


def _restore_output(graph: ir.Graph, index: int, value: ir.Value) -> None:
    """Give an output its float type and its name back."""
    import onnx_ir as ir

    made = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}_float")
    name, out = value.name, made.outputs[0]
    graph.append(made)
    graph.outputs[index] = out
    value.name, out.name, out.type, out.shape = f"{name}_half", name, ir.TensorType(ir.DataType.FLOAT), value.shape
