"""Which group loses how many channels: whatever saves most for each bit of output that it disturbs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.exported._graphmodule import Exported
from edgekit.pruners import _macs
from edgekit.pruners._plan import Goals, Plan, feeds_for
from edgekit.pruners._rewrite import Cut

SAMPLES, BYTES = 384, 2**28  # at most, to judge cuts by
BALANCES = (0.0, 0.1, 0.3, 1.0)  # how much narrowness counts beside what a cut disturbs: all are tried
LEAST = 0.125  # of a group's channels that stay
BRANCH = [1, 0]  # the "widths" of a residual branch: it stays, or goes whole


@dataclass
class Descent:
    """Ever smaller models, from the whole one on.

    Attributes:
        gone: What goes, bool (bundles + branches,) each.
        predicted: The first goal's cost as a share of the whole model's.
        fits: Whether all other goals are met.
        steps: The group that was cut last, and the width that it had before.
    """

    gone: list[Tensor]
    predicted: list[float]
    fits: list[bool]
    steps: list[tuple[int, int]]

    def add(self, gone: Tensor, predicted: float, fits: bool, step: tuple[int, int]) -> None:
        """Note the next smaller model."""
        self.gone.append(gone)
        self.predicted.append(predicted)
        self.fits.append(fits)
        self.steps.append(step)


def widths(count: int, *, fine: bool = False) -> list[int]:
    """The widths that are tried for a group of so many channels, widest first.

    Args:
        fine: Sixteenths of the group; else the steps at which kernels may change.
    """
    coarse = 4 if count <= 32 else 8 if count <= 128 else 16 if count <= 256 else count // 16
    step = max(1, count // 16 if fine else coarse)
    least = max(1, math.ceil(count * LEAST))
    return [count, *(w for w in range(count // step * step, 0, -step) if least <= w < count)]


def samples(module: Exported, calibration: Any) -> list[Any]:
    """Flat inputs to judge cuts by: calibration samples, or the example where there are none or batches are fixed."""
    from edgekit.exported import feeds_of

    meta, feeds = module.meta["edgekit"], feeds_for(module)
    free = all("name" in leaf and 0 in meta["dynamic"].get(leaf["name"], {}) for leaf in meta["leaves"])
    if calibration is None or not free:
        return feeds
    found: list[Tensor] = []
    for inputs, _ in calibration:
        batch = list(feeds_of(module, inputs).values())
        if found and any(a.shape[1:] != b.shape[1:] for a, b in zip(found, batch, strict=True)):
            continue  # samples of the first batch's sizes are judged together
        found = [torch.cat([a, b]) for a, b in zip(found, batch, strict=True)] if found else batch
        if len(found[0]) >= SAMPLES or sum(t.nbytes for t in found) >= BYTES:
            break
    return [t[:SAMPLES] for t in found] or feeds


def balanced(losses: list[list[float]], steps: list[list[int]]) -> list[list[list[float]]]:
    """For each of BALANCES, the losses and, so many times, −log of the share of its channels that a group keeps."""
    narrow = [[math.log(widths[0] / width) if width else 0.0 for width in widths] for widths in steps]
    return [
        [[a + balance * b for a, b in zip(*rows, strict=True)] for rows in zip(losses, narrow, strict=True)]
        for balance in BALANCES
    ]


class Ledger:
    """What a model costs at given widths, node by node; each node is asked once for each of its own widths.

    Args:
        nodes: The nodes that cost something.
        cost: What one of them costs in a cut model.
    """

    def __init__(self, plan: Plan, nodes: list[Node], cost: Callable[[Node, Cut], float]) -> None:
        self.plan, self.nodes, self.cost = plan, nodes, cost
        self.near = {node: touched(plan, node) for node in nodes}
        self.of_group = [[n for n in nodes if g in self.near[n]] for g in range(len(plan.order))]
        self.known: dict[tuple[Node, tuple[int, ...]], float] = {}

    def at(self, node: Node, kept: list[int]) -> float:
        """What a node costs where the groups keep so many channels."""
        near = self.near[node]
        key = (node, tuple(kept[g] for g in near))
        if key not in self.known:
            gone = self.plan.gone({g: kept[g] for g in near})
            self.known[key] = self.cost(node, self.plan.cut(gone)) if all(key[1]) else 0.0  # its branch is gone
        return self.known[key]

    def total(self, kept: list[int]) -> float:
        """What the model costs."""
        return sum(self.at(node, kept) for node in self.nodes)

    def change(self, kept: list[int], group: int, width: int) -> float:
        """What it would cost more if one group kept ``width`` channels."""
        trial = [width if n == group else w for n, w in enumerate(kept)]
        return sum(self.at(n, trial) - self.at(n, kept) for n in self.of_group[group])


def touched(plan: Plan, node: Node) -> tuple[int, ...]:
    """The groups whose channels lie in a node's inputs or outputs, and the branches that it lies in."""
    owner = torch.full((plan.solved.count,), -1)
    for number, group in enumerate(plan.groups):
        owner[group.members] = number
    found: set[int] = set()
    for n in (node, *node.all_input_nodes):
        held = plan.analysis.values.get(n)
        for value in held if isinstance(held, list) else [held]:
            for ids in value.layers.values() if value is not None else ():
                found |= set(owner[plan.solved.of[ids]].unique().tolist())
    inside = (len(plan.groups) + i for i, branch in enumerate(plan.branches) if node in branch.inside)
    return (*sorted(found - {-1}), *inside)


