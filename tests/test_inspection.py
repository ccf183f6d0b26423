"""What ``edgekit inspect`` tells: of real files by the real runtimes, and the sentences of ``explain`` one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest

from edgekit import backends, inspection, machine
from edgekit.backends import LayerPrecision, LayerTime
from edgekit.errors import InputError
from edgekit.inspection import lighten
from edgekit.inspection.explain import by_operator, explain
from edgekit.measure import Measured
from edgekit.target import Target, lacks, load_target


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    plain = onnx_models.conv_net(folder / "float.onnx")
    return {"float": plain, "int8": onnx_models.quantized(plain, folder / "int8.onnx", leave=("conv1",))}


def test_a_model_is_described(models: dict[str, Path]) -> None:
    report = inspection.inspect(models["float"])
    json.dumps(report)
    assert report["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 3, 16, 16]}]
    assert report["macs"] == onnx_models.MACS
    assert report["int8_macs_share"] == 0
    assert report["size_bytes"] == models["float"].stat().st_size
    text = inspection.text(report)
    assert "x float32 (?, 3, 16, 16)" in text
    assert f"{onnx_models.MACS:,} multiply-adds" in text


@pytest.mark.parametrize("target", ["x86-cpu", "x86-openvino"])
def test_a_profile_tells_where_the_time_goes(models: dict[str, Path], target: str, tmp_path: Path) -> None:
    if lacks(load_target(target)):
        pytest.skip(lacks(load_target(target)))
    feeds = tmp_path / "x.npz"
    np.savez(feeds, x=onnx_models.samples(1))
    report = inspection.inspect(models["int8"], target=target, profile=True, feeds=feeds)
    json.dumps(report)
    assert report["wall_ms"] > 0
    assert sum(row["share"] for row in report["operators"]) == pytest.approx(1)
    assert sum(row["milliseconds"] for row in report["operators"]) == pytest.approx(
        sum(row["milliseconds"] for row in report["times"])
    )
    assert {row["operator"] for row in report["operators"]} & {"QLinearConv", "Convolution"}
    text = inspection.text(report)
    assert "time by operator" in text
    assert "why:" in text or "nothing stands out" in text


def test_a_wrong_file_or_feed_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        inspection.inspect(tmp_path / "missing.onnx")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"no runtime reads '\.txt' files"):
        inspection.inspect(tmp_path / "notes.txt")
    np.savez(tmp_path / "bad.npz", x=np.zeros((1, 3, 16, 15), np.float32))
    with pytest.raises(InputError, match="the model wants"):
        inspection.inspect(models["float"], profile=True, feeds=tmp_path / "bad.npz")
    (tmp_path / "pickle.npz").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="can't read these inputs"):
        inspection.inspect(models["float"], profile=True, feeds=tmp_path / "pickle.npz")


def test_an_exported_program_is_described(tmp_path: Path) -> None:
    import torch

    from edgekit import exported

    module = exported.capture(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), torch.zeros(2, 4))
    path = exported.save(module, tmp_path / "net.pt2")
    report = {"path": str(path), "kind": "pt2", "size_bytes": 1, "sha256": "0" * 64, **inspection.pt2_job(str(path))}
    assert report["parameters"] == 15
    assert report["inputs"][0]["shape"][1:] == [4]
    assert any("relu" in row["operator"] for row in report["operators"])
    assert "15 parameters" in inspection.text(report)


def target(threads: int = 1) -> Target:
    document = {"name": "t", "title": "", "source": "", "backend": "onnxruntime", "device": {"arch": ""}}
    return Target.model_validate({**document, "run": {"threads": threads}})


def layer(name: str, operator: str, macs: int = 0, precision: str = "int8", reason: str = "") -> LayerPrecision:
    return LayerPrecision(name=name, operator=operator, macs=macs, precision=precision, reason=reason)


def spent(layers: list[LayerPrecision], *milliseconds: float, bytes_moved: int = 1) -> list[LayerTime]:
    return [
        LayerTime(name=p.name, operator=p.operator, milliseconds=ms, precision=p.precision, bytes_moved=bytes_moved)
        for p, ms in zip(layers, milliseconds, strict=True)
    ]


GOOD = [layer("a", "QLinearConv", 1000), layer("b", "QLinearConv", 1000)]


def test_a_sound_model_needs_no_words() -> None:
    assert explain(GOOD, spent(GOOD, 1.0, 1.0), target()) == []
    assert explain([], [], target()) == []


def test_float_layers_are_told_together_by_reason() -> None:
    floats = [layer(f"f{n}", "Conv", 1000, "fp32", "its bias is float") for n in range(5)]
    layers = [*GOOD, *floats]
    found = explain(layers, spent(layers, 1, 1, *[0.4] * 5), target())
    assert found == ["'f0', 'f1', 'f2' and 2 more ran in float, 50% of the time: its bias is float"]


def test_a_float_model_is_not_blamed_for_being_float() -> None:
    layers = [layer("f", "Conv", 1000, "fp32", "the model is not quantized")]
    assert explain(layers, spent(layers, 1.0), target()) == []


def test_conversions_are_counted() -> None:
    layers = [*GOOD, layer("q", "QuantizeLinear"), layer("r", "ReorderOutput"), layer("d", "QuantizeLinear")]
    (found,) = explain(layers, spent(layers, 1, 1, 0.2, 0.1, 0.2), target())
    assert found.startswith("conversions take 20% of the time (2 QuantizeLinear, 1 ReorderOutput)")


def test_slow_integer_operators_are_named() -> None:
    layers = [*GOOD, layer("s", "QLinearSoftmax")]
    (found,) = explain(layers, spent(layers, 1, 1, 0.5), target())
    assert "1 QLinearSoftmax takes 20%" in found


def test_float_islands_between_integer_layers() -> None:
    mean = layer("m", "ReduceMean", precision="fp32")
    layers = [GOOD[0], layer("d", "DequantizeLinear"), mean, layer("q", "QuantizeLinear"), GOOD[1]]
    found = explain(layers, spent(layers, 1, 0.01, 0.5, 0.01, 1), target())
    assert len(found) == 1
    assert "1 float island (ReduceMean)" in found[0]
    assert "GlobalAveragePool" in found[0]
    outside = [*GOOD, layer("d", "DequantizeLinear"), mean]
    assert explain(outside, spent(outside, 1, 1, 0.01, 0.5), target()) == [], "a float end is no island"


def test_layers_that_wait_for_memory() -> None:
    layers = [layer("dense", "QLinearConv", 100_000), layer("depthwise", "QLinearConv", 1000)]
    times = [*spent(layers[:1], 1.0, bytes_moved=1000), *spent(layers[1:], 1.0, bytes_moved=1000)]
    (found,) = explain(layers, times, target())
    assert "worst 'depthwise': 1.0 multiply-adds a byte, 1% of the best layer's rate" in found


def test_threads_and_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_threads", lambda: 4)
    times = spent(GOOD, 1.0, 1.0)
    assert explain(GOOD, times, target(4), wall_ms=2.1, single_thread_ms=4.0) == []
    (slower,) = explain(GOOD, times, target(4), wall_ms=2.1, single_thread_ms=1.5)
    assert "one thread is faster than 4 (1.500 against 2.100 ms)" in slower
    (many,) = explain(GOOD, times, target(8))
    assert "8 threads share 4 usable cores" in many
    (between,) = explain(GOOD, times, target(), wall_ms=4.0)
    assert "50% of an inference is spent between the layers (2 of them, 1000 µs each)" in between


def test_the_costliest_finding_comes_first() -> None:
    layers = [*GOOD, layer("q", "QuantizeLinear"), layer("s", "QLinearSoftmax")]
    found = explain(layers, spent(layers, 1, 1, 0.3, 0.7), target())
    assert ["QLinearSoftmax" in found[0], "conversions" in found[1]] == [True, True]


def test_time_by_operator_is_summed_and_sorted() -> None:
    layers = [layer("a", "Conv"), layer("b", "Add"), layer("c", "Conv")]
    rows: list[Any] = by_operator(spent(layers, 1.0, 5.0, 2.0))
    assert rows == [("Add", 1, 5.0), ("Conv", 2, 3.0)]


@pytest.fixture(scope="module")
def softmax_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions with a Softmax and a Sigmoid between them, Q/DQ after each."""
    from onnx import TensorProto, helper, numpy_helper, save

    folder = tmp_path_factory.mktemp("softmax")
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w0", (16, 3, 3, 3)), ("w1", (4, 16, 1, 1)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Sigmoid", ["a"], ["b"], "sigmoid"),
        helper.make_node("Softmax", ["b"], ["c"], "softmax", axis=3),
        helper.make_node("Conv", ["c", "w1"], ["y"], "second"),
    ]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 16, 16]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save(model, folder / "float.onnx")
    return onnx_models.quantized(folder / "float.onnx", folder / "qdq.onnx")


