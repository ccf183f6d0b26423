"""Following the original's features: found by module name, whatever the widths, in the graph itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit import exported, training
from edgekit.errors import InputError
from edgekit.exported._watch import ends_of, run_watched
from edgekit.recipe import TrainSection
from edgekit.training import TrainJob, losses
from edgekit.training.models import open_trainee
from edgekit.workload import spool


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    model, example = Net(), torch.randn(2, 3, 8, 8)
    exported.save(exported.capture(model, example), folder / "teacher.pt2")
    edgekit.prune(model, example, ratio=0.5).save(folder / "student.pt2")
    x = np.random.default_rng(0).normal(size=(4, 16, 3, 8, 8)).astype(np.float32)
    spool.write([({"x": batch}, None) for batch in x], folder / "train")
    return folder


def test_modules_are_found_by_name_and_their_values_are_theirs() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    captured, x = exported.capture(model, torch.randn(2, 3, 8, 8)), torch.randn(5, 3, 8, 8)
    outputs, seen = run_watched(captured, {"x": x}, ends_of(captured, ["stem", "body.0"]))
    torch.testing.assert_close(outputs[0], model(x))
    torch.testing.assert_close(seen["stem"], model.stem(x))
    torch.testing.assert_close(seen["body.0"], model.body[0](model.stem(x)))
    assert len(ends_of(captured, ["body.*"])) == 3
    with pytest.raises(InputError, match=r"no module of the model is named 'sten'"):
        ends_of(captured, ["sten"])


def test_similarity_does_not_care_for_widths_and_is_least_at_the_teacher(files: Path) -> None:
    x = torch.randn(8, 3, 8, 8)
    seen: list[Any] = []
    for name in ("student", "teacher"):
        trainee = open_trainee(files / f"{name}.pt2")
        assert trainee.watching is not None
        module = trainee.watching(["stem", "body"])
        with torch.no_grad():
            module({"x": x})
        seen.append(list(module.features.values()))
    student, teacher = seen
    assert student[1].shape[1] < teacher[1].shape[1]
    assert float(losses.similarity(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(losses.similarity(student, teacher)) > 1e-4


def _job(files: Path, out: Path, **settings: Any) -> TrainJob:
    return TrainJob(
        kind="recover",
        student=str(files / "student.pt2"),
        teacher=str(files / "teacher.pt2"),
        out=str(out / "out.pt2"),
        scratch=str(out / "scratch"),
        base=str(out),
        data={"spool": {"train": str(files / "train"), "validation": str(files / "train")}},
        settings=TrainSection(epochs=3, optimizer="adam", learning_rate=0.01, distill=1.0, **settings),
        metric=None,
    )


def test_a_student_comes_nearer_to_the_features_that_it_follows(files: Path, tmp_path: Path) -> None:
    def distance(path: Path) -> float:
        batch = {"x": torch.from_numpy(next(iter(spool.read(files / "train")))[0]["x"])}
        seen = []
        for one in (path, files / "teacher.pt2"):
            model = exported.load(one)
            with torch.no_grad():
                seen.append(list(run_watched(model, batch, ends_of(model, ["stem", "body"]))[1].values()))
        return float(losses.similarity(*seen))

    ends = {}
    for features in ((), ("stem", "body")):
        out = tmp_path / str(len(features))
        out.mkdir()
        training.train(_job(files, out, features=features))
        ends[features] = distance(out / "out.pt2")
    assert ends[("stem", "body")] < ends[()]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv(x))


def test_what_pruning_took_out_whole_is_not_followed(files: Path, tmp_path: Path) -> None:
    class Residual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Sequential(Block(), Block())
            self.head = nn.Linear(8, 5)

    model, example = Residual(), torch.randn(2, 3, 8, 8)
    exported.save(exported.capture(model, example), tmp_path / "teacher.pt2")
    pruned = edgekit.prune(model, example, target_macs=0.6, scope="sensitivity", calibration=[(example, None)])
    assert pruned.notes == ("residual branches that went whole: body.0.conv",)
    pruned.save(tmp_path / "student.pt2")
    assert list(ends_of(exported.load(tmp_path / "student.pt2"), ["body.*"])) == ["body.1"]
    job = _job(files, tmp_path, features=("body.*",))
    job = replace(job, student=str(tmp_path / "student.pt2"), teacher=str(tmp_path / "teacher.pt2"))
    assert training.train(job)["history"]


def test_wrong_features_are_told(files: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no module of the model is named 'layer9'"):
        training.train(_job(files, tmp_path, features=("layer9",)))
