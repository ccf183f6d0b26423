"""Binary or ternary weights of chosen layers, with a scale for each output channel; the file holds bits.

Rastegari et al., "XNOR-Net", ECCV 2016 (1 bit: the sign, times the mean magnitude); Li et al., "Ternary Weight
Networks", 2016 (2 bits: zero below 0.7 of the mean magnitude). A layer shrinks by 16 to 32 times and loses
much unless it is trained (``finetune = true``): choose few layers. It runs as fast as before, in float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.quantizers import _codebook, _score
from edgekit.quantizers._job import Job

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]

THRESHOLD = 0.7  # of a channel's mean magnitude: smaller weights become zero, in ternary


def quantize(model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
    """Binarize (or ternarize) layers; see :class:`edgekit.quantizers._job.Quantizer`.

    Raises:
        InputError: No layers are named, or none fits.
    """
    from onnx_ir.passes import common

    bits = job.settings.bits or 1
    if not job.settings.layers or bits not in (1, 2):
        raise InputError(
            "binarization wants [quantize] layers, and bits = 1 (binary) or 2 (ternary)",
            remedy="name the few layers that hold most of the weights; the first and the last should stay as they are",
        )
    reference, names = model.clone(), []
    for node, weight in _codebook.layers(model, job.settings.layers):
        axis = weight.ndim - 1 if node.op_type == "MatMul" else int(node.op_type == "ConvTranspose")
        indices, values, scale = binarize(weight, axis) if bits == 1 else ternarize(weight, axis)
        _codebook.store(model.graph, node, indices, values, scale, shared=f"edgekit_{bits}bit")
        names.append(node.name)
    if not names:
        raise InputError(
            f"no layer with {_codebook.LEAST} weights or more fits {', '.join(job.settings.layers)}",
            remedy="check the patterns against the layer names of: edgekit inspect MODEL",
        )
    model = common.RemoveUnusedNodesPass()(model).model
    return model, {"method": "binary", "bits": bits, "layers": names} | _score.judged(reference, model, job)


def binarize(weight: Array, axis: int) -> tuple[Array, Array, Array]:
    """``(indices, values, scale)``: the signs, and each channel's mean magnitude, which loses least."""
    import numpy as np

    others = tuple(i for i in range(weight.ndim) if i != axis)
    return (weight >= 0).astype(np.int64), np.array([-1.0, 1.0]), np.abs(weight).mean(axis=others, keepdims=True)


def ternarize(weight: Array, axis: int) -> tuple[Array, Array, Array]:
    """``(indices, values, scale)``: −1, 0 or 1, and the mean magnitude of each channel's weights that are not zero."""
    import numpy as np

    others = tuple(i for i in range(weight.ndim) if i != axis)
    size = np.abs(weight)
    large = size > THRESHOLD * size.mean(axis=others, keepdims=True)
    scale = (size * large).sum(axis=others, keepdims=True) / np.maximum(large.sum(axis=others, keepdims=True), 1)
    return (np.sign(weight) * large + 1).astype(np.int64), np.array([-1.0, 0.0, 1.0]), scale
