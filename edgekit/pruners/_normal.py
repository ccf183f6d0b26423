"""Puts the graph into a form in which channels can be followed: shuffles, standardized weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.console import warn
from edgekit.exported._capture import some_of
from edgekit.exported._graphmodule import Exported
from edgekit.pruners._coupling import attribute, module_of

VIEWS = ("aten.view.default", "aten.reshape.default", "aten.flatten.using_ints", "aten.unflatten.int")
SWAPS = ("aten.transpose.int", "aten.permute.default", "aten.swapaxes.default")
COPIES = ("aten.contiguous.default", "aten.clone.default")
STATISTICS = ("batch_norm", "std", "var", "_weight_norm", "linalg_vector_norm", "norm", "mean", "mv")


def normalise(module: Exported, shapes: dict[Node, Any]) -> bool:
    """Rewrite in place what hides channels; True where something changed (the sizes must be found again)."""
    changed = _fold_weights(module)
    for node in list(module.graph.nodes):
        name = str(node.target)
        if name in VIEWS and node.op == "call_function":
            changed |= _shuffle(module, shapes, node)
        elif name == "aten.channel_shuffle.default":
            size, groups = shapes[node][1], node.args[1]
            order = torch.arange(size).reshape(groups, -1).t().reshape(-1)
            changed |= _select(module, node, node.args[0], 1, order)
    if changed:
        module.graph.eliminate_dead_code()
        module.recompile()
    return changed


def _shuffle(module: Exported, shapes: dict[Node, Any], first: Node) -> bool:
    """View, swap, view that permutes one dimension in effect becomes an ``index_select``."""
    chain = [first]
    while len(chain) < 6 and len(chain[-1].users) == 1:
        (following,) = chain[-1].users
        if str(following.target) not in (*VIEWS, *SWAPS, *COPIES) or following.args[0] is not chain[-1]:
            break
        chain.append(following)
        if str(following.target) in VIEWS:
            break
    source, last = first.args[0], chain[-1]
    if len(chain) < 3 or str(last.target) not in VIEWS or not any(str(n.target) in SWAPS for n in chain):
        return False
    before = shapes.get(source)
    if before is None or shapes[last] != before or len(shapes[first]) != len(before) + 1:
        return False
    d = next((i for i, n in enumerate(before) if shapes[first][i] != n), None)
    if d is None or shapes[first][d] * shapes[first][d + 1] != before[d]:
        return False
    probe = torch.arange(before[d]).reshape([-1 if i == d else 1 for i in range(len(before))])
    moved = probe.reshape(
        [*(1 for _ in range(d)), shapes[first][d], shapes[first][d + 1], *(1 for _ in before[d + 1 :])]
    )
    for node in chain[1:-1]:
        if str(node.target) in SWAPS:
            moved = node.target(moved, *node.args[1:])
    if moved.shape[d] * moved.shape[d + 1] != before[d]:
        return False
    return _select(module, last, source, d, moved.reshape(-1))


def _select(module: Exported, node: Node, source: Any, d: int, order: Tensor) -> bool:
    number = sum(name.startswith("channel_order") for name, _ in module.named_buffers())
    name = f"channel_order{number}"
    module.register_buffer(name, order.clone())
    with module.graph.inserting_before(node):
        places = module.graph.get_attr(name)
        made = module.graph.call_function(torch.ops.aten.index_select.default, (source, d, places))
    made.meta = {k: v for k, v in node.meta.items() if k != "val"}
    node.replace_all_uses_with(made)
    return True


def _fold_weights(module: Exported) -> bool:
    """Weights that are computed from parameters with statistics (standardized, normalized) become parameters."""
    fixed = {n for n in module.graph.nodes if n.op == "get_attr"}
    statistics: set[Node] = set()
    for node in module.graph.nodes:
        inputs = node.all_input_nodes
        if node.op != "call_function" or not inputs or not all(n in fixed for n in inputs):
            continue
        fixed.add(node)
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        if name in STATISTICS or any(n in statistics for n in inputs):
            statistics.add(node)
    ends = [n for n in module.graph.nodes if n in statistics and any(u not in fixed for u in n.users)]
    folded = [module_of(node) for node in ends if _fold(module, node)]
    if folded:
        names = some_of(list(dict.fromkeys(folded)))
        warn(f"weights are computed from others with statistics ({names}); their values now are the parameters")
    return bool(ends)


def _fold(module: Exported, node: Node) -> bool:
    """Make what a node gives a parameter; False where it gives no tensor."""
    runner = torch.fx.Interpreter(module)
    needed = _ancestors(node)
    with torch.no_grad():
        for n in module.graph.nodes:
            if n in needed:
                runner.env[n] = runner.run_node(n)
    value = runner.env[node]
    if not isinstance(value, Tensor):
        return False
    source = max((n for n in needed if n.op == "get_attr"), key=lambda n: attribute(module, str(n.target)).numel())
    target = str(source.target)
    if any(u not in needed for u in source.users) or attribute(module, target).shape != value.shape:
        target = f"{target}_folded"
    owner, _, leaf = target.rpartition(".")
    holder = module.get_submodule(owner)
    holder.register_parameter(leaf, torch.nn.Parameter(value.detach().clone()))
    with module.graph.inserting_before(node):
        made = module.graph.get_attr(target)
    made.meta = {k: v for k, v in node.meta.items() if k != "val"}
    node.replace_all_uses_with(made)
    return True


def _ancestors(node: Node) -> set[Node]:
    found, stack = set(), [node]
    while stack:
        n = stack.pop()
        if n not in found:
            found.add(n)
            stack.extend(n.all_input_nodes)
    return found
