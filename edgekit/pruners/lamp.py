"""LAMP: a channel's energy relative to all stronger ones of its layer (Lee et al. 2021, arXiv:2010.07611)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.pruners._groups import Group

SCOPE = "global"  # the score is made to be compared between layers


def rank(group: Group) -> Tensor:
    """Importance, float32 (channels,) in (0, 1]: w² over the sum of w² of the channels at least as strong."""
    import torch

    energy = torch.zeros(len(group.members))
    for part in group.parts:
        if part.role != "scale":
            size = part.weights.square().sum(1)
            energy += size / size.mean().clamp_min(1e-12)
    ordered, order = energy.sort(descending=True)
    score = torch.empty_like(energy)
    score[order] = ordered / ordered.cumsum(0).clamp_min(1e-12)
    return score
