"""How much a model's outputs move when one group of channels alone is cut."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgekit.console import track
from edgekit.pruners._check import tensors
from edgekit.pruners._plan import Plan, branch_name
from edgekit.pruners._rewrite import rewrite

PROBES = 3  # widths of a group that are run; the others lie between
FEW = 8  # samples, at least
WORK = 5e11  # multiply-adds that may be spent: 10 to 20 seconds of a desktop core
LOST = 0.01  # the least share of the outputs that counts as left


@torch.no_grad()
def disturbances(plan: Plan, steps: list[list[int]], feeds: list[Any]) -> list[list[float]]:
    """For each group or branch and each of its widths, how much of the outputs is lost: −log of the share that is left.

    Groups share a network, so what each leaves multiplies, and these add up. The share is 1 less the relative squared
    error, the mean of all outputs, and LOST at least. Channels go weakest first: each costs no less than those before
    it did on average, also where the error can grow no more.

    Args:
        plan: The coupled model.
        steps: Each group's widths, widest first.
        feeds: Flat inputs, float32 (N, …) each; as many are used as there is time for.
    """
    module = plan.analysis.module
    most = max(FEW, int(WORK / max(plan.macs() * PROBES * len(steps), 1)))
    feeds = [f[:most] if isinstance(f, Tensor) else f for f in feeds]
    expected = outputs(module, feeds)
    found = []
    for group, widths in track(list(enumerate(steps)), "sensitivity"):
        probes = sorted(
            {round(1 + i * (len(widths) - 2) / max(PROBES - 1, 1)) for i in range(PROBES)} & set(range(1, len(widths)))
        )
        lost, each = {0: 0.0}, 0.0
        for place in probes:
            away = widths[0] - widths[place]
            pruned, _ = rewrite(module, plan.analysis, plan.cut(plan.gone({group: widths[place]})))
            each = max(each, -math.log(max(1 - float(error(outputs(pruned, feeds), expected)), LOST)) / away)
            lost[place] = each * away
        found.append(_between(lost, widths))
    return found


def sensitivity(plan: Plan, steps: list[list[int]], losses: list[list[float]]) -> tuple[dict[str, Any], ...]:
    """What is lost where half of a group's channels goes alone, or a branch, by its layers: most first, for people.

    Args:
        losses: From :func:`disturbances`.
    """
    names = [", ".join(group.layers) for group in plan.groups]
    names += [f"all of {branch_name(b, plan.costly)}" for b in plan.branches]
    found = []
    for name, widths, row in zip(names, steps, losses, strict=True):
        half = min(range(len(widths)), key=lambda place: abs(2 * widths[place] - widths[0]))
        half = len(widths) - 1 if widths[-1] == 0 else half
        if len(widths) > 1:
            found.append({"layer": name, "lost": round(1 - math.exp(-row[half]), 4)})
    return tuple(sorted(found, key=lambda entry: -float(entry["lost"])))


def outputs(module: Any, feeds: list[Any]) -> list[Tensor]:
    """A graph's flat outputs for flat inputs."""
    flat = [f.clone() if isinstance(f, Tensor) else f for f in feeds]
    return tensors(torch.fx.Interpreter(module).run(*flat, enable_io_processing=False))


def error(found: list[Tensor], expected: list[Tensor]) -> Tensor:
    """The relative squared error of the float outputs, their mean."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a.is_floating_point()]
    each = [(a - b).square().sum() / b.square().sum().clamp_min(1e-12) for a, b in pairs]
    return torch.stack(each).mean() if each else torch.zeros(())


def _between(lost: dict[int, float], widths: list[int]) -> list[float]:
    """What is lost at all widths, in proportion to the channels that go, from those that were run."""
    known = sorted(lost)
    result = []
    for place, width in enumerate(widths):
        right = next((k for k in known if k >= place), known[-1])
        left = max((k for k in known if k <= place), default=0)
        if left == right:
            result.append(lost[left])
            continue
        share = (widths[left] - width) / max(widths[left] - widths[right], 1)
        result.append(lost[left] + share * (lost[right] - lost[left]))
    return result
