"""Where Q/DQ stands: which nodes compute in integers, and which tensors that makes integers.

A *compute* node (a convolution, a product with weights) runs in integers wherever its weight is
constant. An *elementwise* node follows its neighbours: it does so if all that it reads is integer
already and something integer reads it. A *mover* (reshape, max pool …) only moves numbers, so its
output shares the input's scale.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgekit.quantizers import _silu
from edgekit.quantizers._graph import attribute, constant

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.scheme import Scheme

# Operators that only move numbers: the first input's scale is the output's.
MOVERS = frozenset(
    {
        *("DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
CLIPS = frozenset(("Relu", "Clip"))
LEAST_TABLE = 4096  # elements: what a smaller table saves is not worth a node


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be quantized, by name; made by :func:`plan`.

    Attributes:
        nodes: Nodes that compute in integers, in graph order.
        activations: Value → the value whose scale it shares (often itself).
        weights: Compute node → (index of the weight among its inputs, axis of its output channels or None).
        constants: (elementwise node, input index) of a constant operand.
        tables: Gathers of rows of a constant table.
        silus: (Sigmoid, Mul) of each SiLU that is in float between integers.
        floats: Compute node that stays float → why.
    """

    nodes: tuple[str, ...]
    activations: dict[str, str]
    weights: dict[str, tuple[int, int | None]]
    constants: tuple[tuple[str, int], ...]
    tables: tuple[str, ...]
    silus: tuple[tuple[str, str], ...]
    floats: dict[str, str]


def plan(graph: ir.Graph, scheme: Scheme, keep_float: Mapping[str, str] = MappingProxyType({})) -> Plan:
    """Decide for every node of a graph (:func:`edgekit.quantizers._graph.load`).

    Args:
        graph: The float graph.
        scheme: The target's.
        keep_float: Names of nodes that must stay float → why.
    """
    floats = {
        n.name or "": why for n in graph if n.op_type in scheme.compute and (why := _refusal(n, keep_float, scheme))
    }
    nodes = _integer_nodes(graph, scheme, {*keep_float, *floats})
    silus = _silu.between_integers(nodes) if scheme.silu == "float" else []
    nodes = [node for node in nodes if not any(node in silu for silu in silus)]
    leader = _Groups()
    weights: dict[str, tuple[int, int | None]] = {}
    constants: list[tuple[str, int]] = []
    for node in nodes:
        if node.op_type in scheme.compute and (found := weight_of(node)):
            weights[node.name or ""] = found
        for index, value in data_inputs(node, scheme):
            if constant(value) is not None:
                constants.append((node.name or "", index))
            else:
                leader.find(value.name or "")
        if node.op_type in MOVERS:
            for out in node.outputs:
                leader.join(out.name or "", node.inputs[0].name or "")
        elif _output_is_integer(node, scheme):
            leader.find(_after_clip(node.outputs[0], scheme).name or "")
    return Plan(
        nodes=tuple(n.name or "" for n in nodes),
        activations={name: leader.find(name) for name in leader.parent},
        weights=weights,
        constants=tuple(constants),
        tables=tuple(n.name or "" for n in graph if scheme.embeddings and n.name not in keep_float and _reads_table(n)),
        silus=tuple((sigmoid.name or "", mul.name or "") for sigmoid, mul in silus),
        floats=floats,
    )


def _reads_table(node: ir.Node) -> bool:
    """Whether a node gathers rows of a constant matrix that nothing else computes with: an embedding."""
    table = constant(node.inputs[0]) if node.op_type == "Gather" and attribute(node, "axis", 0) == 0 else None
    if table is None or table.ndim != 2 or table.size < LEAST_TABLE or not _is_float(node.inputs[0]):
        return False
    value, index = node.inputs
    alone = all(reader.op_type == "Gather" for reader in value.consumers()) if value is not None else False
    return alone and constant(index) is None


def weight_of(node: ir.Node) -> tuple[int, int | None] | None:
    """``(input index, axis of the output channels)`` of a compute node's constant weight; axis None: one scale."""
    for index in (1, 0) if node.op_type == "MatMul" else (1,):
        weight = constant(node.inputs[index])
        if weight is None:
            continue
        if node.op_type in ("Conv", "ConvTranspose"):
            return index, 0 if node.op_type == "Conv" else 1
        if node.op_type == "Gemm":
            return index, 0 if attribute(node, "transB", 0) else 1
        return index, 1 if index == 1 and weight.ndim == 2 else None
    return None


