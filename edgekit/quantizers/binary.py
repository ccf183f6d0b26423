"""Binary or ternary weights of chosen layers, with a scale for each output channel; the file holds bits.

Rastegari et al., "XNOR-Net", ECCV 2016 (1 bit: the sign, times the mean magnitude); Li et al., "Ternary Weight
Networks", 2016 (2 bits: zero below 0.7 of the mean magnitude). Where there are calibration data, each output channel
is then given the mean and spread back that it had in float: what batch normalization, long folded into the weights,
would have done. A layer shrinks by 16 to 32 times and loses much unless it is trained (``finetune = true``): choose
few layers. It runs as fast as before, in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.quantizers import _codebook, _score
from edgekit.quantizers._calibrate import GROUP, observed
from edgekit.quantizers._correct import shift_bias
from edgekit.quantizers._graph import attribute, constant
from edgekit.quantizers._job import Job
from edgekit.quantizers._samples import Samples, fixed_batch

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
    reference, axes = model.clone(), {}
    for node, weight in _codebook.layers(model, job.settings.layers):
        last = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
        axis = weight.ndim - 1 if last else int(node.op_type == "ConvTranspose")
        indices, values, scale = binarize(weight, axis) if bits == 1 else ternarize(weight, axis)
        _codebook.store(model.graph, node, indices, values, scale, shared=f"edgekit_{bits}bit")
        axes[node.outputs[0].name or ""] = -1 if node.op_type in ("Gemm", "MatMul") else 1
    if not axes:
        raise InputError(
            f"no layer with {_codebook.LEAST} weights or more fits {', '.join(job.settings.layers)}",
            remedy="check the patterns against the layer names of: edgekit inspect MODEL",
        )
    if job.calibration is not None:
        rescale(model, reference, axes, Samples(job.calibration, job.settings.samples))
    model = common.RemoveUnusedNodesPass()(model).model
    names = [node.name for node in model.graph if node.outputs[0].name in axes]
    return model, {"method": "binary", "bits": bits, "layers": names} | _score.judged(reference, model, job)


def rescale(model: ir.Model, reference: ir.Model, axes: Mapping[str, int], samples: Samples) -> None:
    """Give layers' output channels the mean and spread that they have in float, in place, one layer after the other.

    Args:
        model: With weights that :func:`edgekit.quantizers._codebook.store` put there. reference: The float model.
        axes: The layers' outputs, each with its channels' axis.
        samples: On which both are measured.
    """
    import numpy as np
    import onnx_ir as ir

    wanted = moments(reference, axes, samples)
    for node in [n for n in model.graph if n.outputs[0].name in axes]:
        name, product = node.outputs[0].name or "", node.inputs[1].producer() if node.inputs[1] is not None else None
        factor = product.inputs[1] if product is not None else None
        before, (mean, spread) = constant(factor), wanted[name]
        if factor is None or before is None or before.size != mean.size or len(factor.consumers()) > 1:
            continue  # groups of a transposed convolution, or layers that share their weights
        now, width = moments(model, {name: axes[name]}, samples)[name]
        ratio = np.where(width > 0, spread / np.maximum(width, np.finfo(np.float32).tiny), 1.0)
        factor.const_value = ir.tensor((before * ratio.reshape(before.shape)).astype(np.float32), name=factor.name)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        own = np.zeros_like(mean) if bias is None else bias.reshape(-1)
        shift_bias(model.graph, node, (mean - own - ratio * (now - own)).astype(np.float32))


def moments(model: ir.Model, axes: Mapping[str, int], samples: Samples) -> dict[str, tuple[Array, Array]]:
    """The mean and the standard deviation of each channel of some values, float64 (channels,)."""
    import numpy as np

    session, fixed = observed(model, axes), fixed_batch(model)
    sums = {name: np.zeros((3, 1)) for name in axes}
    for feeds in samples.groups(fixed or GROUP, full=fixed is not None):
        for (name, axis), values in zip(axes.items(), session.run(list(axes), dict(feeds)), strict=True):
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
            sums[name] = sums[name] + np.stack([np.full(len(rows), rows.shape[1]), rows.sum(1), np.square(rows).sum(1)])
    means = {name: (total / count, square / count) for name, (count, total, square) in sums.items()}
    return {name: (mean, np.sqrt(np.maximum(square - mean**2, 0.0))) for name, (mean, square) in means.items()}


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
