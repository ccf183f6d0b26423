"""What a model picks one position of, it need not compute at the others.

A classifier that reads the first token alone (ViT, BERT) has its last block work on that token only: the Gather at
its end moves up, through whatever treats positions apart, as far as nothing else reads them. Exact, and it saves
a ViT-tiny a twelfth of its products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgekit.quantizers import _graph
from edgekit.quantizers._graph import attribute, constant

if TYPE_CHECKING:
    import onnx_ir as ir

Axes = list[int | None]  # for each input: the axis on which it is narrowed, or None where it is read whole


def select_early(model: ir.Model) -> int:
    """Move Gathers of one position up, in place; returns how many moved."""
    return sum(_select(model.graph, node) for node in list(model.graph) if _position(node) is not None)


def _position(node: ir.Node) -> int | None:
    """The position that a Gather picks, where it is one and known."""
    index = constant(node.inputs[1]) if node.op_type == "Gather" else None
    return int(index.reshape(())) if index is not None and index.size == 1 else None


def _select(graph: ir.Graph, gather: ir.Node) -> bool:
    source, position = gather.inputs[0], _position(gather)
    size = _graph.rank(source) if source is not None else None
    if source is None or position is None or size is None:
        return False
    axis = attribute(gather, "axis", 0) % size
    wanted: dict[ir.Value, dict[tuple[ir.Node, int], int]] = {source: {(gather, 0): axis}}
    narrowed: dict[ir.Node, tuple[int, Axes]] = {}
    for node in reversed(list(graph)):
        axes = _axes(node, wanted)
        if axes is not None:
            narrowed[node] = axes
            for index, along in enumerate(axes[1]):
                if along is not None:
                    wanted.setdefault(node.inputs[index], {})[(node, index)] = along
    if not narrowed:
        return False
    made = {node.outputs[0] for node in narrowed}
    for value in made:
        wanted_axis = next(iter(wanted[value].values()))
        sizes = list(value.shape or ())
        sizes[wanted_axis] = 1
        value.shape = _shape(sizes)
    for value, readers in wanted.items():
        if value not in made:
            _pick(graph, value, readers, position, f"{gather.name}_{value.name}")
    for node, (along, _) in narrowed.items():
        if node.op_type == "Reshape":
            _reshape_to_one(graph, node, along)
    import numpy as np

    first = np.zeros_like(constant(gather.inputs[1]))
    gather.replace_input_with(1, _graph.add_constant(graph, f"{gather.name}_first", first))
    return True


def _axes(node: ir.Node, wanted: dict[ir.Value, dict[tuple[ir.Node, int], int]]) -> tuple[int, Axes] | None:
    """The axis of a node's output that is narrowed and those of its inputs; None where it must work on all of it."""
    value = node.outputs[0] if len(node.outputs) == 1 else None
    rule = RULES.get(node.op_type)
    if value is None or rule is None or value not in wanted or value.shape is None or value.is_graph_output():
        return None
    axes = set(wanted[value].values())
    if len(wanted[value]) != len(list(value.uses())) or len(axes) != 1:
        return None
    if any(v is None or v.shape is None for v in node.inputs[:2]):
        return None
    (axis,) = axes
    inputs = rule(node, axis)
    return None if inputs is None else (axis, inputs)


def _pointwise(node: ir.Node, axis: int) -> Axes | None:
    """Inputs broadcast from the last axis; one of size 1 there is read whole."""
    size = len(node.outputs[0].shape or ())
    found: Axes = []
    for value in node.inputs:
        sizes = list(value.shape) if value is not None and value.shape is not None else []
        along = axis - (size - len(sizes))
        found.append(None if along < 0 or sizes[along] == 1 else along)
    return found


def _first(node: ir.Node, axis: int) -> Axes | None:
    return [axis, *[None] * (len(node.inputs) - 1)]


def _normalized(node: ir.Node, axis: int) -> Axes | None:
    """A LayerNormalization or Softmax over later axes; a Softmax over this very one can't be narrowed."""
    over = attribute(node, "axis", -1) % len(node.outputs[0].shape or ())
    apart = axis < over if node.op_type == "LayerNormalization" else axis != over
    return _first(node, axis) if apart else None


def _product(node: ir.Node, axis: int) -> Axes | None:
    """Rows of a product are products of rows."""
    left = node.inputs[0]
    rows = len(left.shape) - 2 if left is not None and left.shape is not None else -1
    return [rows, None] if rows >= 0 and axis == len(node.outputs[0].shape or ()) - 2 else None


def _turned(node: ir.Node, axis: int) -> Axes | None:
    order = attribute(node, "perm", None)
    return None if order is None else [order[axis]]


def _reshaped(node: ir.Node, axis: int) -> Axes | None:
    """A Reshape of what comes behind the axis alone."""
    before, after = (list(v.shape or ()) if v is not None else [] for v in (node.inputs[0], node.outputs[0]))
    shape = constant(node.inputs[1])
    same = len(before) > axis and before[: axis + 1] == after[: axis + 1] and isinstance(after[axis], int)
    known = shape is not None and shape[axis] in (0, after[axis])
    return [axis, None] if same and known else None


def _reshape_to_one(graph: ir.Graph, node: ir.Node, axis: int) -> None:
    shape = constant(node.inputs[1])
    assert shape is not None
    fresh = shape.copy()
    fresh[axis] = 1
    node.replace_input_with(1, _graph.add_constant(graph, f"{node.name}_one", fresh))


def _pick(graph: ir.Graph, value: ir.Value, readers: dict[tuple[ir.Node, int], int], position: int, name: str) -> None:
    """Let some readers read one position of a value, its axis kept."""
    import numpy as np
    import onnx_ir as ir

    for axis in sorted(set(readers.values())):
        uses = [use for use, along in readers.items() if along == axis]
        index = _graph.add_constant(graph, f"{name}_position", np.array([position], np.int64))
        pick = ir.node("Gather", [value, index], {"axis": axis}, name=f"{name}_{axis}")
        pick.outputs[0].name, pick.outputs[0].type = f"{name}_{axis}", value.type
        sizes = list(value.shape or ())
        sizes[axis] = 1
        pick.outputs[0].shape = _shape(sizes)
        maker = value.producer()
        if maker is None:
            graph.insert_before(graph[0], pick)
        else:
            graph.insert_after(maker, pick)
        for node, place in uses:
            node.replace_input_with(place, pick.outputs[0])


def _shape(sizes: list[int | ir.SymbolicDim]) -> ir.Shape:
    import onnx_ir as ir

    return ir.Shape(sizes)


RULES: dict[str, Callable[[ir.Node, int], Axes | None]] = {
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Where"), _pointwise),
    **dict.fromkeys(("Cast", "Clip", "Erf", "Gelu", "Identity", "Neg", "Relu", "Sigmoid", "Sqrt", "Tanh"), _first),
    **dict.fromkeys(("LayerNormalization", "LogSoftmax", "Softmax"), _normalized),
    "MatMul": _product,
    "Reshape": _reshaped,
    "Transpose": _turned,
}
