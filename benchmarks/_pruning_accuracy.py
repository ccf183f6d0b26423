"""Accuracy at equal multiply-adds after equal recovery: three small models, trained here, by edgekit and torch-pruning.

Scikit-learn's handwritten digits, 1,200 to train on and 597 to judge by. Each seed trains the three originals anew;
both tools then cut a copy to the same multiply-adds, and the same loop recovers both.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Data = tuple[Tensor, Tensor]
SHARE = 0.15  # of the multiply-adds stay
EPOCHS = {"training": 25, "recovery": 3}


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv(inputs, outputs, 3, stride), nn.ReLU(), *conv(outputs, outputs, 3))
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return F.relu(self.body(x) + self.shortcut(x))


class Inverted(nn.Module):
    """MobileNetV2's block: widened, filtered channel by channel, narrowed."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int = 4) -> None:
        super().__init__()
        wide = factor * inputs
        self.body = nn.Sequential(
            *conv(inputs, wide, 1), nn.ReLU6(), *conv(wide, wide, 3, stride, wide), nn.ReLU6(), *conv(wide, outputs, 1)
        )
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return x + self.body(x) if self.adds else self.body(x)


class Encoder(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Vision(nn.Module):
    """A small vision transformer over patches of two by two pixels."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        y = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(y)).mean(1))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its norm."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def residual() -> nn.Module:
    """A residual CNN."""
    stages = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 32, 1), Residual(32, 64, 2)]
    return nn.Sequential(*conv(1, 16, 3), nn.ReLU(), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mobile() -> nn.Module:
    """A CNN of inverted residuals."""
    blocks = [Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1), Inverted(24, 40, 2), Inverted(40, 40, 1)]
    tail = [*conv(40, 128, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*conv(1, 16, 3), nn.ReLU6(), *blocks, *tail)


@dataclass(frozen=True)
class Subject:
    """A model to train and prune, and the peak rates that suit it."""

    build: Callable[[], nn.Module]
    optimizer: str
    training: float
    recovery: float


SUBJECTS = {
    "residual CNN": Subject(residual, "sgd", 0.1, 0.05),
    "inverted residuals": Subject(mobile, "sgd", 0.1, 0.05),
    "vision transformer": Subject(Vision, "adamw", 4e-3, 2e-3),
}


def digits() -> tuple[Data, Data]:
    """The images in [-1, 1], (N, 1, 8, 8), and their classes: to train on, and to judge by."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    images = (torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1)[order]
    labels = torch.tensor(raw.target)[order]
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def fit(model: nn.Module, data: Data, subject: Subject, seed: int, teacher: nn.Module | None = None) -> nn.Module:
    """Train by one cycle, on labels alone or half taught by the original."""
    torch.manual_seed(seed)
    images, labels = data
    epochs, peak = (EPOCHS["recovery"], subject.recovery) if teacher else (EPOCHS["training"], subject.training)
    kind: Any = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[subject.optimizer]
    options = {"momentum": 0.9, "nesterov": True} if subject.optimizer == "sgd" else {}
    optimizer = kind(model.parameters(), lr=peak, weight_decay=1e-4, **options)
    size = 60
    steps = epochs * (len(images) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps + 1)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(size):
            x, y = images[rows], labels[rows]
            output = model(x)
            loss = F.cross_entropy(output, y)
            if teacher:
                with torch.no_grad():
                    taught = F.log_softmax(teacher(x) / 4, 1)
                soft = F.kl_div(F.log_softmax(output / 4, 1), taught, reduction="batchmean", log_target=True)
                loss = 0.5 * loss + 0.5 * 16 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def correct(model: nn.Module, data: Data) -> float:
    """Accuracy, a fraction."""
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


def torch_pruning(model: nn.Module, example: Tensor, share: float) -> tuple[nn.Module, float]:
    """torch-pruning as its README says, at the ratio that leaves at most this share of the multiply-adds."""
    import torch_pruning as tp

    def cut(ratio: float) -> tuple[nn.Module, float]:
        trial = copy.deepcopy(model)
        whole, _ = tp.utils.count_ops_and_params(trial, example)
        head = [m for m in trial.modules() if isinstance(m, nn.Linear) and m.out_features == 10]
        heads = {m: m.num_heads for m in trial.modules() if isinstance(m, nn.MultiheadAttention)}
        tp.pruner.BasePruner(
            trial,
            example,
            importance=tp.importance.MagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=head,
            num_heads=heads,
        ).step()
        return trial, tp.utils.count_ops_and_params(trial, example)[0] / whole

    low, high = 0.0, 0.98
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if cut(middle)[1] <= share else (middle, high)
    return cut(high)


def table(seeds: int) -> None:
    """Print accuracy by model and tool, a line as soon as it is known, and who is ahead."""
    import edgekit

    train, test = digits()
    calibration = list(zip(*(t.split(64) for t in train), strict=True))
    print("| model | seed | original | MACs left | edgekit | MACs left | torch-pruning |\n" + "|---" * 7 + "|")
    ahead = {}
    for name, subject in SUBJECTS.items():
        pairs = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            teacher = fit(subject.build(), train, subject, seed)
            theirs, left = torch_pruning(teacher, test[0][:1], SHARE)
            mine = edgekit.prune(teacher, test[0][:2], target_macs=left, calibration=calibration)
            found = [correct(fit(m, train, subject, seed, teacher), test) for m in (mine.model, theirs)]
            pairs.append(found)
            cells = [name, seed, f"{correct(teacher, test):.4f}", f"{mine.macs[1] / mine.macs[0]:.3f}"]
            cells += [f"{found[0]:.4f}", f"{left:.3f}", f"{found[1]:.4f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
        ahead[name] = [statistics.mean(column) for column in zip(*pairs, strict=True)]
    print(f"\nMean over {seeds} seeds:\n")
    print("| model | edgekit | torch-pruning | ahead by |\n|---|---|---|---|")
    for name, (mine, other) in ahead.items():
        print(f"| {name} | {mine:.4f} | {other:.4f} | {mine - other:+.4f} |")
