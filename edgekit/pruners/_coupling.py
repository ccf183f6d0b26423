"""Walks the graph and finds which channels go together (decision 1 of the design).

A tensor's value here is, for each of its dimensions, a tensor of channel ids that broadcasts
to its shape. Where the ids of a dimension vary over further dimensions (heads × channels of
a head), every row must keep an equal number. An operation without a rule freezes what it
touches, and says so; so does one whose rule raises, which is a fault of edgekit's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.pruners._ids import Ids


@dataclass
class Value:
    """A tensor as the coupling sees it: its sizes, and the ids along each dimension that has any."""

    shape: tuple[int, ...]
    layers: dict[int, Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def get(self, dim: int) -> Tensor | None:
        """The ids along a dimension (negative counts from the end)."""
        return self.layers.get(dim % self.rank)


Rule = Callable[["Analysis", Node], Any]
RULES: dict[str, Rule] = {}


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register a function as the coupling rule of these operations (``aten.cat.default``)."""

    def register(function: Rule) -> Rule:
        for operation in operations:
            assert operation not in RULES, operation
            RULES[operation] = function
        return function

    return register


@dataclass
class Analysis:
    """The state of one walk.

    Attributes:
        ids: What the rules noted.
        values: Node → its value (a list for several outputs; None for what is no tensor).
        shapes: Node → its tensor sizes, from the example.
        parameters: Storage → value, so that tied parameters share their ids.
        packing: View nodes whose new dimension that carries the channels was chosen, counted from the end of its group.
        splits: View nodes that divide channels over several dimensions: the ids, to see whether the choice was good.
        refused: Nodes for which what they touch stays whole (no rule, one that raised, not proved) → why.
    """

    module: torch.fx.GraphModule
    shapes: dict[Node, Any]
    packing: dict[str, int] = field(default_factory=dict)
    banned: dict[str, str] = field(default_factory=dict)
    ids: Ids = field(default_factory=Ids)
    values: dict[Node, Any] = field(default_factory=dict)
    parameters: dict[Any, Value] = field(default_factory=dict)
    splits: dict[str, Tensor] = field(default_factory=dict)
    refused: dict[Node, str] = field(default_factory=dict)

    def value(self, argument: Any) -> Value:
        """The value of a tensor argument; a Python number is a tensor without dimensions."""
        if isinstance(argument, Node):
            found = self.values.get(argument)
            return found if isinstance(found, Value) else Value(())
        return Value(())

    def like(self, node: Node, layers: dict[int, Tensor]) -> Value:
        """A value with the node's own sizes; ids along dimensions of size 1 are dropped."""
        shape = self.shapes[node]
        return Value(shape, {d: ids for d, ids in layers.items() if shape[d] > 1})

    def freeze(self, node: Node, *arguments: Any, why: str = "") -> bool:
        """Freeze all ids of the arguments (nodes or lists of nodes); True where there were any."""
        reason, found = why or f"{describe(node)} has no rule for it", False
        for argument in _nodes(arguments):
            held = self.values.get(argument)
            for value in held if isinstance(held, list) else [held]:
                for ids in value.layers.values() if isinstance(value, Value) else ():
                    self.ids.freeze(ids, reason)
                    found = True
        return found

    def still(self, node: Node, value: Value, dims: Any, why: str) -> Value:
        """The value with nothing to remove along some dimensions, and the same removed at each of their places."""
        dims, layers = {d % value.rank for d in dims}, {}
        for d, ids in value.layers.items():
            if d in dims:
                self.ids.freeze(ids, f"{describe(node)} {why}")
                continue
            for o in dims:
                ids = self.ids.tie_along(ids, o, describe(node)) if ids.shape[o] > 1 else ids
            layers[d] = ids
        return Value(value.shape, layers)


def _nodes(arguments: Any) -> list[Node]:
    found: list[Node] = []
    torch.fx.map_arg(list(arguments), found.append)
    return found


def describe(node: Node) -> str:
    """An operation and the user's module it belongs to, in words."""
    name = str(node.target).replace("aten.", "").rpartition(".")[0] or str(node.target)
    place = module_of(node)
    return f"'{name}' in '{place}'" if place else f"'{name}'"


def fault(node: Node, error: Exception) -> str:
    """Why a node whose rule raised stays whole: that costs a user's run some ratio, and is for edgekit to mend."""
    return f"edgekit's own rule for {describe(node)} fails ({type(error).__name__}: {error}); please report it"


