"""What a convolution multiplies by its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.quantizers._graph import attribute, constant

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]


def windows(node: ir.Node, values: Array, zero: float) -> Array:
    """What a convolution multiplies: (groups, N × positions, rows × columns × channels of a group)."""
    import numpy as np

    weight = constant(node.inputs[1])
    assert weight is not None
    size, rank = weight.shape[2:], weight.ndim - 2
    pads, strides = attribute(node, "pads", [0] * 2 * rank), attribute(node, "strides", [1] * rank)
    dilations, groups = attribute(node, "dilations", [1] * rank), attribute(node, "group", 1)
    around = [(0, 0), (0, 0)] + [(pads[i], pads[i + rank]) for i in range(rank)]
    padded = np.pad(values, around, constant_values=zero)
    reach = tuple((k - 1) * d + 1 for k, d in zip(size, dilations, strict=True))
    found = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in strides) + tuple(slice(None, None, d) for d in dilations)
    found = found[(slice(None), slice(None), *steps)]  # N, C, positions …, taps …
    count, channels = found.shape[:2]
    found = found.reshape(count, groups, channels // groups, *found.shape[2:])
    order = (1, 0, *range(3, 3 + rank), *range(3 + rank, 3 + 2 * rank), 2)
    return found.transpose(order).reshape(groups, -1, int(np.prod(size)) * (channels // groups))
