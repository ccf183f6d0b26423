"""Static quantization: placement, arithmetic, choice, and everything that can be wrong with the input."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantizing import (
    batches,
    decibels,
    graph,
    initializers,
    optimized_operators,
    quantize,
    residual_net,
    run,
    transformer,
)

import edgekit
from edgekit import backends, console
from edgekit.errors import InputError, StageError, UnavailableError
from edgekit.quantizers import _faster, _graph, _prepare, quantize_job, static
from edgekit.target import lacks, load_target
from edgekit.workload import spool


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def images(rng: np.random.Generator, count: int = 64) -> np.ndarray:
    return rng.normal(size=(count, 3, 16, 16)).astype(np.float32)


def test_every_layer_of_a_residual_net_runs_in_integers(rng: np.random.Generator, tmp_path: Path) -> None:
    data = images(rng)
    made, report = quantize(residual_net(rng), data, tmp_path)
    operators = optimized_operators(made, tmp_path)
    assert operators["QLinearConv"] == 3
    assert operators["QLinearAdd"] == 1
    assert operators["QLinearGlobalAveragePool"] == 1
    assert operators["QGemm"] == 1
    assert operators["QuantizeLinear"] == 1
    assert not {"Conv", "Add", "Relu", "ReduceMean", "DequantizeLinear"} & set(operators)
    assert report["float"] == []
    assert report["prepared"] == {"mean_to_pool": 1, "pad_channels": 1}


def test_the_quantized_net_computes_what_the_float_one_does(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng)
    made, report = quantize(model, data, tmp_path)
    fresh = images(rng, 32)
    assert decibels(run(model, fresh), run(made, fresh)) > 25
    assert report["sqnr_db"] > 25
    assert report["size_bytes"] < report["size_bytes_before"]
    assert [v.name for v in made.graph.input] == ["x"]
    assert [v.name for v in made.graph.output] == ["y"]
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_form_that_training_reads(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng)
    made, _ = quantize(model, data, tmp_path)
    values, nodes = initializers(made), {n.name: n for n in made.graph.node}
    conv = nodes["left"]
    assert list(conv.input) == ["r1_dq", "w2_dq", "left_corrected_bias_dq"] or conv.input[2] == "left_bias_dq"
    assert values["w2_q"].dtype == np.int8
    assert np.abs(values["w2_q"]).max() == 127
    assert values["w2_scale"].shape == (16,)
    assert values["left_bias_q"].dtype == np.int32
    np.testing.assert_allclose(values["left_bias_scale"], values["r1_scale"] * values["w2_scale"], rtol=1e-6)
    assert nodes["r1_q"].input[0] == "c1"  # the Relu is gone: the integers saturate at zero
    assert nodes["r1_q"].input[2] == "zero_point_uint8_0"
    assert values["zero_point_uint8_0"] == 0
    assert len(nodes["left_bias_dq"].input) == 2
    pool = nodes["r3p_q"]
    assert list(pool.input[1:]) == list(nodes["r3_q"].input[1:])  # a max pool shares its input's very scale
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            assert node.name.endswith("_q")
            assert nodes[f"{node.name.removesuffix('_q')}_dq"].input[0] == node.output[0]


def test_the_file_says_nothing_that_a_reader_works_out(rng: np.random.Generator, tmp_path: Path) -> None:
    """Types of values and a zero point for every tensor would be a tenth of a small integer model's file."""
    made, _ = quantize(residual_net(rng), images(rng), tmp_path)
    assert not made.graph.value_info
    zeros = [n.input[2] for n in made.graph.node if n.op_type == "DequantizeLinear" and len(n.input) > 2]
    assert len({zero for zero in zeros if zero.startswith("zero_point_int8")}) == 2  # of 16 and of 10 channels


