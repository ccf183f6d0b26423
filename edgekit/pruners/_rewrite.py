"""Makes the smaller module: slices parameters and rewrites the sizes that stand in the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from edgekit.exported._graphmodule import Exported
from edgekit.pruners._branches import Branch, in_place, unread
from edgekit.pruners._coupling import Analysis, Value, attribute, fault
from edgekit.pruners._ids import Components

Change = Callable[["Rewrite", Node, dict[str, Any]], Any]
SIZES: dict[str, Change] = {}


def sizes(*operations: str) -> Callable[[Change], Change]:
    """Register a function that changes the named arguments of a call where sizes stand in them.

    It changes the dict it is given, or returns the new node.
    """

    def register(function: Change) -> Change:
        SIZES.update(dict.fromkeys((f"aten.{o}" for o in operations), function))
        return function

    return register


@dataclass
class Cut:
    """Which components and branches go: what is left of ids and values.

    Attributes:
        solved: Ids → component.
        gone: bool (components,).
        branches: The residual branches that go whole.
    """

    solved: Components
    gone: Tensor
    branches: tuple[Branch, ...] = ()

    @cached_property
    def unread(self) -> set[Node]:
        """The nodes that go with the branches."""
        return unread(self.branches)

    def mask(self, ids: Tensor) -> Tensor:
        """True where the ids are removed."""
        return self.gone[self.solved.of[ids]]

    def kept(self, value: Value, d: int) -> int:
        """How many positions along a dimension stay (the same number in every row)."""
        ids = value.layers.get(d)
        if ids is None:
            return value.shape[d]
        row = ids[tuple(slice(None) if i == d else 0 for i in range(ids.dim()))]
        return int((~self.mask(row)).sum())

    def shape(self, value: Value) -> tuple[int, ...]:
        """The sizes of what stays."""
        return tuple(self.kept(value, d) for d in range(value.rank))

    def take(self, tensor: Tensor, layers: dict[int, Tensor]) -> Tensor:
        """The elements of a tensor that stay."""
        layers = dict(layers)
        for d in sorted(layers):
            gone = self.mask(layers[d])
            if not gone.any():
                continue
            keep = (~gone).int().argsort(dim=d, descending=True, stable=True)
            count = int((~gone).movedim(d, -1).reshape(-1, gone.shape[d])[0].sum())
            places = keep.narrow(d, 0, count)
            tensor = _along(tensor, places, d)
            for o in layers:
                if o != d and layers[o].shape[d] > 1:
                    layers[o] = _along(layers[o], places, d)
        return tensor

    def removed(self, value: Value) -> Tensor | None:
        """True, over the value's sizes, where an element is removed; None where none is."""
        found = None
        for ids in value.layers.values():
            gone = self.mask(ids)
            if gone.any():
                found = gone if found is None else found | gone
        return found


def _along(tensor: Tensor, places: Tensor, d: int) -> Tensor:
    if places.numel() == places.shape[d]:
        return tensor.index_select(d, places.reshape(-1))
    wide = [max(a, b) if i != d else b for i, (a, b) in enumerate(zip(tensor.shape, places.shape, strict=True))]
    return torch.take_along_dim(
        tensor.expand([n if i != d else tensor.shape[d] for i, n in enumerate(wide)]), places.expand(wide), d
    )


@dataclass
class Rewrite:
    """The state of one rewriting.

    Attributes:
        nodes: Old node → new node.
    """

    analysis: Analysis
    cut: Cut
    graph: Graph = field(default_factory=Graph)
    nodes: dict[Node, Node] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def value(self, node: Any) -> Value:
        """The old value of an old node."""
        return self.analysis.value(node)

    def after(self, node: Node) -> tuple[int, ...]:
        """The new sizes of an old node's tensor."""
        return self.cut.shape(self.value(node))

    def constant(self, tensor: Tensor) -> Node:
        """A new buffer of the pruned module."""
        name = f"channel_places{len(self.tensors)}"
        self.tensors[name] = tensor
        return self.graph.get_attr(name)

    def resized(self, given: list[Any], before: tuple[int, ...], after: tuple[int, ...]) -> list[Any]:
        """Size arguments as they must be now; a size that is computed is scaled."""
        found = []
        for size, old, new in zip(given, before, after, strict=True):
            if old == new or size == -1:
                found.append(size)
            elif isinstance(size, Node):
                whole = self.graph.call_function(operator.mul, (self.nodes[size], new))
                found.append(self.graph.call_function(operator.floordiv, (whole, old)))
            else:
                found.append(new)
        return found


