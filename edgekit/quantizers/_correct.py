"""Changes of the float model that make it lose less in integers; each computes the same in float, or mends a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.quantizers import _graph, _integers
from edgekit.quantizers._calibrate import Statistics
from edgekit.quantizers._graph import attribute, constant
from edgekit.quantizers._place import Plan, weight_of

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.quantizers._draft import Draft

    Array = np.ndarray[Any, Any]

STRENGTH = 0.5  # of the migration from activations to weights, as in the paper


def channel_axes(model: ir.Model, plan: Plan) -> dict[str, int]:
    """The channels' axis of every activation that a compute node with weights reads."""
    found = {}
    for node in model.graph:
        if node.name in plan.weights:
            value = node.inputs[1 - plan.weights[node.name][0]]
            found[(value.name or "") if value is not None else ""] = (
                1 if node.op_type in ("Conv", "ConvTranspose") else -1
            )
    return found


def correct_biases(model: ir.Model, draft: Draft, statistics: Mapping[str, Statistics]) -> int:
    """Take the mean error of a draft's rounded weights out of the biases of its graph, in place (fast bias correction).

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
    section 4.2, with the input's mean measured. Returns how many biases changed.
    """
    count = 0
    for node in list(model.graph):
        if node.name not in draft.plan.weights or draft.plan.weights[node.name][0] != 1:
            continue
        weight, source = constant(node.inputs[1]), node.inputs[0]
        mean = statistics[source.name or ""].channel_mean if source is not None else None
        if weight is None or mean is None:
            continue
        axis = draft.plan.weights[node.name][1] if draft.scheme.per_channel else None
        affine = _integers.weight(weight, axis, draft.bits.get(node.name, draft.scheme.weight_bits))
        integers = draft.weights.get(node.name)
        if integers is None:
            integers = _integers.quantize(weight, affine, axis)
        shift = _mean_output(node, weight - _integers.dequantize(integers, affine, axis), mean)
        count += shift_bias(model.graph, node, shift.astype("float32"))
    return count


def _mean_output(node: ir.Node, weight: Array, mean: Array) -> Array:
    """What a compute node with this weight gives on average, for each output channel."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(axis=-1)
        return (taps @ mean.reshape(groups, -1, 1)).reshape(-1)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return weight @ mean
    return mean @ weight


def shift_bias(graph: ir.Graph, node: ir.Node, shift: Array) -> bool:
    """Add to a node's bias; one is made where there is none."""
    if node.op_type == "MatMul":
        return _shift_following_add(graph, node, shift)
    before = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and (before is None or before.size not in (1, shift.size)):
        return False
    fresh = shift if before is None else before.reshape(-1) + shift
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, _graph.add_constant(graph, f"{node.name}_corrected_bias", fresh))
    return True


def _shift_following_add(graph: ir.Graph, node: ir.Node, shift: Array) -> bool:
    readers = node.outputs[0].consumers()
    if len(readers) != 1 or readers[0].op_type != "Add":
        return False
    for index, value in enumerate(readers[0].inputs):
        bias = constant(value)
        if bias is not None and bias.size == shift.size:
            fresh = bias + shift.reshape(bias.shape)
            readers[0].replace_input_with(index, _graph.add_constant(graph, f"{node.name}_corrected_bias", fresh))
            return True
    return False


def smooth(model: ir.Model, plan: Plan, statistics: Mapping[str, Statistics]) -> int:
    """Move outliers of a LayerNormalization's output into the weights that read it, in place.

    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models", ICML 2023. Returns how many normalizations changed.
    """
    return sum(_smooth_one(model.graph, node, plan, statistics) for node in list(model.graph))


def _smooth_one(graph: ir.Graph, norm: ir.Node, plan: Plan, statistics: Mapping[str, Statistics]) -> bool:
    import numpy as np

    if norm.op_type != "LayerNormalization" or attribute(norm, "axis", -1) not in (
        -1,
        (_graph.rank(norm.outputs[0]) or 0) - 1,
    ):
        return False
    value, readers = norm.outputs[0], norm.outputs[0].consumers()
    seen = statistics.get(value.name or "")
    affine = [constant(v) for v in norm.inputs[1:]]
    if seen is None or seen.channel_peak is None or any(a is None for a in affine) or value.is_graph_output():
        return False
    weights = [constant(node.inputs[1]) if node.name in plan.weights and weight_of(node) else None for node in readers]
    if not readers or any(w is None or w.ndim != 2 for w in weights):
        return False
    rows = [
        w if not attribute(node, "transB", 0) else w.T
        for node, w in zip(readers, weights, strict=True)
        if w is not None
    ]
    widest = np.max([np.abs(w).max(axis=1) for w in rows], axis=0)
    scale = seen.channel_peak**STRENGTH / np.maximum(widest, 1e-8) ** (1 - STRENGTH)
    scale = np.where((seen.channel_peak > 0) & (widest > 0), scale, 1.0)
    for index, part in enumerate(affine, 1):
        if part is not None:
            fresh = (part / scale).astype(part.dtype)
            norm.replace_input_with(index, _graph.add_constant(graph, f"{norm.name}_smooth_{index}", fresh))
    for node, w in zip(readers, rows, strict=True):
        fresh = (w * scale[:, None]).astype(w.dtype)
        fresh = np.ascontiguousarray(fresh.T) if attribute(node, "transB", 0) else fresh
        node.replace_input_with(1, _graph.add_constant(graph, f"{node.name}_smooth_weight", fresh))
    return True
