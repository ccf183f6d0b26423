"""Proves a pruned graph: it must give what the original gives with removed channels and branches held at zero.

Norm layers and means over channels take their statistics over the channels that stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.pruners._coupling import Analysis, Value
from edgekit.pruners._rewrite import Cut
from edgekit.pruners._rules_math import bound

TOLERANCE = 1e-4  # greatest relative difference of an output that counts as rounding
NODE_TOLERANCE = 1e-2  # the same of a value on the way, where differences of near equals may be amplified
STATISTICS = ("layer_norm", "group_norm", "rms_norm", "mean", "var", "std")


class Masked(torch.fx.Interpreter):
    """Runs the original graph with every removed element, and every branch that is gone, held at zero.

    Args:
        analysis: What the coupling found.
        cut: What goes.
        nodes: Old node → node of the pruned graph.
    """

    def __init__(self, analysis: Analysis, cut: Cut, nodes: dict[Node, Node]) -> None:
        super().__init__(analysis.module, garbage_collect_values=True)
        self.analysis, self.cut, self.twins = analysis, cut, nodes
        self.sources = {branch.join: branch.source for branch in cut.branches}

    def run_node(self, n: Node) -> Any:
        if n in self.sources:
            gone = self.sources[n]
            operands = (torch.zeros_like(self.env[a]) if a is gone else self.env[a] for a in n.args)
            return torch.add(*operands, **n.kwargs)
        value = self.analysis.values.get(n)
        over = n.op == "call_function" and self._over_channels(n)
        result = self._over_kept(n) if over else super().run_node(n)
        if isinstance(value, list):
            return [self._masked(r, v) for r, v in zip(result, value, strict=True)]
        return self._masked(result, value)

    def _masked(self, result: Any, value: Any) -> Any:
        if not isinstance(result, Tensor) or not isinstance(value, Value):
            return result
        gone = self.cut.removed(value)
        if gone is None or not bool((torch.where(gone, result, torch.zeros_like(result)) != 0).any()):
            return result  # left as it is where nothing changes, so that views stay views
        return torch.where(gone, torch.zeros_like(result), result)

    def _over_channels(self, n: Node) -> bool:
        name = str(n.target).removeprefix("aten.").removeprefix("native_").partition(".")[0]
        if name not in STATISTICS or not isinstance(n.args[0], Node) or n not in self.twins:
            return False
        x = self.analysis.value(n.args[0])
        return self.cut.shape(x) != x.shape

    def _over_kept(self, n: Node) -> Any:
        """Run the pruned graph's own node on what stays, and put the result back among zeros."""

        def small(node: Node) -> Any:
            held = self.env[node]
            return self.cut.take(held, self.analysis.value(node).layers) if isinstance(held, Tensor) else held

        back = {self.twins[node]: node for node in n.all_input_nodes}
        twin = self.twins[n]
        args = torch.fx.map_arg(twin.args, lambda m: small(back[m]))
        kwargs = torch.fx.map_arg(twin.kwargs, lambda m: small(back[m]))
        result = twin.target(*args, **kwargs)
        value = self.analysis.values[n]
        if isinstance(value, list):
            return [self._among_zeros(r, v) for r, v in zip(result, value, strict=True)]
        return self._among_zeros(result, value)

    def _among_zeros(self, result: Any, value: Any) -> Any:
        if not isinstance(result, Tensor) or not isinstance(value, Value) or result.shape == value.shape:
            return result
        places = torch.arange(int(torch.tensor(value.shape).prod())).reshape(value.shape)
        full = torch.zeros(places.numel(), dtype=result.dtype)
        full[self.cut.take(places, value.layers).reshape(-1)] = result.reshape(-1)
        return full.reshape(value.shape)


def difference(a: Tensor, b: Tensor) -> float:
    """The greatest difference relative to the greatest value; infinite where only one is not finite."""
    if a.numel() == 0:
        return 0.0
    if a.is_complex() and b.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    a, b = (t if t.dtype == torch.float64 else t.float() for t in (a, b))
    worst, scale = (a - b).abs().max(), a.abs().max()
    if bool(worst.isfinite() & scale.isfinite()):
        return float(worst / scale.clamp_min(1e-12))
    same = (a == b) | (a.isnan() & b.isnan())  # masks of -inf, alike in both
    both = a.isfinite() & b.isfinite()
    if not bool((same | both).all()):
        return float("inf")
    return difference(a[both], b[both])