def test_pairs_are_counted_and_taken_out_by_kind(softmax_model: Path, tmp_path: Path) -> None:
    import onnx

    assert lighten.count_job(str(softmax_model)) == {"Sigmoid": 1, "Softmax": 1}
    lighten.write_job(str(softmax_model), ["Softmax"], str(tmp_path / "light.onnx"))
    light = onnx.load(tmp_path / "light.onnx")
    onnx.checker.check_model(light, full_check=True)
    before = [node.op_type for node in onnx.load(softmax_model).graph.node]
    after = [node.op_type for node in light.graph.node]
    assert before.count("QuantizeLinear") - after.count("QuantizeLinear") == 1
    (softmax,) = [node for node in light.graph.node if node.op_type == "Softmax"]
    (second,) = [node for node in light.graph.node if node.name == "second"]
    assert second.input[0] == softmax.output[0], "it is read in float now"
    aim = inspection.this_machine("onnxruntime")
    x = {"x": onnx_models.samples(2)}
    y, z = (
        backends.load("onnxruntime").open_model(path, aim).run(x)[0]
        for path in (softmax_model, tmp_path / "light.onnx")
    )
    np.testing.assert_allclose(y, z, atol=0.05 * np.ptp(y))


def measured(ratio: float, different: bool | None) -> Measured:
    ends = (ratio - 0.01, ratio + 0.01)
    return Measured(id="m", status="ok", ratio=ratio, ratio_ci95=ends, different=different)