def test_an_embedding_is_kept_as_integers(rng: np.random.Generator, tmp_path: Path) -> None:
    weights = {"table": rng.normal(size=(500, 16)), "fc": rng.normal(size=(16, 10))}
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], "embed"),
        helper.make_node("MatMul", ["rows", "fc"], ["y"], "fc"),
    ]
    floats = {name: value.astype(np.float32) for name, value in weights.items()}
    model = graph(nodes, ["batch", 8], floats, dtype=TensorProto.INT64)
    words = rng.integers(0, 500, (64, 8))
    made, report = quantize(model, words, tmp_path)
    values = initializers(made)
    assert report["embeddings"] == ["embed"]
    assert values["table_q"].dtype == np.int8
    assert "table" not in values
    assert decibels(run(model, words), run(made, words)) > 35
    plain, report = quantize(model, words, tmp_path, target="nvidia-gpu")
    assert "table" in initializers(plain), "TensorRT reads integers through Q/DQ pairs alone"


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 21])
def test_opsets_from_11_up(rng: np.random.Generator, tmp_path: Path, opset: int) -> None:
    model, data = residual_net(rng, opset=opset), images(rng)
    made, report = quantize(model, data, tmp_path)
    assert report["sqnr_db"] > 25
    assert made.opset_import[0].version == max(opset, 13)


def test_a_clip_is_absorbed_only_where_the_integers_do_its_work(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng, act="Clip"), images(rng) * 10
    made, _ = quantize(model, data, tmp_path)
    assert "Clip" not in {n.op_type for n in made.graph.node}
    assert decibels(run(model, data), run(made, data)) > 20
    symmetric, _ = quantize(model, data, tmp_path / "trt", target="nvidia-gpu")
    assert Counter(n.op_type for n in symmetric.graph.node)["Clip"] == 2


def test_attention_stays_float_and_the_projections_are_integers(rng: np.random.Generator, tmp_path: Path) -> None:
    model = transformer(rng)
    data = rng.normal(size=(64, 12, 32)).astype(np.float32)
    made, report = quantize(model, data, tmp_path)
    operators = optimized_operators(made, tmp_path)
    assert operators["MatMulIntegerToFloat"] == 6
    assert not [name for name in operators if name.startswith("QLinear")]
    assert {row["layer"] for row in report["float"]} == {"scores", "mix"}
    assert decibels(run(model, data), run(made, data)) > 30


def test_outliers_of_a_normalization_move_into_the_weights(rng: np.random.Generator, tmp_path: Path) -> None:
    model = transformer(rng, outlier=60.0)
    data = rng.normal(size=(64, 12, 32)).astype(np.float32)
    _, report = quantize(model, data, tmp_path)
    gains = [row["smooth"] for row in report["corrections"] if "smooth" in row]
    assert gains
    assert gains[0] > 3


def test_openvinos_scheme_leaves_convolutions_outputs_float(rng: np.random.Generator, tmp_path: Path) -> None:
    made, report = quantize(residual_net(rng), images(rng), tmp_path, target="x86-openvino")
    read_by = {i: n.op_type for n in made.graph.node for i in n.input}
    assert {read_by[n.output[0]] for n in made.graph.node if n.op_type == "Conv"} <= {"QuantizeLinear", "Add"}
    skip = next(n for n in made.graph.node if n.op_type == "Add")
    assert "r1_dq" in skip.input
    assert report["sqnr_db"] > 25


def rows_through_gemm(
    rng: np.random.Generator, shape: list[int], width: int = 8, **attributes: float
) -> onnx.ModelProto:
    """Reshape to rows of a width → Gemm → Reshape to ``shape``: with 8, as onnxsim writes a Linear of rows."""
    weight = rng.normal(size=(5, width) if attributes.get("transB") else (width, 5)).astype(np.float32)
    return graph(
        [
            helper.make_node("Reshape", ["x", "rows"], ["a"], "flatten"),
            helper.make_node("Gemm", ["a", "weight", "bias"], ["b"], "product", **attributes),
            helper.make_node("Reshape", ["b", "shape"], ["y"], "unflatten"),
        ],
        ["batch", 16, 8],
        {
            "rows": np.array([-1, width]),
            "shape": np.array(shape),
            "weight": weight,
            "bias": rng.normal(size=5).astype(np.float32),
        },
    )


