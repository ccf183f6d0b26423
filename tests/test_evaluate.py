"""Outputs from real runtimes, and the judgement on them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit import child, evaluate, exported, target
from edgekit.errors import EdgekitError, InputError, StageError
from edgekit.workload import spool

RNG = np.random.default_rng(5)
N, CLASSES = 50, 4


class Net(nn.Module):
    """Two outputs, several inputs, so that order and names matter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.conv(image)).mean((2, 3))
        return self.head(hidden) + bias, hidden


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> spool.Spool:
    """50 samples in batches of 16: the last is short."""
    images = RNG.normal(size=(N, 3, 8, 8)).astype(np.float32)
    bias = RNG.normal(size=(N, 1)).astype(np.float32)
    labels = RNG.integers(0, CLASSES, N)
    batches = (({"image": images[i : i + 16], "bias": bias[i : i + 16]}, labels[i : i + 16]) for i in range(0, N, 16))
    return spool.write(batches, tmp_path_factory.mktemp("data") / "spool")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model as .pt2, as ONNX with a free batch and with a fixed one of 4."""
    folder = tmp_path_factory.mktemp("models")
    net = Net().eval()
    example = (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1))
    captured = exported.capture(net, example)
    exported.save(captured, folder / "model.pt2")
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        net, example, folder / "free.onnx", dynamo=True, verbose=False, input_names=["image", "bias"],
        output_names=["logits", "hidden"], dynamic_shapes=({0: batch}, {0: batch}),
    )  # fmt: skip
    fixed = (torch.zeros(4, 3, 8, 8), torch.zeros(4, 1))
    torch.onnx.export(
        net, fixed, folder / "fixed.onnx", dynamo=True, verbose=False, input_names=["image", "bias"],
        output_names=["logits", "hidden"],
    )  # fmt: skip
    return {"torch": folder / "model.pt2", "free": folder / "free.onnx", "fixed": folder / "fixed.onnx"}


def outputs(artifact: Path, backend: str, split: spool.Spool, out: Path, aim: dict[str, Any] | None = None) -> Path:
    report = child.call(
        "edgekit.evaluate:outputs_job",
        artifact=str(artifact),
        backend=backend,
        target=aim,
        data=str(split.folder),
        out=str(out),
    )
    assert report["samples"] == N
    return out


def test_every_runtime_gives_the_same_outputs(models: dict[str, Path], split: spool.Spool, tmp_path: Path) -> None:
    """torch, ONNX Runtime with a free and a fixed batch, and OpenVINO, on batches of 16 and one of 2."""
    reference = outputs(models["torch"], "torch", split, tmp_path / "torch.npz")
    expected = evaluate.load_outputs(reference)
    assert [o.shape for o in expected] == [(N, CLASSES), (N, 8)]
    aims = {name: target.load_target(name).model_dump(mode="json") for name in ("x86-cpu", "x86-openvino")}
    routes = (
        ("free", "onnx", None),
        ("fixed", "onnx", None),
        ("fixed", "onnxruntime", aims["x86-cpu"]),
        ("free", "openvino", aims["x86-openvino"]),
    )
    for name, backend, aim in routes:
        found = outputs(models[name], backend, split, tmp_path / f"{name}-{backend}.npz", aim)
        for one, other in zip(evaluate.load_outputs(found), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        gap = evaluate.difference(found, reference)
        assert 0 <= gap["max_abs"] < 1e-5


def test_data_without_an_input_of_the_model(models: dict[str, Path], tmp_path: Path) -> None:
    other = spool.write([({"picture": np.zeros((2, 3, 8, 8), "f")}, np.zeros(2, int))], tmp_path / "s")
    with pytest.raises(EdgekitError, match="picture"):
        evaluate.outputs_job(str(models["free"]), "onnx", None, str(other.folder), str(tmp_path / "o.npz"))
    assert not (tmp_path / "o.npz").exists()


def keep(path: Path, split: spool.Spool, *arrays: np.ndarray) -> Path:
    evaluate._write(path, [f"o{i}" for i in range(len(arrays))], list(arrays), split.digest)
    return path


def labelled(folder: Path, labels: np.ndarray) -> spool.Spool:
    return spool.write([({"x": np.arange(len(labels), dtype=np.float32)[:, None]}, labels)], folder)


def test_accuracy_against_a_reference(tmp_path: Path) -> None:
    """90 of 100 right, the reference 92; they differ on 6: everything told can be checked by hand."""
    labels = np.zeros(100, int)
    split = labelled(tmp_path / "s", labels)
    right = np.ones(100, bool)
    right[:10] = False
    reference = right.copy()
    reference[:4], reference[50:52] = True, False

    def logits(hit: np.ndarray) -> np.ndarray:
        return np.stack([hit, ~hit], axis=1).astype(np.float32)

    judged = evaluate.judge(
        keep(tmp_path / "a.npz", split, logits(right)), split, {"name": "accuracy"}, tmp_path,
        keep(tmp_path / "b.npz", split, logits(reference)),
    )  # fmt: skip
    assert judged["value"] == 0.9
    assert judged["ci95"] == pytest.approx([0.8256, 0.9448], abs=1e-4)
    assert judged["samples"] == 100
    assert judged["higher_is_better"] is True
    assert judged["delta"] == pytest.approx(-0.02)
    assert judged["agreement"] == pytest.approx(0.94)
    low, high = judged["delta_ci95"]
    assert low < -0.02 < high
    assert judged["p_value"] == pytest.approx(0.6875)  # binomial(2 of 6)
    reversed_ = evaluate.judge(tmp_path / "b.npz", split, {"name": "accuracy"}, tmp_path, tmp_path / "a.npz")
    assert reversed_["delta_ci95"] == pytest.approx([-high, -low])


@pytest.mark.parametrize("name", ["f1", "mse", "auc", "r2", "rmse"])
def test_bootstrap_is_paired_and_repeatable(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose errors are the reference's and a little more is told apart, though each interval is wide."""
    labels = (np.arange(300) % 2).astype(np.float64)
    split = labelled(tmp_path / "s", labels)
    theirs = labels + np.random.default_rng(1).normal(size=300) * (0.6 if name in ("f1", "auc") else 0.3)
    mine = theirs + np.sign(0.5 - labels) * 0.2
    paths = (
        keep(tmp_path / "a.npz", split, mine),
        split,
        {"name": name},
        tmp_path,
        keep(tmp_path / "b.npz", split, theirs),
    )
    monkeypatch.setattr(evaluate, "RESAMPLES", 200)
    judged = evaluate.judge(*paths)
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "another cache"))
    assert judged == evaluate.judge(*paths)
    assert judged["ci95"][0] < judged["value"] < judged["ci95"][1]
    low, high = judged["delta_ci95"]
    assert low < judged["delta"] < high
    assert high - low < judged["ci95"][1] - judged["ci95"][0]
    assert high < 0 if judged["higher_is_better"] else low > 0


