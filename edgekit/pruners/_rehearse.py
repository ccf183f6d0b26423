"""Which of several cuts recovers best: the original teaches each for a few dozen steps, on the calibration samples.

What a cut disturbs at once says little about what training gives back once much is cut: a cut that keeps more
channels everywhere may disturb more and still end ahead. So a short distillation is run, and judged on other samples.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from edgekit.console import note, track
from edgekit.exported._graphmodule import Exported
from edgekit.pruners._plan import Plan
from edgekit.pruners._rewrite import rewrite
from edgekit.pruners._sensitivity import error, outputs

STEPS, FEWEST, BATCH = 60, 16, 32
HELD_OUT = 4  # every so many-th sample judges
RATE, NORM = 0.05, 1.0  # as recovery's own; longer gradients are shortened to that
WORK = 1e12  # multiply-adds that may be spent: a minute of a desktop core or two


def ranked(plan: Plan, cuts: list[Tensor], feeds: list[Any]) -> list[int]:
    """The places of distinct cuts, first the one whose outputs are nearest to the original's after a rehearsal.

    Where none can be run, they stay in their order.

    Args:
        plan: The coupled model.
        cuts: Which bundles go, bool (bundles,) each.
        feeds: Flat inputs, float32 (N, …) each.
    """
    distinct = {cut.numpy().tobytes(): place for place, cut in reversed(list(enumerate(cuts)))}
    places = sorted(distinct.values())
    if len(places) == 1 or any(not isinstance(f, Tensor) or len(f) < HELD_OUT * BATCH for f in feeds):
        return places
    work = sum(3 * plan.macs(plan.cut(cuts[place])) * BATCH for place in places)
    steps = min(STEPS, int(WORK / max(work, 1)))
    if steps < FEWEST:
        note("the model is too large to rehearse its recovery: its widths go by what they disturb alone")
        return places
    expected = _answers(plan.analysis.module, feeds)
    if any(len(e) != len(feeds[0]) for e in expected):
        return places  # outputs that are not one for each sample can't be learned in batches
    lost = {
        place: _rehearsed(plan, cuts[place], feeds, expected, steps) for place in track(places, "rehearsing recovery")
    }
    return sorted(places, key=lost.__getitem__)


@torch.no_grad()
def _answers(module: Exported, feeds: list[Tensor]) -> list[Tensor]:
    """The outputs for all samples, computed batch by batch."""
    parts = [outputs(module, list(batch)) for batch in zip(*(f.split(BATCH) for f in feeds), strict=True)]
    return [torch.cat([torch.atleast_1d(t) for t in column]) for column in zip(*parts, strict=True)]


def _rehearsed(plan: Plan, gone: Tensor, feeds: list[Tensor], expected: list[Tensor], steps: int) -> float:
    """The relative squared error of the outputs on the samples held out: after training on the others, or at once."""
    pruned, _ = rewrite(plan.analysis.module, plan.analysis, plan.cut(gone))
    student = copy.deepcopy(pruned)  # what was not cut is shared with the original
    held = torch.arange(len(feeds[0])) % HELD_OUT == 0
    learned = [p for p in student.parameters() if p.is_floating_point()]

    def lost() -> float:
        found = float(error(_answers(student.eval(), [f[held] for f in feeds]), [e[held] for e in expected]))
        return found if math.isfinite(found) else math.inf

    at_once = lost()
    if not learned:
        return at_once
    student.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        for parameter in learned:
            parameter.requires_grad_(True)
        optimizer = torch.optim.SGD(learned, RATE, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
        others = (~held).nonzero()[:, 0]
        for _ in range(steps):
            rows = others[torch.randperm(len(others))[:BATCH]]
            loss = error(outputs(student, [f[rows] for f in feeds]), [e[rows] for e in expected])
            if not loss.requires_grad:
                break  # whole numbers, or a model that runs under no_grad
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, NORM)
            optimizer.step()
            schedule.step()
    return min(at_once, lost())  # what is right already is not trained
