"""Decides what goes: couples, ranks, bundles and chooses; then rewrites and proves, and puts back what fails."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.errors import InputError
from edgekit.exported._graphmodule import Exported
from edgekit.pruners import _macs
from edgekit.pruners._branches import Branch, branches
from edgekit.pruners._check import prove
from edgekit.pruners._coupling import Analysis, Value, analyse, module_of, shapes_of
from edgekit.pruners._groups import Group, Rank, axes, bundled, groups, scores
from edgekit.pruners._ids import Components, components
from edgekit.pruners._normal import normalise
from edgekit.pruners._rewrite import Cut, rewrite

ATTEMPTS = 24

Choose = Callable[["Plan", "Wish"], "Choice"]
Goals = Mapping[str, float]  # "macs" or "parameters", as the plan counts them → how much may be left


@dataclass(frozen=True)
class Wish:
    """What is asked for; see :func:`edgekit.prune`."""

    ratio: float = 0.3
    round_to: int = 4
    scope: str = "auto"
    ratios: Mapping[str, float] = field(default_factory=dict)
    protect: tuple[str, ...] = ()
    target_macs: float | None = None
    target_parameters: float | None = None


@dataclass
class Plan:
    """A coupled and ranked model: everything that a choice needs.

    Attributes:
        solved: Ids → bundle of channels that go together; 0 stays.
        groups: Bundles that compete with each other.
        branches: Residual branches that can go whole.
        importance: float32 (bundles,).
        costly: The nodes that multiply.
    """

    analysis: Analysis
    solved: Components
    groups: list[Group]
    branches: list[Branch]
    importance: Tensor
    costly: list[Node]
    batch: int

    @cached_property
    def order(self) -> list[Tensor]:
        """Each group's members, weakest first; behind them each branch, a group of one that can be empty."""
        channels = [g.members[self.importance[g.members].argsort(stable=True)] for g in self.groups]
        return [*channels, *(torch.tensor([self.solved.count + i]) for i in range(len(self.branches)))]

    def gone(self, kept: Mapping[int, int]) -> Tensor:
        """What goes where groups, by their place in ``order``, keep so many members: bool (bundles + branches,)."""
        gone = torch.zeros(self.solved.count + len(self.branches), dtype=torch.bool)
        for group, width in kept.items():
            gone[self.order[group][: len(self.order[group]) - width]] = True
        return gone

    def cut(self, gone: Tensor) -> Cut:
        """The cut that removes these bundles and branches, bool (bundles + branches,)."""
        bundles, whole = gone.split([self.solved.count, len(self.branches)])
        return Cut(self.solved, bundles, tuple(self.branches[i] for i in whole.nonzero()[:, 0].tolist()))

    def macs(self, cut: Cut | None = None) -> int:
        """Multiply-adds of one sample."""
        return _macs.total(self.analysis, self.costly, cut, self.batch)

    def parameters(self, cut: Cut | None = None) -> int:
        """Elements of all parameters."""
        return _macs.parameters(self.analysis, cut)


