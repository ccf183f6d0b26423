"""Run an exported module and keep what some of the user's modules gave on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from edgekit.errors import InputError

if TYPE_CHECKING:
    Watched = tuple[tuple[Tensor, ...], dict[str, Tensor]]


def ends_of(model: nn.Module, patterns: Sequence[str]) -> dict[str, fx.Node]:
    """The last node of each module whose name matches, by that name.

    Args:
        model: An exported module.
        patterns: Module names; ``*`` stands for one part, as in ``layer*`` or ``blocks.*.mlp``.

    Raises:
        InputError: A pattern matches no module.
    """
    assert isinstance(model, fx.GraphModule)
    last: dict[str, fx.Node] = {}
    for node in model.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            last |= {path: node for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path}
    matching = {pattern: [path for path in last if _matches(path, pattern)] for pattern in patterns}
    if missing := [pattern for pattern, paths in matching.items() if not paths]:
        raise InputError(
            f"no module of the model is named '{missing[0]}' (or pruning took it out whole)",
            where="features",
            remedy=f"name some of {', '.join(sorted(last)[:12]) or 'its modules (this graph names none)'}",
        )
    return {path: last[path] for paths in matching.values() for path in paths}


def _matches(path: str, pattern: str) -> bool:
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


class _Keeping(fx.Interpreter):
    """Runs a graph node by node and keeps the values of some."""

    def __init__(self, model: fx.GraphModule, nodes: Iterable[fx.Node]) -> None:
        super().__init__(model)
        self.wanted = set(nodes)
        self.kept: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = value
        return value


def run_watched(model: nn.Module, feeds: Mapping[str, Tensor], nodes: Mapping[str, fx.Node]) -> Watched:
    """As :func:`edgekit.exported.run`, with what ``nodes`` gave, by their names."""
    from edgekit.exported import leaves_of

    assert isinstance(model, fx.GraphModule)
    interpreter = _Keeping(model, nodes.values())
    outputs = torch.utils._pytree.tree_leaves(interpreter.run(*leaves_of(model, feeds)))
    return tuple(t for t in outputs if isinstance(t, Tensor)), {
        name: interpreter.kept[node] for name, node in nodes.items()
    }
