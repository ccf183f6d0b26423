"""Where would a CPU without VNNI overflow? Counted on the calibration data, repaired only there.

Its kernels (``vpmaddubsw``) add the products of two neighbouring bytes in 16 bits and saturate: with
activations up to 255 and weights up to 127 a pair can reach 64,770, twice what fits. With 7-bit weights
it can't. Which bytes are neighbours: those next to each other along the products' inner axis; for a
convolution that is rows, columns, then channels, the last fastest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.quantizers import _integers
from edgekit.quantizers._calibrate import observed
from edgekit.quantizers._draft import Draft
from edgekit.quantizers._graph import attribute, constant
from edgekit.quantizers._samples import Samples, fixed_batch
from edgekit.quantizers._windows import windows

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]

LIMIT = 32767
NEAR = 0.85  # of the limit: what comes that close on the calibration data may pass it on other data
SAMPLES = 16
ROWS = 512  # products of a layer and sample that are looked at, at most
SAFE_BITS = 7


def overflows(draft: Draft, samples: Samples) -> list[dict[str, Any]]:
    """How often pairs of products leave 16 bits, for every layer where one comes near.

    Returns:
        ``{"layer", "overflow_share", "peak"}``: the share of pairs beyond 16 bits and the greatest pair as a
        share of the limit, the worst layer first.
    """
    nodes = {n.name: n for n in draft.model.graph if n.name in draft.plan.weights}
    pairs = {name: _paired_weight(node, draft) for name, node in nodes.items() if name}
    risky = {name: w for name, w in pairs.items() if w is not None and _worst(w) > LIMIT}
    tallies = {name: [0, 0, 0.0] for name in risky}
    sources = {name: nodes[name].inputs[0].name or "" for name in risky}
    session = observed(draft.model, set(sources.values()))
    outputs = [o.name for o in session.get_outputs()]
    fixed = fixed_batch(draft.model)
    few = Samples(samples.spool, min(samples.limit, SAMPLES), "all")
    for feeds in few.groups(fixed or 1, full=fixed is not None):
        seen = dict(zip(outputs, session.run(None, dict(feeds)), strict=True)) | dict(feeds)
        for name, weight in risky.items():
            _tally(tallies[name], nodes[name], seen[sources[name]], weight, draft)
    rows = [
        {"layer": name, "overflow_share": over / max(total, 1), "peak": round(peak / LIMIT, 3)}
        for name, (over, total, peak) in tallies.items()
        if peak > LIMIT * NEAR
    ]
    return sorted(rows, key=lambda row: (-float(row["overflow_share"]), -float(row["peak"])))


def _paired_weight(node: ir.Node, draft: Draft) -> Array | None:
    """int8 weights as (groups, inner, outputs of a group), the inner axis in the order in which bytes are added."""
    index, axis = draft.plan.weights[node.name or ""]
    weight = constant(node.inputs[index])
    if weight is None or index != 1:
        return None
    axis = axis if draft.scheme.per_channel else None
    integers = _integers.quantize(weight, _integers.weight(weight, axis, 8), axis)
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        if weight.shape[1] == 1 and groups > 1:
            return None  # depthwise kernels add in 32 bits
        flat = integers.transpose(0, *range(2, integers.ndim), 1).reshape(groups, weight.shape[0] // groups, -1)
        return flat.transpose(0, 2, 1)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return integers.T[None]
    return integers[None] if integers.ndim == 2 else None


def _worst(weight: Array) -> float:
    """The greatest pair that any activation could give."""
    import numpy as np

    even, odd = _pairs(weight, axis=1)
    return float(
        255 * np.max(np.maximum(np.maximum(even, 0) + np.maximum(odd, 0), -np.minimum(even, 0) - np.minimum(odd, 0)))
    )


def _pairs(array: Array, axis: int) -> tuple[Array, Array]:
    """Neighbours along an axis, as int32; an odd one out is paired with zero."""
    import numpy as np

    if array.shape[axis] % 2:
        array = np.pad(array, [(0, int(i == axis)) for i in range(array.ndim)])
    even, odd = (np.take(array, range(start, array.shape[axis], 2), axis).astype(np.int32) for start in (0, 1))
    return even, odd


def _tally(tally: list[Any], node: ir.Node, value: Array, weight: Array, draft: Draft) -> None:
    """Count pairs beyond 16 bits in one sample: ``[over, total, peak]``."""
    import numpy as np

    lead = draft.plan.activations[node.inputs[0].name or ""]
    spans = [draft.ranges[name] for name, other in draft.plan.activations.items() if other == lead]
    affine = _integers.activation(min(s[0] for s in spans), max(s[1] for s in spans), draft.scheme)
    integers = _integers.quantize(value, affine).astype(np.int32)
    if affine.zero_point.dtype == np.int8:
        integers += 128  # the kernels shift signed activations into unsigned ones
        zero = int(affine.zero_point) + 128
    else:
        zero = int(affine.zero_point)
    rows = windows(node, integers, zero) if node.op_type == "Conv" else integers.reshape(1, -1, integers.shape[-1])
    step = max(1, rows.shape[1] // ROWS)
    even, odd = _pairs(rows[:, ::step], axis=2)
    weight_even, weight_odd = _pairs(weight, axis=1)
    for group in range(weight.shape[0]):
        for k in range(even.shape[2]):  # one pair of the inner axis at a time keeps the memory small
            sums = np.outer(even[group, :, k], weight_even[group, k]) + np.outer(odd[group, :, k], weight_odd[group, k])
            peaks = np.abs(sums)
            tally[0] += int((peaks > LIMIT).sum())
            tally[1] += sums.size
            tally[2] = max(tally[2], float(peaks.max(initial=0)))


def repair(draft: Draft, found: list[dict[str, Any]]) -> Mapping[str, int]:
    """Node → bits of its weight: 7 where a pair comes near the limit, 8 elsewhere."""
    risky = {row["layer"] for row in found}
    return {name: SAFE_BITS if name in risky else 8 for name in draft.plan.weights}
