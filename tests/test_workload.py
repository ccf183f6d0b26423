"""The user's model and data: every way in which they can be wrong gets one clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import workload
from edgekit.errors import InputError
from edgekit.recipe import ExportSection
from edgekit.workload import spool

EXPORT = ExportSection().model_dump(mode="json")
MODEL = """
import numpy as np, torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def forward(self, x):
        return self.layer(x)
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.layer = nn.Embedding(10, 4), nn.Linear(4, 3)
    def forward(self, ids, mask):
        return self.layer((self.words(ids) * mask[..., None]).sum(1))
def build():
    torch.manual_seed(0)
    return Net(), torch.zeros(2, 4)
def two():
    return Two(), {"ids": torch.zeros(2, 5, dtype=torch.int64), "mask": torch.ones(2, 5)}
def nothing(): return 3
def broken(): raise RuntimeError("no such disk")
def rows(n, seed): return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
def data():
    return {"test": [(rows(6, 0), np.arange(6) % 3), (rows(5, 1), np.arange(5) % 3)],
            "calibration": [rows(7, 2)], "train": [(rows(6, 0), np.arange(6) % 3)]}
def empty(): return {"test": []}
def once(): return {"test": iter([])}
def nan():
    x = rows(6, 0); x[3, 1] = np.nan
    return {"test": [(x, np.arange(6) % 3)]}
def wide(): return {"test": [(np.zeros((2, 5), np.float32), np.zeros(2, int))]}
def integers(): return {"test": [(np.zeros((2, 4), int), np.zeros(2, int))]}
def short(): return {"test": [(np.zeros((2, 4), np.float32), np.zeros(3, int))]}
def raising():
    def batches():
        yield np.zeros((2, 4), np.float32), np.zeros(2, int)
        raise OSError("file vanished")
    return {"test": batches()}
def endless():
    def batches():
        while True:
            yield np.zeros((64, 4), np.float32), np.zeros(64, int)
    class Split:
        def __iter__(self): return batches()
    return {"calibration": Split()}
def pairs():
    ids = np.arange(10).reshape(2, 5); mask = np.ones((2, 5), np.float32)
    return {"test": [({"ids": ids, "mask": mask}, np.zeros(2, int)), ((ids, mask), np.zeros(2, int))]}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "model.py").write_text(MODEL)
    for entry in ("build", "two"):
        (folder / entry).mkdir()
        workload.load_job({"entry": f"model.py:{entry}"}, str(folder), 0, EXPORT, str(folder / entry))
    return folder


def digest(base: Path, entry: str, limits: dict[str, int | None] | None = None, model: str = "build") -> dict[str, Any]:
    return workload.digest_job(
        f"model.py:{entry}", str(base), str(base / model / "model.pt2"), 0, limits or {"test": None}
    )


def test_the_digest_follows_the_content_not_the_batching(base: Path) -> None:
    found = digest(base, "data", {"test": None, "calibration": 5, "train": None, "validation": None})
    assert found["test"]["samples"] == 11
    assert found["calibration"] == {**found["calibration"], "samples": 5, "labelled": False}
    assert found["validation"] is None
    assert digest(base, "data")["test"] == found["test"]
    assert found["overlaps"] == [
        "6 of 11 test samples are in the 'train' split too: the metric is told too well; keep them apart"
    ]


def test_a_split_is_spooled_as_it_came(base: Path, tmp_path: Path) -> None:
    workload.spool_job(
        "model.py:data",
        str(base),
        str(base / "build" / "model.pt2"),
        0,
        {"test": None, "calibration": 3},
        str(tmp_path),
    )
    assert spool.read(tmp_path / "calibration").samples == 3
    back = spool.read(tmp_path / "test")
    batches = list(back)
    assert (back.samples, back.labelled, len(batches)) == (11, True, 2)
    assert batches[0][0]["x"].dtype == np.float32


def test_several_inputs_by_name_or_in_order(base: Path) -> None:
    assert digest(base, "pairs", model="two")["test"]["samples"] == 4


def test_an_endless_split_is_bounded(base: Path) -> None:
    assert digest(base, "endless", {"calibration": 100})["calibration"]["samples"] == 100


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("empty", "the split 'test' has no samples"),
        ("once", "the split 'test' has no samples"),
        ("nan", r"test, batch 0: the input 'x' holds NaN or infinity \(sample 3"),
        ("wide", r"test, batch 0: the input 'x' has the shape \(2, 5\); the model takes \(batch, 4\)"),
        ("integers", r"test, batch 0: the input 'x' is int64; the model takes float32"),
        ("short", "3 labels for 2 samples"),
        ("raising", "raises OSError after batch 0: file vanished"),
        ("broken", r"model\.py:\d+: \[data\] entry 'model.py:broken' raises RuntimeError: no such disk"),
        ("missing", "there is no function 'missing' in model.py"),
    ],
)
def test_wrong_data_are_told(base: Path, entry: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        digest(base, entry)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"entry": "model.py:nothing"}, "returned int, not a module and its example inputs"),
        ({"entry": "model.py:biuld"}, "did you mean 'build'"),
        ({"entry": "modle.py:build"}, "no such Python file"),
        ({"entry": "model.py"}, "names no function"),
        ({"entry": "no.such.package:build"}, "can't import 'no.such.package'"),
        ({"entry": "model.py:build", "weights": "gone.pt"}, "gone.pt"),
        ({"entry": "model.py:build", "path": "a.onnx"}, "both 'entry' and 'path'"),
        ({}, "names no model"),
        ({"path": "model.py"}, "not an exported program"),
    ],
)
def test_a_wrong_model_is_told(base: Path, tmp_path: Path, section: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        workload.load_job(section, str(base), 0, EXPORT, str(tmp_path))


def test_the_fingerprint_follows_weights_and_source(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.py"
    copy.write_text(MODEL)
    first = workload.fingerprint_job({"entry": "model.py:build"}, str(tmp_path), 0)
    assert workload.fingerprint_job({"entry": "model.py:build"}, str(tmp_path), 0) == first
    copy.write_text(MODEL.replace("self.layer(x)", "self.layer(x) * 2"))
    changed = workload.fingerprint_job({"entry": "model.py:build"}, str(tmp_path), 0)
    assert changed["weights"] == first["weights"]
    assert changed["digest"] != first["digest"]
