"""Dynamic, weight-only, half precision; saturation; TensorRT's rules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from quantizing import decibels, graph, initializers, optimized_operators, quantize, residual_net, run, transformer

from edgekit import backends
from edgekit.errors import InputError, StageError
from edgekit.onnxfile.running import run_values
from edgekit.quantizers import _codebook, _graph, _round, _saturation, _trt_rules, clustered, weight_only
from edgekit.rooms import members
from edgekit.target import load_target

QEMU = shutil.which("qemu-x86_64-static")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def sequences(rng: np.random.Generator, count: int = 64) -> np.ndarray:
    return rng.normal(size=(count, 12, 32)).astype(np.float32)


def test_dynamic_int8_of_a_transformer(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = transformer(rng), sequences(rng)
    made, report = quantize(model, data, tmp_path, method="dynamic")
    operators = optimized_operators(made, tmp_path)
    assert operators["DynamicQuantizeMatMul"] + operators["MatMulIntegerToFloat"] >= 6
    assert decibels(run(model, data), run(made, data)) > 25
    assert report["size_bytes"] < report["size_bytes_before"] / 2


def test_an_lstm_becomes_dynamic_on_its_own(rng: np.random.Generator, tmp_path: Path) -> None:
    hidden, width = 16, 32
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["seq", "last"], "lstm", hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "axes"], ["h"], "squeeze"),
        helper.make_node("MatMul", ["h", "fc"], ["y"], "classifier"),
    ]
    weights = {
        "w": rng.normal(0, 0.2, (1, 4 * hidden, width)).astype(np.float32),
        "r": rng.normal(0, 0.2, (1, 4 * hidden, hidden)).astype(np.float32),
        "b": rng.normal(0, 0.2, (1, 8 * hidden)).astype(np.float32),
        "fc": rng.normal(0, 0.2, (hidden, 5)).astype(np.float32),
        "axes": np.array([0], np.int64),
    }
    model = graph(nodes, ["time", 1, width], weights)
    data = rng.normal(size=(40, 1, width)).astype(np.float32)
    made, report = quantize(model, data, tmp_path, method="auto")
    assert report["method"] == "dynamic"
    assert "DynamicQuantizeLSTM" in {n.op_type for n in made.graph.node}
    assert decibels(run(model, data[:9]), run(made, data[:9])) > 20


def test_dynamic_says_why_not(rng: np.random.Generator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lacks"):
        quantize(transformer(rng), sequences(rng), tmp_path / "a", method="dynamic", target="x86-openvino")
    conv = graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
        ["batch", 3, 8, 8],
        {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32)},
    )
    with pytest.raises(InputError, match="no matrix product"):
        quantize(conv, None, tmp_path / "b", method="dynamic")


@pytest.mark.parametrize(("bits", "floor", "ratio"), [(4, 12, 0.3), (8, 35, 0.5)])
def test_weight_only(rng: np.random.Generator, tmp_path: Path, bits: int, floor: float, ratio: float) -> None:
    model, data = transformer(rng, width=128), rng.normal(size=(40, 12, 128)).astype(np.float32)
    made, report = quantize(model, data, tmp_path, method="weight-only", bits=bits, block=32)
    assert report["layers"] == 6
    assert decibels(run(model, data), run(made, data)) > floor
    assert report["size_bytes"] < report["size_bytes_before"] * ratio
    assert made.opset_import[0].version == 21


def test_a_blocks_scale_loses_no_more_than_its_greatest_value_would(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(64, 8)).astype(np.float32)
    integers, scale = weight_only.blockwise(weight, 4, 32)
    assert np.abs(integers).max() <= 8
    back = integers.reshape(2, 32, 8) * scale[:, None, :]
    plain = np.abs(weight.reshape(2, 32, 8)).max(axis=1, keepdims=True) / 7
    naive = np.clip(np.rint(weight.reshape(2, 32, 8) / plain), -8, 7) * plain
    assert ((back - weight.reshape(2, 32, 8)) ** 2).sum() <= ((naive - weight.reshape(2, 32, 8)) ** 2).sum()


def test_fp16_halves_the_file_and_keeps_the_interface(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), rng.normal(size=(40, 3, 16, 16)).astype(np.float32)
    made, report = quantize(model, data, tmp_path, method="fp16", target="nvidia-gpu")
    assert decibels(run(model, data), run(made, data)) > 45
    assert report["size_bytes"] < 0.62 * report["size_bytes_before"]
    assert made.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert made.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert {v.dtype for n, v in initializers(made).items() if n.startswith("w")} == {np.dtype(np.float16)}


def test_fp16_refuses_what_overflows(rng: np.random.Generator, tmp_path: Path) -> None:
    product = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    data = rng.normal(size=(40, 4)).astype(np.float32)
    heavy = graph(product, ["batch", 4], {"w": np.full((4, 4), 1e6, np.float32)})
    with pytest.raises(StageError, match="'w' holds 1e\\+06"):
        quantize(heavy, data, tmp_path / "a", method="fp16")
    grows = graph(product, ["batch", 4], {"w": np.full((4, 4), 6e4, np.float32)})
    with pytest.raises(StageError, match="node 'product'"):
        quantize(grows, data, tmp_path / "b", method="fp16")


def test_bf16_is_a_valid_graph(rng: np.random.Generator, tmp_path: Path) -> None:
    made, report = quantize(residual_net(rng), None, tmp_path, method="bf16", target="nvidia-gpu")
    kinds = {t.data_type for t in made.graph.initializer if t.name.startswith("w")}
    assert kinds == {TensorProto.BFLOAT16}
    assert report["size_bytes"] < 0.62 * report["size_bytes_before"]


@pytest.mark.parametrize(("clusters", "floor", "ratio"), [(16, 15, 0.2), (256, 35, 0.35), (11, 12, 0.2)])
def test_clustered_files_are_really_smaller(
    rng: np.random.Generator, tmp_path: Path, clusters: int, floor: float, ratio: float
) -> None:
    model = residual_net(rng, channels=64)
    data = rng.normal(size=(40, 3, 16, 16)).astype(np.float32)
    made, report = quantize(model, data, tmp_path, method="clustered", clusters=clusters)
    assert decibels(run(model, data), run(made, data)) > floor
    assert report["size_bytes"] < report["size_bytes_before"] * ratio
    assert not {"Gather", "Cast"} & set(optimized_operators(made, tmp_path))  # unfolded when the file is loaded


@pytest.mark.parametrize("target", ["x86-cpu", "x86-openvino"])
def test_what_ships_of_a_clustered_model_is_smaller_too(rng: np.random.Generator, tmp_path: Path, target: str) -> None:
    """ONNX Runtime unfolded the tables as it optimized, and the artifact was as large as the float model's."""
    model, data = residual_net(rng, channels=64), rng.normal(size=(40, 3, 16, 16)).astype(np.float32)
    made, report = quantize(model, data, tmp_path, method="clustered", target=target)
    done = backends.compile_job(
        str(tmp_path / "out.onnx"), load_target(target).model_dump(mode="json"), str(tmp_path / "artifact")
    )
    files = [tmp_path / "artifact" / name for name in done["files"]]
    assert sum(file.stat().st_size for file in files) < 0.5 * report["size_bytes_before"]
    session = backends.load(load_target(target).backend).open_model(files[-1], load_target(target))
    np.testing.assert_allclose(session.run({"x": data})[0], run(made, data), rtol=1e-3, atol=1e-4)


