"""Weight-only int8 or int4: weights in blocks with a scale each, activations stay float. For transformers.

The weights are read through a block-wise ``DequantizeLinear`` (opset 21), plain ONNX: ONNX Runtime
makes its MatMulNBits of it when it loads the file, OpenVINO and TensorRT their own kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.quantizers import _graph, _score
from edgekit.quantizers._graph import add_constant, constant
from edgekit.quantizers._job import Job

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]

OPSET = 21  # the first with block-wise scales and four-bit integers
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)  # of a block's range; the one with the least squared error is taken


def quantize(model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
    """Make the weights of matrix products integers; see :class:`edgekit.quantizers._job.Quantizer`.

    Raises:
        InputError: No matrix product with a weight whose rows fill whole blocks.
    """
    bits, block = job.settings.bits or 4, job.settings.block
    reference = model.clone()
    model = _graph.at_least(model, OPSET)
    layers: list[str] = []
    for node in list(model.graph):
        weight = constant(node.inputs[1]) if node.op_type == "MatMul" and len(node.inputs) == 2 else None
        if weight is None or weight.ndim != 2 or weight.shape[0] % block or weight.dtype.kind != "f":
            continue
        _pack(model.graph, node, weight, bits, block)
        layers.append(node.name or "")
    if not layers:
        raise InputError(
            f"weight-only quantization finds no MatMul whose weight has a multiple of {block} rows",
            remedy="use a smaller [quantize] block, or method = 'static'",
        )
    from onnx_ir.passes import common

    model = common.RemoveUnusedNodesPass()(model).model
    report: dict[str, Any] = {"method": "weight_only", "bits": bits, "block": block, "layers": len(layers)}
    return model, report | _score.judged(reference, model, job)


def _pack(graph: ir.Graph, node: ir.Node, weight: Array, bits: int, block: int) -> None:
    """Replace a weight (K, N) by integers and scales (K / block, N)."""
    import onnx_ir as ir

    integers, scale = blockwise(weight, bits, block)
    name = node.inputs[1].name or node.name
    stem = f"{name}_{bits}bit"
    if f"{stem}_q" in graph.initializers:
        node.replace_input_with(1, graph.initializers[f"{stem}_q"].consumers()[0].outputs[0])
        return
    dtype = ir.DataType.INT4 if bits == 4 else ir.DataType.INT8
    packed = ir.Value(name=f"{stem}_q", shape=ir.Shape(integers.shape), type=ir.TensorType(dtype))
    packed.const_value = ir.Tensor(integers.astype(dtype.numpy()), dtype=dtype, name=f"{stem}_q")
    graph.register_initializer(packed)
    inputs = [packed, add_constant(graph, f"{stem}_scale", scale)]
    read = ir.node("DequantizeLinear", inputs, {"axis": 0, "block_size": block}, name=f"{stem}_dq")
    read.outputs[0].name = f"{stem}_dq"
    graph.insert_before(node, read)
    node.replace_input_with(1, read.outputs[0])


def blockwise(weight: Array, bits: int, block: int) -> tuple[Array, Array]:
    """Symmetric integers for blocks of rows, each block with the scale that loses least.

    Args:
        weight: float (K, N), K a multiple of ``block``.
        bits: 4 or 8.
        block: Rows that share a scale.

    Returns:
        int8 (K, N) within the bits' range, and float32 scales (K / block, N).
    """
    import numpy as np

    limit = 2 ** (bits - 1) - 1
    blocks = weight.reshape(-1, block, weight.shape[1]).astype(np.float32)
    peak = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    best, chosen = np.full(peak.shape, np.inf), peak / limit
    for shrink in SHRINK:
        scale = peak * shrink / limit
        error = ((np.clip(np.rint(blocks / scale), -limit - 1, limit) * scale - blocks) ** 2).sum(axis=1, keepdims=True)
        best, chosen = np.minimum(best, error), np.where(error < best, scale, chosen)
    integers = np.clip(np.rint(blocks / chosen), -limit - 1, limit).astype(np.int8)
    return integers.reshape(weight.shape), chosen[:, 0, :].astype(np.float32)