def test_equal_outputs_are_no_change(tmp_path: Path) -> None:
    labels = RNG.normal(size=60)
    split = labelled(tmp_path / "s", labels)
    path = keep(tmp_path / "a.npz", split, labels + 0.1)
    judged = evaluate.judge(path, split, {"name": "mae"}, tmp_path, path)
    assert judged["delta"] == 0
    assert judged["delta_ci95"] == [0, 0]
    assert judged["agreement"] is None  # values are no classes


def test_interval_is_left_out_where_resamples_have_no_value(tmp_path: Path) -> None:
    """AUC with one positive sample: a third of the resamples lack it. The value stands, the interval does not."""
    labels = np.zeros(40, int)
    labels[7] = 1
    split = labelled(tmp_path / "s", labels)
    judged = evaluate.judge(keep(tmp_path / "a.npz", split, RNG.normal(size=40)), split, {"name": "auc"}, tmp_path)
    assert judged["ci95"] is None
    assert 0 <= judged["value"] <= 1


def test_user_metric_without_per_sample_gets_an_interval(tmp_path: Path) -> None:
    (tmp_path / "worst.py").write_text(
        "import numpy as np\nHIGHER_IS_BETTER = False\n"
        "def score(outputs, labels):\n    return float(np.quantile(abs(outputs[0] - labels), 0.9))\n"
    )
    labels = RNG.normal(size=200)
    split = labelled(tmp_path / "s", labels)
    a = keep(tmp_path / "a.npz", split, labels + RNG.normal(size=200))
    b = keep(tmp_path / "b.npz", split, labels + RNG.normal(size=200) * 0.2)
    judged = evaluate.judge(a, split, {"name": "worst.py"}, tmp_path, b)
    assert judged["name"] == "worst"
    assert judged["delta_ci95"][0] > 0
    assert judged["agreement"] is None


