"""The demo's model and data: a small residual CNN on scikit-learn's handwritten digits.

This file is yours now: change the network or the data, then `edgekit run recipe.toml`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two 3×3 convolutions and a residual add."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → the same shape."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class DigitsNet(nn.Module):
    """8×8 grey images, float32 (N, 1, 8, 8) in [0, 1] → logits (N, 10)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = Block(width)
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.stage2 = Block(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class logits."""
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))


def build() -> tuple[nn.Module, torch.Tensor]:
    """The model and an example input; the weights come from the file that the recipe names."""
    return DigitsNet(), torch.zeros(2, 1, 8, 8)


class Split:
    """Batches of (images, labels) that can be read again and again; training batches are shuffled and shifted."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, training: bool = False) -> None:
        self.images, self.labels, self.training = images, labels, training

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = np.random.permutation(len(self.images)) if self.training else np.arange(len(self.images))
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            images = self.images[rows]
            if self.training:
                images = np.roll(images, np.random.randint(-1, 2, 2), axis=(2, 3))
            yield images, self.labels[rows]

    def __len__(self) -> int:
        return -(-len(self.images) // 64)


def data() -> dict[str, Split]:
    """1,797 images of handwritten digits, kept apart in four splits: real data, bundled with scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], digits.target[order].astype(np.int64)
    return {
        "train": Split(images[:1000], labels[:1000], training=True),
        "calibration": Split(images[1000:1200], labels[1000:1200]),
        "validation": Split(images[1200:1347], labels[1200:1347]),
        "test": Split(images[1347:], labels[1347:]),
    }
