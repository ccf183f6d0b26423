"""TensorRT's published rules for explicit precision, checked on the graph before it travels to a device.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
Since version 11 precision comes from the graph alone, so a rule that is broken here is a build that
fails, or runs slower than it should, on a board that is not at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgekit.errors import StageError
from edgekit.quantizers._graph import constant

if TYPE_CHECKING:
    import onnx_ir as ir

TYPES = frozenset(("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1"))
COMPUTE = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
INTEGER_ONLY = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class Finding:
    """A rule that a node breaks: an ``error`` stops TensorRT, a ``warning`` costs speed."""

    level: Literal["error", "warning"]
    node: str
    rule: str


def lint(model: ir.Model) -> list[Finding]:
    """Every rule that the graph breaks, in graph order."""
    return [finding for node in model.graph for finding in _of_node(node)]


def require(model: ir.Model) -> list[dict[str, str]]:
    """Refuse a graph that TensorRT would refuse; returns the warnings (JSON).

    Raises:
        StageError: With the first node and rule, and how many more.
    """
    found = lint(model)
    errors = [f for f in found if f.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise StageError(
            f"TensorRT would refuse this graph: node '{errors[0].node}': {errors[0].rule}{more}",
            remedy="quantize the float model with edgekit for this target: its scheme keeps TensorRT's rules",
        )
    return [{"node": f.node, "rule": f.rule} for f in found]


def _of_node(node: ir.Node) -> Iterator[Finding]:
    name = node.name or ""
    if node.op_type.startswith(INTEGER_ONLY):
        yield Finding("error", name, f"{node.op_type} is not known: use QuantizeLinear and DequantizeLinear")
    elif node.domain not in ("", "ai.onnx"):
        yield Finding("error", name, f"the operator {node.domain}.{node.op_type} needs a plug-in")
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _of_conversion(node, name)
    elif node.op_type in COMPUTE:
        yield from _of_compute(node, name)


def _of_conversion(node: ir.Node, name: str) -> Iterator[Finding]:
    """Scales are positive constants, zero points zero, activations have one scale, integers feed a DequantizeLinear."""
    scale = constant(node.inputs[1])
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    zeros = constant(zero)
    if scale is None:
        yield Finding("error", name, "the scale is not a constant")
    elif not (scale > 0).all():
        yield Finding("error", name, "a scale is not positive")
    if zero is not None and zeros is None:
        yield Finding("error", name, "the zero point is not a constant")
    elif zeros is not None and zeros.any():
        yield Finding("error", name, "the zero point is not 0: only symmetric quantization is supported")
    integers = zero or (node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0])
    kind = integers.dtype.name if integers is not None and integers.dtype is not None else "UINT8"  # ONNX's default
    if kind not in TYPES:
        yield Finding("error", name, f"integers of type {kind.lower()}; int8 (or int4, float8) is supported")
    if scale is not None and scale.ndim and scale.size > 1 and not _reads_weight(node):
        yield Finding("error", name, "an activation has a scale for each channel; one for the tensor is supported")
    if node.op_type == "QuantizeLinear" and any(n.op_type != "DequantizeLinear" for n in node.outputs[0].consumers()):
        yield Finding("error", name, "its integers are read by something else than a DequantizeLinear")


def _of_compute(node: ir.Node, name: str) -> Iterator[Finding]:
    """A layer runs in integers if both operands come through DequantizeLinear; a bias never does."""
    through = [_maker(value) == "DequantizeLinear" for value in node.inputs[:2]]
    if any(through) and not all(through):
        side = "first" if through[1] else "second"
        yield Finding("warning", name, f"its {side} operand is float, so it runs in float")
    if len(node.inputs) > 2 and _maker(node.inputs[2]) == "DequantizeLinear":
        yield Finding("error", name, "its bias is quantized; TensorRT wants it in float")


def _maker(value: ir.Value | None) -> str:
    maker = value.producer() if value is not None else None
    return maker.op_type if maker is not None else ""


def _reads_weight(node: ir.Node) -> bool:
    if constant(node.inputs[0]) is not None:
        return True
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    return source is not None and source.op_type == "QuantizeLinear" and constant(source.inputs[0]) is not None
