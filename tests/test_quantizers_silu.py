"""SiLU between integers: in float and one operator where that is faster, in integers elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from quantizing import decibels, graph, optimized_operators, quantize, run

from edgekit.quantizers import _faster
from edgekit.quantizers._torch_graph import open_graph
from edgekit.target import Target, load_target


def silu(value: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Sigmoid", [value], [f"{value}_gate"], f"{value}_sigmoid"),
        helper.make_node("Mul", [value, f"{value}_gate"], [f"{value}_silu"], f"{value}_mul"),
    ]


def gated_net(rng: np.random.Generator, size: int | str = 16) -> onnx.ModelProto:
    """EfficientNet's block: expanded, depthwise, squeezed and excited, projected."""
    weights: dict[str, Any] = {
        "expand": rng.normal(0, 0.4, (32, 3, 1, 1)),
        "depthwise": rng.normal(0, 0.4, (32, 1, 3, 3)),
        "squeeze": rng.normal(0, 0.3, (8, 32, 1, 1)),
        "excite": rng.normal(0, 0.3, (32, 8, 1, 1)),
        "project": rng.normal(0, 0.2, (8, 32, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "expand"], ["e"], "expand"),
        *silu("e"),
        helper.make_node("Conv", ["e_silu", "depthwise"], ["d"], "depthwise", group=32, pads=[1, 1, 1, 1]),
        *silu("d"),
        helper.make_node("GlobalAveragePool", ["d_silu"], ["m"], "pool"),
        helper.make_node("Conv", ["m", "squeeze"], ["s"], "squeeze"),
        *silu("s"),
        helper.make_node("Conv", ["s_silu", "excite"], ["g"], "excite"),
        helper.make_node("Sigmoid", ["g"], ["gate"], "gate"),
        helper.make_node("Mul", ["d_silu", "gate"], ["gated"], "gated"),
        helper.make_node("Conv", ["gated", "project"], ["y"], "project"),
    ]
    floats = {name: value.astype(np.float32) for name, value in weights.items()}
    return graph(nodes, ["batch", 3, size, size], floats)


def with_silu(how: str) -> Target:
    target = load_target("x86-cpu")
    return target.model_copy(update={"quantize": target.quantize.model_copy(update={"silu": how})})


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def data(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(32, 3, 16, 16)).astype(np.float32)


def test_a_float_silu_is_one_operator_and_nothing_is_turned(
    rng: np.random.Generator, data: np.ndarray, tmp_path: Path
) -> None:
    model = gated_net(rng)
    made, _ = quantize(model, data, tmp_path, target=with_silu("float"))
    operators = optimized_operators(made, tmp_path)
    integers, _ = quantize(model, data, tmp_path / "integers", target=with_silu("integer"))
    before = optimized_operators(integers, tmp_path)
    assert operators["QuickGelu"] == operators["DequantizeLinear"] - before["DequantizeLinear"] == 2
    assert operators["QLinearSigmoid"] == before["QLinearSigmoid"] - 2 == 2  # what is a vector stays integer
    assert operators["Transpose"] == before["Transpose"]
    assert operators["QLinearConv"] == before["QLinearConv"] == 5
    loss = [decibels(run(model, data), run(each, data)) for each in (made, integers)]
    assert loss[0] > loss[1] - 0.1


def test_what_trains_computes_what_the_file_does(rng: np.random.Generator, data: np.ndarray, tmp_path: Path) -> None:
    import torch

    made, _ = quantize(gated_net(rng), data, tmp_path, target=with_silu("float"))
    trained = open_graph(tmp_path / "out.onnx")({"x": torch.from_numpy(data)})[0].detach().numpy()
    assert decibels(run(made, data, optimized=False), trained) > 40


@pytest.mark.parametrize("ratio", [0.9, 0.99])
def test_silu_is_in_float_where_that_is_faster(
    rng: np.random.Generator, data: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    monkeypatch.setattr(_faster, "LEAST_MACS", 0)
    monkeypatch.setattr(_faster, "lacks", lambda target: "")
    monkeypatch.setattr(_faster, "_times", lambda model, choices, data: [[1.0] * 9, [ratio] * 9])
    made, report = quantize(gated_net(rng), data, tmp_path)
    assert report["timed_silu"] == ratio
    assert optimized_operators(made, tmp_path)["QuickGelu"] == (2 if ratio == 0.9 else 0)


def test_silu_stays_integer_where_sizes_are_free_or_another_reads_its_gate(
    rng: np.random.Generator, data: np.ndarray, tmp_path: Path
) -> None:
    made, _ = quantize(gated_net(rng, "size"), data, tmp_path, target=with_silu("float"))
    assert "Flatten" not in {node.op_type for node in made.graph.node}
    read = gated_net(rng)
    read.graph.output.append(helper.make_tensor_value_info("d_gate", onnx.TensorProto.FLOAT, None))
    made, _ = quantize(read, data, tmp_path, target=with_silu("float"))
    assert [node.op_type for node in made.graph.node].count("Flatten") == 1
