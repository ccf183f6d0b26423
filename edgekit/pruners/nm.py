"""2:4 sparsity: of every four weights, the two smallest are zero (Mishra et al. 2021, arXiv:2104.08378)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

N, M = 2, 4
NOTE = (
    "TensorRT runs 2:4 layers faster on NVIDIA GPUs from Ampere on (Jetson Orin among them), when it is built with "
    "sparse weights allowed; CPU runtimes run as long as before."
)


def masks(weights: dict[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """True where a weight stays, by parameter name. Layers whose inputs do not divide by four stay dense."""
    import torch

    del settings  # the pattern is the hardware's
    found = {}
    for name, weight in weights.items():
        rows = weight.movedim(1, -1)  # the reduction runs over the input channels
        if rows.shape[-1] % M:
            found[name] = torch.ones_like(weight, dtype=torch.bool)
            continue
        blocks = rows.abs().reshape(-1, M)
        keep = torch.zeros_like(blocks, dtype=torch.bool)
        keep.scatter_(1, blocks.topk(N, dim=1).indices, True)
        found[name] = keep.reshape(rows.shape).movedim(-1, 1)
    return found