@pytest.mark.parametrize(
    ("shape", "width", "attributes"),
    [
        ([-1, 8, 10], 8, {}),
        ([-1, 4, 4, 5], 8, {}),
        ([16, -1, 5], 8, {}),
        ([-1, 16, 10], 4, {}),
        ([-1, 16, 5], 8, {"alpha": 2.0}),
    ],
    ids=["other rows", "another axis", "turned", "two to a row", "scaled"],
)
def test_a_gemm_that_does_more_than_rows_stays(
    rng: np.random.Generator, tmp_path: Path, shape: list[int], width: int, attributes: dict[str, float]
) -> None:
    onnx.save(rows_through_gemm(rng, shape, width, **attributes), tmp_path / "model.onnx")
    assert _prepare.prepare(_graph.load(tmp_path / "model.onnx"), ["gemm_to_matmul"]) == {}


def test_a_change_is_not_credited_with_what_the_biases_gain(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change is tried with corrected biases, and was compared with a draft without them."""
    monkeypatch.setattr(static, "EVERY", {"nothing": lambda model, plan, seen: 1})
    _, report = quantize(residual_net(rng), images(rng), tmp_path, calibration="auto")
    gained = {name: decibels for each in report["corrections"] for name, decibels in each.items()}
    assert gained["bias"] > static.WORTH_DB
    assert "nothing" not in gained


def test_each_rule_keeps_what_is_computed(rng: np.random.Generator, tmp_path: Path) -> None:
    """The rules on graphs made for them, against ONNX Runtime's answer for the graph before."""
    shortcut = graph(
        [
            helper.make_node("Slice", ["x", "start", "end", "axes", "step"], ["s"], "crop"),
            helper.make_node("Pad", ["s", "amounts"], ["y"], "pad"),
        ],
        ["batch", 3, 16, 16],
        {
            "start": np.zeros(2, np.int64),
            "end": np.full(2, 2**31 - 1),
            "axes": np.array([2, 3]),
            "step": np.full(2, 2),
            "amounts": np.array([0, 2, 0, 0, 0, 1, 0, 0]),
        },
    )
    keys = graph(
        [
            helper.make_node("Reshape", ["x", "three"], ["a"], "first"),
            helper.make_node("Transpose", ["a"], ["b"], "turn", perm=[0, 2, 1]),
            helper.make_node("Reshape", ["b", "four"], ["y"], "last"),
        ],
        ["batch", 3, 16, 8],
        {"three": np.array([-1, 16, 8]), "four": np.array([-1, 3, 8, 16])},
    )
    cases = {"shortcut_to_conv": shortcut, "unfold_transpose": keys, "mean_to_pool": residual_net(rng)}
    cases["pad_channels"] = residual_net(rng)
    cases["gemm_to_matmul"] = rows_through_gemm(rng, [-1, 16, 5], transB=1)
    for rule, model in cases.items():
        shape = [4] + [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
        data = rng.normal(size=shape).astype(np.float32)
        onnx.save(model, tmp_path / "before.onnx")
        changed = _graph.load(tmp_path / "before.onnx")
        assert _prepare.prepare(changed, [rule]) == {rule: 1}
        _graph.save(changed, tmp_path / "after.onnx")
        after = onnx.load(tmp_path / "after.onnx")
        assert [n.op_type for n in after.graph.node] != [n.op_type for n in model.graph.node]
        np.testing.assert_allclose(run(model, data), run(after, data), atol=1e-5, err_msg=rule)


def classified_by_first_token(rng: np.random.Generator, position: int) -> onnx.ModelProto:
    """A transformer whose classifier reads one token."""
    model = transformer(rng)
    nodes = model.graph.node
    nodes.extend(
        [
            helper.make_node("Gather", ["y", "position"], ["token"], "token", axis=1),
            helper.make_node("Gemm", ["token", "fc"], ["scores_out"], "classifier"),
        ]
    )
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.array(position), "position"),
            onnx.numpy_helper.from_array(rng.normal(size=(32, 5)).astype(np.float32), "fc"),
        ]
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores_out", onnx.TensorProto.FLOAT, None))
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("position", [0, 5, -1])
def test_one_token_is_all_that_the_last_block_works_on(rng: np.random.Generator, tmp_path: Path, position: int) -> None:
    model, data = classified_by_first_token(rng, position), rng.normal(size=(3, 12, 32)).astype(np.float32)
    onnx.save(model, tmp_path / "before.onnx")
    changed = _graph.load(tmp_path / "before.onnx")
    assert _prepare.prepare(changed, ["select_early"]) == {"select_early": 1}
    _graph.save(changed, tmp_path / "after.onnx")
    after = onnx.load(tmp_path / "after.onnx")
    np.testing.assert_allclose(run(model, data), run(after, data), rtol=1e-4, atol=1e-5)
    inferred = onnx.shape_inference.infer_shapes(after).graph.value_info
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    assert sizes["u"][1] == 1  # the perceptron's rows
    assert sizes["scores"][1:] == [1, 12]  # one query, all keys
    assert sizes["vx"][1] == 12