@dataclass(frozen=True)
class Choice:
    """What goes, and what is worth telling of how that was chosen.

    Attributes:
        gone: bool (bundles + branches,).
        sensitivity: See :attr:`edgekit.pruners.Pruned.sensitivity`.
    """

    gone: Tensor
    notes: tuple[str, ...] = ()
    sensitivity: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A proved result of one pruning step; nothing was chosen where nothing could be proved."""

    module: Exported
    plan: Plan
    cut: Cut
    parity: float
    choice: Choice | None = None


def feeds_for(module: Exported) -> list[Any]:
    """The flat example inputs of an exported module, in the order of its placeholders."""
    meta = module.meta["edgekit"]
    return [meta["example"][leaf["name"]] if "name" in leaf else leaf["value"] for leaf in meta["leaves"]]


def prune_once(
    module: Exported, wish: Wish, rank: Rank, gradients: dict[str, Tensor] | None, choose: Choose | None = None
) -> Outcome:
    """Prune a copy of an exported module and prove it; what can't be proved is put back.

    Args:
        choose: What goes of a plan and a wish; else :func:`chosen`. It may run cuts of the plan: what can't be proved
            of an even one is out of it before.

    Raises:
        InputError: A goal that can't be reached, or a pattern that names no layer.
    """
    module = copy.deepcopy(module).eval()
    feeds = feeds_for(module)
    shapes = shapes_of(module, feeds)
    if normalise(module, shapes):
        shapes = shapes_of(module, feeds)
    banned: dict[str, str] = {}
    whole: set[str] = set()

    def make_plan() -> Plan:
        return planned(module, shapes, wish, rank, gradients, banned, whole)

    plan = make_plan()
    if choose is not None:
        even = replace(wish, ratio=0.5, scope="local", target_macs=None, target_parameters=None)
        plan = _proved(plan, lambda plan: Choice(chosen(plan, even)), feeds, make_plan, banned, whole).plan
    pick = choose or (lambda plan, wish: Choice(chosen(plan, wish)))
    return _proved(plan, lambda plan: pick(plan, wish), feeds, make_plan, banned, whole)


def _proved(
    plan: Plan,
    choose: Callable[[Plan], Choice],
    feeds: list[Any],
    make_plan: Callable[[], Plan],
    banned: dict[str, str],
    whole: set[str],
) -> Outcome:
    """Choose, cut and prove, until a cut is proved; ``banned`` and ``whole`` take what is not, for the next plan."""
    module = plan.analysis.module
    for _ in range(ATTEMPTS):
        choice = choose(plan)
        cut = plan.cut(choice.gone)
        pruned, nodes = rewrite(module, plan.analysis, cut)
        proof = prove(plan.analysis, cut, nodes, pruned, feeds)
        if proof.culprit is None:
            return Outcome(pruned, plan, cut, proof.worst, choice)
        if cut.branches:
            whole |= {branch.join.name for branch in cut.branches}
        elif proof.culprit.name in banned:
            break
        else:
            unproved = f"it could not be proved at '{proof.culprit.name}' ({proof.how}) and was put back"
            banned[proof.culprit.name] = plan.analysis.refused.get(proof.culprit, unproved)
        plan = make_plan()
    nothing = plan.cut(plan.gone({}))
    untouched, _ = rewrite(module, plan.analysis, nothing)
    return Outcome(untouched, plan, nothing, 0.0)


def planned(
    module: Exported,
    shapes: dict[Node, Any],
    wish: Wish,
    rank: Rank,
    gradients: dict[str, Tensor] | None = None,
    banned: dict[str, str] | None = None,
    whole: Iterable[str] = (),
) -> Plan:
    """Couple and rank.

    Args:
        banned: Node name → why what it touches stays whole.
        whole: The additions whose branches stay.
    """
    analysis = _coupled(module, shapes, banned or {})
    _protect(analysis, wish.protect)
    _check_patterns(analysis, wish)
    solved = components(analysis.ids)
    known = axes(analysis, gradients)
    first = groups(solved, known)
    even = bundled(solved, scores(solved, first, rank))
    importance = torch.zeros(even.count)
    found = groups(even, known)
    importance = scores(even, found, rank)
    costly = _macs.costly(analysis)
    can_go = [b for b in branches(analysis, costly, _still(analysis, wish)) if b.join.name not in whole]
    return Plan(analysis, even, found, can_go, importance, costly, _batch(module))


def _still(analysis: Analysis, wish: Wish) -> set[Node]:
    """The nodes of layers that the user protects or gives a ratio of their own."""
    patterns = (*wish.protect, *wish.ratios)
    named = [n for n in analysis.module.graph.nodes if n.op == "get_attr"]
    return {n for n in named if any(_matches(str(n.target), pattern) for pattern in patterns)}


def _batch(module: Exported) -> int:
    meta = module.meta["edgekit"]
    for name, axes_ in meta["dynamic"].items():
        if 0 in axes_:
            return int(meta["example"][name].shape[0])
    return 1


def _coupled(module: Exported, shapes: dict[Node, Any], banned: dict[str, str]) -> Analysis:
    """Couple; where a view divides channels and none of them can go, try another of its new dimensions."""
    best = analyse(module, shapes, banned=banned)
    packing: dict[str, int] = {}
    for choice in (1, 2):
        solved = _evened(best)
        stuck = [name for name, ids in best.splits.items() if not _free(solved, ids)]
        if not stuck:
            break
        trial_packing = {**packing, **dict.fromkeys(stuck, choice)}
        trial = analyse(module, shapes, packing=trial_packing, banned=banned)
        if _freedom(trial) > _freedom(best):
            best, packing = trial, trial_packing
    return best


def _freedom(analysis: Analysis) -> int:
    """How many parameter positions are free."""
    solved = _evened(analysis)
    return sum(_free(solved, ids) for value in analysis.parameters.values() for ids in value.layers.values())


def _evened(analysis: Analysis) -> Components:
    """What could go if channels were ranked anyhow."""
    solved = components(analysis.ids)
    return bundled(solved, torch.rand(solved.count, generator=torch.Generator().manual_seed(0)))


def _free(solved: Components, ids: Tensor) -> int:
    """How many of these positions can go; none where they only could all together."""
    bundles = solved.of[ids].reshape(-1)
    bundles = bundles[bundles != 0]
    return len(bundles) if len(torch.unique(bundles)) > 1 else 0


def _protect(analysis: Analysis, patterns: tuple[str, ...]) -> None:
    names = {str(n.target): n for n in analysis.module.graph.nodes if n.op == "get_attr"}
    for pattern in patterns:
        hit = [n for name, n in names.items() if _matches(name, pattern)]
        if not hit:
            raise _no_layer("protect", pattern, names)
        for node in hit:
            value = analysis.values[node]
            for ids in value.layers.values() if isinstance(value, Value) else ():
                analysis.ids.freeze(ids, "you protect it")


def _matches(parameter: str, pattern: str) -> bool:
    """Whether a pattern names a parameter, its layer, or a module around it."""
    parts = parameter.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _no_layer(key: str, pattern: str, names: Any) -> InputError:
    layers = sorted({name.rpartition(".")[0] for name in names})
    return InputError(
        f"{key} names '{pattern}', and no layer is called that",
        remedy=f"name one of its {len(layers)} layers, for example {', '.join(repr(n) for n in layers[:6])}",
    )


def chosen(plan: Plan, wish: Wish) -> Tensor:
    """Which bundles go, bool (bundles,)."""
    goals = goals_of(plan, wish)
    if not goals:
        return _at(plan, wish, wish.ratio)
    low, high = 0.0, 1.0
    for name, most in goals.items():
        count = getattr(plan, name)
        if (least := count(plan.cut(_at(plan, wish, high)))) > most:
            raise InputError(
                f"target_{name} = {most / count():.3f} can't be reached: at least {least / count():.3f} must stay",
                remedy=f"raise target_{name}, or protect fewer layers",
            )
    for _ in range(20):
        middle = (low + high) / 2
        if met(plan, _at(plan, wish, middle), goals):
            high = middle
        else:
            low = middle
    return _at(plan, wish, high)


def goals_of(plan: Plan, wish: Wish) -> Goals:
    """How much may be left; nothing is said where a ratio is asked for."""
    asked = {"macs": wish.target_macs, "parameters": wish.target_parameters}
    return {name: share * getattr(plan, name)() for name, share in asked.items() if share is not None}


def met(plan: Plan, gone: Tensor, goals: Goals) -> bool:
    """Whether a cut keeps to the goals."""
    cut = plan.cut(gone)
    return all(getattr(plan, name)(cut) <= most for name, most in goals.items())


def count_at(plan: Plan, wish: Wish) -> float:
    """The multiply-adds that the wish's ratio leaves when every group loses the same share."""
    return plan.macs(plan.cut(_at(plan, wish, wish.ratio)))


