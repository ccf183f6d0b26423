"""One pruning from settings to result: iterations, gradients, the table and what stayed."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgekit.console import warn
from edgekit.errors import InputError
from edgekit.exported._graphmodule import Exported
from edgekit.pruners import Pruned, _descent, _macs, _mask, _rehearse
from edgekit.pruners._coupling import Value, attribute
from edgekit.pruners._groups import Group
from edgekit.pruners._ids import Components
from edgekit.pruners._plan import (
    Choice,
    Choose,
    Outcome,
    Plan,
    Wish,
    branch_name,
    chosen,
    count_at,
    goals_of,
    layer_name,
    met,
    prune_once,
    share_of,
)
from edgekit.pruners._sensitivity import disturbances, sensitivity


def pruned(
    module: Exported,
    settings: Mapping[str, Any],
    member: Any,
    calibration: Iterable[Any] | None = None,
    latency: Mapping[str, Any] | None = None,
) -> Pruned:
    """Prune an exported module as the settings say."""
    wish = Wish(**{k: settings[k] for k in Wish.__dataclass_fields__ if k in settings})
    if wish.scope == "auto":
        measured = calibration is not None and (wish.target_macs or wish.target_parameters)
        wish = dataclasses.replace(wish, scope=getattr(member, "SCOPE", "sensitivity" if measured else "local"))
    if hasattr(member, "masks"):
        return _mask.apply(module, settings, member)
    if goal := settings.get("target_speedup"):
        return _fast(module, wish, float(goal), member, calibration, latency)
    steps = int(settings.get("iterations", 1))
    current = module
    outcomes: list[Outcome] = []
    for step in range(steps):
        gradients = None
        if getattr(member, "NEEDS_GRADIENTS", False):
            gradients = _gradients(current, calibration)
        part = _part(wish, step, steps, outcomes)
        choose = _by_sensitivity(current, calibration) if part.scope == "sensitivity" else None
        outcomes.append(prune_once(current, part, member.rank, gradients, choose))
        current = outcomes[-1].module
    result = _result(outcomes)
    if result.parameters[0] == result.parameters[1] and wish != dataclasses.replace(wish, ratio=0.0):
        reasons = Counter(entry["reason"] for entry in result.kept).most_common(3)
        warn("nothing was pruned: " + "; ".join(f"{reason} ({count} layers)" for reason, count in reasons))
    return result


def _part(wish: Wish, step: int, steps: int, done: list[Outcome]) -> Wish:
    """The share of the whole wish that one of several steps takes on: equal factors."""
    if steps == 1:
        return wish

    def ratio(value: float) -> float:
        return float(1 - (1 - value) ** (1 / steps))

    def goal(value: float | None, measure: str) -> float | None:
        if value is None:
            return None
        first = done[0].plan if done else None
        so_far = 1.0
        if first is not None:
            so_far = getattr(done[-1].plan, measure)(done[-1].cut) / getattr(first, measure)()
        return float(min(1.0, value ** ((step + 1) / steps) / so_far))

    changed = {
        "ratio": ratio(wish.ratio),
        "ratios": {k: ratio(v) for k, v in wish.ratios.items()},
        "target_macs": goal(wish.target_macs, "macs"),
        "target_parameters": goal(wish.target_parameters, "parameters"),
    }
    return Wish(**{**vars(wish), **changed})


def _gradients(module: Exported, calibration: Iterable[Any] | None) -> dict[str, Tensor]:
    """The loss's gradient in every parameter, the root of its squares' sum over the calibration batches.

    Over a trained model's batches the gradients themselves sum to nearly nothing.

    The loss is cross-entropy where there are whole-number labels, the mean square error for other labels.
    """
    from edgekit.exported import feeds_of, run

    if calibration is None:
        raise InputError("this method needs data to take gradients on", remedy="give calibration batches with labels")
    twin = copy.deepcopy(module).eval()
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    squares: dict[str, Any] = {}
    for inputs, labels in calibration:
        if labels is None:
            raise InputError("this method needs labels", remedy="give calibration batches (inputs, labels)")
        output = run(twin, feeds_of(twin, inputs))[0]
        target = torch.as_tensor(labels)
        if target.is_floating_point():
            loss = torch.nn.functional.mse_loss(output, target.to(output.dtype))
        else:
            classes = output if output.dim() == 2 else output.movedim(-1, 1)
            loss = torch.nn.functional.cross_entropy(classes, target.long())
        loss.backward()
        for name, parameter in twin.named_parameters():
            if parameter.grad is not None:
                squares[name] = squares.get(name, 0) + parameter.grad.square()
        twin.zero_grad()
    return {name: total.sqrt() for name, total in squares.items()}


def _by_sensitivity(module: Exported, calibration: Any) -> Choose:
    """Widths by what they save for what they disturb, measured on the data, as they recover best."""

    def choose(plan: Plan, wish: Wish) -> Choice:
        steps = [*(_steps(group, wish) for group in plan.groups), *(_descent.BRANCH for _ in plan.branches)]
        feeds = _descent.samples(module, calibration)
        losses = disturbances(plan, steps, feeds)
        goals = goals_of(plan, wish) or {"macs": count_at(plan, wish)}
        floors = _descent.floors(plan, goals)
        ends = [_descent.descend(plan, steps, floors, way).gone[-1] for way in _descent.balanced(losses, steps)]
        cuts = [gone for gone in ends if met(plan, gone, goals)]
        try:
            cuts.append(chosen(plan, wish))  # and the same share of each
        except InputError:
            if not cuts:  # whole branches reach what channels alone can't
                raise
        best = cuts[_rehearse.ranked(plan, cuts, feeds)[0]]
        return Choice(best, sensitivity=sensitivity(plan, steps, losses))

    return choose


def _steps(group: Group, wish: Wish) -> list[int]:
    """The widths that a group may take: one alone where the user names its ratio."""
    count, (share, own) = len(group.members), share_of(group, wish, 0.0)
    return [max(1, count - round(share * count))] if own else _descent.widths(count, fine=True)


def _fast(
    module: Exported, wish: Wish, goal: float, member: Any, calibration: Any, latency: Mapping[str, Any] | None
) -> Pruned:
    """Prune until the model is ``goal`` times as fast on the target, as measured there."""
    from edgekit.pruners import _speed

    if latency is None:
        raise InputError("target_speedup needs a target to measure on", remedy="name one, or use target_macs")
    if latency.get("precision") == "int8" and calibration is None:
        raise InputError(
            "target_speedup at int8 needs calibration data",
            remedy="give [data] a calibration split, or calibration=… from Python",
        )
    gradients = _gradients(module, calibration) if getattr(member, "NEEDS_GRADIENTS", False) else None

    def choose(plan: Plan, wish: Wish) -> Choice:
        return _speed.choose(plan, goal, goals_of(plan, wish), latency, module, calibration)

    return _result([prune_once(module, wish, member.rank, gradients, choose)])


def _result(outcomes: list[Outcome]) -> Pruned:
    first, last = outcomes[0].plan, outcomes[-1].plan
    choices = [o.choice for o in outcomes if o.choice]
    return Pruned(
        model=outcomes[-1].module,
        macs=(first.macs(), last.macs(outcomes[-1].cut)),
        parameters=(first.parameters(), last.parameters(outcomes[-1].cut)),
        kept=tuple(_kept(outcomes[-1])),
        table=tuple(_table(outcomes)),
        parity=max(o.parity for o in outcomes),
        notes=(*(note for c in choices for note in c.notes), *_whole_branches(outcomes)),
        sensitivity=choices[0].sensitivity if choices else (),
        steps=tuple(outcomes),
    )


def _whole_branches(outcomes: list[Outcome]) -> list[str]:
    """A word on the residual branches that went, by their layers."""
    gone = [branch_name(branch, o.plan.costly) for o in outcomes for branch in o.cut.branches]
    return [f"residual branches that went whole: {'; '.join(gone)}"] if gone else []


def origin(outcomes: Iterable[Outcome]) -> dict[str, Tensor]:
    """See :meth:`edgekit.pruners.Pruned.origin`."""
    found: dict[str, Tensor] = {}
    for outcome in outcomes:
        analysis, before, found = outcome.plan.analysis, found, {}
        for node in analysis.module.graph.nodes:
            value, name = analysis.values.get(node), str(node.target)
            if (
                node.op != "get_attr"
                or not isinstance(value, Value)
                or not isinstance(attribute(analysis.module, name), torch.nn.Parameter)
                or node in outcome.cut.unread
            ):
                continue
            places = torch.arange(_size(value.shape)).reshape(value.shape)
            small = outcome.cut.take(places, value.layers)
            found[name] = before[name].reshape(-1)[small] if name in before else small
    return found


def _kept(outcome: Outcome) -> list[dict[str, str]]:
    """The layers whose output channels all stayed, and why."""
    plan, found = outcome.plan, {}
    for node in plan.costly:
        value = plan.analysis.values[node]
        value = value[0] if isinstance(value, list) else value
        weight = _weight(plan, node)
        name = layer_name(node)
        if weight is None or name in found or node in outcome.cut.unread:
            continue
        turned = "transpose" in str(node.target)
        d = 1 if turned and weight.rank > 1 else 0
        if outcome.cut.kept(weight, d) == weight.shape[d]:
            ids = weight.layers.get(d)
            found[name] = _why(plan.solved, ids)
    found.update((str(n.target).removeprefix("aten."), why) for n, why in plan.analysis.refused.items())
    return [{"layer": name, "reason": reason} for name, reason in found.items()]


def _why(solved: Components, ids: Tensor | None) -> str:
    if ids is None:
        return "it has one channel"
    if reason := solved.reason(ids):
        return reason
    bundles = torch.unique(solved.of[ids])
    if not bundles.any():
        return "no equal number of channels can go from each of its parts"
    return "its channels can only go all together" if len(bundles) == 1 else "what was asked for leaves it whole"


def _weight(plan: Any, node: Any) -> Value | None:
    for argument in node.args[1:4]:
        held = argument[0] if isinstance(argument, (list, tuple)) and argument else argument
        if isinstance(held, torch.fx.Node) and held.op == "get_attr":
            value = plan.analysis.value(held)
            if value.rank > 1:
                return value
    return None


def _table(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row for each layer that multiplies: channels, multiply-adds and parameters, before and after (0: gone)."""
    after = {row["layer"]: row for row in _rows(outcomes[-1], cut=True)}
    rows = []
    for old in _rows(outcomes[0], cut=False):
        row = after.get(old["layer"], {})
        pairs = {key: (old[key], row.get(key, 0)) for key in ("channels", "macs", "parameters")}
        rows.append({"layer": old["layer"], "kind": old["kind"], **pairs})
    return rows