@dataclass(frozen=True)
class Proof:
    """What the comparison of a pruned graph with the masked original found.

    Attributes:
        worst: The greatest relative difference over all outputs; infinite where it could not be run.
        culprit: The first node of the original at which the pruned graph fails or differs; None where none does.
        how: What is wrong there.
    """

    worst: float
    culprit: Node | None = None
    how: str = ""


@torch.no_grad()
def prove(analysis: Analysis, cut: Cut, nodes: dict[Node, Node], pruned: Any, feeds: list[Any]) -> Proof:
    """Run both graphs side by side and compare every value, so that no small output hides a large error.

    Args:
        feeds: The flat example inputs.
    """
    masked, small = _Stepper(Masked(analysis, cut, nodes), feeds), _Stepper(torch.fx.Interpreter(pruned), feeds)
    waiting = iter(pruned.graph.nodes)
    met: set[Node] = set()
    for node in analysis.module.graph.nodes:
        expected = masked.step(node)
        if node not in nodes or nodes[node] in met:
            continue  # gone with its branch, or what is left in its place has been compared
        met.add(nodes[node])
        try:
            for new in waiting:
                found = small.step(new)
                if new is nodes[node]:
                    break
        except Exception as error:  # a size that was not rewritten
            return Proof(float("inf"), node, (str(error).strip().splitlines() or [type(error).__name__])[0][:160])
        if node.op == "output":
            return _outputs(expected, found, node)
        if _draws(node) and isinstance(found, Tensor):
            drawn = cut.take(expected, analysis.value(node).layers)  # both go on with the same random numbers
            found = small.runner.env[nodes[node]] = drawn if drawn.shape == found.shape else found
        wrong = 0.0 if node.op == "get_attr" else _differs(analysis, cut, node, expected, found)
        if wrong > max(NODE_TOLERANCE, _rounding(found)):
            return Proof(wrong, node, f"it differs by {wrong:.1e} from the masked original")
    return Proof(float("inf"))


def _draws(node: Node) -> bool:
    """Whether a node draws random numbers; dropout and attention do so only where they are told to."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    named = bound(node)
    return bool(named.get("train", True) and named.get("training", True) and named.get("dropout_p", 1.0))


class _Stepper:
    """An interpreter that is driven node by node, and forgets what nobody reads any more."""

    def __init__(self, runner: torch.fx.Interpreter, feeds: list[Any]) -> None:
        self.runner = runner
        runner.args_iter = iter([f.clone() if isinstance(f, Tensor) else f for f in feeds])
        self.uses = {n: len(n.users) for n in runner.graph.nodes}

    def step(self, node: Node) -> Any:
        result = self.runner.env[node] = self.runner.run_node(node)
        for source in node.all_input_nodes:
            self.uses[source] -= 1
            if not self.uses[source] and source.op != "get_attr":
                del self.runner.env[source]
        return result


def _differs(analysis: Analysis, cut: Cut, node: Node, expected: Any, found: Any) -> float:
    value = analysis.values.get(node)
    if not isinstance(expected, Tensor) or not isinstance(value, Value) or not isinstance(found, Tensor):
        return 0.0
    mine = cut.take(expected, value.layers)
    if mine.shape != found.shape:
        return float("inf")
    return difference(mine, found) if mine.is_floating_point() or mine.is_complex() else 0.0


def _rounding(found: Any) -> float:
    """What sums in the tensor's own precision may differ by: tells in half precisions."""
    exact = not isinstance(found, Tensor) or not (found.is_floating_point() or found.is_complex())
    return 0.0 if exact else 16 * torch.finfo(found.dtype).eps


def _outputs(expected: Any, found: Any, node: Node) -> Proof:
    worst = 0.0
    for a, b in zip(tensors(expected), tensors(found), strict=True):
        worst = max(worst, difference(a, b) if a.shape == b.shape else float("inf"))
    if worst <= max(TOLERANCE, *(_rounding(t) for t in tensors(found)), 0.0):
        return Proof(worst)
    return Proof(worst, node, f"the outputs differ by {worst:.1e} from the masked original's")


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors in what a graph returns."""
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]
