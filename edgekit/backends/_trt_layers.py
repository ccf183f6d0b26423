"""What an engine computes in, read from the JSON of TensorRT's engine inspector."""

from __future__ import annotations

import json
import math
from typing import Any

from edgekit.backends import LayerPrecision, _trt

# A word of TensorRT's format descriptions → ours; the first that occurs counts.
PRECISIONS = {
    "int8": "int8",
    "int4": "int4",
    "fp8": "fp8",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "half": "fp16",
    "fp16": "fp16",
    "fp32": "fp32",
    "float": "fp32",
    "int32": "int32",
}


def inspected(engine: Any, context: Any) -> list[LayerPrecision]:
    """The layers of an engine."""
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return read(inspector.get_engine_information(_trt.runtime().LayerInformationFormat.JSON))


def read(text: str) -> list[LayerPrecision]:
    """Layers of ``get_engine_information(JSON)``, built with detailed verbosity; order as in the engine."""
    found = json.loads(text).get("Layers", [])
    return [_layer(item) for item in found if isinstance(item, dict)]


def _layer(item: dict[str, Any]) -> LayerPrecision:
    operator = str(item.get("ParameterType") or item.get("LayerType") or "unknown")
    macs = _macs(item, operator)
    precision = _precision(item)
    return LayerPrecision(
        name=str(item.get("Name", "")),
        operator=operator,
        macs=macs,
        precision=precision,
        reason=_reason(item, operator, macs, precision),
    )


def _precision(item: dict[str, Any]) -> str:
    """The type of the first input: TensorRT's kernels compute in what they are fed."""
    ports = item.get("Inputs") or item.get("Outputs") or []
    kind = str(ports[0].get("Format/Datatype", "")).lower() if ports else ""
    return next((ours for theirs, ours in PRECISIONS.items() if theirs in kind), "unknown")


def _macs(item: dict[str, Any], operator: str) -> int:
    outputs = item.get("Outputs") or [{}]
    shape = [abs(int(size)) for size in outputs[0].get("Dimensions", [])]
    if operator in ("Convolution", "CaskConvolution") and len(shape) > 2:
        maps = int(item.get("OutMaps") or shape[1])
        weights = int((item.get("Weights") or {}).get("Count", 0))
        return weights // max(maps, 1) * maps * math.prod(shape[2:])
    if operator in ("MatrixMultiply", "gemm", "CaskGemmMatrixMultiply") and shape:
        inputs = item.get("Inputs") or [{}]
        inner = (inputs[0].get("Dimensions") or [0])[-1]
        return math.prod(shape[1:]) * abs(int(inner))
    return 0


def _reason(item: dict[str, Any], operator: str, macs: int, precision: str) -> str:
    if "ForeignNode" in str(item.get("Name", "")) or item.get("LayerType") == "kgen":
        return "fused by TensorRT into one kernel; it does not tell what is inside"
    if operator in ("Reformat", "NoOp") or item.get("LayerType") == "Reformat":
        return "a conversion of type or layout between two layers"
    if macs and precision not in ("int8", "int4"):
        return f"its input arrives as {precision}: no quantize/dequantize pair feeds it in the ONNX file"
    return ""