def _rows(outcome: Outcome, *, cut: bool) -> list[dict[str, Any]]:
    plan = outcome.plan
    rows: dict[str, dict[str, Any]] = {}
    shape = outcome.cut.shape if cut else (lambda value: value.shape)
    for node in plan.costly:
        if cut and node in outcome.cut.unread:
            continue
        name = layer_name(node)
        value = plan.analysis.values[node]
        value = value[0] if isinstance(value, list) else value
        weight = _weight(plan, node)
        row = rows.setdefault(
            name,
            {
                "layer": name,
                "kind": str(node.target).removeprefix("aten.").partition(".")[0],
                "macs": 0,
                "parameters": 0,
            },
        )
        row["macs"] += _macs.macs_of(plan.analysis, node, shape) // plan.batch
        if weight is not None:
            row["parameters"] = max(row["parameters"], _size(shape(weight)))
        turned = "transpose" in str(node.target)
        sizes = shape(weight) if weight is not None else shape(value)[-1:]
        row["channels"] = sizes[1] if turned and len(sizes) > 1 else sizes[0]
    return list(rows.values())


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def report(result: Pruned) -> dict[str, Any]:
    """A result as JSON, for the record."""
    return {
        "macs": list(result.macs),
        "parameters": list(result.parameters),
        "kept": list(result.kept),
        "table": [{k: list(v) if isinstance(v, tuple) else v for k, v in row.items()} for row in result.table],
        "parity": result.parity,
        "notes": list(result.notes),
        "sensitivity": list(result.sensitivity),
    }
