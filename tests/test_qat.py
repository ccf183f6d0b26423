"""Quantization-aware training: what is trained is what ships, and it helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import nn

import edgekit
from edgekit import exported, exporting
from edgekit.quantizers import _torch_graph, quantize_job
from edgekit.recipe import MetricSection, QuantizeSection, TrainSection
from edgekit.target import load_target
from edgekit.training import TrainJob, train
from edgekit.training.work import work
from edgekit.workload import spool

Array = np.ndarray[Any, Any]
SIZE = 64


class Attention(nn.Module):
    """One encoder block and a head, on rows of an image as words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.randn(1, 8, 32) * 0.1)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, activation="gelu")
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(x.squeeze(1)) + self.place).mean(1))


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order, None] / 16).astype(np.float32)
    return images, data.target[order].astype(np.int64)


def batches(x: Array, y: Array) -> list[tuple[Array, Array]]:
    return [(x[i : i + SIZE], y[i : i + SIZE]) for i in range(0, len(x), SIZE)]


def trained(model: nn.Module, x: Array, y: Array, epochs: int = 12) -> nn.Module:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(epochs):
        for one, labels in batches(x, y):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.from_numpy(one)), torch.from_numpy(labels)).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module", params=["cnn", "attention"])
def made(request: Any, digits: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model, its ONNX file, and the static Q/DQ file; spools of its data."""
    folder = tmp_path_factory.mktemp(request.param)
    x, y = digits
    torch.manual_seed(1)
    model = trained(cnn() if request.param == "cnn" else Attention(), x[:1200], y[:1200])
    captured = exported.capture(model, torch.from_numpy(x[:4]))
    exported.save(captured, folder / "model.pt2")
    exporting.export_job(str(folder / "model.pt2"), {}, str(folder / "raw.onnx"))
    exporting.simplify_job(str(folder / "raw.onnx"), str(folder / "float.onnx"))
    name = exported.signature(captured).inputs[0]
    for split, part in (("train", slice(0, 1200)), ("validation", slice(1200, 1500))):
        spool.write((({name: a}, b) for a, b in batches(x[part], y[part])), folder / split)
    target = load_target("x86-cpu").model_dump(mode="json")
    settings = {"method": "static", "samples": 256}
    quantize_job(str(folder / "float.onnx"), str(folder / "int8.onnx"), str(folder / "train"), target, settings)
    return folder


def logits(path: Path, x: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def by_torch(path: Path, x: Array, **options: Any) -> Array:
    graph = _torch_graph.open_graph(path, **options).eval()
    name = onnx.load(path).graph.input[0].name
    with torch.no_grad():
        return graph({name: torch.from_numpy(x)})[0].numpy()


def constants(path: Path) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_torch_computes_what_the_runtime_does(made: Path, digits: tuple[Array, Array]) -> None:
    x = digits[0]
    np.testing.assert_allclose(by_torch(made / "float.onnx", x), logits(made / "float.onnx", x), atol=1e-4)
    for source in (None, made / "float.onnx"):
        ours, theirs = by_torch(made / "int8.onnx", x, source=source), logits(made / "int8.onnx", x)
        assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.995
        assert np.abs(ours - theirs).mean() < 0.02 * theirs.std()


def test_untrained_weights_go_back_unchanged(made: Path, tmp_path: Path) -> None:
    opened = _torch_graph.open_trainee(made / "int8.onnx", made / "float.onnx")
    opened.save(tmp_path / "same.onnx")
    before, after = constants(made / "int8.onnx"), constants(tmp_path / "same.onnx")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_finer_weights_come_from_the_float_model(made: Path) -> None:
    coarse = _torch_graph.open_graph(made / "int8.onnx")
    fine = _torch_graph.open_graph(made / "int8.onnx", made / "float.onnx")
    pairs = [(a.value, b.value) for a, b in zip(coarse.kept.values(), fine.kept.values(), strict=True)]
    moved = [bool((a != b).any()) for a, b in pairs if a.ndim > 1]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize("learn_scales", [False, True])
def test_every_weight_gets_a_gradient(made: Path, digits: tuple[Array, Array], learn_scales: bool) -> None:
    graph = _torch_graph.open_graph(made / "int8.onnx", made / "float.onnx", learn_scales=learn_scales)
    name = onnx.load(made / "int8.onnx").graph.input[0].name
    output = graph({name: torch.from_numpy(digits[0][:64])})[0]
    nn.functional.cross_entropy(output, torch.from_numpy(digits[1][:64])).backward()
    for parameter in graph.parameters():
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
        assert bool((parameter.grad != 0).any())


def spoiled(made: Path, folder: Path) -> Path:
    """The Q/DQ file with its weights cut down to multiples of 32, four steps each way: what training has to mend."""
    proto = onnx.load(made / "int8.onnx")
    readers = {node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name in readers and array.dtype == np.int8:
            rough = (np.sign(array) * (np.abs(array.astype(np.int64)) // 32) * 32).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(rough, tensor.name))
    onnx.save(proto, folder / "spoiled.onnx")
    return folder / "spoiled.onnx"


@pytest.mark.parametrize("learn_scales", [False, True])
def test_training_mends_a_bad_quantization(
    made: Path, tmp_path: Path, digits: tuple[Array, Array], learn_scales: bool
) -> None:
    """Taught by the float model alone; judged by the runtime on samples that training has not seen."""
    x, y = digits[0][1500:], digits[1][1500:]
    student = spoiled(made, tmp_path)
    data = {"spool": {"train": str(made / "train"), "validation": str(made / "validation")}}
    settings = TrainSection(
        epochs=8, optimizer="adam", learning_rate=2e-3, distill=1.0, temperature=1.0, learn_scales=learn_scales
    )
    job = TrainJob(
        kind="qat",
        student=str(student),
        teacher=str(made / "model.pt2"),
        out=str(tmp_path / "out.onnx"),
        scratch=str(tmp_path / "scratch"),
        data=data,
        settings=settings,
        metric=MetricSection(),
    )
    result = work(job)
    files = (student, made / "float.onnx", tmp_path / "out.onnx")
    accuracy = {file.stem: (logits(file, x).argmax(1) == y).mean() for file in files}
    assert accuracy["spoiled"] < accuracy["float"] - 0.1
    assert accuracy["out"] > accuracy["float"] - 0.03
    assert result["metric"] > result["history"][0]["metric"]
    ours, theirs = by_torch(tmp_path / "out.onnx", x), logits(tmp_path / "out.onnx", x)
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.995
    check_form(student, tmp_path / "out.onnx", learn_scales)


def check_form(before: Path, after: Path, learn_scales: bool) -> None:
    """The same nodes; integers within ±127; every bias's scale is its input's times its weight's."""
    assert [n.SerializeToString() for n in onnx.load(before).graph.node] == [
        n.SerializeToString() for n in onnx.load(after).graph.node
    ]
    old, new = constants(before), constants(after)
    nodes = onnx.load(after).graph.node
    scale_of = {n.output[0]: n.input[1] for n in nodes if n.op_type == "DequantizeLinear"}
    assert any(not np.array_equal(old[n], new[n]) for n in new if new[n].dtype == np.int8 and new[n].size > 1)
    moved = [n for n in scale_of.values() if not np.array_equal(old[n], new[n])]
    assert bool(moved) is learn_scales
    for name, array in new.items():
        assert array.dtype == old[name].dtype
        if array.dtype == np.int8:
            assert np.abs(array.astype(int)).max(initial=0) <= 127
    for node in nodes:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2] in scale_of:
            x_scale, w_scale, b_scale = (new[scale_of[node.input[i]]] for i in range(3))
            np.testing.assert_allclose(b_scale, x_scale * w_scale, rtol=1e-6)


