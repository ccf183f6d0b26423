"""Counts multiply-adds and parameters from sizes alone, before and after a cut."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch.fx import Node

from edgekit.pruners._coupling import Analysis, Value
from edgekit.pruners._rewrite import Cut
from edgekit.pruners._rules_layers import CONVS, TRANSPOSED
from edgekit.pruners._rules_math import bound
from edgekit.pruners._rules_recurrent import CELLS, GATES

Shape = Callable[[Value], tuple[int, ...]]
PRODUCTS = ("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default")


def costly(analysis: Analysis) -> list[Node]:
    """The nodes that multiply: convolutions, matrix products, attention, recurrent layers."""
    return [n for n in analysis.module.graph.nodes if n.op == "call_function" and str(n.target) in COUNTS]


def macs_of(analysis: Analysis, node: Node, shape: Shape) -> int:
    """Multiply-adds of one node over the example's batch, with sizes as ``shape(value)`` says."""
    return COUNTS[str(node.target)](analysis, node, shape)


def total(analysis: Analysis, nodes: list[Node], cut: Cut | None, batch: int) -> int:
    """Multiply-adds of one sample."""
    shape: Shape = cut.shape if cut else (lambda value: value.shape)
    gone = cut.unread if cut else set()
    return sum(macs_of(analysis, node, shape) for node in nodes if node not in gone) // batch


def parameters(analysis: Analysis, cut: Cut | None) -> int:
    """Elements of all parameters, tied ones once."""
    shape: Shape = cut.shape if cut else (lambda value: value.shape)
    left = parameter_nodes(analysis, cut.unread if cut else set())
    return sum(prod(shape(analysis.value(node))) for node in left)


def parameter_nodes(analysis: Analysis, gone: set[Node]) -> list[Node]:
    """The nodes that name a parameter, one for each that are tied, without those that are gone."""
    seen: dict[int, Node] = {}
    for node in analysis.module.graph.nodes:
        value = analysis.values.get(node)
        if node not in gone and node.op == "get_attr" and isinstance(value, Value) and is_parameter(analysis, node):
            seen.setdefault(id(value), node)
    return list(seen.values())


def is_parameter(analysis: Analysis, node: Node) -> bool:
    """Whether a ``get_attr`` node names a parameter, not a buffer."""
    from edgekit.pruners._coupling import attribute

    return isinstance(attribute(analysis.module, str(node.target)), torch.nn.Parameter)


def _conv(a: Analysis, node: Node, shape: Shape) -> int:
    named = bound(node)
    weight = shape(a.value(named["weight"]))
    turned = "transpose" in str(node.target) or named.get("transposed", False)
    held = a.value(named["input"]) if turned else a.values[node]
    return prod(shape(held)) * prod(weight[1:])


def _linear(a: Analysis, node: Node, shape: Shape) -> int:
    return prod(shape(a.values[node])) * shape(a.value(node.args[0]))[-1]


def _matmul(a: Analysis, node: Node, shape: Shape) -> int:
    return prod(shape(a.values[node])) * shape(a.value(node.args[0]))[-1]


def _addmm(a: Analysis, node: Node, shape: Shape) -> int:
    return prod(shape(a.values[node])) * shape(a.value(node.args[1]))[-1]


def _einsum(a: Analysis, node: Node, shape: Shape) -> int:
    sizes: dict[str, int] = {}
    terms = node.args[0].replace(" ", "").partition("->")[0].split(",")
    if "." in node.args[0] or len(terms) < 2:
        return 0
    for term, operand in zip(terms, node.args[1], strict=True):
        for letter, size in zip(term, shape(a.value(operand)), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return prod(sizes.values())


def _attention(a: Analysis, node: Node, shape: Shape) -> int:
    q, k = (shape(a.value(n)) for n in node.args[:2])
    return prod(q) * k[-2] + prod(shape(a.values[node])) * k[-2]


def _recurrent(a: Analysis, node: Node, shape: Shape) -> int:
    named = bound(node)
    steps = prod(a.value(named["input"]).shape[:2])
    return steps * sum(prod(shape(a.value(p))) for p in named["params"] if a.value(p).rank == 2)


def _cell(a: Analysis, node: Node, shape: Shape) -> int:
    rows = prod(a.value(node.args[0]).shape[:-1])
    return rows * sum(prod(shape(a.value(w))) for w in node.args[2:4])


def _bilinear(a: Analysis, node: Node, shape: Shape) -> int:
    out, weight = shape(a.values[node]), shape(a.value(node.args[2]))
    return prod(out) * prod(weight[1:])


COUNTS: dict[str, Callable[[Analysis, Node, Shape], int]] = {
    **dict.fromkeys((f"aten.{n}" for n in f"{CONVS} {TRANSPOSED} convolution.default".split()), _conv),
    **dict.fromkeys(PRODUCTS, _matmul),
    **dict.fromkeys(("aten.addmm.default", "aten.baddbmm.default"), _addmm),
    "aten.linear.default": _linear,
    "aten.einsum.default": _einsum,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.bilinear.default": _bilinear,
    **dict.fromkeys(GATES, _recurrent),
    **dict.fromkeys(CELLS, _cell),
}
