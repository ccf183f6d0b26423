"""L1 magnitude: channels whose weights are small go first (Li et al. 2017, arXiv:1608.08710)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.pruners._groups import Group


def rank(group: Group) -> Tensor:
    """Importance, float32 (channels,): the mean size of the weights that make and read a channel.

    Each parameter is taken relative to its own mean, so that none speaks louder than another.
    """
    import torch

    total = torch.zeros(len(group.members))
    for part in group.parts:
        if part.role != "scale":
            size = part.weights.abs().sum(1)
            total += size / size.mean().clamp_min(1e-12)
    return total