@pytest.mark.parametrize("made", ["cnn"], indirect=True)
def test_quantize_with_qat_from_python(made: Path, digits: tuple[Array, Array], tmp_path: Path) -> None:
    x, y = digits
    done = edgekit.quantize(
        made / "float.onnx",
        batches(x[:1200], y[:1200]),
        method="qat",
        out=tmp_path / "qat.onnx",
        train={"epochs": 1},
        validation=batches(x[1200:1500], y[1200:1500]),
        metric="accuracy",
    )
    assert done.report["method"] == "qat"
    assert len(done.report["training"]["history"]) == 2
    before, after = ((logits(path, x[1500:]).argmax(1) == y[1500:]).mean() for path in (made / "float.onnx", done.path))
    assert after > before - 0.03


@pytest.mark.parametrize("made", ["cnn"], indirect=True)
def test_the_graph_runs_under_torchrun_too(made: Path, tmp_path: Path) -> None:
    """Two processes, the teacher an ONNX file, no labels."""
    job = TrainJob(
        kind="qat",
        student=str(made / "int8.onnx"),
        teacher=str(made / "float.onnx"),
        weights=str(made / "float.onnx"),
        out=str(tmp_path / "out.onnx"),
        scratch=str(tmp_path / "scratch"),
        data={"spool": {"train": str(made / "train"), "validation": None}},
        settings=TrainSection(epochs=1, optimizer="adam", distill=1.0, temperature=1.0, processes=2),
    )
    result = train(job)
    assert result["epochs"] == 1
    assert result["history"][1]["loss"] < 0.2
    assert (tmp_path / "out.onnx").is_file()


def test_one_key_of_the_training_keeps_the_other_defaults() -> None:
    section = QuantizeSection.model_validate({"train": {"epochs": 7}})
    assert section.train == QuantizeSection().train.model_copy(update={"epochs": 7})
    assert (section.train.optimizer, section.train.distill) == ("adam", 1.0)