def test_a_token_that_others_need_too_is_picked_late(rng: np.random.Generator, tmp_path: Path) -> None:
    model = classified_by_first_token(rng, 0)
    model.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "before.onnx")
    assert _prepare.prepare(_graph.load(tmp_path / "before.onnx"), ["select_early"]) == {}


def test_rules_leave_alone_what_only_looks_alike(rng: np.random.Generator, tmp_path: Path) -> None:
    patches = graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "patches", strides=[4, 4])],
        ["batch", 3, 16, 16],
        {"w": rng.normal(size=(8, 3, 4, 4)).astype(np.float32)},
    )
    rows = graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], "rows", keepdims=1)],
        ["batch", 3, 16, 16],
        {"axes": np.array([2])},
    )
    for model in (patches, rows):
        onnx.save(model, tmp_path / "m.onnx")
        assert _prepare.prepare(_graph.load(tmp_path / "m.onnx"), list(_prepare.RULES)) == {}


@pytest.mark.parametrize(("ratio", "floats"), [(0.9, ["stem"]), (0.99, []), (1.2, [])])
def test_first_layers_stay_float_only_where_that_is_faster(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, floats: list[str]
) -> None:
    model, data = residual_net(rng, channels=64), images(rng)
    monkeypatch.setattr(_faster, "LEAST_MACS", 0)
    monkeypatch.setattr(_faster, "lacks", lambda target: "")
    monkeypatch.setattr(_faster, "_times", lambda model, choices, data: [[1.0] * 9, [ratio] * 9])
    made, report = quantize(model, data, tmp_path)
    assert report["timed_in_float"] == {"stem": ratio}
    assert [row["layer"] for row in report["float"]] == floats
    assert ("pad_channels" in report["prepared"]) == (not floats)
    assert optimized_operators(made, tmp_path)["QLinearConv"] == 3 - len(floats)
    assert decibels(run(model, data), run(made, data)) > 25


