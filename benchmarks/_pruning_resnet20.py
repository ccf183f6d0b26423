"""The CIFAR ResNet-20 down edgekit's own line: recovery at half its multiply-adds, and speed that was asked for.

The model and its data are entries of the recipes; all of edgekit's defaults are left alone but what is said here.
"""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._pruning_zoo import cifar_resnet20  # noqa: E402

BATCH = 128
SHARE = 1 / 1.98  # of the multiply-adds stay
GOALS = {"fp32": 1.5, "int8": 1.2}
WIDTHS = (8, 10, 11, 12, 14, 16, 20, 22, 24, 28, 32, 40, 44, 45, 48, 56, 64)
STAGES = (16, 32, 64)
RATES = (0.875, 0.75, 0.625, 0.5)


class Split:
    """Images and labels in batches; to train on: in another order each time, each shifted and half of them mirrored."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, training: bool = False) -> None:
        self.images, self.labels, self.training = images, labels, training

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = np.random.permutation(len(self.images)) if self.training else np.arange(len(self.images))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            yield self.moved(rows) if self.training else self.images[rows], self.labels[rows]

    def moved(self, rows: np.ndarray) -> np.ndarray:
        """Each image at a place of its own in a frame four pixels wider, and mirrored or not."""
        wide = np.pad(self.images[rows], ((0, 0), (0, 0), (4, 4), (4, 4)))
        out = np.empty_like(self.images[rows])
        for i, (y, x) in enumerate(np.random.randint(0, 9, (len(rows), 2))):
            image = wide[i, :, y : y + 32, x : x + 32]
            out[i] = image[..., ::-1] if np.random.rand() < 0.5 else image
        return out


def build() -> tuple[torch.nn.Module, Any]:
    """The recipe's model."""
    return cifar_resnet20()


def data() -> dict[str, Split]:
    """The recipe's data: 25,000 images to train on, 512 of them to calibrate, 10,000 to test."""
    build()  # puts the images' module on the path
    cifar = importlib.import_module("cifar10")
    (x, y), (tx, ty) = [(cifar.normalize(x), y) for x, y in map(cifar.images, ("train", "test"))]
    some = np.random.default_rng(0).permutation(len(x))[:512]
    return {"train": Split(x, y, training=True), "calibration": Split(x[some], y[some]), "test": Split(tx, ty)}


def run(variants: list[dict[str, Any]], **settings: Any) -> dict[str, dict[str, Any]]:
    """The rows of one run of the line, by variant."""
    import edgekit

    here = Path(__file__)
    recipe = edgekit.Recipe.model_validate(
        {"model": {"entry": f"{here}:build"}, "data": {"entry": f"{here}:data"}, "variant": variants, **settings}
    )
    with tempfile.TemporaryDirectory() as out:
        rows = edgekit.run(recipe, out)["variants"]
    for row in rows:
        if row["status"] != "ok":
            raise SystemExit(f"{row['id']}: {row['status']}: {row['reason']}")
    return {row["variant"]: row for row in rows}