@pytest.mark.parametrize(
    ("ratios", "removed"),
    [
        ({"Sigmoid": (0.9, True), "Softmax": (0.8, True), "Sigmoid-Softmax": (0.7, True)}, ["Sigmoid", "Softmax"]),
        ({"Sigmoid": (0.9, True), "Softmax": (0.8, True), "Sigmoid-Softmax": (0.85, True)}, ["Softmax"]),
        ({"Sigmoid": (0.9, None), "Softmax": (1.2, True)}, []),
        ({"Sigmoid": (0.9, False), "Softmax": (0.99, True)}, ["Softmax"]),
    ],
)
def test_what_is_proved_faster_is_kept(
    ratios: dict[str, tuple[float, bool | None]],
    removed: list[str],
    softmax_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def benchmark(paths: list[Path], **_: Any) -> list[Measured]:
        return [measured(*ratios.get(path.stem, (1.0, None))) for path in paths]

    monkeypatch.setattr(lighten, "benchmark", benchmark)
    report = lighten.lighten(softmax_model, target(), tmp_path / "out.onnx")
    assert report["removed"] == removed
    assert bool(report["path"]) == bool(removed) == (tmp_path / "out.onnx").exists()
    assert len(lighten.text(report)) == len(ratios) + bool(removed)


def test_a_file_without_pairs_is_told(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to take out"):
        inspection.fix(models["float"], tmp_path / "out.onnx")