def test_k_means_is_no_worse_than_evenly_spread_values(rng: np.random.Generator) -> None:
    weight = rng.laplace(size=(40, 50)).astype(np.float32)
    values, indices = clustered.cluster(weight, 16)
    even = np.linspace(weight.min(), weight.max(), 16)
    nearest = even[np.abs(weight[..., None] - even).argmin(axis=-1)]
    assert ((values[indices] - weight) ** 2).sum() < 0.7 * ((nearest - weight) ** 2).sum()
    np.testing.assert_array_equal(indices, np.abs(weight[..., None] - values).argmin(axis=-1))
    assert len(clustered.cluster(np.full((4, 4), 2.0, np.float32), 16)[0]) == 1


@pytest.mark.parametrize("values", [2, 3, 4, 5, 16, 17, 200, 256])
def test_packed_indices_come_back(rng: np.random.Generator, values: int) -> None:
    book, indices = np.arange(values, dtype=np.float32) * 1.5, rng.integers(0, values, (7, 13))
    rows = _codebook.table(book)[_codebook.pack(indices, values)]
    np.testing.assert_array_equal(rows.reshape(-1)[: indices.size], book[indices].reshape(-1))


@pytest.mark.parametrize(("bits", "ratio"), [(1, 0.08), (2, 0.11)])
def test_binary_layers_are_signs_times_a_scale(
    rng: np.random.Generator, tmp_path: Path, bits: int, ratio: float
) -> None:
    model = residual_net(rng, channels=64)
    made, report = quantize(model, None, tmp_path, method="binary", bits=bits, layers=["left", "right"])
    assert report["layers"] == ["left", "right"]
    assert report["size_bytes"] < report["size_bytes_before"] * (ratio + 0.06)  # stem, classifier and table stay
    weight = initializers(model)["w3"]
    probe = onnx.ModelProto()
    probe.CopyFrom(made)
    probe.graph.output.extend([helper.make_tensor_value_info("w3_scaled", TensorProto.FLOAT, None)])
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    back = session.run(["w3_scaled"], {"x": np.zeros((1, 3, 16, 16), np.float32)})[0]
    levels = [len(np.unique(channel)) for channel in back]
    assert set(levels) == {2 if bits == 1 else 3}
    if bits == 1:
        np.testing.assert_array_equal(np.sign(back), np.where(weight >= 0, 1, -1))
        np.testing.assert_allclose(np.abs(back[5]).max(), np.abs(weight[5]).mean(), rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize(
    ("made_by", "others"), [({"left": "c2", "right": "c3"}, (0, 2, 3)), ({"up": "ub"}, (0, 1))], ids=["Conv", "MatMul"]
)
def test_binary_layers_keep_the_mean_and_spread_of_their_channels(
    rng: np.random.Generator, tmp_path: Path, bits: int, made_by: dict[str, str], others: tuple[int, ...]
) -> None:
    """Of two convolutions, of which the second has no bias; of a MatMul whose bias is an Add's."""
    convolves = "left" in made_by
    model = residual_net(rng, channels=64) if convolves else transformer(rng)
    data = rng.normal(size=(64, 3, 16, 16)).astype(np.float32) if convolves else sequences(rng)
    made, _ = quantize(model, data, tmp_path, method="binary", bits=bits, layers=list(made_by))
    found, wanted = (run_values(m, list(made_by.values()), {"x": data}) for m in (made, model))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].mean(others), value.mean(others), atol=2e-3 * value.std())
        np.testing.assert_allclose(found[name].std(others), value.std(others), rtol=2e-3)


