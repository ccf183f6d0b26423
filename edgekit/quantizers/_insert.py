"""Q/DQ is put into a float graph by a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.quantizers import _integers, _silu
from edgekit.quantizers._graph import add_constant, constant
from edgekit.quantizers._integers import Affine
from edgekit.quantizers._place import CLIPS, Plan

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.scheme import Scheme

    Array = np.ndarray[Any, Any]


def insert(
    model: ir.Model,
    plan: Plan,
    ranges: Mapping[str, tuple[float, float]],
    scheme: Scheme,
    *,
    weights: Mapping[str, Array] | None = None,
    bits: Mapping[str, int] | None = None,
) -> ir.Model:
    """Put Q/DQ into ``model`` (in place) and return it.

    Args:
        model: The float model that ``plan`` was made for.
        plan: Where.
        ranges: ``(low, high)`` of every value in the plan.
        scheme: The target's.
        weights: int8 weights by node, where they were rounded for the layer's output; nearest otherwise.
        bits: Bits of a node's weight, where it isn't the scheme's.
    """
    from onnx_ir.passes import common

    affines = _affines(plan, ranges, scheme)
    nodes = {node.name: node for node in model.graph}
    chosen = [nodes[name] for name in plan.nodes]
    # Weights and biases first: they look up the scale of the float value that the node still reads.
    for node in chosen:
        name = node.name or ""
        if name in plan.weights:
            index, axis = plan.weights[name]
            width = (bits or {}).get(name, scheme.weight_bits)
            _weigh(
                model.graph,
                node,
                index,
                axis if scheme.per_channel else None,
                affines,
                scheme,
                width,
                (weights or {}).get(name),
            )
    for name, index in plan.constants:
        _constant_operand(model.graph, nodes[name], index, scheme)
    for name in plan.tables:
        _table(model.graph, nodes[name])
    values = {v.name: v for node in model.graph for v in node.outputs} | {v.name: v for v in model.graph.inputs}
    integer = set(chosen)
    for name in plan.activations:
        _activation(model.graph, values[name], affines[name], plan.activations[name], integer, scheme)
    for sigmoid, mul in plan.silus:
        _silu.flatten(model.graph, nodes[sigmoid], nodes[mul])
    model = common.RemoveUnusedNodesPass()(model).model
    return common.TopologicalSortPass()(model).model


def _affines(plan: Plan, ranges: Mapping[str, tuple[float, float]], scheme: Scheme) -> dict[str, Affine]:
    """Scale and zero point of every value; values of a group share the range that spans them all."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for name, lead in plan.activations.items():
        groups.setdefault(lead, []).append(ranges[name])
    leads = {
        lead: _integers.activation(min(low for low, _ in spans), max(high for _, high in spans), scheme)
        for lead, spans in groups.items()
    }
    return {name: leads[lead] for name, lead in plan.activations.items()}


def _weigh(
    graph: ir.Graph,
    node: ir.Node,
    index: int,
    axis: int | None,
    affines: Mapping[str, Affine],
    scheme: Scheme,
    bits: int,
    integers: Array | None,
) -> None:
    """Replace a compute node's weight, and its bias, by integers and a DequantizeLinear."""
    import numpy as np

    value = node.inputs[index]
    array = constant(value)
    assert value is not None
    assert array is not None
    reads = node.inputs[1 - index]
    input_scale = affines[reads.name or ""].scale if reads is not None else np.float32(1)
    affine = _integers.weight(array, axis, bits)
    bias = _bias(node, affine)
    if bias is not None and scheme.bias == "int32":
        narrow, affine = affine, _integers.widen_for_bias(affine, bias, float(input_scale))
        if not np.array_equal(narrow.scale, affine.scale):
            integers = None  # rounded for another scale
    stem = f"{value.name}_{bits}bit" if bits != scheme.weight_bits else value.name or ""
    if integers is None:
        integers = _clip_bits(_integers.quantize(array, affine, axis), bits)
    node.replace_input_with(index, _dequantized(graph, node, stem, integers, affine, axis))
    if bias is not None and scheme.bias == "int32":
        both = Affine((input_scale * affine.scale).astype(np.float32), np.zeros(affine.scale.shape, np.int32))
        rounded = np.rint(bias.astype(np.float64) / both.scale).astype(np.int32)
        along = 0 if both.scale.ndim else None
        node.replace_input_with(2, _dequantized(graph, node, f"{node.name}_bias", rounded, both, along))


def _clip_bits(integers: Array, bits: int) -> Array:
    limit = 2 ** (bits - 1) - 1
    return integers.clip(-limit, limit)


def _bias(node: ir.Node, affine: Affine) -> Array | None:
    """A constant bias as a vector of the output channels."""
    import numpy as np

    value = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if value is None:
        return None
    if value.size == 1 and affine.scale.ndim:
        return np.full(affine.scale.shape, value.reshape(()), np.float32)
    return value.reshape(-1) if value.size == max(value.shape, default=1) else None


def _dequantized(
    graph: ir.Graph, node: ir.Node, stem: str, integers: Array, affine: Affine, axis: int | None
) -> ir.Value:
    """Integers as an initializer, read through a DequantizeLinear in front of ``node``."""
    import onnx_ir as ir

    name = f"{stem}_dq"
    for other in graph.initializers.get(f"{stem}_q", ir.Value()).consumers():
        if other.outputs[0].name == name:
            return other.outputs[0]
    inputs = [add_constant(graph, f"{stem}_q", integers), add_constant(graph, f"{stem}_scale", affine.scale)]
    if integers.dtype.name != "int32":  # a bias needs none; without a weight's, ONNX Runtime leaves a Gemm in float
        inputs.append(_zero_point(graph, affine, node.op_type))
    attributes = {} if affine.scale.ndim == 0 else {"axis": axis}
    made = ir.node("DequantizeLinear", inputs, attributes, name=name)
    made.outputs[0].name = name
    graph.insert_before(node, made)
    return made.outputs[0]


