"""Weights of few values, trained: shared ones by their table, binary and ternary ones by latent weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from sklearn.datasets import load_digits
from test_qat import Array, batches, by_torch, constants, logits, trained
from torch import nn

import edgekit
from edgekit import exported, exporting
from edgekit.errors import InputError, StageError
from edgekit.quantizers import _score, _torch_graph, quantize_job
from edgekit.target import load_target
from edgekit.workload import spool

TARGET = load_target("x86-cpu").model_dump(mode="json")
METHODS: dict[str, dict[str, Any]] = {
    "binary": {"method": "binary", "bits": 1, "layers": ["*"]},
    "ternary": {"method": "binary", "bits": 2, "layers": ["*"]},
    "4 values": {"method": "clustered", "clusters": 4},
}


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.images[order, None] / 16).astype(np.float32), data.target[order].astype(np.int64)


@pytest.fixture(scope="module")
def model(digits: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codebook")
    torch.manual_seed(2)
    layers = [
        (1, 8, 1),
        (8, 15, 2),
        (15, 16, 1),
    ]  # few, so that few values cost; 15: the last byte of a row is not full
    body = [m for i, o, s in layers for m in (nn.Conv2d(i, o, 3, s, 1), nn.BatchNorm2d(o), nn.ReLU())]
    net = trained(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)), *digits, epochs=6)
    exported.save(exported.capture(net, torch.from_numpy(digits[0][:4])), folder / "model.pt2")
    exporting.export_job(str(folder / "model.pt2"), {}, str(folder / "raw.onnx"))
    exporting.simplify_job(str(folder / "raw.onnx"), str(folder / "float.onnx"))
    return folder / "float.onnx"


def spooled(model: Path, digits: tuple[Array, Array], folder: Path) -> str:
    name = onnx.load(model).graph.input[0].name
    return str(spool.write((({name: a}, b) for a, b in batches(*digits)), folder / "data").folder)


@pytest.fixture(params=list(METHODS))
def made(request: Any, model: Path, digits: tuple[Array, Array], tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """As training finds it: with the scales that calibration gave, which are not those of the float weights."""
    data = spooled(model, digits, tmp_path / "samples")
    quantize_job(str(model), str(tmp_path / "made.onnx"), data, TARGET, METHODS[request.param], draft=True)
    return METHODS[request.param], tmp_path / "made.onnx"


def test_torch_computes_what_the_runtime_does(made: Any, model: Path, digits: tuple[Array, Array]) -> None:
    for source in (None, model):
        np.testing.assert_allclose(by_torch(made[1], digits[0], source=source), logits(made[1], digits[0]), atol=1e-4)


def test_untrained_weights_go_back_unchanged(made: Any, model: Path, tmp_path: Path) -> None:
    _torch_graph.open_trainee(made[1], model).save(tmp_path / "same.onnx")
    before, after = constants(made[1]), constants(tmp_path / "same.onnx")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-6, err_msg=name)


def test_every_weight_gets_a_gradient(made: Any, model: Path, digits: tuple[Array, Array]) -> None:
    graph = _torch_graph.open_graph(made[1], model)
    name = onnx.load(made[1]).graph.input[0].name
    nn.functional.cross_entropy(graph({name: torch.from_numpy(digits[0])})[0], torch.from_numpy(digits[1])).backward()
    assert all(bool((p.grad != 0).any()) for p in graph.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in graph.parameters())


@pytest.mark.parametrize("made", ["binary", "4 values"], indirect=True)  # ternary has lost nothing here
def test_training_wins_back_what_few_values_cost(
    made: Any, model: Path, digits: tuple[Array, Array], tmp_path: Path
) -> None:
    """What is written computes what was trained, in a file of the same form and size."""
    settings, untrained = made
    (x, y), out = digits, tmp_path / "trained.onnx"
    done = edgekit.quantize(model, batches(x[:1200], y[:1200]), out=out, finetune=True, train={"epochs": 4}, **settings)
    assert len(done.report["training"]["history"]) == 5
    right = {path: (logits(path, x[1200:]).argmax(1) == y[1200:]).mean() for path in (untrained, out)}
    assert right[out] > right[untrained] + 0.02
    assert abs(out.stat().st_size - untrained.stat().st_size) < 100
    changed = [name for name, value in constants(out).items() if not np.array_equal(value, constants(untrained)[name])]
    assert any(name.endswith("_bytes" if settings["method"] == "binary" else "_table") for name in changed)
    np.testing.assert_allclose(by_torch(out, x), logits(out, x), atol=1e-3)


@pytest.mark.parametrize("readers", [1, 2])
def test_bytes_of_another_form_are_no_signs(readers: int, tmp_path: Path) -> None:
    """A Cast of bytes that leads elsewhere, or is read twice, is run as it stands."""
    helper, types = onnx.helper, onnx.TensorProto
    whole = numpy_helper.from_array(np.arange(4, dtype=np.uint8), "bytes")
    nodes = [helper.make_node("Cast", ["bytes"], ["f"], to=types.FLOAT), helper.make_node("Add", ["x", "f"], ["a"])]
    last = ["f"] if readers == 2 else ["x"]
    nodes.append(helper.make_node("Mul", ["a", *last], ["y"]))
    ports = [helper.make_tensor_value_info(n, types.FLOAT, [4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [whole])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    x = np.ones(4, np.float32)
    np.testing.assert_allclose(by_torch(tmp_path / "m.onnx", x), logits(tmp_path / "m.onnx", x))


def test_without_training_what_is_noise_is_refused_with_it_is_a_draft(
    model: Path, digits: tuple[Array, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_score, "FAILED_DB", 30.0)  # these digits are told apart at less
    job = (str(model), str(tmp_path / "out.onnx"), spooled(model, digits, tmp_path), TARGET, METHODS["binary"])
    with pytest.raises(StageError, match="noise"):
        quantize_job(*job)
    assert quantize_job(*job, draft=True)["sqnr_db"] < 30


def test_what_cannot_be_trained_is_told(model: Path, digits: tuple[Array, Array], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="what 'fp16' makes can't be trained"):
        edgekit.quantize(model, batches(*digits), out=tmp_path / "o.onnx", method="fp16", finetune=True)