def module_of(node: Node) -> str:
    """The path of the user's module that an operation belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((str(path) for path, _ in reversed(list(stack.values())) if path), "")


def analyse(
    module: torch.fx.GraphModule,
    shapes: dict[Node, Any],
    *,
    packing: dict[str, int] | None = None,
    banned: dict[str, str] | None = None,
) -> Analysis:
    """Walk the graph once.

    Args:
        module: The exported module, in evaluation mode.
        shapes: Node → sizes of its tensor (a list for several), from :func:`shapes_of`.
        packing: Earlier choices at views that divide channels.
        banned: Node name → why everything that it touches stays whole (the safety net's findings).
    """
    from edgekit.pruners import _rules

    _rules.load()
    state = Analysis(module, shapes, packing or {}, banned or {})
    for node in module.graph.nodes:
        state.values[node] = _visit(state, node)
        if node.name in state.banned:
            state.refused[node] = state.banned[node.name]
            state.freeze(node, node, node.args, why=state.banned[node.name])
        for value in state.values[node] if isinstance(state.values[node], list) else [state.values[node]]:
            _balance(state, value)
    return state


def _visit(state: Analysis, node: Node) -> Any:
    if node.op == "placeholder":
        shape = state.shapes.get(node)
        return Value(shape) if shape is not None else None
    if node.op == "get_attr":
        return _parameter(state, node)
    if node.op == "output":
        state.freeze(node, node.args, why="it is an output of the model")
        return None
    if node.target is operator.getitem:
        held = state.values[node.args[0]]
        return held[node.args[1]] if isinstance(held, list) else None
    if state.shapes.get(node) is None:
        return None  # a number computed from sizes
    known = RULES.get(str(node.target))
    if known is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        known = RULES["pointwise"]
    why = f"edgekit has no rule for {describe(node)}"
    if known is not None:
        try:
            return known(state, node)
        except Exception as error:
            why = fault(node, error)
    if state.freeze(node, node.args, list(node.kwargs.values()), why=why):
        state.refused[node] = why
    return bare(state, node)


def bare(state: Analysis, node: Node) -> Any:
    """The value(s) of a node of which nothing can be removed."""
    shape = state.shapes[node]
    return [Value(s) if s is not None else None for s in shape] if isinstance(shape, list) else Value(shape)


def _parameter(state: Analysis, node: Node) -> Value | None:
    """Every dimension of a parameter or buffer starts free; tied ones share their ids."""
    tensor = attribute(state.module, str(node.target))
    if not isinstance(tensor, Tensor):
        return None
    key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else node.target
    if key not in state.parameters:
        shape = tuple(tensor.shape)
        rank = len(shape)
        layers = {d: state.ids.fresh(*(n if i == d else 1 for i in range(rank))) for d, n in enumerate(shape) if n > 1}
        if (d := _grouped_dim(node)) in layers:  # each group of a convolution has input channels of its own
            layers[d] = state.ids.fresh(*(n if i in (0, d) else 1 for i, n in enumerate(shape)))
        state.parameters[key] = Value(shape, layers)
    return state.parameters[key]


def _grouped_dim(node: Node) -> int | None:
    for user in node.users:
        name = str(user.target)
        if name.startswith("aten.conv") and len(user.args) > 1 and user.args[1] is node:
            place = 8 if name == "aten.convolution.default" else 6
            if len(user.args) > place and user.args[place] != 1:
                return 1
    return None


def attribute(module: torch.nn.Module, target: str) -> Any:
    """The tensor that a ``get_attr`` node names."""
    owner, _, leaf = target.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _balance(state: Analysis, value: Any) -> None:
    if not isinstance(value, Value):
        return
    for d, ids in value.layers.items():
        if any(n > 1 for i, n in enumerate(ids.shape) if i != d):
            state.ids.balance(ids, d)


def shapes_of(module: torch.fx.GraphModule, feeds: list[Any]) -> dict[Node, Any]:
    """The sizes of every node's tensor(s), by running the graph on fake tensors; on real ones where data decide.

    Args:
        module: The exported module.
        feeds: The flat example inputs, in the order of the placeholders.
    """
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    runner = _Shapes(module, garbage_collect_values=True)
    try:
        fakes = [mode.from_tensor(f) if isinstance(f, Tensor) else f for f in feeds]
        with mode, torch.no_grad():
            runner.run(*fakes, enable_io_processing=False)
    except (DataDependentOutputException, DynamicOutputShapeException):
        runner = _Shapes(module, garbage_collect_values=True)
        with torch.no_grad():
            runner.run(*feeds, enable_io_processing=False)
    return runner.found


class _Shapes(torch.fx.Interpreter):
    def __init__(self, module: torch.fx.GraphModule, **options: Any) -> None:
        super().__init__(module, **options)
        self.found: dict[Node, Any] = {}
        self.fakes: dict[str, Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.utils._python_dispatch import _get_current_dispatch_mode

        value = super().get_attr(target, args, kwargs)
        mode = _get_current_dispatch_mode()
        if isinstance(value, Tensor) and isinstance(mode, FakeTensorMode):
            return mode.from_tensor(value)
        return value

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(int(s) for s in result.shape)
        elif isinstance(result, (tuple, list)) and n.op == "call_function":
            self.found[n] = [tuple(r.shape) if isinstance(r, Tensor) else None for r in result]
        return result
