"""Puts regions that torch.export sets apart (``no_grad``, ``autocast``) back into the graph."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node


def inline(module: GraphModule) -> None:
    """Put the regions without autocast into the graph itself; what ``no_grad`` computed is detached.

    A region with autocast on stays one opaque operation.
    """
    for node in list(module.graph.nodes):
        if (region := _region(node)) is not None:
            _unfold(module, node, *region)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()


def _region(node: Node) -> tuple[Node, tuple[Any, ...], bool] | None:
    """The body, its inputs and whether gradients are recorded in it; None for what is no plain region."""
    if str(node.target) == "wrap_with_set_grad_enabled":
        gradients, body, *inputs = node.args
        return body, tuple(inputs), gradients
    if str(node.target) == "wrap_with_autocast":
        _device, _dtype, enabled, _cache, body, *inputs = node.args
        return None if enabled else (body, tuple(inputs), True)
    return None


def _unfold(module: GraphModule, node: Node, body: Node, inputs: tuple[Any, ...], gradients: bool) -> None:
    inside = module.get_submodule(str(body.target))
    assert isinstance(inside, GraphModule)
    inline(inside)
    made: dict[Node, Any] = {}
    given = iter(inputs)
    with module.graph.inserting_before(node):
        for step in inside.graph.nodes:
            if step.op == "placeholder":
                made[step] = next(given)
            elif step.op == "output":
                outputs = torch.fx.map_arg(step.args[0], lambda n: made[n])
            elif step.op == "get_attr":
                made[step] = _moved(module, inside, body, step)
            else:
                made[step] = module.graph.node_copy(step, lambda n: made[n])
        if not gradients:
            outputs = tuple(_detached(module, n) for n in outputs)
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(outputs[user.args[1]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def _detached(module: GraphModule, value: Any) -> Any:
    """A tensor without its gradient; a computed size or None as it is."""
    if not isinstance(value, Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    made = module.graph.call_function(torch.ops.aten.detach.default, (value,))
    made.meta = dict(value.meta)
    return made


def _moved(module: GraphModule, inside: GraphModule, body: Node, step: Node) -> Node:
    """A tensor or region that the body holds itself, under the body's name."""
    return module.graph.get_attr(f"{body.target}.{step.target}")
