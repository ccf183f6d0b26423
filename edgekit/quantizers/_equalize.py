"""Cross-layer equalization: the channels of a tensor are scaled to like ranges, and the layers around make up for it.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1; here
over whole groups of tensors that residual additions tie, and by what was seen of the activations, as SmoothQuant does
for transformers: with a scale for each output channel, weights have room that activations lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.quantizers import _graph
from edgekit.quantizers._graph import attribute, constant

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.quantizers._calibrate import Statistics
    from edgekit.quantizers._place import Plan

    Array = np.ndarray[Any, Any]

STRENGTH = 0.5  # of the migration from activations to weights
MOST = 32.0  # a channel is scaled at most so much, up or down
PASSING = frozenset(
    (
        "AveragePool",
        "Dropout",
        "Flatten",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "Relu",
    )
)


@dataclass
class Group:
    """Values whose channels must be scaled alike, the layers that make them and those that read them.

    Attributes:
        values: By name.
        makers: Convolutions and Gemms: their output channels are divided by the scale.
        passers: Depthwise convolutions within the group: their biases are.
        readers: Convolutions and Gemms: their input channels are multiplied by it.
        fixed: Something else makes or reads one of the values, so that nothing can be scaled.
    """

    values: set[str] = field(default_factory=set)
    makers: list[ir.Node] = field(default_factory=list)
    passers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    fixed: bool = False


def equalize(model: ir.Model, plan: Plan, statistics: Mapping[str, Statistics]) -> int:
    """Scale channels in place; the model computes the same. Returns how many groups of tensors changed."""
    chosen = [g for g in groups(model.graph) if any(node.name in plan.weights for node in g.readers)]
    return sum(_scale(model.graph, group, statistics) for group in chosen)


def groups(graph: ir.Graph) -> list[Group]:
    """The groups of tensors that can be scaled."""
    found: dict[str, Group] = {}

    def of(value: ir.Value) -> Group:
        return found.setdefault(value.name or "", Group({value.name or ""}))

    def join(*values: ir.Value) -> Group:
        one = of(values[0])
        for other in (of(value) for value in values[1:]):
            if other is not one:
                one.values |= other.values
                one.makers += other.makers
                one.passers += other.passers
                one.readers += other.readers
                one.fixed |= other.fixed
                found.update(dict.fromkeys(other.values, one))
        return one

    for value in (*graph.inputs, *graph.outputs):
        of(value).fixed = True
    for node in graph:
        values = [v for v in (*node.inputs, *node.outputs) if v is not None and constant(v) is None]
        kind = _kind(node)
        if kind == "layer":
            of(node.inputs[0]).readers.append(node)
            of(node.outputs[0]).makers.append(node)
        elif kind == "depthwise":
            join(*values).passers.append(node)
        elif kind == "passing":
            join(*values)
        else:
            for value in values:
                of(value).fixed = True
    unique = {id(group): group for group in found.values()}.values()
    return [group for group in unique if not group.fixed and group.makers and group.readers]


def _kind(node: ir.Node) -> str:
    """What a node means for channels: ``layer``, ``depthwise``, ``passing``, or empty for anything else."""
    value = node.outputs[0]
    if node.op_type in ("Conv", "Gemm"):
        weight, rest = constant(node.inputs[1]), [constant(v) for v in node.inputs[2:] if v is not None]
        if weight is None or any(part is None or part.size != _outputs(node, weight) for part in rest):
            return ""
        if node.op_type == "Gemm":
            plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
            return "layer" if plain and not attribute(node, "transA", 0) else ""
        count = attribute(node, "group", 1)
        return "layer" if count == 1 else "depthwise" if weight.shape[:2] == (count, 1) else ""
    if node.op_type == "Add":
        shapes = [None if v is None or v.shape is None else list(v.shape) for v in (*node.inputs, value)]
        return "passing" if None not in shapes and shapes[0] == shapes[1] == shapes[2] else ""
    if node.op_type == "Flatten":
        before = node.inputs[0].shape if node.inputs[0] is not None else None
        flat = attribute(node, "axis", 1) == 1 and before is not None and list(before)[2:] == [1] * (len(before) - 2)
        return "passing" if flat else ""
    return "passing" if node.op_type in PASSING else ""


def _outputs(node: ir.Node, weight: Array) -> int:
    axis = 1 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else 0
    return int(weight.shape[axis])


def _by_input(node: ir.Node) -> Array:
    """The magnitudes of a reader's weight as (outputs, inputs)."""
    import numpy as np

    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Gemm":
        return np.abs(weight if attribute(node, "transB", 0) else weight.T)
    return np.abs(weight).reshape(*weight.shape[:2], -1).max(axis=2)


def _scale(graph: ir.Graph, group: Group, statistics: Mapping[str, Statistics]) -> bool:
    import numpy as np

    peaks = [s.channel_peak for name in group.values if (s := statistics.get(name)) and s.channel_peak is not None]
    weights = [_by_input(node) for node in group.readers]
    if not peaks or len({len(p) for p in peaks} | {w.shape[1] for w in weights}) != 1:
        return False
    seen = np.max([peak / max(peak.max(), 1e-30) for peak in peaks], axis=0)
    used = np.max([(w / np.maximum(w.max(axis=1, keepdims=True), 1e-30)).max(axis=0) for w in weights], axis=0)
    alive = (seen > 0) & (used > 0)
    if not alive.any():
        return False
    scale = np.where(alive, np.maximum(seen, 1e-6) ** STRENGTH / np.maximum(used, 1e-6) ** (1 - STRENGTH), 1.0)
    scale = np.clip(scale / np.exp(np.log(scale[alive]).mean()), 1 / MOST, MOST)
    scale = np.where(alive, scale, 1.0).astype(np.float32)
    for node in group.makers:
        _multiply(graph, node, 1, 1 / scale, 1 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else 0)
        _multiply(graph, node, 2, 1 / scale, -1)
    for node in group.passers:
        _multiply(graph, node, 2, 1 / scale, -1)
    for node in group.readers:
        _multiply(graph, node, 1, scale, 0 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else 1)
    return True


def _multiply(graph: ir.Graph, node: ir.Node, index: int, factor: Array, axis: int) -> None:
    """Multiply a constant input along an axis."""
    from edgekit.quantizers._integers import along

    value = constant(node.inputs[index]) if len(node.inputs) > index else None
    if value is None:
        return
    fresh = value * along(factor, axis % value.ndim, value.ndim)
    name = f"{node.name}_equal_{index}" + ("_in" if axis == 1 and index == 1 else "")
    while name in graph.initializers:
        name += "_"
    node.replace_input_with(index, _graph.add_constant(graph, name, fresh.astype(value.dtype)))
