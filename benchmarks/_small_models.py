"""Small models of the kinds that are hard to quantize, trained there and then on real data, in minutes.

A depthwise CNN (MobileNetV2-like) and a ViT on CIFAR-10, a DS-CNN (Zhang et al., "Hello Edge", 2017) on spoken digits,
a BERT-like encoder on film reviews. Their accuracy is not the point: what quantization takes of it is.
"""

from __future__ import annotations

import io
import random
import tarfile
import wave
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Array = np.ndarray[Any, Any]
Data = tuple[Array, Array, Array, Array]  # training inputs and labels, test inputs and labels
TOKENS, WORDS = 32, 6000  # of a sentence, and of the vocabulary
RATE, FRAME, HOP, BANDS, FRAMES = 8000, 256, 128, 40, 48  # of a recording: 0.77 seconds as a log mel spectrogram


@dataclass(frozen=True)
class Kind:
    """A model to be trained: how it is built, its data, passes over them, and how training inputs are varied."""

    title: str
    build: Callable[[], nn.Module]
    data: Callable[[Path], Data]
    epochs: int
    rate: float
    vary: Callable[[Tensor], Tensor] = lambda x: x


class Bottleneck(nn.Module):
    """MobileNetV2's inverted residual (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        wide = inputs * expand
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def depthwise_cnn() -> nn.Module:
    """Five bottlenecks on 32 × 32 pixels."""
    stem = (nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
    blocks = (Bottleneck(24, 24, 1), Bottleneck(24, 40, 2), Bottleneck(40, 40, 1), Bottleneck(40, 80, 2))
    head = (nn.Conv2d(80, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6())
    return nn.Sequential(
        *stem, *blocks, Bottleneck(80, 80, 1), *head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)
    )


def ds_cnn() -> nn.Module:
    """DS-CNN-S: one convolution, four separable ones."""

    def separable(width: int) -> list[nn.Module]:
        depthwise = (nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        return [*depthwise, nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

    stem = (nn.Conv2d(1, 64, (8, 4), (2, 2), (3, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU())
    body = [layer for _ in range(4) for layer in separable(64)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Encoder(nn.Module):
    """Pre-norm transformer blocks over embedded tokens; the classifier reads the first."""

    def __init__(self, width: int, depth: int, heads: int, tokens: int, classes: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.position
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x)[:, 0])


class Block(nn.Module):
    """Attention and a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        count, tokens, width = x.shape
        q, k, v = (
            part.view(count, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(count, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class SmallViT(nn.Module):
    """A ViT (Dosovitskiy et al. 2020) for 32 × 32 pixels in patches of 4."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder(width, 3, 2, 65, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.encoder(torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1))


class SmallBert(nn.Module):
    """A BERT-like encoder of word numbers (0: padding, 1: the first token, 2: a rare word)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(WORDS, width), Encoder(width, 2, 4, TOKENS, 2)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x == 0).float()[:, None, None, :] * -1e4
        return self.encoder(self.dropout(self.embed(x)), mask)


def digits(data: Path) -> Data:
    """Spoken digits as log mel spectrograms (1, FRAMES, BANDS); the test set is the official one."""
    parts: dict[bool, list[tuple[Array, int]]] = {True: [], False: []}
    with tarfile.open(data / "spoken-digits.tar.xz") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None or not member.name.endswith(".wav"):
                continue
            digit, _, index = Path(member.name).stem.split("_")
            with wave.open(io.BytesIO(file.read())) as sound:
                pcm = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
            parts[int(index) < 5].append((spectrogram(pcm.astype(np.float32) / 32768), int(digit)))
    x, test = (np.stack([a for a, _ in part]) for part in (parts[False], parts[True]))
    mean, std = x.mean(), x.std()
    y, labels = (np.array([b for _, b in part], np.int64) for part in (parts[False], parts[True]))
    return (x - mean) / std, y, (test - mean) / std, labels


def spectrogram(sound: Array) -> Array:
    """float32 (1, FRAMES, BANDS): the logarithm of the energy in mel bands."""
    sound = np.pad(sound, (0, max(0, FRAME + HOP * (FRAMES - 1) - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[::HOP][:FRAMES]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME))) ** 2
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1) / RATE * FRAME
    bins = np.arange(FRAME // 2 + 1)[:, None]
    rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    return np.log(power @ np.clip(np.minimum(rising, falling), 0, None) + 1e-6)[None].astype(np.float32)


def reviews(data: Path) -> Data:
    """Sentences as word numbers int64 (TOKENS,) and whether they praise."""
    lines = {s: (data / f"sst2-{s}.tsv").read_text().strip().splitlines() for s in ("train", "test")}
    split = {s: [line.rpartition("\t") for line in found] for s, found in lines.items()}
    words = Counter(word for text, _, _ in split["train"] for word in text.split())
    known = {word: number + 3 for number, (word, _) in enumerate(words.most_common(WORDS - 3))}

    def numbers(text: str) -> list[int]:
        found = [1, *(known.get(word, 2) for word in text.split()[: TOKENS - 1])]
        return found + [0] * (TOKENS - len(found))

    x, test = (np.array([numbers(t) for t, _, _ in split[s]], np.int64) for s in ("train", "test"))
    y, labels = (np.array([int(label) for _, _, label in split[s]], np.int64) for s in ("train", "test"))
    return x, y, test, labels


def pictures(data: Path) -> Data:
    """CIFAR-10, normalized (3, 32, 32)."""
    from benchmarks.quantization import cifar

    sets = [list(cifar(data, split)) for split in ("train", "test")]
    x, test = (np.stack([image for image, _ in part]) for part in sets)
    y, labels = (np.array([label for _, label in part], np.int64) for part in sets)
    return x, y, test, labels


def shifted(x: Tensor) -> Tensor:
    """Pictures moved by up to 4 pixels and mirrored at random."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    return torch.roll(x, (random.randint(-4, 4), random.randint(-4, 4)), (2, 3))


KINDS = {
    "depthwise": Kind("Depthwise CNN (MobileNetV2-like), CIFAR-10", depthwise_cnn, pictures, 3, 4e-3, shifted),
    "dscnn": Kind("DS-CNN, spoken digits", ds_cnn, digits, 6, 4e-3),
    "vit": Kind("Small ViT, CIFAR-10", SmallViT, pictures, 3, 2e-3, shifted),
    "bert": Kind("BERT-like encoder, SST-2 sentences", SmallBert, reviews, 4, 5e-4),
}


def trained(kind: Kind, data: Data, seed: int = 0) -> nn.Module:
    """The model after one cycle of AdamW, in eval mode."""
    torch.manual_seed(seed)
    random.seed(seed)
    model, x, y = kind.build(), torch.from_numpy(data[0]), torch.from_numpy(data[1])
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format  # depthwise layers train twice as fast
    model = model.to(memory_format=layout)
    steps = kind.epochs * (len(x) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), kind.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, kind.rate, total_steps=steps)
    for _ in range(kind.epochs):
        order = torch.randperm(len(x))
        for rows in order.split(64)[: len(x) // 64]:
            inputs = kind.vary(x[rows]).contiguous(memory_format=layout)
            loss = F.cross_entropy(model(inputs), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()
