"""Weights rounded by what a layer's outputs lose, not each to its nearest integer.

The aim is that of AdaRound (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020),
least squared error of the layer's output on its calibration inputs; the way is that of GPTQ (Frantar et al., ICLR
2023), without training: column by column, what rounding one weight loses is made up for by those not yet rounded.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from edgekit.quantizers import _integers
from edgekit.quantizers._calibrate import observed
from edgekit.quantizers._graph import attribute, constant
from edgekit.quantizers._samples import Samples, fixed_batch
from edgekit.quantizers._windows import windows

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.quantizers._draft import Draft

    Array = np.ndarray[Any, Any]

SAMPLES = 32
ROWS = 256  # of a layer's inputs that are looked at in one sample
WIDEST = 2048  # products that an output sums: the work grows with the square
DAMP = 0.01  # of the mean square input, added to each


def coarse(draft: Draft) -> list[str]:
    """The layers where it pays: their weights have fewer than 8 bits, or one scale for all channels.

    A ResNet-20 gains 4.3 dB with 7 bits; with 8 and a scale for each channel, no more than from its biases' correction.
    """
    bits = {name: draft.bits.get(name, draft.scheme.weight_bits) for name in draft.plan.weights}
    return [name for name, width in bits.items() if width < 8 or not draft.scheme.per_channel]


def rounded(draft: Draft, layers: Collection[str], samples: Samples) -> dict[str, Array]:
    """int8 weights of those layers that are not too wide, by node."""
    nodes = {node.name or "": node for node in draft.model.graph if node.name in layers and _fits(node, draft)}
    sources = {name: node.inputs[0].name or "" for name, node in nodes.items() if node.inputs[0] is not None}
    grams: dict[str, Any] = dict.fromkeys(nodes, 0)
    session = observed(draft.model, set(sources.values()))
    outputs = [port.name for port in session.get_outputs()]
    fixed = fixed_batch(draft.model)
    few = Samples(samples.spool, min(samples.limit, SAMPLES))
    for feeds in few.groups(fixed or 1, full=fixed is not None):
        seen = dict(zip(outputs, session.run(None, dict(feeds)), strict=True)) | dict(feeds)
        for name, node in nodes.items():
            rows = _inputs(node, seen[sources[name]])
            grams[name] = grams[name] + rows.swapaxes(1, 2) @ rows
    return {name: _layer(node, grams[name], draft) for name, node in nodes.items()}


def _fits(node: ir.Node, draft: Draft) -> bool:
    index, _ = draft.plan.weights.get(node.name or "", (0, None))
    weight = constant(node.inputs[index]) if index == 1 else None
    if weight is None or node.op_type == "ConvTranspose" or (node.op_type == "MatMul" and weight.ndim != 2):
        return False
    return _flat(node, weight).shape[2] <= WIDEST


def _flat(node: ir.Node, weight: Array) -> Array:
    """A weight as (groups, outputs of a group, products that an output sums)."""
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        last = weight.transpose(0, *range(2, weight.ndim), 1)
        return last.reshape(groups, weight.shape[0] // groups, -1)
    return (weight if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight.T)[None]


def _unflat(node: ir.Node, flat: Array, shape: tuple[int, ...]) -> Array:
    if node.op_type == "Conv":
        last = flat.reshape(shape[0], *shape[2:], shape[1])
        return last.transpose(0, last.ndim - 1, *range(1, last.ndim - 1))
    return flat[0] if node.op_type == "Gemm" and attribute(node, "transB", 0) else flat[0].T


def _inputs(node: ir.Node, value: Array) -> Array:
    """Some of the vectors that a layer multiplies by its weight: float64 (groups, rows, products)."""
    import numpy as np

    rows = windows(node, value, 0.0) if node.op_type == "Conv" else value.reshape(1, -1, value.shape[-1])
    return rows[:, :: max(1, rows.shape[1] // ROWS)].astype(np.float64)


def _layer(node: ir.Node, gram: Array, draft: Draft) -> Array:
    import numpy as np

    weight = constant(node.inputs[1])
    assert weight is not None
    _, axis = draft.plan.weights[node.name or ""]
    axis = axis if draft.scheme.per_channel else None
    bits = draft.bits.get(node.name or "", draft.scheme.weight_bits)
    affine = _integers.weight(weight, axis, bits)
    flat = _flat(node, weight)
    scales = np.broadcast_to(affine.scale, (flat.shape[0] * flat.shape[1],)).reshape(flat.shape[:2])
    done = np.stack([_group(w, s, g, bits) for w, s, g in zip(flat, scales, gram, strict=True)])
    return np.ascontiguousarray(_unflat(node, done, weight.shape))


def _group(weight: Array, scale: Array, gram: Array, bits: int) -> Array:
    """Integers (outputs, products) for weights of that shape, a scale for each output and the inputs' Gram matrix."""
    import numpy as np

    limit, size = 2 ** (bits - 1) - 1, len(gram)
    gram = gram + np.eye(size) * max(DAMP * np.trace(gram) / size, 1e-12)
    order = np.argsort(-np.diag(gram))  # what is multiplied by the greatest inputs first
    upper = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    rest, integers = weight[:, order].astype(np.float64), np.zeros(weight.shape, np.int8)
    for column in range(size):
        exact = rest[:, column] / scale
        integers[:, order[column]] = chosen = np.clip(np.rint(exact), -limit, limit)
        error = (exact - chosen) * scale / upper[column, column]
        rest[:, column + 1 :] -= np.outer(error, upper[column, column + 1 :])
    return integers
