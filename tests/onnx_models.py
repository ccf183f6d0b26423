"""Small ONNX models for the tests, made without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (3, 16, 16)  # of one sample


def conv_net(path: Path, *, seed: int = 0, external: bool = False) -> Path:
    """Conv, Relu, depthwise Conv, Relu, Conv, Relu, global average, Gemm; the batch is free."""
    rng = np.random.default_rng(seed)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        scale = (2 / max(np.prod(shape[1:]), 1)) ** 0.5
        weights.append(numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def conv(index: int, data: str, out: int, inner: int, size: int, group: int = 1) -> str:
        inputs = [data, weight(f"w{index}", out, inner, size, size), weight(f"b{index}", out)]
        pads = [size // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, [f"c{index}"], f"conv{index}", pads=pads, group=group))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
        return f"r{index}"

    data = conv(0, "x", 16, 3, 3)
    data = conv(1, data, 16, 1, 3, group=16)
    data = conv(2, data, 32, 16, 1)
    nodes.append(helper.make_node("GlobalAveragePool", [data], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    inputs = ["flat", weight("w3", 10, 32), weight("b3", 10)]
    nodes.append(helper.make_node("Gemm", inputs, ["y"], "fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "conv_net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    options: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 0}
    onnx.save(model, str(path), **(options if external else {}))
    return path


MACS = 16 * 27 * 256 + 16 * 9 * 256 + 32 * 16 * 256 + 320  # of one sample


def quantized(model: Path, path: Path, *, activations: str = "uint8", leave: tuple[str, ...] = ()) -> Path:
    """ONNX Runtime's own static quantization, Q/DQ, per channel; nodes named in ``leave`` stay float."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(1)
            self.batches = iter([{"x": rng.standard_normal((8, *SHAPE)).astype(np.float32)} for _ in range(4)])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    kind = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}[activations]
    quantize_static(
        str(model),
        str(path),
        Reader(),
        activation_type=kind,
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=list(leave),
    )
    return path


def samples(count: int, *, seed: int = 2) -> np.ndarray[Any, Any]:
    """Random inputs for :func:`conv_net`, (count, 3, 16, 16) float32."""
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)