@pytest.mark.parametrize("ratio", [0.9, 0.99])
def test_integers_stand_behind_convolutions_where_that_is_faster(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    timed: list[int] = []

    def times(model: object, choices: list[object], data: object) -> list[list[float]]:
        timed.append(len(choices))
        return [[1.0] * 9, *[[ratio if len(timed) == 1 else 1.0] * 9] * (len(choices) - 1)]

    monkeypatch.setattr(_faster, "LEAST_MACS", 0)
    monkeypatch.setattr(_faster, "lacks", lambda target: "")
    monkeypatch.setattr(_faster, "_times", times)
    made, report = quantize(residual_net(rng, channels=64), images(rng), tmp_path, target="x86-openvino")
    assert report["timed_outputs"] == ratio
    readers = {name: node.op_type for node in made.graph.node for name in node.input}
    assert readers[next(n for n in made.graph.node if n.name == "right").output[0]] == (
        "QuantizeLinear" if ratio == 0.9 else "Add"
    )


def test_openvino_computes_patches_and_products_of_as_many_channels_in_integers(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """They shared a zero point, and OpenVINO computed both in float where it read the ONNX file itself."""
    target = load_target("x86-openvino")
    if lacks(target):
        pytest.skip(lacks(target))
    model = graph(
        [
            helper.make_node("Conv", ["x", "patches"], ["p"], "embed", strides=[4, 4]),
            helper.make_node("Reshape", ["p", "flat"], ["f"], "flatten"),
            helper.make_node("Transpose", ["f"], ["t"], "tokens", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["t", "weight"], ["m"], "product"),
            helper.make_node("Add", ["m", "bias"], ["y"], "biased"),
        ],
        ["batch", 3, 16, 16],
        {
            "patches": rng.normal(0, 0.2, (32, 3, 4, 4)).astype(np.float32),
            "flat": np.array([0, 32, 16]),
            "weight": rng.normal(0, 0.2, (32, 32)).astype(np.float32),
            "bias": rng.normal(size=32).astype(np.float32),
        },
    )
    quantize(model, images(rng), tmp_path, target=target)
    assert backends.int8_macs_share(backends.load("openvino").layers(tmp_path / "out.onnx", target)) == 1


def test_first_layers_are_timed_by_the_targets_runtime(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_faster, "LEAST_MACS", 0)
    monkeypatch.setattr(_faster, "lacks", lambda target: "")
    _, report = quantize(residual_net(rng, channels=64), images(rng), tmp_path)
    assert 0.2 < report["timed_in_float"]["stem"] < 5
    assert {row["reason"] for row in report["float"]} <= {_faster.REASON}


def test_nothing_is_timed_for_a_device_that_is_not_here(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_faster, "LEAST_MACS", 0)
    monkeypatch.setattr(_faster, "lacks", lambda target: "this machine is another")
    monkeypatch.setattr(_faster, "_times", None)
    _, report = quantize(residual_net(rng, channels=64), images(rng), tmp_path)
    assert report["timed_in_float"] == {}


def test_auto_takes_the_candidate_with_the_most_signal(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng)
    data[:, :, 0, 0] *= 40  # rare outliers: the greatest value is a poor range
    _, report = quantize(model, data, tmp_path, calibration="auto")
    scores = report["candidates"]
    assert set(scores) == {"minmax", "average", "percentile", "entropy", "mse"}
    assert scores[report["calibration"]] == max(scores.values())
    assert len(set(scores.values())) > 2


def test_scales_do_not_depend_on_the_batching(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng, 50)
    for method in ("minmax", "average", "percentile", "entropy", "mse"):
        one, _ = quantize(model, data, tmp_path / "a", size=1, calibration=method)
        other, _ = quantize(model, data, tmp_path / "b", size=23, calibration=method)
        mine, theirs = initializers(one), initializers(other)
        for name in mine:
            if name.endswith("_scale"):
                np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, err_msg=f"{method} {name}")
        for folder in (tmp_path / "a", tmp_path / "b"):
            for file in (folder / "calibration").iterdir():
                file.unlink()


def test_a_fixed_batch_is_kept(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng, 50)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    made, report = quantize(model, data, tmp_path)
    assert report["sqnr_db"] > 25
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_sample_is_named(rng: np.random.Generator, tmp_path: Path, value: float) -> None:
    data = images(rng)
    data[19, 1, 2, 3] = value
    with pytest.raises(InputError, match=r"sample 19 .*input 'x'"):
        quantize(residual_net(rng), data, tmp_path)


def test_an_overflow_inside_is_named_by_node(rng: np.random.Generator, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["e"], "explode"),
        helper.make_node("MatMul", ["e", "w"], ["y"], "product"),
    ]
    model = graph(nodes, ["batch", 8], {"w": rng.normal(size=(8, 4)).astype(np.float32)})
    data = rng.normal(size=(40, 8)).astype(np.float32)
    data[7, 0] = 500
    with pytest.raises(InputError, match=r"sample 7 .*node 'explode' \(Exp\)"):
        quantize(model, data, tmp_path)


