"""The module class behind :mod:`edgekit.exported`; loads torch, so import it inside functions only."""

from __future__ import annotations

from typing import Any

import torch

from edgekit.exported._inline import inline

# Where an operation says whether it trains: its name → the argument's position, and the
# argument without which it computes the same in both modes (running statistics), if any.
TRAINING = {
    "aten.batch_norm.default": (5, 3),
    "aten.instance_norm.default": (5, 3),
    "aten.dropout.default": (2, None),
    "aten.dropout_.default": (2, None),
    "aten.feature_dropout.default": (2, None),
    "aten.feature_dropout_.default": (2, None),
    "aten.alpha_dropout.default": (2, None),
    "aten.alpha_dropout_.default": (2, None),
    "aten.feature_alpha_dropout.default": (2, None),
    "aten.rrelu.default": (3, None),
    "aten.lstm.input": (6, None),
    "aten.gru.input": (6, None),
    "aten.rnn_tanh.input": (6, None),
    "aten.rnn_relu.input": (6, None),
}
TRAINS = "edgekit_trains"  # in a node's meta: it follows train() and eval()


class Exported(torch.fx.GraphModule):
    """A graph of ATen operations that trains, takes the user's arguments and keeps the user's names.

    ``meta["edgekit"]`` holds what :func:`edgekit.exported.signature` tells.
    """

    def train(self, mode: bool = True) -> Exported:
        """Put batch normalization, dropout and recurrent layers into training mode, or back."""
        changed = False
        for node in self.graph.nodes:
            if node.meta.get(TRAINS) and node.args[TRAINING[str(node.target)][0]] is not mode:
                node.update_arg(TRAINING[str(node.target)][0], mode)
                changed = True
        if changed:
            self.recompile()
        super().train(mode)
        return self

    def eval(self) -> Exported:
        """The same as ``train(False)``."""
        return self.train(False)


def wrap(module: torch.fx.GraphModule, meta: dict[str, Any]) -> Exported:
    """Make an :class:`Exported` of what ``ExportedProgram.module()`` gives; what nobody uses is dropped."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_module":
            graph.erase_node(node)  # the guards on the inputs
    inline(module)
    for node in graph.nodes:
        if node.op == "call_function" and (place := TRAINING.get(str(node.target))):
            _mark(node, *place)
    requires_grad = {name: p.requires_grad for name, p in module.named_parameters()}
    exported = Exported(module, graph)
    for name, parameter in exported.named_parameters():
        parameter.requires_grad_(
            requires_grad.get(name, False) and (parameter.is_floating_point() or parameter.is_complex())
        )
    exported.meta["edgekit"] = meta
    tie(exported)
    return exported.eval()


def _mark(node: torch.fx.Node, place: int, needs: int | None) -> None:
    """Note that a node follows the mode, unless it was on in evaluation too: it always is, then."""
    arguments = [
        node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value)
        for i, a in enumerate(node.target._schema.arguments[: place + 1])
    ]
    if arguments[place] is False and (needs is None or arguments[needs] is not None):
        names = {a.name for a in node.target._schema.arguments[: place + 1]}
        node.kwargs = {k: v for k, v in node.kwargs.items() if k not in names}
        node.args = (*arguments, *node.args[place + 1 :])
        node.meta[TRAINS] = True


def tie(module: torch.nn.Module) -> None:
    """Make parameters that share memory one object again, so that an optimizer sees them once."""
    seen: dict[Any, torch.nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if not parameter.numel():
            continue
        key = (parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype)
        first = seen.setdefault(key, parameter)
        if first is not parameter:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, first)