def _at(plan: Plan, wish: Wish, ratio: float) -> Tensor:
    """The weakest ``ratio`` of the channels of each group, rounded, or of all; at least the best of each stays."""
    counts = [len(group.members) for group in plan.groups]
    shares = [share_of(group, wish, ratio) for group in plan.groups]
    free = [g for g, (_, own) in enumerate(shares) if not own] if wish.scope == "global" else []
    gone = plan.gone(
        {
            g: max(1, _kept(counts[g], share, 1 if own else wish.round_to))
            for g, (share, own) in enumerate(shares)
            if g not in free
        }
    )
    if free:
        members = torch.cat([plan.order[g][:-1] for g in free])
        order = members[plan.importance[members].argsort(stable=True)]
        gone[order[: round(ratio * sum(counts[g] for g in free))]] = True
    return gone


def _kept(count: int, share: float, multiple: int) -> int:
    """How many channels of a group stay: a multiple, where the group is wide enough for that to be near the share."""
    kept = count - round(share * count)
    if kept == count or kept < multiple or count < 4 * multiple:
        return kept
    return min(count, (kept + multiple // 2) // multiple * multiple)


def share_of(group: Group, wish: Wish, ratio: float) -> tuple[float, bool]:
    """A group's ratio, and whether it is the user's own for one of its layers."""
    for pattern, own in wish.ratios.items():
        if any(_matches(f"{layer}.weight", pattern) for layer in group.layers):
            return own, True
    return ratio, False


def _check_patterns(analysis: Analysis, wish: Wish) -> None:
    """Refuse patterns in ``ratios`` that name no layer."""
    names = [str(n.target) for n in analysis.module.graph.nodes if n.op == "get_attr"]
    for pattern in wish.ratios:
        if not any(_matches(name, pattern) for name in names):
            raise _no_layer("ratios", pattern, names)


def branch_name(branch: Branch, costly: list[Node]) -> str:
    """The layers of a branch that multiply."""
    return ", ".join(dict.fromkeys(name for n in costly if n in branch.inside and (name := layer_name(n))))


def layer_name(node: Node) -> str:
    """The user's module that a costly node belongs to: its weight's, else the one it was called in."""
    for argument in node.args[1:3]:
        held = argument[0] if isinstance(argument, (list, tuple)) and argument else argument
        if isinstance(held, Node) and held.op == "get_attr":
            return str(held.target).rpartition(".")[0]
    return module_of(node)
