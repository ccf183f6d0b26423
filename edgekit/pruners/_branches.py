"""Residual branches, which can go whole: what a branch was added to stands alone in the addition's place.

Depth pays where width does not: a convolution of half the channels often takes more than half the time.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph, Node

from edgekit.pruners._coupling import Analysis

ADDITIONS = ("aten.add.Tensor", "aten.add_.Tensor")


@dataclass(frozen=True)
class Branch:
    """An addition of which one operand can go.

    Attributes:
        join: The addition.
        source: The operand that can go.
        rest: The operand that stays in the addition's place.
        inside: What nobody reads any more without the branch.
    """

    join: Node
    source: Node
    rest: Node
    inside: frozenset[Node]


def branches(analysis: Analysis, costly: list[Node], still: set[Node]) -> list[Branch]:
    """The branches that multiply, are added to something of their shape that depends on the input, and hide no input.

    Args:
        costly: The nodes that multiply.
        still: Nodes that must stay.
    """
    graph, found = analysis.module.graph, []
    read, multiply, data = _read(graph), set(costly), _data(analysis)
    for join in graph.nodes:
        operands = [a for a in join.args[:2] if isinstance(a, Node)]
        if str(join.target) not in ADDITIONS or join not in read or not data.issuperset(operands):
            continue
        if len(set(operands)) < 2 or len({analysis.shapes[n] for n in (join, *operands)}) > 1 or _types(join) > 1:
            continue
        unscaled = join.kwargs.get("alpha", 1) == 1  # else the first operand alone can stay as it is
        pairs = [operands, operands[::-1]] if unscaled else [operands[::-1]]
        each = [Branch(join, a, b, frozenset(_unread([(a, join)], read))) for a, b in pairs]
        can_go = [b for b in each if b.inside & multiply and not b.inside & still and not _hides(b.inside, read)]
        if can_go:  # of two branches at one addition the one that does not carry a stream on
            found.append(min(can_go, key=lambda b: (_carries(b, data), -len(b.inside & multiply))))
    return found


def _carries(branch: Branch, data: set[Node]) -> bool:
    """Whether something from outside is added to on the way, which the branch then carries on: ``x + a(x)``."""
    joins = (n for n in branch.inside if str(n.target) in ADDITIONS)
    return any(not branch.inside.issuperset(data.intersection(n.all_input_nodes)) for n in joins)


def unread(gone: tuple[Branch, ...]) -> set[Node]:
    """What nobody reads any more where these branches are gone; the additions go, too, and are not counted."""
    return _unread([(b.source, b.join) for b in gone], _read(gone[0].join.graph)) if gone else set()


def _unread(edges: list[tuple[Node, Node]], read: set[Node]) -> set[Node]:
    """What goes unread without some edges of the graph, and what only watches it."""
    dead: set[Node] = set()
    waiting = [source for source, _ in edges]
    while waiting:
        node = waiting.pop()
        needed = any(u in read and u not in dead and (node, u) not in edges for u in node.users)
        if node.op == "placeholder" or node in dead or needed:
            continue
        dead.add(node)
        waiting += node.all_input_nodes
    watching = [u for node in dead for u in node.users if u not in read]
    while watching:
        node = watching.pop()
        if node not in dead:
            dead.add(node)
            watching += node.users
    return dead


def _hides(inside: frozenset[Node], read: set[Node]) -> bool:
    """Whether these nodes alone read an input of the model."""
    inputs = {n for node in inside for n in node.all_input_nodes if n.op == "placeholder"}
    return any(inside.issuperset(u for u in n.users if u in read) for n in inputs)


def in_place(node: Node) -> bool:
    """Whether an operation writes into its first argument (``aten.relu_.default``)."""
    return node.op == "call_function" and str(node.target).rpartition(".")[0].endswith("_")


def _read(graph: Graph) -> set[Node]:
    """What the outputs depend on."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or any(user in found for user in node.users):
            found.add(node)
    return found


def _data(analysis: Analysis) -> set[Node]:
    """The tensors that depend on the model's inputs, not on their sizes alone."""
    found: set[Node] = set()
    for node in analysis.module.graph.nodes:
        if analysis.shapes.get(node) is not None and (
            node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes)
        ):
            found.add(node)
    return found


def _types(join: Node) -> int:
    """How many types an addition and its operands have; 1 where it is not known."""
    known = [n.meta["val"].dtype for n in (join, *join.all_input_nodes) if hasattr(n.meta.get("val"), "dtype")]
    return max(1, len(set(known)))