def accuracy(
    epochs: int, precision: str = "fp32", parameters: float | None = None, speedup: float | None = None
) -> None:
    """Print what is left of the accuracy, the file and the time, in ONNX Runtime: pruned, and pruned and quantized.

    Args:
        epochs: Of recovery.
        precision: Of recovery.
        parameters: The share of them to keep, instead of half the multiply-adds.
        speedup: ``target_speedup`` of the int8 model over the unpruned int8 model, instead; or both.
    """
    asked = {"target_parameters": parameters, "target_speedup": speedup}
    goal = {key: value for key, value in asked.items() if value is not None} or {"target_macs": SHARE}
    pruned: dict[str, Any] = {"prune": goal, "recover": {"epochs": epochs, "precision": precision}}
    variants = [{"name": "fp32"}, {"name": "int8", "quantize": "static"}]
    if speedup is None:  # at fp32 the same goal would choose other widths
        variants.append({"name": "pruned", **pruned})
    rows = run([*variants, {"name": "pruned-int8", **pruned, "quantize": "static"}])
    whole = rows["fp32"]["size_bytes"]
    print(f"\nResNet-20 (CIFAR-10), {goal}, {epochs} epochs of recovery ({precision}), 10,000 test images:\n")
    print("| | MACs | parameters | file, kB | of fp32's | accuracy | speed-up |\n|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        speed = row["vs_reference"]["speedup"] if name != "fp32" else 1.0
        size = f"{row['size_bytes'] / 1000:.0f} | {row['size_bytes'] / whole:.3f}"
        accuracy = row["metric"]["value"]
        print(f"| {name} | {row['macs']} | {row['parameters']} | {size} | {accuracy:.4f} | {speed:.2f} |")


def speed(target: str) -> None:
    """Print what was asked for and what was measured, on one target, at both precisions."""
    fast = [
        {"name": "fast", "prune": {"target_speedup": GOALS["fp32"]}, "recover": False},
        {"name": "fast-int8", "prune": {"target_speedup": GOALS["int8"]}, "recover": False, "quantize": "static"},
    ]
    rows = run([{"name": "fp32"}, {"name": "int8", "quantize": "static"}, *fast], targets=[target])
    found = {name: (row["vs_reference"] or {}).get("speedup") or 1.0 for name, row in rows.items()}
    print("| target | precision | goal | measured | MACs left |\n|---|---|---|---|---|")
    for precision, pruned in (("fp32", "fast"), ("int8", "fast-int8")):
        gained = found[pruned] / found[precision]
        left = rows[pruned]["macs"] / rows["fp32"]["macs"]
        print(f"| {target} | {precision} | {GOALS[precision]} | {gained:.3f} | {left:.3f} |")


def widths(target: str) -> None:
    """Print what a 3 × 3 convolution takes by its channels, alone, on one target at both precisions."""
    from edgekit.pruners._cost import time_job
    from edgekit.target import load_target

    layers = [["conv", [1, w, 24, 24], [w, w, 3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1] for w in WIDTHS]
    profile = load_target(target).model_dump(mode="json")
    print("| µs on 24 × 24, by channels |", " | ".join(map(str, WIDTHS)), "|\n|---|" + "---|" * len(WIDTHS))
    for precision in GOALS:
        times = [min(both) for both in zip(*(time_job(layers, profile, precision) for _ in range(3)), strict=True)]
        print(f"| {target}, {precision} |", " | ".join(f"{1000 * ms:.0f}" for ms in times), "|")


def uniform(rate: float) -> dict[str, float]:
    """Ratios that give every layer its width times ``rate``, rounded to eight."""
    kept = [8 * max(1, round(width * rate / 8)) for width in STAGES]
    ratios = {f"layer{i}.*.conv1": 1 - k / w for i, (k, w) in enumerate(zip(kept, STAGES, strict=True), 1)}
    before = (0, *STAGES)  # each stage's stream is the one before and new channels beside it
    streams = ("conv1", "layer2.0.conv2", "layer3.0.conv2")
    for i, name in enumerate(streams):
        new = kept[i] - (kept[i - 1] if i else 0)
        ratios[name] = 1 - new / (STAGES[i] - before[i])
    return ratios


def equal_speed(epochs: int, precision: str = "fp32", shipped: str = "fp32") -> None:
    """Print the accuracy of uniform widths and of measured ones that are asked to be as fast, after equal recovery.

    Args:
        epochs: Of recovery.
        precision: Of recovery.
        shipped: ``fp32`` or ``int8``. Of the uniform models the one nearest to the usual goal's speed is taken.
    """
    form: dict[str, Any] = {"quantize": "static"} if shipped == "int8" else {}
    first: list[dict[str, Any]] = [{"name": "fp32"}, *([{"name": "int8", **form}] if form else [])]
    plain = {f"uniform-{rate}": {"prune": {"ratios": uniform(rate), "ratio": 0.0}} for rate in RATES}

    def gained(rows: dict[str, dict[str, Any]], name: str) -> float:
        speeds = [(rows[n]["vs_reference"] or {}).get("speedup") or 1.0 for n in (name, shipped)]
        return float(speeds[0] / speeds[1])

    rows = run([*first, *({"name": n, **v, **form, "recover": False} for n, v in plain.items())])
    speeds = {name: gained(rows, name) for name in plain}
    print(
        "uniform widths:", ", ".join(f"{name} {speed:.3f} times as fast" for name, speed in speeds.items()), flush=True
    )
    rival = min(plain, key=lambda name: abs(math.log(speeds[name] / GOALS[shipped])))
    recover = {"recover": {"epochs": epochs, "precision": precision}}
    pair = {"measured": {"prune": {"target_speedup": round(speeds[rival], 3)}}, rival: plain[rival]}
    rows = run([*first, *({"name": n, **v, **form, **recover} for n, v in pair.items())])
    print(f"\n{epochs} epochs of recovery ({precision}) each; x86-cpu, {shipped}:\n")
    print("| widths | speed-up over the whole model | MACs | parameters | accuracy |\n|---|---|---|---|---|")
    for name in (shipped, *pair):
        row = rows[name]
        cells = [name, f"{gained(rows, name):.3f}", row["macs"], row["parameters"], f"{row['metric']['value']:.4f}"]
        print(f"| {' | '.join(map(str, cells))} |")
