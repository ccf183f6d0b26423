"""The main job, end to end, on real models, data and runtimes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgekit
from edgekit import pipeline, result
from edgekit.errors import InputError
from edgekit.recipe import DataSection, ModelSection, Recipe, Variant, load_recipe

USER = """
import numpy as np, torch
from sklearn.datasets import load_digits
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                                  nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net(), torch.zeros(2, 1, 8, 8)

def data():
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32)[:, None], digits.target.astype(np.int64)
    cut = lambda a, b: [(x[i:i + 50], y[i:i + 50]) for i in range(a, b, 50)]
    return {"train": cut(0, 600), "calibration": cut(600, 700), "validation": cut(700, 800), "test": cut(800, 1100)}
"""
RECIPE = """
recipe_version = 1
targets = ["x86-cpu"]
[model]
entry = "model.py:build"
[data]
entry = "model.py:data"
[recover]
epochs = 2
[quantize.train]
epochs = 1
[measure]
pairs = 2
max_pairs = 2
[gate]
max_size_ratio = 1.2
[[variant]]
name = "fp32"
[[variant]]
name = "pruned-int8-qat"
prune = true
quantize = "qat"
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(USER)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def _cli(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _lasting(results: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how often a run was killed: everything but times and what follows from them."""
    return {
        row["id"]: {
            "status": row["status"],
            "sha256": row["artifact"]["sha256"],
            "metric": row["metric"],
            "macs": row["macs"],
            "stages": [(s["name"], s["metric"], s["size_bytes"], s["parity"]) for s in row["stages"]],
        }
        for row in results["variants"]
    }


@pytest.mark.slow
def test_killed_in_every_stage_it_goes_on_and_ends_the_same(job: Path, tmp_path: Path) -> None:
    undisturbed = pipeline.run(job / "recipe.toml", tmp_path / "calm")
    cache = str(tmp_path / "cache")
    killed_after: list[str] = []
    for _ in range(30):
        process = _cli("run", str(job / "recipe.toml"), "--out", str(tmp_path / "out"), EDGEKIT_CACHE_DIR=cache)
        assert process.stderr is not None
        for line in process.stderr:
            stage = line.partition(": ")[2].split(" (")[0].strip()
            if "(cached)" not in line and " s)" in line and stage not in killed_after:
                killed_after.append(stage)
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        if process.returncode != -signal.SIGKILL:
            break
    assert process.returncode == 0
    assert set(killed_after) >= {"prune", "recover", "export", "quantize", "finetune", "compile"}
    resumed = result.load_results(tmp_path / "out" / "results.json")
    assert _lasting(resumed) == _lasting(undisturbed)
    assert result.verify(tmp_path / "out") == []


def test_the_whole_line(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = edgekit.run(job / "recipe.toml", out)
    result.validate(first)
    rows = {row["variant"]: row for row in first["variants"]}
    small = rows["pruned-int8-qat"]
    assert [s["name"] for s in small["stages"]] == [
        *("load", "prune", "recover", "export", "simplify", "quantize", "finetune", "compile")
    ]
    assert all(s["metric"] is not None for s in small["stages"])
    assert small["macs"] < rows["fp32"]["macs"]
    assert small["int8_macs_share"] > 0.95
    assert small["size_bytes"] < rows["fp32"]["size_bytes"]
    assert small["vs_reference"]["id"] == first["reference"] == "fp32@x86-cpu"
    assert small["latency_ms"]["median"] > 0
    assert first["gate"]["passed"] is True
    assert result.verify(out) == []
    assert "<html" in (out / "report.html").read_text()[:500]

    second = edgekit.run(job / "recipe.toml", out, locked=True)
    assert all(stage["cached"] for row in second["variants"] for stage in row["stages"])
    assert _lasting(second) == _lasting(first)
    assert second["variants"][1]["latency_ms"] == small["latency_ms"]  # taken from the store, not measured again

    planned = pipeline.plan(job / "recipe.toml")
    assert all(stage["cached"] for row in planned for stage in row["stages"])

    changed = (job / "recipe.toml").read_text().replace("epochs = 1", "epochs = 2")
    (job / "recipe.toml").write_text(changed)
    with pytest.raises(InputError, match=r"--locked, but 1 input\(s\) changed: recipe was"):
        edgekit.run(job / "recipe.toml", out, locked=True)
    third = edgekit.run(job / "recipe.toml", out)
    redone = [s["name"] for row in third["variants"] for s in row["stages"] if not s["cached"]]
    assert redone == ["finetune", "compile"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric.name": "model.py:iou"}, "no function 'iou' in model.py"),
        ({"recover.loss": "model.py:mine"}, "no function 'mine' in model.py"),
        ({"prune.method": "mine.py"}, "no such Python file"),
    ],
)
def test_a_wrong_name_is_told_before_any_work(job: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        pipeline.plan(load_recipe(job / "recipe.toml", changes))


def test_interrupted_it_keeps_what_is_finished_and_no_whole_record_is_lost(job: Path, tmp_path: Path) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        if label == "measuring x86-cpu":
            raise KeyboardInterrupt

    out, recipe = tmp_path / "out", job / "recipe.toml"
    recipe.write_text(recipe.read_text().partition('[[variant]]\nname = "pruned')[0])
    with pytest.raises(KeyboardInterrupt):
        edgekit.run(recipe, out, progress=interrupt)
    part = result.load_results(out / "results.json")
    assert part["interrupted"] is True
    assert part["gate"]["passed"] is not True
    assert [(row["status"], row["reason"]) for row in part["variants"]] == [
        ("failed", "interrupted before it was finished")
    ]
    assert part["variants"][0]["stages"][-1]["metric"] is not None  # what is known so far
    assert "Interrupted: 0 of 1 row finished" in (out / "report.md").read_text()

    whole = edgekit.run(recipe, out)
    with pytest.raises(KeyboardInterrupt):
        edgekit.run(recipe, out, remeasure=True, progress=interrupt)
    assert result.load_results(out / "results.json") == whole


def test_live_objects_from_python(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    rng = np.random.default_rng(0)

    def batches(count: int) -> list[Any]:
        x = rng.normal(size=(count, 20, 6)).astype(np.float32)
        return [(b, b[:, :3].argmax(1)) for b in x]

    recipe = Recipe(
        model=ModelSection(entry=(model, torch.zeros(2, 6))),
        data=DataSection(entry={"train": batches(6), "calibration": batches(2), "test": batches(5)}),
        variant=(Variant(name="small", prune={"ratio": 0.5}, quantize="static"),),
        measure={"pairs": 2, "max_pairs": 2},
    )
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    seen: list[str] = []
    results = edgekit.run(recipe, tmp_path / "out", progress=lambda label, done, total: seen.append(label))
    assert [row["status"] for row in results["variants"]] == ["ok", "ok"]
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert any("measuring" in label for label in seen)


def test_one_target_failing_does_not_stop_the_others(job: Path, tmp_path: Path) -> None:
    backend = job / "crashing.py"
    backend.write_text(
        "import os\nfrom edgekit.backends import onnxruntime as real\n"
        "from edgekit.backends.onnxruntime import EXTRA, Options, layers, open_model, probe, profile, version\n"
        "def compile_model(model, target, out):\n"
        "    return real.compile_model(model, target, out) if target.name == 'proof' else os.abort()\n"
    )
    (job / "broken.toml").write_text(
        f'title = "A runtime that aborts"\nsource = "test"\nbackend = "{backend}"\n'
        'cross = true\n[device]\narch = "none"\n'
    )
    text = RECIPE.replace('["x86-cpu"]', '["x86-cpu", "broken.toml"]')
    (job / "recipe.toml").write_text(text.split("[gate]")[0] + '[[variant]]\nname = "fp32"\n')
    process = _cli("run", str(job / "recipe.toml"), "--out", str(tmp_path / "out"))
    _, said = process.communicate()
    assert process.returncode == 3, said
    rows = {row["target"]: row for row in result.load_results(tmp_path / "out" / "results.json")["variants"]}
    assert rows["x86-cpu"]["status"] == "ok"
    assert rows["broken"]["status"] == "failed"
    assert "SIGABRT" in rows["broken"]["reason"]


def test_json_is_alone_on_stdout(job: Path, tmp_path: Path) -> None:
    (job / "recipe.toml").write_text(RECIPE.split("[gate]")[0] + '[[variant]]\nname = "fp32"\n')
    process = _cli("run", str(job / "recipe.toml"), "--out", str(tmp_path / "out"), "--json")
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert json.loads(printed) == result.load_results(tmp_path / "out" / "results.json")
    assert "export" in said