def _zero_point(graph: ir.Graph, affine: Affine, reader: str = "") -> ir.Value:
    """An initializer that all with equal zero points share: 0 nearly everywhere, or one for each channel.

    A vector of them is a weight's, and of one operator: OpenVINO, given the ONNX file itself, computes in float what
    reads one that a convolution and a product share.
    """
    zero = affine.zero_point
    which = zero if zero.ndim == 0 else f"{reader}_x{zero.size}"
    return add_constant(graph, f"zero_point_{zero.dtype}_{which}", zero)


def _table(graph: ir.Graph, node: ir.Node) -> None:
    """Let a Gather read rows of int8; a DequantizeLinear behind it makes floats of those alone."""
    import onnx_ir as ir

    value, rows = node.inputs[0], node.outputs[0]
    array = constant(value)
    assert value is not None
    assert array is not None
    affine = _integers.weight(array, None, 8)
    integers = add_constant(graph, f"{value.name}_q", _integers.quantize(array, affine))
    scale = add_constant(graph, f"{value.name}_scale", affine.scale)
    node.replace_input_with(0, integers)
    dq = ir.node("DequantizeLinear", [rows, scale, _zero_point(graph, affine)], name=f"{rows.name}_floats")
    floats = dq.outputs[0]
    floats.type, floats.shape, name = rows.type, rows.shape, rows.name
    rows.replace_all_uses_with(floats, replace_graph_outputs=True)
    dq.replace_input_with(0, rows)
    rows.name, rows.type, floats.name = f"{name}_integers", integers.type, name
    graph.insert_after(node, dq)


def _constant_operand(graph: ir.Graph, node: ir.Node, index: int, scheme: Scheme) -> None:
    """Quantize a constant that an elementwise node reads, as an activation."""
    value = node.inputs[index]
    array = constant(value)
    assert value is not None
    assert array is not None
    affine = _integers.activation(float(array.min()), float(array.max()), scheme)
    stem = f"{value.name}_operand"
    node.replace_input_with(index, _dequantized(graph, node, stem, _integers.quantize(array, affine), affine, None))


def _activation(
    graph: ir.Graph, value: ir.Value, affine: Affine, leader: str, integer: set[ir.Node], scheme: Scheme
) -> None:
    """Put Q and DQ behind a value; who read it reads the DQ."""
    import onnx_ir as ir

    name = value.name or ""
    source = _through_clip(value, affine, scheme)
    maker = source.producer()
    made_of_integers = maker in integer or (maker is not None and _clipped_integers(maker, integer))
    everyone = made_of_integers or source is not value
    skips = {"Add"} if scheme.quantize_skips else set()
    uses = [(u.node, u.idx) for u in value.uses() if everyone or u.node in integer or u.node.op_type in skips]
    if not uses and not value.is_graph_output():
        return
    scale = add_constant(graph, f"{leader}_scale", affine.scale)
    zero = _zero_point(graph, affine)
    q = ir.node("QuantizeLinear", [source, scale, zero], name=f"{name}_q")
    dq = ir.node("DequantizeLinear", [q.outputs[0], scale, zero], name=f"{name}_dq")
    q.outputs[0].name, dq.outputs[0].name = f"{name}_q", f"{name}_dq"
    q.outputs[0].type, q.outputs[0].shape = zero.type, value.shape
    dq.outputs[0].type, dq.outputs[0].shape = value.type, value.shape
    if maker is None:
        graph.insert_before(graph[0], [q, dq])
    else:
        graph.insert_after(maker, [q, dq])
    for node, index in uses:
        node.replace_input_with(index, dq.outputs[0])
    if value.is_graph_output() and (made_of_integers or source is not value):
        graph.outputs[list(graph.outputs).index(value)] = dq.outputs[0]
        value.name, dq.outputs[0].name = f"{name}_float", name


def _clipped_integers(maker: ir.Node, integer: set[ir.Node]) -> bool:
    reads = maker.inputs[0]
    return maker.op_type in CLIPS and reads is not None and reads.producer() in integer


def _through_clip(value: ir.Value, affine: Affine, scheme: Scheme) -> ir.Value:
    """What Q reads: the input of a Relu or Clip whose work the integers' saturation does, else the value."""
    maker = value.producer()
    if maker is None or maker.op_type not in CLIPS or not scheme.absorb_clip:
        return value
    reads = maker.inputs[0]
    if reads is None or len(reads.consumers()) != 1 or reads.is_graph_output():
        return value
    low, high = 0.0, float("inf")
    if maker.op_type == "Clip":
        limits = [constant(v) if v is not None else None for v in (*maker.inputs[1:], None, None)[:2]]
        if any(v is not None and limit is None for v, limit in zip(maker.inputs[1:], limits, strict=False)):
            return value  # limits that are computed
        low, high = (
            (float("-inf") if limits[0] is None else float(limits[0])),
            (float("inf") if limits[1] is None else float(limits[1])),
        )
    least, greatest = affine.bounds()
    slack = 1e-6 * max(abs(least), abs(greatest))
    return reads if least >= low - slack and greatest <= high + slack else value
