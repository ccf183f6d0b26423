"""Batch-normalization scale: channels with a small γ go first (Liu et al. 2017, arXiv:1708.06519)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.pruners._groups import Group


def rank(group: Group) -> Tensor:
    """Importance, float32 (channels,): the sum of |γ|; channels without a norm layer go by magnitude."""
    from edgekit.pruners import magnitude

    scales = [p.weights.abs().mean(1) for p in group.parts if p.role == "scale" and p.name.endswith("weight")]
    return sum(scales[1:], scales[0]) if scales else magnitude.rank(group)
