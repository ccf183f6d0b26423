"""Proves a pruned graph: it must give what the original gives with the removed channels held at zero.

Norm layers and means over channels take their statistics over the channels that stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.pruners._coupling import Analysis, Value
from edgekit.pruners._rewrite import Cut

STATISTICS = ("layer_norm", "group_norm", "rms_norm", "mean", "var", "std")


class Masked(torch.fx.Interpreter):
    """Runs the original graph with every removed element held at zero.

    Args:
        analysis: What the coupling found.
        cut: What goes.
        nodes: Old node → node of the pruned graph.
        pruned: The pruned graph's values by node, to compare each with; None: only run.
    """

    def __init__(self, analysis: Analysis, cut: Cut, nodes: dict[Node, Node], pruned: dict[Node, Any] | None) -> None:
        super().__init__(analysis.module, garbage_collect_values=True)
        self.analysis, self.cut, self.twins, self.pruned = analysis, cut, nodes, pruned
        self.first: tuple[Node, float] | None = None

    def run_node(self, n: Node) -> Any:
        value = self.analysis.values.get(n)
        over = n.op == "call_function" and self._over_channels(n)
        result = self._over_kept(n) if over else super().run_node(n)
        if isinstance(value, list):
            result = [self._masked(r, v) for r, v in zip(result, value, strict=True)]
        elif isinstance(value, Value):
            result = self._masked(result, value)
        if self.pruned is not None and self.first is None:
            self._compare(n, result, value)
        return result

    def _masked(self, result: Any, value: Any) -> Any:
        if not isinstance(result, Tensor) or not isinstance(value, Value):
            return result
        gone = self.cut.removed(value)
        if gone is None or not bool((torch.where(gone, result, torch.zeros_like(result)) != 0).any()):
            return result  # left as it is where nothing changes, so that views stay views
        return torch.where(gone, torch.zeros_like(result), result)

    def _over_channels(self, n: Node) -> bool:
        name = str(n.target).removeprefix("aten.").removeprefix("native_").partition(".")[0]
        if name not in STATISTICS or not isinstance(n.args[0], Node):
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

    def _compare(self, n: Node, result: Any, value: Any) -> None:
        if not isinstance(result, Tensor) or not isinstance(value, Value) or not result.is_floating_point():
            return
        other = self.pruned[self.twins[n]] if self.pruned else None
        if not isinstance(other, Tensor):
            return
        mine = self.cut.take(result, value.layers)
        worst = difference(mine, other) if mine.shape == other.shape else float("inf")
        if not worst <= 1e-3:
            self.first = (n, worst)


class _Kept(torch.fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, module: Any) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.kept: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        self.kept[n] = result.clone() if isinstance(result, Tensor) else result
        return result


def difference(a: Tensor, b: Tensor) -> float:
    """The greatest difference relative to the greatest value; infinite where one is not finite."""
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.double()
    both = a.isfinite() & b.isfinite()
    if not bool((both | (a == b) | (a.isnan() & b.isnan())).all()):
        return float("inf")
    a, b = a[both], b[both]
    if a.numel() == 0:
        return 0.0
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))


@torch.no_grad()
def parity(analysis: Analysis, cut: Cut, nodes: dict[Node, Node], pruned: Any, feeds: list[Any]) -> float:
    """The greatest relative difference between the pruned module and the masked original over all outputs."""
    flat = [f.clone() if isinstance(f, Tensor) else f for f in feeds]
    masked = Masked(analysis, cut, nodes, None).run(*flat, enable_io_processing=False)
    flat = [f.clone() if isinstance(f, Tensor) else f for f in feeds]
    small = torch.fx.Interpreter(pruned).run(*flat, enable_io_processing=False)
    worst = 0.0
    for a, b in zip(_tensors(masked), _tensors(small), strict=True):
        if a.shape != b.shape:
            return float("inf")
        worst = max(worst, difference(a, b))
    return worst


def _tensors(outputs: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]


@torch.no_grad()
def culprit(analysis: Analysis, cut: Cut, nodes: dict[Node, Node], pruned: Any, feeds: list[Any]) -> tuple[Node, str]:
    """The first node of the original at which the pruned graph fails or differs, and how."""
    runner = _Kept(pruned)
    flat = [f.clone() if isinstance(f, Tensor) else f for f in feeds]
    try:
        runner.run(*flat, enable_io_processing=False)
    except Exception as error:
        back = {new: old for old, new in nodes.items()}
        failed = next(n for n in pruned.graph.nodes if n not in runner.kept)
        return back.get(failed, next(iter(back.values()))), str(error).strip().splitlines()[0][:160]
    flat = [f.clone() if isinstance(f, Tensor) else f for f in feeds]
    masked = Masked(analysis, cut, nodes, runner.kept)
    masked.run(*flat, enable_io_processing=False)
    if masked.first is None:
        last = list(analysis.module.graph.nodes)[-1]
        return last, "the outputs differ"
    return masked.first[0], f"it differs by {masked.first[1]:.1e} from the masked original"
