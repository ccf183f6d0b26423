"""Training: the loop, its losses, its processes, and what is left when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import exported, training
from edgekit.errors import InputError, StageError
from edgekit.recipe import MetricSection, TrainSection
from edgekit.training import TrainJob

DATA = """
import numpy as np

rng = np.random.default_rng(5)
W = rng.normal(size=(FEATURES, 1)).astype(np.float32)


class Batches:
    def __init__(self, seed, count, size=32):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(count * size, FEATURES)).astype(np.float32)
        self.y = ((self.x @ W)[:, 0] > 0).astype(LABEL)
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __iter__(self):
        order = np.random.permutation(len(self.x)) if self.count > COUNT_FIXED else np.arange(len(self.x))
        for i in range(self.count):
            rows = order[i * self.size : (i + 1) * self.size]
            yield self.x[rows], self.y[rows]


def data():
    return {"train": Batches(1, TRAIN), "validation": Batches(2, 8)}


def broken():
    def batches():
        yield from Batches(1, 3)
        raise RuntimeError("the disk went away")
    return {"train": list_like(batches), "validation": Batches(2, 8)}


def list_like(make):
    class Again:
        def __iter__(self):
            return make()
        def __len__(self):
            return 5
    return Again()


def loss_of_mine(outputs, labels):
    return ((outputs.squeeze(1) - labels) ** 2).mean()


def diverging(outputs, labels):
    diverging.calls = getattr(diverging, "calls", 0) + 1
    scale = float("nan") if diverging.calls > 30 else 1.0
    return ((outputs.squeeze(1) - labels) ** 2).mean() * scale
"""


def mlp(features: int = 16, *, sigmoid: bool = True, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(24)] if norm else []
    layers = [nn.Linear(features, 24), *middle, nn.ReLU(), nn.Linear(24, 1), *([nn.Sigmoid()] if sigmoid else [])]
    return nn.Sequential(*layers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def write_data(folder: Path, *, features: int = 16, train: int = 20, label: str = "np.int64") -> None:
    text = DATA.replace("FEATURES", str(features)).replace("COUNT_FIXED", "8").replace("TRAIN", str(train))
    (folder / "mine.py").write_text(text.replace("LABEL", label))


def job(folder: Path, model: nn.Module, **changes: Any) -> TrainJob:
    """A recovery of ``model`` on the data in ``folder``; ``changes`` of the settings and of the job."""
    student = folder / "student.pt2"
    if not student.exists():
        example = torch.randn(4, next(model.parameters()).shape[1])
        exported.save(exported.capture(model, example), student)
    fields = {
        name: changes.pop(name) for name in ("data", "scratch", "out", "teacher", "seed", "metric") if name in changes
    }
    settings = {"epochs": 3, "optimizer": "adam", "learning_rate": 0.01, "distill": 0.0, **changes}
    standard: dict[str, Any] = {
        "scratch": str(folder / "scratch"),
        "out": str(folder / "out.pt2"),
        "data": {"entry": "mine.py:data", "base": str(folder)},
        "metric": MetricSection(),
    }
    return TrainJob(
        kind="recover", student=str(student), base=str(folder), settings=TrainSection(**settings), **(standard | fields)
    )


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return exported.load(path).state_dict()


def test_job_survives_json(folder: Path) -> None:
    one = job(folder, mlp(), epochs=7)
    assert TrainJob.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_recovers_in_a_program_of_its_own(folder: Path) -> None:
    one = job(folder, mlp())
    result = training.train(one)
    assert [entry["epoch"] for entry in result["history"]] == [0, 1, 2, 3]
    assert result["history"][-1]["loss"] < result["history"][1]["loss"]
    assert result["metric"] > 0.9 > result["history"][0]["metric"]
    assert result["metric_name"] == "accuracy"
    best = max(result["history"], key=lambda entry: entry["metric"])
    assert result["metric"] == best["metric"]
    trained = exported.load(one.out)
    assert trained(torch.randn(7, 16)).shape == (7, 1)