def test_samples_that_do_not_fit_are_told_before_anything_runs(rng: np.random.Generator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float64"):
        quantize(residual_net(rng), images(rng).astype(np.float64), tmp_path / "a")
    with pytest.raises(InputError, match="any × 3 × 16 × 16"):
        quantize(residual_net(rng), images(rng)[:, :, :8], tmp_path / "b")


def test_one_sample_works_with_a_warning(rng: np.random.Generator, tmp_path: Path) -> None:
    console.clear_warnings()
    _, report = quantize(residual_net(rng), images(rng, 1), tmp_path)
    assert report["samples"] == 1
    assert any("only 1 calibration samples" in text for text in console.warnings())


def test_constant_samples_are_warned_of(rng: np.random.Generator, tmp_path: Path) -> None:
    console.clear_warnings()
    quantize(residual_net(rng), np.repeat(images(rng, 1), 40, axis=0), tmp_path)
    assert any("are the same" in text for text in console.warnings())


def test_a_range_of_zero_is_exact(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng)
    dead = [t for t in model.graph.initializer if t.name in ("w2", "b2")]
    for tensor in dead:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    _, report = quantize(model, data, tmp_path)
    assert report["sqnr_db"] > 25


def test_calibration_unlike_the_data_is_stopped(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng)
    onnx.save(model, tmp_path / "float.onnx")
    spool.write(batches(data * 0.001), tmp_path / "calibration")
    spool.write(batches(data * 50, labels=np.zeros(len(data), np.int64)), tmp_path / "validation")
    console.clear_warnings()
    with pytest.raises(StageError):
        quantize_job(
            model=str(tmp_path / "float.onnx"),
            out=str(tmp_path / "out.onnx"),
            calibration=str(tmp_path / "calibration"),
            target=load_target("x86-cpu").model_dump(mode="json"),
            settings={"method": "static", "calibration": "minmax"},
            validation=str(tmp_path / "validation"),
        )
    assert any("range" in text for text in console.warnings())
    assert not (tmp_path / "out.onnx").exists()


def test_the_guard_ranks_layers_and_puts_them_back(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng, 128)
    w3 = next(t for t in model.graph.initializer if t.name == "w1")
    spoiled = onnx.numpy_helper.to_array(w3).copy()
    spoiled[:, :, 0, 0] *= 2000  # one tap rules each channel's scale: the others round to zero
    data[:, :, :, :] = 0
    data[:, :, 8, 8] = rng.normal(size=(128, 3)) * 3
    data[:, :, 4:6, 4:6] = rng.normal(size=(128, 3, 2, 2)) * 0.01
    w3.CopyFrom(onnx.numpy_helper.from_array(spoiled, "w1"))
    labels = run(model, data).argmax(axis=1)
    onnx.save(model, tmp_path / "float.onnx")
    spool.write(batches(data, labels=labels), tmp_path / "split")
    arguments = {
        "model": str(tmp_path / "float.onnx"),
        "out": str(tmp_path / "out.onnx"),
        "calibration": str(tmp_path / "split"),
        "validation": str(tmp_path / "split"),
        "target": load_target("x86-cpu").model_dump(mode="json"),
        "metric": {"name": "accuracy"},
    }
    loose = quantize_job(settings={"method": "static", "calibration": "minmax", "max_drop": 1.0}, **arguments)
    assert loose["sensitivity"] == []
    assert loose["drop"] > 0
    tight = quantize_job(settings={"method": "static", "calibration": "minmax", "max_drop": 0.0}, **arguments)
    kept = [row["layer"] for row in tight["sensitivity"] if row["kept_float"]]
    assert kept
    assert tight["drop"] <= 0
    gains = [row["metric_or_sqnr"] for row in tight["sensitivity"]]
    assert gains == sorted(gains, reverse=True)
    assert {row["layer"] for row in tight["float"]} >= set(kept)
    assert tight["size_bytes"] > loose["size_bytes"]
    assert tight["price"]["bytes_ratio"] > 1
    assert tight["price"]["latency_ratio_here"] > 0


def test_a_model_of_another_tool_is_taken_as_it_is(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng)
    theirs, _ = quantize(model, data, tmp_path)
    theirs.producer_name = "sometool"
    again, report = quantize(theirs, data, tmp_path / "again")
    assert report["method"] == "as_it_is"
    assert report["producer"] == "sometool"
    assert report["operators"]["QuantizeLinear"] > 3
    np.testing.assert_array_equal(run(theirs, data), run(again, data))


def test_external_data_and_dead_branches(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng)
    model.graph.node.append(helper.make_node("Relu", ["c1"], ["dead"], "dead_branch"))
    spool.write(batches(data), tmp_path / "calibration")
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    onnx.save(twin, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=16)
    quantize_job(
        model=str(tmp_path / "m.onnx"),
        out=str(tmp_path / "q.onnx"),
        calibration=str(tmp_path / "calibration"),
        target=load_target("x86-cpu").model_dump(mode="json"),
        settings={"method": "static", "calibration": "minmax"},
    )
    made = onnx.load(tmp_path / "q.onnx")
    assert "dead_branch" not in {n.name for n in made.graph.node}
    assert decibels(run(model, data), run(made, data)) > 25


def test_control_flow_is_left_alone(rng: np.random.Generator, tmp_path: Path) -> None:
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["c"], [f"{op}_out"], op)],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", 1, None)],
        )
        for op in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", kernel_shape=[1, 1]),
        helper.make_node("ReduceSum", ["c"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["cond"], "greater"),
        helper.make_node("If", ["cond"], ["y"], "if", then_branch=branch[0], else_branch=branch[1]),
    ]
    weights = {"w": rng.normal(size=(8, 3, 1, 1)).astype(np.float32), "zero": np.float32(0)}
    model, data = graph(nodes, ["batch", 3, 16, 16], weights), images(rng)
    made, report = quantize(model, data, tmp_path)
    assert report["integer_nodes"] == 1
    assert decibels(run(model, data[:1]), run(made, data[:1])) > 25