def test_binary_wants_layers(rng: np.random.Generator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wants"):
        quantize(residual_net(rng), None, tmp_path / "a", method="binary")
    with pytest.raises(InputError, match="nothing_like_it"):
        quantize(residual_net(rng), None, tmp_path / "b", method="binary", layers=["nothing_like_it"])


def test_a_method_without_data_says_so(rng: np.random.Generator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs calibration data"):
        quantize(residual_net(rng), None, tmp_path, method="static")


# --- saturation ---


def emulated(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact int32 products, and those of a CPU that adds pairs in 16 bits."""
    exact = x.astype(np.int64) @ w.astype(np.int64)
    pairs = x[:, ::2, None].astype(np.int64) * w[None, ::2] + x[:, 1::2, None].astype(np.int64) * w[None, 1::2]
    return exact, pairs.clip(-32768, 32767).sum(axis=1)


def test_seven_bits_never_overflow(rng: np.random.Generator) -> None:
    x = rng.integers(0, 256, (50, 64))
    w = rng.integers(-63, 64, (64, 10))
    exact, saturated = emulated(x, w)
    np.testing.assert_array_equal(exact, saturated)
    assert _saturation._worst(w[None].astype(np.int8)) <= _saturation.LIMIT


def heavy_net(rng: np.random.Generator) -> onnx.ModelProto:
    """A first layer whose weights and inputs are all great and of one sign; a second one that is tame."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "heavy", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "act"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "tame", kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["y"], "flatten"),
    ]
    heavy = rng.uniform(0.8, 1.0, (16, 4, 3, 3)) * np.sign(rng.normal(size=(16, 1, 1, 1)))
    tame = rng.normal(0, 0.02, (16, 16, 1, 1))
    tame[:, ::2] = 0
    tame[:, 1] = 0.3  # one great weight in each channel, its neighbour zero
    return graph(nodes, ["batch", 4, 8, 8], {"w1": heavy.astype(np.float32), "w2": tame.astype(np.float32)})


def bright(rng: np.random.Generator, count: int = 64) -> np.ndarray:
    return rng.uniform(0.6, 1.0, (count, 4, 8, 8)).astype(np.float32)


def test_overflow_is_counted_and_repaired_only_where_it_comes(rng: np.random.Generator, tmp_path: Path) -> None:
    made, report = quantize(heavy_net(rng), bright(rng), tmp_path, target="x86-cpu-avx2")
    layers = {row["layer"]: row for row in report["saturation"]["layers"]}
    assert set(layers) == {"heavy"}
    assert layers["heavy"]["overflow_share"] > 0.5
    values = initializers(made)
    peaks = {name: int(np.abs(v).max()) for name, v in values.items() if name.endswith("_q") and v.dtype == np.int8}
    assert sorted(peaks.values()) == [63, 127]


def test_the_count_is_that_of_the_bytes_themselves(rng: np.random.Generator, tmp_path: Path) -> None:
    """Against a loop over the product's own pairs, for a plain matrix product."""
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        ["batch", 8],
        {"w": rng.uniform(-1, 1, (8, 6)).astype(np.float32)},
    )
    data = rng.uniform(0, 1, (16, 8)).astype(np.float32)
    made, report = quantize(model, data, tmp_path, target="x86-cpu-avx2")
    naive, _ = quantize(model, data, tmp_path / "naive", target="x86-cpu")
    values = initializers(naive)
    x = np.clip(np.rint(data / values["x_scale"]), 0, 255).astype(np.int64)
    w = values["w_q"].astype(np.int64)
    pairs = x[:, ::2, None] * w[None, ::2] + x[:, 1::2, None] * w[None, 1::2]
    found = report["saturation"]["layers"]
    assert found[0]["overflow_share"] == pytest.approx((np.abs(pairs) > 32767).mean(), abs=1e-12)
    assert found[0]["peak"] == pytest.approx(np.abs(pairs).max() / 32767, abs=1e-3)
    assert np.abs(initializers(made)["w_7bit_q" if "w_7bit_q" in initializers(made) else "w_q"]).max() == 63


@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64-static is not installed")
def test_under_emulation_of_a_cpu_without_vnni_the_repaired_file_holds(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    model, data = heavy_net(rng), bright(rng)
    quantize(model, data, tmp_path / "ours", target="x86-cpu-avx2")
    quantize(model, data, tmp_path / "naive", target="x86-cpu")
    np.save(tmp_path / "x.npy", data[:8])
    code = (
        "import sys, json, numpy, onnxruntime as o\n"
        "x = numpy.load(sys.argv[1])\n"
        "s = o.SessionOptions(); s.intra_op_num_threads = 1; s.log_severity_level = 4\n"
        "print(json.dumps([o.InferenceSession(p, s, providers=['CPUExecutionProvider']).run(None, {'x': x})[0].tolist()"
        " for p in sys.argv[2:]]))"
    )
    files = [str(tmp_path / name / "out.onnx") for name in ("ours", "naive")]
    command = [QEMU, "-cpu", "Haswell-noTSX", sys.executable, "-c", code, str(tmp_path / "x.npy"), *files]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        pytest.skip(f"ONNX Runtime does not run under this qemu: {done.stderr[-200:]}")
    mine, theirs = (np.array(values, np.float32) for values in json.loads(done.stdout.splitlines()[-1]))
    wanted = run(model, data[:8])
    assert decibels(wanted, mine) > 25
    assert decibels(wanted, theirs) < decibels(wanted, mine) - 6


# --- rounding ---


@pytest.mark.parametrize("bits", [4, 7])
def test_rounding_for_the_outputs_loses_less_of_them(rng: np.random.Generator, bits: int) -> None:
    inputs = rng.normal(size=(500, 24)) @ rng.normal(size=(24, 24))  # correlated, as activations are
    weight = rng.normal(size=(8, 24))
    scale = np.abs(weight).max(axis=1) / (2 ** (bits - 1) - 1)
    integers = _round._group(weight, scale, inputs.T @ inputs, bits)
    assert np.abs(integers).max() <= 2 ** (bits - 1) - 1
    nearest = np.rint(weight / scale[:, None]) * scale[:, None]
    lost, plain = (((w - weight) @ inputs.T) ** 2 for w in (integers * scale[:, None], nearest))
    assert lost.sum() < 0.6 * plain.sum()


@pytest.mark.parametrize("model", [residual_net, transformer], ids=["convolutions", "products"])
def test_seven_bits_are_rounded_for_the_outputs(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    made, shape = model(rng), (64, 3, 16, 16) if model is residual_net else (64, 12, 32)
    data = rng.normal(size=shape).astype(np.float32)
    scheme = load_target("x86-cpu").quantize.model_copy(update={"weight_bits": 7})
    target = load_target("x86-cpu").model_copy(update={"quantize": scheme})
    ours, report = quantize(made, data, tmp_path / "ours", target=target)
    gains = [row["round"] for row in report["corrections"] if "round" in row]
    assert gains
    assert {int(np.abs(v).max()) for n, v in initializers(ours).items() if n.endswith("_q") and v.dtype == np.int8} <= {
        *range(50, 64)
    }
    monkeypatch.setattr(_round, "coarse", lambda draft: [])
    plain, _ = quantize(made, data, tmp_path / "plain", target=target)
    fresh = rng.normal(size=shape).astype(np.float32)
    wanted = run(made, fresh)
    assert decibels(wanted, run(ours, fresh)) > decibels(wanted, run(plain, fresh)) + 0.2


# --- TensorRT ---


def test_our_file_keeps_tensorrts_rules(rng: np.random.Generator, tmp_path: Path) -> None:
    data = rng.normal(size=(40, 3, 16, 16)).astype(np.float32)
    made, report = quantize(residual_net(rng), data, tmp_path, target="nvidia-gpu")
    assert report["tensorrt_warnings"] == []
    zeros = [value for name, value in initializers(made).items() if name.startswith("zero_point")]
    assert zeros
    assert all(value.dtype == np.int8 and not value.any() for value in zeros)
    conv = next(n for n in made.graph.node if n.name == "right")
    makers = {out: n for n in made.graph.node for out in n.output}
    assert [makers[i].op_type for i in conv.input[:2]] == ["DequantizeLinear"] * 2
    skip = next(n for n in made.graph.node if n.op_type == "Add")
    assert sorted(makers[i].op_type for i in skip.input) == ["Conv", "DequantizeLinear"]


def broken(kind: str) -> onnx.ModelProto:
    """A graph that breaks one of TensorRT's rules."""
    unsigned = kind == "unsigned"
    kind_of = np.uint8 if unsigned else np.int8
    weights = {
        "s": np.full(3, 0.1, np.float32) if kind == "channels" else np.float32(-0.1 if kind == "negative" else 0.1),
        "z": np.zeros(3, kind_of) if kind == "channels" else np.array(3 if kind == "zero_point" else 0, kind_of),
        "wq": np.ones((4, 3, 1, 1), np.int8),
        "ws": np.float32(0.1),
        "wz": np.int8(0),
        "bq": np.ones(4, np.int32),
        "bs": np.float32(0.01),
        "bz": np.int32(0),
        "w": np.ones((4, 3, 1, 1), np.float32),
    }
    axis = {"axis": 1} if kind == "channels" else {}
    bias = ["bd"] if kind == "bias" else []
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "q", **axis),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dq", **axis),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "weight"),
        *([helper.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["bd"], "bias")] if bias else []),
        helper.make_node("Conv", ["xd", "w" if kind == "mixed" else "wd", *bias], ["y"], "conv"),
    ]
    return graph(nodes, ["batch", 3, 4, 4], weights)


