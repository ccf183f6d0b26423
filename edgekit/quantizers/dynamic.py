"""Dynamic int8: weights are int8, activations get their scale at run time. For transformers and LSTMs on CPUs.

ONNX Runtime's own quantizer does this well; it is used, and its result judged like any other.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.quantizers import _graph, _score
from edgekit.quantizers._job import Job

if TYPE_CHECKING:
    import onnx_ir as ir

OPERATORS = ("MatMul", "Gemm", "LSTM", "Gather", "EmbedLayerNormalization", "Attention")


def quantize(model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
    """Make the products with weights dynamic; see :class:`edgekit.quantizers._job.Quantizer`.

    Raises:
        InputError: Nothing to quantize, or a runtime that lacks the operators.
    """
    counts = Counter(node.op_type for node in model.graph if node.op_type in OPERATORS)
    if not counts:
        raise InputError(
            "dynamic quantization finds no matrix product or LSTM in this model",
            remedy="use method = 'static' (convolutions gain nothing from dynamic int8)",
        )
    if job.target.backend != "onnxruntime":
        raise InputError(
            f"dynamic int8 uses ONNX Runtime's operators, which '{job.target.backend}' lacks",
            remedy="use method = 'static' or 'weight_only' for this target",
        )
    quantized = _by_onnxruntime(model, job.target.quantize.per_channel, job.target.quantize.weight_bits == 7)
    report: dict[str, Any] = {"method": "dynamic", "operators": dict(counts)}
    return quantized, report | _score.judged(model, quantized, job)


def _by_onnxruntime(model: ir.Model, per_channel: bool, reduce_range: bool) -> ir.Model:
    import onnx
    import onnx_ir as ir
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        _graph.save(model, before)
        quantize_dynamic(
            before,
            after,
            op_types_to_quantize=[name for name in OPERATORS if name != "Gemm"],
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            use_external_data_format=before.with_name("before.onnx.data").exists(),
        )
        return ir.from_proto(onnx.load(after))
