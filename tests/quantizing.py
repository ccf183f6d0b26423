"""Small real graphs and their data, for the tests of the quantizers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgekit.quantizers import quantize_job
from edgekit.target import Target, load_target
from edgekit.workload import spool

Array = np.ndarray[Any, Any]


def graph(
    nodes: list[onnx.NodeProto],
    shape: list[Any],
    weights: Mapping[str, Array],
    *,
    opset: int = 18,
    output: str = "y",
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model with one input ``x`` and one output."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def residual_net(
    rng: np.random.Generator, *, opset: int = 18, channels: int = 16, act: str = "Relu"
) -> onnx.ModelProto:
    """Stem, one residual block, max pool, global mean, classifier: all that a ResNet is made of."""
    w = {
        "w1": rng.normal(0, 0.3, (channels, 3, 3, 3)),
        "b1": rng.normal(0, 0.1, channels),
        "w2": rng.normal(0, 0.1, (channels, channels, 3, 3)),
        "b2": rng.normal(0, 0.1, channels),
        "w3": rng.normal(0, 0.1, (channels, channels, 3, 3)),
        "fc": rng.normal(0, 0.3, (10, channels)),
        "fb": rng.normal(0, 0.1, 10),
    }
    weights = {name: value.astype(np.float32) for name, value in w.items()}
    mean: dict[str, Any] = {"axes": [2, 3]}
    inputs = ["r3p"]
    if opset >= 18:
        weights["axes"], mean = np.array([2, 3], np.int64), {}
        inputs.append("axes")
    if act == "Clip":
        weights |= {"zero": np.float32(0), "six": np.float32(6)}
    clip = ["zero", "six"] if act == "Clip" else []
    same = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "stem", **same),
        helper.make_node(act, ["c1", *clip], ["r1"], "stem_act"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "left", **same),
        helper.make_node(act, ["c2", *clip], ["r2"], "left_act"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "right", **same),
        helper.make_node("Add", ["c3", "r1"], ["a3"], "add"),
        helper.make_node("Relu", ["a3"], ["r3"], "add_act"),
        helper.make_node("MaxPool", ["r3"], ["r3p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ReduceMean", inputs, ["m"], "mean", keepdims=0, **mean),
        helper.make_node("Gemm", ["m", "fc", "fb"], ["y"], "classifier", transB=1),
    ]
    return graph(nodes, ["batch", 3, 16, 16], weights, opset=opset)


def transformer(
    rng: np.random.Generator, *, width: int = 32, tokens: int = 12, outlier: float = 1.0
) -> onnx.ModelProto:
    """One pre-norm block: attention and a two-layer perceptron."""
    gamma = np.ones(width, np.float32)
    gamma[3] = outlier
    std = 0.8 / np.sqrt(width)
    w = {
        **{name: rng.normal(0, std, (width, width)) for name in "qkvo"},
        "up": rng.normal(0, std, (width, 2 * width)),
        "upb": rng.normal(0, 0.1, 2 * width),
        "down": rng.normal(0, std, (2 * width, width)),
        "g1": gamma,
        "g2": np.ones(width),
        "beta": rng.normal(0, 0.1, width),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g1", "beta"], ["n1"], "norm1"),
        *(helper.make_node("MatMul", ["n1", name], [f"{name}x"], f"proj_{name}") for name in "qkv"),
        helper.make_node("Transpose", ["kx"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["qx", "kt"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["p"], "softmax"),
        helper.make_node("MatMul", ["p", "vx"], ["mixed"], "mix"),
        helper.make_node("MatMul", ["mixed", "o"], ["ox"], "proj_o"),
        helper.make_node("Add", ["x", "ox"], ["h"], "skip1"),
        helper.make_node("LayerNormalization", ["h", "g2", "beta"], ["n2"], "norm2"),
        helper.make_node("MatMul", ["n2", "up"], ["u"], "up"),
        helper.make_node("Add", ["u", "upb"], ["ub"], "up_bias"),
        helper.make_node("Relu", ["ub"], ["ur"], "up_act"),
        helper.make_node("MatMul", ["ur", "down"], ["d"], "down"),
        helper.make_node("Add", ["h", "d"], ["y"], "skip2"),
    ]
    return graph(nodes, ["batch", tokens, width], {name: np.asarray(v, np.float32) for name, v in w.items()})


def batches(data: Array, size: int = 16, labels: Array | None = None) -> list[tuple[dict[str, Array], Array | None]]:
    """An array cut into batches of a spool."""
    rows = range(0, len(data), size)
    return [({"x": data[i : i + size]}, None if labels is None else labels[i : i + size]) for i in rows]


def quantize(
    model: onnx.ModelProto,
    data: Array | None,
    folder: Path,
    *,
    target: str | Target = "x86-cpu",
    size: int = 16,
    **settings: Any,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Run the job on a model in memory; returns the model it wrote and its report."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "float.onnx")
    if data is not None:
        spool.write(batches(data, size), folder / "calibration")
    report = quantize_job(
        model=str(folder / "float.onnx"),
        out=str(folder / "out.onnx"),
        calibration=None if data is None else str(folder / "calibration"),
        target=(load_target(target) if isinstance(target, str) else target).model_dump(mode="json"),
        settings={"method": "static", "calibration": "minmax", **settings},
    )
    made = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(made, full_check=True)
    return made, report


def run(model: onnx.ModelProto, data: Array, *, optimized: bool = True) -> Array:
    """The first output."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: data})[0]


def optimized_operators(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators of ONNX Runtime's own optimized graph: what really runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def decibels(wanted: Array, got: Array) -> float:
    """Signal-to-noise."""
    return float(10 * np.log10((wanted**2).sum() / max(((wanted - got) ** 2).sum(), 1e-30)))


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    """Every initializer by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
