"""Optimizers and learning-rate schedules by name, with rates that fit what is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim import Optimizer

    from edgekit.recipe import TrainSection

# Peak rates where the recipe names none, found by trial (docs/training.md).
RATES = {
    ("recover", "sgd"): 0.05,
    ("recover", "adam"): 3e-3,
    ("recover", "adamw"): 3e-3,
    ("codebook", "sgd"): 1e-2,
    ("codebook", "adam"): 1e-3,
    ("codebook", "adamw"): 1e-3,
    ("qat", "sgd"): 1e-3,
    ("qat", "adam"): 1e-5,
    ("qat", "adamw"): 1e-5,
}


def rate(settings: TrainSection, kind: str) -> float:
    """The peak learning rate: the user's, or the one for this kind of training and optimizer."""
    return settings.learning_rate or RATES[kind, settings.optimizer]


def optimizer(parameters: Iterable[nn.Parameter], settings: TrainSection, kind: str) -> Optimizer:
    """The optimizer of that name. Weight decay is kept off what has one dimension: biases and norms."""
    import torch

    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    peak = rate(settings, kind)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=peak, momentum=settings.momentum, nesterov=settings.momentum > 0)
    chosen = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return chosen(groups, lr=peak)


def schedule(optimizer: Optimizer, settings: TrainSection, kind: str, steps: int) -> Any:
    """The learning-rate schedule of that name over ``steps`` steps (``plateau``: stepped once an epoch)."""
    from torch.optim import lr_scheduler

    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if settings.schedule == "onecycle":
        return lr_scheduler.OneCycleLR(optimizer, max_lr=rate(settings, kind), total_steps=steps + 1)
    if settings.schedule == "step":  # a tenth after half and again after three quarters
        return lr_scheduler.MultiStepLR(optimizer, milestones=[max(1, steps // 2), max(2, steps * 3 // 4)], gamma=0.1)
    if settings.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=1)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
