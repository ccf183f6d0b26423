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


def test_a_killed_run_resumes_to_the_same_weights(folder: Path) -> None:
    whole = job(folder, mlp(norm=True), epochs=6, scratch=str(folder / "s1"), out=str(folder / "whole.pt2"))
    training.train(whole)
    torn = job(folder, mlp(norm=True), epochs=6, scratch=str(folder / "s2"), out=str(folder / "torn.pt2"))
    (folder / "job.json").write_text(json.dumps(torn.to_json()))
    code = f"""
import json, pathlib
from edgekit import training
training.train(training.TrainJob.from_json(json.loads(pathlib.Path({str(folder / "job.json")!r}).read_text())))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    checkpoint = folder / "s2" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and parent.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert not Path(torn.out).exists(), "it was killed too late to try this"
    result = training.train(torn)
    assert [entry["epoch"] for entry in result["history"]] == list(range(7))
    one, other = weights(whole.out), weights(torn.out)
    assert all(torch.equal(one[name], other[name]) for name in one)
    state = torch.load(checkpoint, weights_only=True)
    assert state["progress"]["epoch"] == 6


def test_no_process_outlives_a_killed_parent(folder: Path) -> None:
    write_data(folder, train=4000)
    one = job(folder, mlp(), epochs=50)
    (folder / "job.json").write_text(json.dumps(one.to_json()))
    code = f"""
import json, pathlib
from edgekit import training
training.train(training.TrainJob.from_json(json.loads(pathlib.Path({str(folder / "job.json")!r}).read_text())))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    assert until(lambda: len(working_on(folder)) >= 1), "the training did not start"
    parent.kill()
    parent.wait()
    assert until(lambda: not working_on(folder)), "a training process goes on without its parent"


def working_on(folder: Path) -> list[int]:
    """The training processes on a job in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "edgekit.training" in words and any(word.startswith(str(folder)) for word in words):
                found.append(int(entry.name))
    return found


def until(condition: Any, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_two_processes_train_as_one_does(folder: Path) -> None:
    outs, results = [], []
    for processes in (1, 2):
        one = job(
            folder, mlp(), processes=processes, scratch=str(folder / f"s{processes}"), out=str(folder / f"{processes}.pt2")
        )
        results.append(training.train(one))
        outs.append(weights(one.out))
    for name in outs[0]:
        torch.testing.assert_close(outs[0][name], outs[1][name], rtol=1e-3, atol=1e-4)
    one, two = ([entry["loss"] for entry in r["history"][1:]] for r in results)
    np.testing.assert_allclose(one, two, rtol=1e-3)
    assert abs(results[0]["metric"] - results[1]["metric"]) < 0.01


def test_batch_statistics_are_the_same_in_all_processes_and_finite(folder: Path) -> None:
    """Batches of 33 in two processes, and a last one too small to be shared."""
    text = (folder / "mine.py").read_text().replace("size=32", "size=33")
    (folder / "mine.py").write_text(text + "\n\ndef odd():\n    b = Batches(1, 5)\n    return {'train': [*list(b), (b.x[:1], b.y[:1])], 'validation': Batches(2, 8)}\n")
    one = job(folder, mlp(norm=True), processes=2, data={"entry": "mine.py:odd", "base": str(folder)})
    result = training.train(one)
    assert result["epochs"] == 3
    state = weights(one.out)
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    before = weights(one.student)
    assert not torch.equal(state["1.running_mean"], before["1.running_mean"])


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_epoch(folder: Path) -> None:
    one = job(folder, mlp(), loss="mine.py:diverging")
    with pytest.raises(StageError, match="loss became nan in epoch 2") as caught:
        training.train(one)
    assert "learning_rate" in caught.value.remedy
    assert "after epoch 1" in caught.value.problem
    assert torch.load(folder / "scratch" / "checkpoint.pt", weights_only=True)["progress"]["epoch"] == 1
    assert not Path(one.out).exists()


def test_errors_cross_from_the_processes(folder: Path) -> None:
    one = job(folder, mlp(), data={"entry": "mine.py:broken", "base": str(folder)}, processes=2)
    with pytest.raises(InputError, match="the disk went away") as caught:
        training.train(one)
    assert "batch 3" in caught.value.problem
