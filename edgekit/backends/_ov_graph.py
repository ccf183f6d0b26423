"""What OpenVINO really runs: read from the runtime model of a compiled model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.backends import LayerPrecision, LayerTime

NOT_WORK = ("Input", "Output", "Const", "Parameter", "Result")
PRECISIONS = {
    "u8": "int8",
    "i8": "int8",
    "u4": "int4",
    "i4": "int4",
    "f32": "fp32",
    "f16": "fp16",
    "f64": "fp64",
    "i32": "int32",
    "i64": "int64",
}


@dataclass(frozen=True)
class Layer:
    """One layer of the runtime model; shapes are those of the last inference."""

    name: str
    kind: str
    precision: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    fed: tuple[str, ...]  # precision of each input, as its maker writes it
    original: tuple[str, ...]  # names of the model's operators that became this layer
    microseconds: float
    constant: bool  # computed once, when the model is loaded


def read(compiled: Any) -> list[Layer]:
    """The layers that work in an inference, in execution order; run one before, or shapes are not known."""
    return [layer for layer in _all(compiled) if layer.kind not in NOT_WORK and not layer.constant]


def _all(compiled: Any) -> Iterator[Layer]:
    constant: set[str] = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind = _text(facts, "layerType")
        makers = [port.get_source_output().get_node() for port in node.inputs()]
        once = kind == "Const" or (bool(makers) and all(m.get_friendly_name() in constant for m in makers))
        if once:
            constant.add(node.get_friendly_name())
        time = _text(facts, "execTimeMcs")
        yield Layer(
            name=node.get_friendly_name(),
            kind=kind,
            precision=PRECISIONS.get(_text(facts, "runtimePrecision"), _text(facts, "runtimePrecision")),
            inputs=tuple(_shape(port) for port in node.inputs()),
            output=_shape(node.outputs()[0]) if node.outputs() else (),
            fed=tuple(_text(m.get_rt_info(), "outputPrecisions").split(",")[0] for m in makers),
            original=tuple(_text(facts, "originalLayersNames").split(",")),
            microseconds=float(time) if time.isdigit() else 0.0,
            constant=once,
        )


def _text(facts: Any, key: str) -> str:
    return str(facts[key].astype(str)) if key in facts else ""


def _shape(port: Any) -> tuple[int, ...]:
    shape = port.get_partial_shape()
    return tuple(size.get_length() if size.is_static else 0 for size in shape)


def products(graph: Any, batch: int) -> dict[str, int]:
    """Multiply-adds of one sample of the model's matrix products, by name; those of free size are left out."""
    found = {}
    for node in graph.get_ordered_ops():
        shapes = [port.get_partial_shape() for port in (*node.inputs(), *node.outputs())]
        if node.get_type_name() == "MatMul" and all(shape.is_static for shape in shapes):
            left, _, output = (tuple(shape.get_shape()) for shape in shapes)
            inner = left[-2] if node.get_attributes()["transpose_a"] and len(left) > 1 else left[-1]
            found[node.get_friendly_name()] = math.prod(output) * inner // batch
    return found


def layer_precisions(found: list[Layer], batch: int, products: dict[str, int]) -> list[LayerPrecision]:
    """Every layer's multiply-adds of one sample and precision, with the reason for each that stayed float.

    Args:
        found: The layers, after an inference of ``batch`` samples.
        products: See :func:`products`: OpenVINO fuses attention into one layer that tells no shapes of its own.
    """
    quantized = any(layer.precision in ("int8", "int4") for layer in found)
    result = []
    for layer in found:
        macs = macs_of(layer) // batch
        if layer.kind == "Subgraph":
            inside = [products[name] for name in layer.original if name in products]
            macs = sum(inside) * (2 if len(inside) == 1 else 1)  # the scores' product may have lost its name
        reason = _reason(layer, quantized) if macs and layer.precision not in ("int8", "int4") else ""
        result.append(
            LayerPrecision(name=layer.name, operator=layer.kind, macs=macs, precision=layer.precision, reason=reason)
        )
    return result


def macs_of(layer: Layer) -> int:
    """Multiply-adds of an inference; 0 for all but convolutions, matrix products and recurrent layers."""
    output, inputs = layer.output, layer.inputs
    if not output or not inputs:
        return 0
    if layer.kind == "Convolution" and len(inputs) > 1:
        return math.prod(output) * math.prod(inputs[1]) // output[1]  # the weight: (O, I, …) or (groups, O/g, I/g, …)
    if layer.kind == "Deconvolution" and len(inputs) > 1:
        return math.prod(inputs[0]) * math.prod(inputs[1]) // inputs[0][1]
    if layer.kind in ("FullyConnected", "MatMul", "Gemm"):
        return math.prod(output) * inputs[0][-1]
    if layer.kind == "ScaledDotProductAttention" and len(inputs) > 2:
        return 2 * math.prod(inputs[0]) * inputs[1][-2]
    if layer.kind in ("RNNSeq", "RNNCell", "LSTMSequence", "GRUSequence"):
        weights = math.prod(inputs[-3]) + math.prod(inputs[-2])  # of the input and of the state; the bias is last
        return weights * inputs[0][0] * (inputs[0][1] if layer.kind != "RNNCell" else 1)
    return 0


def _reason(layer: Layer, quantized: bool) -> str:
    """Why a convolution or matrix product stayed float, in words."""
    if not quantized:
        return "the model is not quantized"
    if layer.kind == "Subgraph":
        return "attention's products of two activations, fused into one float layer"
    fed = [PRECISIONS.get(kind, kind) for kind in layer.fed[:2]]
    data, weight = (*fed, "", "")[:2]
    if data != "int8" and weight == "int8":
        return f"its input arrives as {data}: no quantize/dequantize pair stands there, or it could not be fused"
    if data == "int8":
        return "its weight was left in float"
    return "it was left in float: no quantize/dequantize pair that OpenVINO can use stands at its input and weight"


def layer_times(before: list[Layer], after: list[Layer], runs_before: int, runs_after: int) -> list[LayerTime]:
    """Mean time of the inferences between two readings; OpenVINO tells the mean over all since it was loaded."""
    first = {layer.name: layer.microseconds * runs_before for layer in before}
    return [
        LayerTime(
            name=layer.name,
            operator=layer.kind,
            milliseconds=max(0.0, layer.microseconds * runs_after - first.get(layer.name, 0.0))
            / (runs_after - runs_before)
            / 1000,
            precision=layer.precision,
            bytes_moved=_bytes(layer),
        )
        for layer in after
    ]


def _bytes(layer: Layer) -> int:
    sizes = {"int8": 1, "u8": 1, "i8": 1, "fp16": 2, "bf16": 2, "f16": 2, "i64": 8}
    read = sum(math.prod(s) * sizes.get(kind, 4) for s, kind in zip(layer.inputs, layer.fed, strict=True))
    return read + math.prod(layer.output) * sizes.get(layer.precision, 4)
