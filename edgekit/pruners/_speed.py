"""``target_speedup``: widths chosen by the time they save on the target for each share of the output they disturb.

Layers are costed alone (:mod:`edgekit.pruners._cost`); channels then go, group by group, to
whichever measured width saves most time for what it costs in output. The path of ever smaller
models is searched for the one that reaches the goal by measuring whole models against the
original, interleaved, as the line will build them. Of several cuts that cost just as much, the
one that is as fast and recovers best in a rehearsal (:mod:`edgekit.pruners._rehearse`) is taken.
Where none reaches the goal, the step that gained least of what its layers alone had promised is
taken back, and the path is made anew without it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit import child
from edgekit.console import note, progress
from edgekit.errors import InputError
from edgekit.exported._graphmodule import Exported
from edgekit.pruners import _cost, _rehearse
from edgekit.pruners._descent import (
    BRANCH,
    Descent,
    Goal,
    Ledger,
    balanced,
    descend,
    even,
    floors,
    samples,
    touched,
    widths,
)
from edgekit.pruners._macs import macs_of
from edgekit.pruners._plan import Choice, Goals, Plan, met
from edgekit.pruners._rewrite import Cut, rewrite
from edgekit.pruners._rules_math import bound
from edgekit.pruners._sensitivity import disturbances, sensitivity
from edgekit.target import Target

SLACK = 0.015  # a goal counts as reached this far below it: what a careful measurement can't tell apart
TRIALS, CHECKS, PATHS, RETURNS = 6, 3, 4, 2
EMPTY = 0.05  # a step is empty where whole models gain so much less than was predicted
GLANCE = {"pairs": 4, "max_pairs": 6, "budget_s": 40, "precision": 0.02}  # [measure] of a candidate
CAREFUL = {"pairs": 12, "max_pairs": 20, "budget_s": 90, "precision": 0.015}  # and of the one that is returned
CALIBRATION = 64  # samples of a candidate's ranges, which its speed does not depend on

Cuts = Callable[[float], list[Tensor]]  # a share of the predicted cost → what goes, in several ways


def choose(
    plan: Plan,
    goal: float,
    others: Goals,
    latency: Mapping[str, Any],
    module: Exported,
    calibration: Any,
) -> Choice:
    """What goes so that the model runs ``goal`` times as fast on the target, and keeps to the other goals.

    Raises:
        InputError: No model that was tried reaches the goals; says what could be reached.
    """
    target = Target.model_validate(latency["target"])
    precision = str(latency.get("precision", "fp32"))
    steps = [*(widths(len(group.members)) for group in plan.groups), *(BRANCH for _ in plan.branches)]
    costs = _Costs(plan, steps, target, precision)
    feeds = samples(module, calibration)
    alone = disturbances(plan, steps, feeds)
    ways, fixed = balanced(alone, steps), floors(plan, others)
    minded = sensitivity(plan, steps, alone)

    def goals(share: float) -> list[Goal]:
        return [Goal(costs.ledger, share), *fixed]

    def ends(share: float) -> list[Tensor]:
        return [descend(plan, steps, goals(share), way).gone[-1] for way in ways]

    def cuts(share: float) -> list[Tensor]:
        return [gone for gone in (*ends(share), even(plan, steps, goals(share))) if met(plan, gone, others)]

    losses = ways[_rehearse.ranked(plan, ends(1 / goal), feeds)[0]]
    best = 0.0
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        line = _Line(plan, target, precision, Path(folder), calibration)
        for _ in range(PATHS):
            path = descend(plan, steps, goals(1 / (goal * 1.6)), losses)
            if True not in path.fits:
                raise InputError(
                    "target_macs or target_parameters can't be reached together with target_speedup",
                    remedy="ask for more of them, or protect fewer layers",
                )
            number, speeds = _searched(path, goal, line)
            if speeds[number] >= goal * (1 - SLACK):
                room = max(1.0, speeds[number] / (goal * (1 + SLACK)))  # where a long step went past the goal
                found = (path.gone[number], speeds[number])
                gone, speed = _recovering(found, cuts, path.predicted[number] * room, goal, feeds, line)
                told = f"{speed:.2f} times as fast on {target.name}, measured"
                return Choice(gone, (told, _told(path, speeds)), minded)
            best = max(best, *speeds.values())
            if (empty := _empty_step(path, speeds, line)) is None:
                break
            group, before = path.steps[empty]
            steps[group] = [width for width in steps[group] if width >= before]
    raise InputError(
        f"the goal of {goal:.2f} times as fast can't be reached: {best:.2f} was measured at most",
        remedy=f"ask for at most {best:.2f}, protect fewer layers, or choose a smaller model",
    )


def _recovering(
    found: tuple[Tensor, float], cuts: Cuts, share: float, goal: float, feeds: list[Any], line: _Line
) -> tuple[Tensor, float]:
    """The cut that recovers best in a rehearsal of those that are fast enough, and its measured speed-up.

    Args:
        found: A cut that is fast enough, and its speed-up.
        cuts: Makes others that may keep a share of the predicted cost.
        share: That share to begin with; more where the best turns out faster than asked, and is asked again.
    """
    for _ in range(RETURNS):
        tried = [*cuts(share), found[0]]
        for place in _rehearse.ranked(line.plan, tried, feeds):
            gone = tried[place]
            speed = found[1] if torch.equal(gone, found[0]) else line.speed(gone, CAREFUL)
            if speed >= goal * (1 - SLACK):
                break
        known = torch.equal(gone, found[0])
        found, share = (gone, speed), share * speed / goal
        if known or speed <= goal * (1 + SLACK):
            break
    return found


def _told(path: Descent, speeds: Mapping[int, float]) -> str:
    each = (f"{speeds[i]:.2f}x measured where {1 / path.predicted[i]:.2f}x was predicted" for i in sorted(speeds))
    return f"whole models: {'; '.join(each)}"


class _Costs:
    """Predicted milliseconds of the layers of a cut."""

    def __init__(self, plan: Plan, steps: list[list[int]], target: Target, precision: str) -> None:
        self.plan, self.batch = plan, target.run.batch
        whole = plan.cut(plan.gone({}))
        built = [n for n in plan.costly if _spec(plan, n, whole, self.batch)]
        wanted: set[_cost.Spec] = set()
        for node in built:
            for kept in _combinations(steps, [g for g in touched(plan, node) if g < len(plan.groups)]):
                if spec := _spec(plan, node, plan.cut(plan.gone(kept)), self.batch):
                    wanted.add(spec)
        note(f"timing {len(wanted)} layers at their widths on {target.name} ({precision})")
        self.times = _cost.measured(wanted, target, precision)
        known = sum(macs_of(plan.analysis, n, whole.shape) for n in built)
        self.per_mac = sum(self.node(n, whole) for n in built) / max(known, 1)
        self.ledger = Ledger(plan, plan.costly, self.node)

    def node(self, node: Node, cut: Cut) -> float:
        """Milliseconds of one layer: as timed, else by its multiply-adds."""
        spec = _spec(self.plan, node, cut, self.batch)
        if spec in self.times:
            return self.times[spec]
        return macs_of(self.plan.analysis, node, cut.shape) * self.per_mac


def _combinations(steps: list[list[int]], near: list[int]) -> Iterable[dict[int, int]]:
    """Widths of the groups that a layer touches: all pairs where it touches two, each alone where more."""
    yield {}
    for place, i in enumerate(near):
        for width in steps[i]:
            yield {i: width}
            for j in near[place + 1 :] if len(near) <= 3 else ():
                yield from ({i: width, j: other} for other in steps[j])


def _spec(plan: Plan, node: Node, cut: Cut, batch: int) -> _cost.Spec | None:
    """A layer at the sizes of a cut, as :mod:`_cost` builds it; None for what it does not build."""
    named, name = bound(node), str(node.target)
    if name in ("aten.conv2d.default", "aten.conv1d.default") and "weight" in named:
        x, weight = cut.shape(plan.analysis.value(named["input"])), cut.shape(plan.analysis.value(named["weight"]))
        rank = len(weight) - 2
        each = [
            list(v) * rank if len(v) == 1 else list(v) for v in (named["stride"], named["padding"], named["dilation"])
        ]
        groups = x[1] // weight[1]
        pads = tuple(each[1] * 2)
        return ("conv", (batch, *x[1:]), weight, tuple(each[0]), pads, tuple(each[2]), groups)
    if name == "aten.linear.default":
        x, weight = cut.shape(plan.analysis.value(named["input"])), cut.shape(plan.analysis.value(named["weight"]))
        rows = batch * math.prod(x[1:-1])
        return ("gemm", rows, weight[1], weight[0])
    return None


class _Line:
    """Builds whole models as the line will, and measures them against the original, interleaved."""

    def __init__(self, plan: Plan, target: Target, precision: str, folder: Path, calibration: Any) -> None:
        self.plan, self.target, self.precision, self.folder = plan, target, precision, folder
        self.calibration = calibration
        self.built: dict[bytes, Path] = {}

    def speed(self, gone: Tensor, effort: Mapping[str, Any]) -> float:
        """The measured speed-up over the original of the model without these bundles."""
        from edgekit.measure import Row, measure_rows
        from edgekit.recipe import MeasureSection

        pair = {"original": self.plan.gone({}), "pruned": gone}
        rows = [Row(id=name, artifact=self._build(g), backend=self.target.backend) for name, g in pair.items()]
        return float(measure_rows(rows, self.target, MeasureSection(**effort))[1].speedup or 0.0)

    def _build(self, gone: Tensor) -> Path:
        key = gone.numpy().tobytes()
        if key in self.built:
            return self.built[key]
        from edgekit.exported import save

        pruned, _ = rewrite(self.plan.analysis.module, self.plan.analysis, self.plan.cut(gone))
        stem = self.folder / str(len(self.built))
        save(pruned, f"{stem}.pt2")
        self._call("edgekit.exporting:export_job", model=f"{stem}.pt2", settings={}, out=f"{stem}.onnx")
        self._call("edgekit.exporting:simplify_job", model=f"{stem}.onnx", out=f"{stem}.simple.onnx")
        source = f"{stem}.simple.onnx"
        if self.precision == "int8":
            aim, spooled = self.target.model_dump(mode="json"), str(self.calibration.folder)
            settings = {"method": "static", "samples": CALIBRATION}
            self._call(
                "edgekit.quantizers:quantize_job",
                model=source,
                out=f"{stem}.int8.onnx",
                calibration=spooled,
                target=aim,
                settings=settings,
            )
            source = f"{stem}.int8.onnx"
        made = self._call(
            "edgekit.backends:compile_job", model=source, target=self.target.model_dump(mode="json"), out=f"{stem}.out"
        )
        self.built[key] = Path(f"{stem}.out") / made["path"]
        return self.built[key]

    def _call(self, job: str, **arguments: Any) -> Any:
        return child.call(job, **arguments)


def _searched(path: Descent, goal: float, line: _Line) -> tuple[int, dict[int, float]]:
    """The first model of the path that reaches the goal: found by a few short measurements, then measured well.

    Where the long measurement denies the goal, the search goes on behind that model.

    Returns:
        The model's number, and the speed-up of each that was measured; the last such one where none reaches the goal.
    """
    last = len(path.gone) - 1
    speeds = _approached(path, goal, line)
    number = min((i for i, speed in speeds.items() if speed >= goal * (1 - SLACK)), default=max(speeds, default=last))
    for _ in range(CHECKS):
        speeds[number] = line.speed(path.gone[number], CAREFUL)
        if speeds[number] >= goal * (1 - SLACK) or number == last:
            break
        wanted = goal / speeds[number] / path.predicted[number]
        number = next((i for i in range(number + 1, last) if 1 / path.predicted[i] >= wanted), last)
    return number, speeds


def _empty_step(path: Descent, speeds: Mapping[int, float], line: _Line) -> int | None:
    """The step whose predicted gain whole models show least of, narrowed down by measuring; None where all show it."""
    known = {0: 1.0, **speeds}

    def missing(ends: tuple[int, int]) -> float:
        before, after = ends
        return path.predicted[before] / path.predicted[after] * known[before] / known[after]

    widest = max(pairwise(sorted(known)), key=missing, default=None)
    if widest is None or missing(widest) < 1 + EMPTY:
        return None
    low, high = widest
    while high - low > 1:
        middle = (low + high) // 2
        known[middle] = line.speed(path.gone[middle], GLANCE)
        low, high = max((low, middle), (middle, high), key=missing)
    return high


def _approached(path: Descent, goal: float, line: _Line) -> dict[int, float]:
    """The speed-ups of the models that a search for the goal comes by."""
    last = len(path.gone) - 1
    factor = 1.0  # measured speed-up against the predicted one, both less 1
    tried: dict[int, float] = {}
    low, high = max(0, path.fits.index(True) - 1), last + 1
    with progress("measuring candidates", TRIALS) as advance:
        for _ in range(TRIALS):
            wanted = 1 + (goal - 1) / max(factor, 0.05)
            guess = next((i for i, share in enumerate(path.predicted) if 1 / share >= wanted), last)
            guess = min(max(guess, low + 1), high - 1, last)
            if guess <= low or guess in tried:
                break
            tried[guess] = line.speed(path.gone[guess], GLANCE)
            advance(1)
            factor = max((tried[guess] - 1) / max(1 / path.predicted[guess] - 1, 1e-6), 0.05)
            low, high = (low, guess) if tried[guess] >= goal * (1 - SLACK) else (guess, high)
            if high - low <= 1:
                break
    return tried