@dataclass(frozen=True)
class Goal:
    """What a cut model may cost at most.

    Attributes:
        ledger: Of milliseconds, multiply-adds or parameters. floor: The share of the whole cost that may be left.
    """

    ledger: Ledger
    floor: float


def floors(plan: Plan, goals: Goals) -> list[Goal]:
    """The goals of :func:`edgekit.pruners._plan.goals_of`, with what each node costs in their own measure."""
    found = []
    for name, most in goals.items():
        if name == "parameters":
            nodes = _macs.parameter_nodes(plan.analysis, set())
            ledger = Ledger(plan, nodes, lambda n, cut: math.prod(cut.shape(plan.analysis.value(n))))
        else:
            ledger = Ledger(plan, plan.costly, lambda n, cut: _macs.macs_of(plan.analysis, n, cut.shape) / plan.batch)
        found.append(Goal(ledger, most / getattr(plan, name)()))
    return found


def descend(plan: Plan, steps: list[list[int]], goals: list[Goal], losses: list[list[float]]) -> Descent:
    """Cut, step by step, whichever group to whichever width saves most for each bit of output disturbed.

    What a step saves is counted in shares of the costs whose goals are not met yet, up to what is missing. The last
    model gets back what it can of the step that met the last of them.

    Args:
        steps: Each group's widths, widest first.
        goals: When to stop; the first one's costs are told.
        losses: What each of those widths disturbs, from :func:`edgekit.pruners._sensitivity.disturbances`.
    """
    at = [0] * len(steps)
    kept = [s[0] for s in steps]
    whole = [goal.ledger.total(kept) for goal in goals]
    most = [total * goal.floor for total, goal in zip(whole, goals, strict=True)]
    now = list(whole)
    path = Descent([plan.gone({})], [1.0], [_fits(now[1:], most[1:])], [(-1, 0)])
    while not _fits(now, most):
        wanting = [(goal.ledger, whole[i], now[i] - most[i]) for i, goal in enumerate(goals) if now[i] > most[i]]
        best: tuple[float, int, int] | None = None
        for g, choices in enumerate(steps):
            for place in range(at[g] + 1, len(choices)):
                saved = sum(
                    min(-ledger.change(kept, g, choices[place]), missing) / total for ledger, total, missing in wanting
                )
                price = max(losses[g][place] - losses[g][at[g]], 1e-9)
                if saved > 0 and (best is None or saved / price > best[0]):
                    best = (saved / price, g, place)
        if best is None:
            return path
        _, g, place = best
        now = [cost + goal.ledger.change(kept, g, steps[g][place]) for cost, goal in zip(now, goals, strict=True)]
        step = (g, kept[g])
        at[g], kept[g] = place, steps[g][place]
        path.add(plan.gone(dict(enumerate(kept))), now[0] / whole[0], _fits(now[1:], most[1:]), step)
    _refill(steps, at, goals, losses, [limit - cost for limit, cost in zip(most, now, strict=True)])
    kept = [s[place] for s, place in zip(steps, at, strict=True)]
    path.gone[-1], path.predicted[-1] = plan.gone(dict(enumerate(kept))), goals[0].ledger.total(kept) / whole[0]
    return path


def even(plan: Plan, steps: list[list[int]], goals: list[Goal]) -> Tensor:
    """The cut that leaves every group the same share, in widths that are tried, and meets the goals."""
    whole = [goal.ledger.total([widths[0] for widths in steps]) for goal in goals]
    for share in (percent / 100 for percent in range(100, 0, -1)):
        kept = [min((abs(width - share * widths[0]), width) for width in widths if width)[1] for widths in steps]
        if all(g.ledger.total(kept) <= total * g.floor for g, total in zip(goals, whole, strict=True)):
            break
    return plan.gone(dict(enumerate(kept)))


def _fits(costs: list[float], most: list[float]) -> bool:
    return all(cost <= limit for cost, limit in zip(costs, most, strict=True))


def _refill(
    steps: list[list[int]], at: list[int], goals: list[Goal], losses: list[list[float]], rooms: list[float]
) -> None:
    """Widen groups again (places in ``at``), whichever undoes most disturbance, as long as all costs have room."""
    while True:
        kept = [s[place] for s, place in zip(steps, at, strict=True)]
        moves = [
            (losses[g][at[g]] - losses[g][place], g, place, changes)
            for g, choices in enumerate(steps)
            for place in range(at[g])
            if _fits(changes := [goal.ledger.change(kept, g, choices[place]) for goal in goals], rooms)
        ]
        if not moves:
            return
        _, g, at[g], changes = max(moves)
        rooms = [room - change for room, change in zip(rooms, changes, strict=True)]