def test_from_python_with_an_iterator_without_end(rng: np.random.Generator, tmp_path: Path) -> None:
    model, data = residual_net(rng), images(rng)
    onnx.save(model, tmp_path / "float.onnx")
    done = edgekit.quantize(
        tmp_path / "float.onnx",
        itertools.cycle(list(data.reshape(8, 8, 3, 16, 16))),
        out=tmp_path / "q.onnx",
        samples=40,
    )
    assert done.path == tmp_path / "q.onnx"
    assert done.report["samples"] == 40
    assert decibels(run(model, data), run(onnx.load(done.path), data)) > 25


@pytest.mark.parametrize("opset", [11, 12, 15])
def test_from_python_a_file_is_taken_in_as_by_the_recipe(rng: np.random.Generator, tmp_path: Path, opset: int) -> None:
    """Old opset, weights beside the file, nameless nodes in no order, a dead branch, a size of -1 that means "free"."""
    model, data = residual_net(rng, opset=opset), images(rng)
    wanted = run(model, data)
    model.graph.node.append(helper.make_node("Relu", ["c1"], ["dead"]))
    for node in model.graph.node:
        node.name = ""
    model.graph.node.insert(0, model.graph.node.pop(5))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, tmp_path / "theirs.onnx", save_as_external_data=True, location="theirs.bin", size_threshold=16)
    done = edgekit.quantize(
        tmp_path / "theirs.onnx", [data[:40], data[40:]], method="static", ranges="minmax", out=tmp_path / "q.onnx"
    )
    made = onnx.load(done.path)
    assert made.opset_import[0].version >= 18
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert decibels(wanted, run(made, data)) > 25
    assert optimized_operators(made, tmp_path)["QLinearConv"] == 3


