"""L2 magnitude: channels whose weights have little energy go first (He et al. 2018, arXiv:1808.06866)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.pruners._groups import Group


def rank(group: Group) -> Tensor:
    """Importance, float32 (channels,): the norm of the weights that make and read a channel, each over its mean."""
    import torch

    total = torch.zeros(len(group.members))
    for part in group.parts:
        if part.role != "scale":
            size = part.weights.norm(dim=1)
            total += size / size.mean().clamp_min(1e-12)
    return total
