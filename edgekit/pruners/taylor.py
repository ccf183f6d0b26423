"""Taylor: channels whose removal changes the loss least, to first order (Molchanov et al. 2019, arXiv:1906.10771)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.pruners._groups import Group

NEEDS_GRADIENTS = True


def rank(group: Group) -> Tensor:
    """Importance, float32 (channels,): the squares of weight · gradient, summed over what makes the channel."""
    import torch

    total = torch.zeros(len(group.members))
    for part in group.parts:
        if part.gradients is not None and part.role != "input":
            total += (part.weights * part.gradients).square().sum(1)
    return total