@pytest.mark.parametrize(
    ("kind", "node", "words"),
    [
        ("zero_point", "q", "zero point is not 0"),
        ("unsigned", "q", "uint8"),
        ("negative", "q", "not positive"),
        ("channels", "q", "scale for each channel"),
        ("bias", "conv", "bias is quantized"),
    ],
)
def test_tensorrts_linter_names_node_and_rule(tmp_path: Path, kind: str, node: str, words: str) -> None:
    onnx.save(broken(kind), tmp_path / "m.onnx")
    findings = _trt_rules.lint(_graph.load(tmp_path / "m.onnx"))
    assert any(f.node == node and words in f.rule and f.level == "error" for f in findings)
    with pytest.raises(StageError, match="TensorRT would refuse"):
        _trt_rules.require(_graph.load(tmp_path / "m.onnx"))


def test_tensorrts_linter_warns_of_a_layer_that_stays_float(tmp_path: Path) -> None:
    onnx.save(broken("mixed"), tmp_path / "m.onnx")
    warnings = _trt_rules.require(_graph.load(tmp_path / "m.onnx"))
    assert warnings == [{"node": "conv", "rule": "its second operand is float, so it runs in float"}]


def test_every_member_offers_quantize() -> None:
    import importlib

    found = [name for name in members("quantizers") if name != "qat"]
    assert {"static", "dynamic", "weight_only", "fp16", "bf16"} <= set(found)
    for name in found:
        module = importlib.import_module(f"edgekit.quantizers.{name}")
        assert callable(module.quantize)
        assert module.__doc__