def rewrite(module: Exported, analysis: Analysis, cut: Cut) -> tuple[Exported, dict[Node, Node]]:
    """The pruned module, and which of its nodes came from which; those of branches that are gone became none.

    The module that is passed in is not changed.
    """
    from edgekit.pruners import _rules

    _rules.load()
    state = Rewrite(analysis, cut)
    instead = {branch.join: branch.rest for branch in cut.branches}
    for node in module.graph.nodes:
        if node in cut.unread:
            continue
        kept = _without(state, node, instead[node]) if node in instead else _same(state, node)
        state.nodes[node] = kept or _copied(state, node)
    root = _root(module, state)
    state.graph._codegen = module.graph._codegen
    pruned = Exported(root, state.graph)
    pruned.meta["edgekit"] = dict(module.meta["edgekit"])
    pruned.eval()
    return pruned, state.nodes


def _without(state: Rewrite, join: Node, rest: Node) -> Node:
    """What stands in an addition's place; a copy where it would be changed in place, which the sum could be."""
    new = state.nodes[rest]
    if any(in_place(user) and not (_is_relu(user) and _is_relu(new)) for user in join.users):
        return state.graph.call_function(torch.ops.aten.clone.default, (new,))
    return new


def _same(state: Rewrite, node: Node) -> Node | None:
    """What a ReLU gave already, where only an addition stood between it and this one."""
    before = state.nodes.get(node.args[0]) if _is_relu(node) else None
    return before if before is not None and _is_relu(before) else None


def _is_relu(node: Node) -> bool:
    return str(node.target) in ("aten.relu.default", "aten.relu_.default")


def _copied(state: Rewrite, node: Node) -> Node:
    new = None
    if node.op == "call_function" and (change := SIZES.get(str(node.target))) and _touched(state, node):
        try:
            new = _changed(state, node, change)
        except Exception as error:  # copied as it is, it fails the proof
            state.analysis.refused[node] = fault(node, error)
    if new is None:
        new = state.graph.node_copy(node, lambda n: state.nodes[n])
    new.meta = {k: v for k, v in node.meta.items() if k != "val"}
    return new


def _touched(state: Rewrite, node: Node) -> bool:
    """Whether the sizes of a node's inputs or outputs change."""
    for n in (node, *node.all_input_nodes):
        held = state.analysis.values.get(n)
        for value in held if isinstance(held, list) else [held]:
            if isinstance(value, Value) and state.cut.shape(value) != value.shape:
                return True
    return False


def _changed(state: Rewrite, node: Node, change: Change) -> Node | None:
    """Apply a rewriting rule to a copy of the node's arguments; they stay in their places."""
    schema = node.target._schema.arguments
    named = {
        a.name: node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value)
        for i, a in enumerate(schema)
    }
    before = dict(named)
    made = change(state, node, named)
    if isinstance(made, Node):
        return made
    if all(named[k] is before[k] for k in before):
        return None
    swap = lambda n: state.nodes.get(n, n)  # noqa: E731 (sizes that were computed anew are new nodes already)
    last = max(i for i, a in enumerate(schema) if i < len(node.args) or named[a.name] is not before[a.name])
    positional = [a.name for i, a in enumerate(schema[: last + 1]) if not a.kwarg_only]
    args = tuple(torch.fx.map_arg(named[name], swap) for name in positional)
    kwargs = {
        k: torch.fx.map_arg(named[k], swap)
        for k in named
        if k not in positional and (k in node.kwargs or named[k] is not before[k])
    }
    return state.graph.create_node("call_function", node.target, args, kwargs, node.name)


def _root(module: Exported, state: Rewrite) -> torch.nn.Module:
    """The smaller parameters and buffers under the user's names; tied ones stay tied."""
    root = torch.nn.Module()
    made: dict[int, Tensor] = {}
    source = {new: old for old, new in state.nodes.items()}
    for node in state.graph.nodes:
        if node.op != "get_attr":
            continue
        target = str(node.target)
        tensor = state.tensors.get(target)
        old = attribute(module, target) if tensor is None else tensor
        if isinstance(old, torch.nn.Module):
            root.add_module(target, old)
            continue
        if id(old) not in made:
            made[id(old)] = old if tensor is not None else _sliced(state, source[node], old)
        _assign(root, module, target, made[id(old)])
    return root


def _sliced(state: Rewrite, node: Node, old: Tensor) -> Tensor:
    small = state.cut.take(old.detach(), state.value(node).layers).clone(memory_format=torch.contiguous_format)
    return torch.nn.Parameter(small, old.requires_grad) if isinstance(old, torch.nn.Parameter) else small


def _assign(root: torch.nn.Module, module: torch.nn.Module, target: str, tensor: Tensor) -> None:
    *path, leaf = target.split(".")
    owner, twin = root, module
    for name in path:
        twin = getattr(twin, name, torch.nn.Module())
        if not hasattr(owner, name):
            owner.add_module(name, torch.nn.Module())
        owner = getattr(owner, name)
    if isinstance(tensor, torch.nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor, persistent=leaf not in getattr(twin, "_non_persistent_buffers_set", ()))
