"""Sparsity without smaller shapes: masks in the graph hold single weights at zero, in training too."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.errors import InputError
from edgekit.exported._graphmodule import Exported
from edgekit.pruners import Pruned
from edgekit.pruners._coupling import analyse, attribute, shapes_of
from edgekit.pruners._macs import costly, parameters, total
from edgekit.pruners._plan import _batch, _matches, feeds_for

SUFFIX = "_mask"  # of the buffer beside a weight


def apply(module: Exported, settings: Mapping[str, Any], member: Any) -> Pruned:
    """Multiply every weight of a layer by a mask of zeros and ones.

    The masks are buffers and the products part of the graph, so recovery trains what is left
    and leaves the zeros alone; simplifying the ONNX file folds them into the weights.
    """
    if goals := [key for key, value in settings.items() if key.startswith("target_") and value is not None]:
        raise InputError(
            f"{settings['method']} leaves sizes and times as they are, so {goals[0]} can't be reached with it",
            remedy="give a ratio, or use another method",
        )
    module = copy.deepcopy(module).eval()
    analysis = analyse(module, shapes_of(module, feeds_for(module)))
    nodes = _weights(module, tuple(settings.get("protect", ())))
    weights = {str(n.target): attribute(module, str(n.target)).detach() for n in nodes}
    masks = member.masks(weights, settings)
    size = total(analysis, costly(analysis), None, _batch(module))
    count = parameters(analysis, None)
    for node in nodes:
        _insert(module, node, masks[str(node.target)])
    module.graph.lint()
    module.recompile()
    zero = sum(int((~m).sum()) for m in masks.values())
    of = sum(w.numel() for w in weights.values())
    share = f"{zero} of {of} weights ({zero / max(of, 1):.0%})"
    said = f"{share} are held at zero; shapes and multiply-adds are the same. {member.NOTE}"
    table = tuple(_row(name, mask) for name, mask in masks.items())
    return Pruned(module, (size, size), (count, count), (), table, 0.0, (said,))


def _weights(module: Exported, protect: tuple[str, ...]) -> list[Node]:
    """Weights of convolutions and matrix products, masked ones excepted."""
    found = []
    for node in module.graph.nodes:
        if node.op != "get_attr" or any(_matches(str(node.target), pattern) for pattern in protect):
            continue
        tensor = attribute(module, str(node.target))
        if isinstance(tensor, torch.nn.Parameter) and tensor.dim() >= 2 and any(_reads(u, node) for u in node.users):
            found.append(node)
    return found


def _reads(user: Node, node: Node) -> bool:
    name = str(user.target)
    return ("conv" in name or "linear" in name) and len(user.args) > 1 and user.args[1] is node


def _insert(module: Exported, node: Node, mask: Tensor) -> None:
    target = str(node.target)
    tensor = attribute(module, target)
    owner, _, leaf = (target + SUFFIX).rpartition(".")
    module.get_submodule(owner).register_buffer(leaf, mask.to(tensor.dtype))
    users = list(node.users)
    with module.graph.inserting_after(node):
        held = module.graph.get_attr(target + SUFFIX)
    with module.graph.inserting_after(held):
        product = module.graph.call_function(torch.ops.aten.mul.Tensor, (node, held))
    for user in users:
        user.replace_input_with(node, product)
    product.meta = {k: v for k, v in users[0].meta.items() if k in ("nn_module_stack", "stack_trace")}
    with torch.no_grad():
        tensor.mul_(mask)


def _row(name: str, mask: Tensor) -> dict[str, Any]:
    kept = int(mask.sum())
    row = {"layer": name.rpartition(".")[0], "kind": "weights", "channels": (len(mask), len(mask))}
    return {**row, "macs": (0, 0), "parameters": (mask.numel(), kept)}