def test_a_bootstrap_is_remembered_until_something_it_depends_on_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run judges every stage anew; with F1 a second run would take minutes."""
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    count = []
    judged = evaluate._judged
    monkeypatch.setattr(evaluate, "_judged", lambda *a: count.append(1) or judged(*a))
    mine = tmp_path / "mine"
    mine.mkdir()
    text = "from helper import K\ndef score(outputs, labels):\n    return K * float(abs(outputs[0] - labels).max())\n"
    (mine / "m.py").write_text(text)
    (mine / "helper.py").write_text("K = 1.0\n")
    labels = RNG.normal(size=20)
    split = labelled(tmp_path / "s", labels)
    path = keep(tmp_path / "a.npz", split, labels + 1.0)
    first = evaluate.judge(path, split, {"name": "m.py"}, mine)
    assert evaluate.judge(path, split, {"name": "m.py"}, mine) == first
    assert len(count) == 1
    (mine / "helper.py").write_text("K = 2.00\n")  # of another size: the compiled file of the same second is stale
    import sys

    del sys.modules["helper"]
    assert evaluate.judge(path, split, {"name": "m.py"}, mine)["value"] == pytest.approx(2 * first["value"])
    keep(path, split, labels + 3.0)
    assert evaluate.judge(path, split, {"name": "m.py"}, mine)["value"] == pytest.approx(6 * first["value"])
    assert len(count) == 3


def test_outputs_of_other_samples_are_refused(tmp_path: Path) -> None:
    one, other = labelled(tmp_path / "a", np.arange(4) % 2), labelled(tmp_path / "b", np.arange(5) % 2)
    path = keep(tmp_path / "a.npz", one, np.eye(2)[np.arange(4) % 2])
    with pytest.raises(InputError, match="other samples"):
        evaluate.judge(path, other, {}, tmp_path)


@given(st.lists(st.text(min_size=1).filter(lambda name: "\0" not in name), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_outputs_may_have_any_names(names: list[str]) -> None:
    """Slashes, dots, unicode, twice the same: the order is kept, and no file is written elsewhere."""
    arrays = [np.full((2, 1), float(i)) for i in range(len(names))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "o.npz"
        evaluate._write(path, names, arrays, "d")
        for found, expected in zip(evaluate.load_outputs(path), arrays, strict=True):
            np.testing.assert_array_equal(found, expected)
        assert [p.name for p in Path(folder).iterdir()] == ["o.npz"]


def test_damaged_outputs_and_missing_labels(tmp_path: Path) -> None:
    split = labelled(tmp_path / "a", np.arange(4) % 2)
    (tmp_path / "o.npz").write_bytes(b"PK\x03\x04 cut")
    for path in (tmp_path / "o.npz", tmp_path / "nowhere.npz"):
        with pytest.raises(InputError, match="can't read these outputs"):
            evaluate.judge(path, split, {}, tmp_path)
    bare = spool.write([({"x": np.zeros((3, 1), "f")}, None)], tmp_path / "bare")
    with pytest.raises(InputError, match="no labels"):
        evaluate.judge(keep(tmp_path / "b.npz", bare, np.eye(3)), bare, {}, tmp_path)


def test_nan_outputs_are_a_failed_stage(tmp_path: Path) -> None:
    split = labelled(tmp_path / "a", np.arange(4) % 2)
    with pytest.raises(StageError, match="NaN for 4 of 4"):
        evaluate.judge(keep(tmp_path / "a.npz", split, np.full((4, 2), np.nan)), split, {}, tmp_path)


def test_outputs_that_do_not_grow_with_the_batch() -> None:
    with pytest.raises(StageError, match=r"output 1 has the shape \(1, 4\) for a batch of 3"):
        evaluate._checked([np.zeros((3, 4)), np.zeros((1, 4))], {"x": np.zeros((3, 1))}, 0)
    with pytest.raises(InputError, match="pad the samples"):
        evaluate._keep([np.zeros((3, 5))], evaluate._room([np.zeros((3, 4))], 6), 3)


def test_the_shared_resnet20_scores_as_published(shared_data: Path, tmp_path: Path) -> None:
    """1,000 real images through the real model: its accuracy on them, by torch alone, must come out."""
    sys_path = str(shared_data.parent / "tools")
    import sys

    sys.path.insert(0, sys_path)
    try:
        import cifar10
    finally:
        sys.path.remove(sys_path)
    images, labels = cifar10.images("test")
    images, labels = cifar10.normalize(images[::10]), labels[::10]
    model = cifar10.resnet20()
    exported.save(exported.capture(model, torch.zeros(2, 3, 32, 32)), tmp_path / "m.pt2")
    name = exported.signature(exported.load(tmp_path / "m.pt2")).inputs[0]
    split = spool.write(
        (({name: images[i : i + 128]}, labels[i : i + 128]) for i in range(0, 1000, 128)), tmp_path / "s"
    )
    evaluate.outputs_job(str(tmp_path / "m.pt2"), "torch", None, str(split.folder), str(tmp_path / "o.npz"))
    with torch.inference_mode():
        expected = (model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean()
    judged = evaluate.judge(tmp_path / "o.npz", split, {"name": "accuracy"}, tmp_path)
    assert judged["value"] == pytest.approx(expected, abs=1e-9)
    assert judged["ci95"][0] < 0.8885 < judged["ci95"][1]