def data_inputs(node: ir.Node, scheme: Scheme) -> Iterator[tuple[int, ir.Value]]:
    """The inputs of an integer node that are activations (or an elementwise node's constant operand)."""
    if node.op_type in scheme.compute:
        weight = weight_of(node)
        candidates = [i for i in (0, 1) if weight is None or i != weight[0]]
    elif node.op_type == "Concat":
        candidates = list(range(len(node.inputs)))
    else:
        candidates = [0, 1] if node.op_type in ("Add", "Mul") else [0]
    for index in candidates:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None:
            yield index, value


def _refusal(node: ir.Node, keep_float: Mapping[str, str], scheme: Scheme) -> str:
    """Why a compute node stays float; empty if it need not."""
    if node.name in keep_float:
        return keep_float[node.name]
    if not _is_float(node.inputs[0]) and node.inputs[0] is not None and node.inputs[0].dtype is not None:
        return f"its input is {node.inputs[0].dtype.name}"
    weight = weight_of(node)
    if weight is None and not (node.op_type == "MatMul" and scheme.products):
        return "a product of two activations" if node.op_type == "MatMul" else "its weight is not constant"
    if node.op_type == "Gemm" and (attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0):
        return "a Gemm with alpha or beta"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "a Gemm with a transposed input"
    return ""


def _is_float(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.FLOAT


def _integer_nodes(graph: ir.Graph, scheme: Scheme, keep_float: Collection[str]) -> list[ir.Node]:
    """Forward: what can follow its producers in integers; backward: what feeds nothing integer is let go."""
    chosen: dict[ir.Node, bool] = {}  # in graph order; whether it must stay
    anyway = {
        v for n in graph if n.op_type in scheme.compute and n.name not in keep_float for _, v in data_inputs(n, scheme)
    }
    integer: set[ir.Value] = set()
    for node in graph:
        if node.name in keep_float or node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in scheme.compute:
            chosen[node] = True
            if node.op_type in scheme.quantize_outputs:
                integer.add(_after_clip(node.outputs[0], scheme))
        elif _follows(node, scheme, integer, anyway):
            chosen[node] = False
            integer.update(node.outputs if node.op_type in MOVERS else [_after_clip(node.outputs[0], scheme)])
    for node in reversed(list(chosen)):
        readers = [u for out in node.outputs for u in _after_clip(out, scheme).consumers()]
        if not chosen[node] and not any(reader in chosen for reader in readers):
            del chosen[node]
    return list(chosen)


def _follows(node: ir.Node, scheme: Scheme, integer: set[ir.Value], anyway: set[ir.Value]) -> bool:
    """Whether all that a node reads is integer: made so, made so anyway for a compute node beside it, or cheaply."""
    if node.op_type not in scheme.elementwise and node.op_type not in MOVERS:
        return False
    values = [value for _, value in data_inputs(node, scheme)]
    if node.op_type in MOVERS or node.op_type == "Concat":
        return all(v in integer for v in values)
    return any(v in integer for v in values) and all(
        v in integer or v in anyway or (_is_float(v) and (constant(v) is not None or _is_small(v, node)))
        for v in values
    )


def _is_small(value: ir.Value, node: ir.Node) -> bool:
    """Whether an operand is a vector beside a map (a gate of channels): to quantize it costs nothing."""
    if value.shape is None or len(value.shape) != 4 or node.op_type != "Mul":
        return False
    return list(value.shape)[2:] == [1, 1] and value.dtype == node.outputs[0].dtype


def _output_is_integer(node: ir.Node, scheme: Scheme) -> bool:
    return node.op_type in scheme.quantize_outputs or node.op_type in scheme.elementwise


def _after_clip(value: ir.Value, scheme: Scheme) -> ir.Value:
    """The value itself, or what the Relu or Clip that alone reads it makes of it."""
    readers = value.consumers()
    if value.is_graph_output() or len(readers) != 1 or readers[0].op_type not in CLIPS:
        return value
    return readers[0].outputs[0]


class _Groups:
    """Values that share a scale (union-find by name)."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = self.parent.setdefault(name, name)
        while root != self.parent[root]:
            root = self.parent[root]
        self.parent[name] = root
        return root

    def join(self, name: str, other: str) -> None:
        self.parent[self.find(name)] = self.find(other)
