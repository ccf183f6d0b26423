"""Rules that bring a float graph into the form that integer kernels know; each keeps what is computed.

A rule's name stands in the target's scheme (``prepare``), where a measurement showed that it pays there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.quantizers import _graph
from edgekit.quantizers._graph import attribute, constant

if TYPE_CHECKING:
    import onnx_ir as ir


def prepare(model: ir.Model, rules: Sequence[str]) -> dict[str, int]:
    """Apply rules in place; returns how often each was used."""
    used = {name: RULES[name](model) for name in rules}
    if any(used.values()):
        _graph.infer(model)
    return {name: count for name, count in used.items() if count}


def mean_to_pool(model: ir.Model) -> int:
    """A ReduceMean over all spatial axes is a GlobalAveragePool (ONNX Runtime has no integer ReduceMean)."""
    import onnx_ir as ir

    count = 0
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "ReduceMean" else None
        axes = _axes(node) if value is not None else None
        size = _graph.rank(value) if value is not None else None
        if axes is None or size is None or size < 3 or sorted(a % size for a in axes) != list(range(2, size)):
            continue
        pool = ir.node("GlobalAveragePool", [value], name=f"{node.name}_pool")
        made = [pool]
        if not attribute(node, "keepdims", 1):
            made.append(ir.node("Flatten", [pool.outputs[0]], {"axis": 1}, name=f"{node.name}_flatten"))
        pool.outputs[0].name = f"{node.name}_pooled"
        _replace(model.graph, node, made)
        count += 1
    return count


RULES: dict[str, Callable[[ir.Model], int]] = {"mean_to_pool": mean_to_pool}


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of a reduction: an attribute up to opset 17, an input since."""
    if (axes := attribute(node, "axes", None)) is not None:
        return list(axes)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if given is None else [int(a) for a in given]


def _replace(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put nodes in an old one's place; the last one's first output stands for the old one's."""
    value, fresh = old.outputs[0], new[-1].outputs[0]
    name, fresh.type, fresh.shape = value.name, value.type, value.shape
    graph.insert_before(old, new)
    value.replace_all_uses_with(fresh, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    fresh.name = name
