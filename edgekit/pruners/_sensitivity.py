"""How much a model's outputs move when one group of channels alone is cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgekit.console import track
from edgekit.pruners._check import tensors
from edgekit.pruners._descent import PROBES
from edgekit.pruners._plan import Plan
from edgekit.pruners._rewrite import rewrite


@torch.no_grad()
def disturbances(plan: Plan, steps: list[list[int]], order: list[Tensor], feeds: list[Any]) -> list[list[float]]:
    """For each group and each of its widths, the relative squared error of the outputs.

    Args:
        plan: The coupled model.
        steps: Each group's widths, widest first.
        order: Each group's members, weakest first.
        feeds: Flat inputs, float32 (N, …) each.
    """
    module = plan.analysis.module
    expected = _run(module, feeds)
    found = []
    for group, widths in track(list(enumerate(steps)), "sensitivity"):
        probes = sorted(
            {round(1 + i * (len(widths) - 2) / max(PROBES - 1, 1)) for i in range(PROBES)} & set(range(1, len(widths)))
        )
        errors = {0: 0.0}
        for place in probes:
            gone = torch.zeros(plan.solved.count, dtype=torch.bool)
            gone[order[group][: len(order[group]) - widths[place]]] = True
            pruned, _ = rewrite(module, plan.analysis, plan.cut(gone))
            errors[place] = max(_error(_run(pruned, feeds), expected), max(errors.values()))
        found.append(_between(errors, widths))
    return found


def _run(module: Any, feeds: list[Any]) -> list[Tensor]:
    flat = [f.clone() if isinstance(f, Tensor) else f for f in feeds]
    return tensors(torch.fx.Interpreter(module).run(*flat, enable_io_processing=False))


def _error(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a.is_floating_point()]
    return sum(float((a - b).square().sum() / b.square().sum().clamp_min(1e-12)) for a, b in pairs)


def _between(errors: dict[int, float], widths: list[int]) -> list[float]:
    """Errors at all widths, in proportion to the channels that go, from those that were run."""
    known = sorted(errors)
    result = []
    for place, width in enumerate(widths):
        right = next((k for k in known if k >= place), known[-1])
        left = max((k for k in known if k <= place), default=0)
        if left == right:
            result.append(errors[left])
            continue
        share = (widths[left] - width) / max(widths[left] - widths[right], 1)
        result.append(errors[left] + share * (errors[right] - errors[left]))
    return result