def test_from_python_sizes_may_be_free_and_vary(rng: np.random.Generator, tmp_path: Path) -> None:
    """Free height and width, told by nothing but the data, which come in two sizes."""
    model = residual_net(rng)
    for axis, name in ((2, "height"), (3, "")):
        size = model.graph.input[0].type.tensor_type.shape.dim[axis]
        size.Clear()
        size.dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "theirs.onnx")
    data = [rng.normal(size=(24, 3, side, side)).astype(np.float32) for side in (16, 20)]
    done = edgekit.quantize(tmp_path / "theirs.onnx", data, ranges="minmax", out=tmp_path / "q.onnx")
    made = onnx.load(done.path)
    assert done.report["samples"] == 48
    for part in data:
        assert decibels(run(model, part), run(made, part)) > 25


def test_from_python_a_batch_norm_is_folded_first(rng: np.random.Generator, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", kernel_shape=[1, 1]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["y"], "act"),
    ]
    vectors = {name: rng.uniform(0.5, 2, 8).astype(np.float32) for name in ("gamma", "beta", "mean", "var")}
    model = graph(nodes, ["batch", 3, 16, 16], {"w": rng.normal(size=(8, 3, 1, 1)).astype(np.float32), **vectors})
    onnx.save(model, tmp_path / "theirs.onnx")
    data = images(rng)
    done = edgekit.quantize(tmp_path / "theirs.onnx", [data], ranges="minmax", out=tmp_path / "q.onnx")
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(done.path).graph.node}
    assert decibels(run(model, data), run(onnx.load(done.path), data)) > 25


def test_from_python_what_no_runtime_has_is_told_by_node(rng: np.random.Generator, tmp_path: Path) -> None:
    model = residual_net(rng)
    model.graph.node[3].op_type, model.graph.node[3].domain = "Sparkle", "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(UnavailableError, match=r"left_act.*acme:Sparkle"):
        edgekit.quantize(tmp_path / "theirs.onnx", [images(rng)], out=tmp_path / "q.onnx")


def test_from_python_another_tools_integers_stay(rng: np.random.Generator, tmp_path: Path) -> None:
    """Made by onnxruntime's own quantizer."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    model, data = residual_net(rng), images(rng)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter([{"x": data}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "theirs.onnx", Reader(), per_channel=True)
    done = edgekit.quantize(tmp_path / "theirs.onnx", [data], out=tmp_path / "q.onnx")
    assert done.report["method"] == "as_it_is"
    np.testing.assert_allclose(
        run(onnx.load(tmp_path / "theirs.onnx"), data), run(onnx.load(done.path), data), atol=1e-5
    )


def test_from_python_without_data(rng: np.random.Generator, tmp_path: Path) -> None:
    onnx.save(residual_net(rng), tmp_path / "float.onnx")
    with pytest.raises(InputError, match="no batch"):
        edgekit.quantize(tmp_path / "float.onnx", [], out=tmp_path / "q.onnx")


def test_from_python_with_a_torch_module(rng: np.random.Generator, tmp_path: Path) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    data = torch.randn(40, 3, 16, 16)
    done = edgekit.quantize(module, data.split(8), out=tmp_path / "q.onnx")
    with torch.no_grad():
        wanted = module(data).numpy()
    assert decibels(wanted, run(onnx.load(done.path), data.numpy())) > 20
