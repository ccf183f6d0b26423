"""Unstructured sparsity: the smallest single weights are held at zero (Han et al. 2015, arXiv:1506.02626)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NOTE = (
    "Dense kernels (ONNX Runtime, OpenVINO, TensorRT) run as long as before; what gains is the compressed file, and "
    "runtimes with sparse kernels (XNNPACK at 80 % and more, DeepSparse)."
)


def masks(weights: dict[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """True where a weight stays, by parameter name: the smallest ``ratio`` go, of each layer or (global) of all."""
    import torch

    ratio = float(settings.get("ratio", 0.3))
    if settings.get("scope", "local") == "global":
        sizes = torch.cat([w.abs().reshape(-1) for w in weights.values()])
        limit = _limit(sizes, ratio)
        return {name: w.abs() > limit for name, w in weights.items()}
    return {name: w.abs() > _limit(w.abs().reshape(-1), ratio) for name, w in weights.items()}


def _limit(sizes: Tensor, ratio: float) -> float:
    """The largest size that goes; below every size where none does."""
    count = round(ratio * sizes.numel())
    return float(sizes.kthvalue(count).values) if count else -1.0
