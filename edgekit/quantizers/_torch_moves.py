"""ONNX in torch: shapes, data movement, indexing, resizing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgekit.quantizers._torch_node import Call, Node


def reshape(node: Node) -> Call:
    """0 keeps a size (unless ``allowzero``), -1 takes the rest."""
    wanted, literal = node.values(1, "shape"), bool(node.get("allowzero", 0))

    def run(*inputs: Any) -> Tensor:
        x = inputs[0]
        sizes = wanted(inputs)
        return x.reshape([x.shape[i] if n == 0 and not literal else n for i, n in enumerate(sizes)])

    return run


def flatten(node: Node) -> Call:
    """To two dimensions, split at the axis."""
    axis = node.get("axis", 1)

    def run(x: Tensor) -> Tensor:
        at = axis % x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))

    return run


def transpose(node: Node) -> Call:
    """Reversed where no order is given."""
    order = node.get("perm")
    return lambda x: x.permute(order or list(range(x.ndim))[::-1])


def squeeze(node: Node) -> Call:
    """The axes, or all of size 1."""
    axes = node.values(1, "axes")

    def run(*inputs: Any) -> Tensor:
        wanted = axes(inputs)
        return inputs[0].squeeze() if wanted is None else inputs[0].squeeze(tuple(wanted))

    return run


def unsqueeze(node: Node) -> Call:
    """Axes are places in the output."""
    axes = node.values(1, "axes")

    def run(*inputs: Any) -> Tensor:
        x, wanted = inputs[0], axes(inputs)
        wanted = wanted if isinstance(wanted, list) else [wanted]
        for axis in sorted(a % (x.ndim + len(wanted)) for a in wanted):
            x = x.unsqueeze(axis)
        return x

    return run


def concat(node: Node) -> Call:
    """Along an axis."""
    axis = node.get("axis")
    return lambda *inputs: torch.cat(inputs, axis)


def split(node: Node) -> Call:
    """Into given sizes, or into as many as there are outputs; the last may be smaller."""
    sizes, axis, count = node.values(1, "split"), node.get("axis", 0), node.get("num_outputs", len(node.outputs))

    def run(*inputs: Any) -> tuple[Tensor, ...]:
        given = sizes(inputs)
        return tuple(torch.split(inputs[0], given or math.ceil(inputs[0].shape[axis] / count), axis))

    return run


def slice_(node: Node) -> Call:
    """As Python slices, negative steps included."""
    first, last = node.values(1, "starts"), node.values(2, "ends")
    along, stride = node.values(3, "axes"), node.values(4)

    def run(*inputs: Any) -> Tensor:
        x, starts, ends = inputs[0], first(inputs), last(inputs)
        axes = along(inputs) or range(len(starts))
        steps = stride(inputs) or [1] * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            low, high, step = slice(start, end, step).indices(x.shape[axis])
            if step == 1:
                x = x.narrow(axis, low, max(0, high - low))
            else:
                x = x.index_select(axis, torch.arange(low, high, step, device=x.device))
        return x

    return run


def gather(node: Node) -> Call:
    """Whole slices along an axis; the indices' shape takes that axis's place."""
    axis = node.get("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        at = axis % x.ndim
        flat = index.to(x.device).reshape(-1).long()
        flat = torch.where(flat < 0, flat + x.shape[at], flat)
        return x.index_select(at, flat).reshape([*x.shape[:at], *index.shape, *x.shape[at + 1 :]])

    return run


def gather_elements(node: Node) -> Call:
    """Element by element along an axis."""
    axis = node.get("axis", 0)
    return lambda x, index: x.gather(axis, torch.where(index < 0, index + x.shape[axis], index).to(x.device))


def gather_nd(node: Node) -> Call:
    """Index tuples in the last axis, after axes that are batches."""
    batch = node.get("batch_dims", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        return x[_nd_places(index.to(x.device), batch)]

    return run


def _nd_places(index: Tensor, batch: int) -> tuple[Tensor, ...]:
    lead = []
    for axis in range(batch):
        shape = [1] * (index.ndim - 1)
        shape[axis] = index.shape[axis]
        lead.append(torch.arange(index.shape[axis], device=index.device).reshape(shape))
    return (*lead, *index.unbind(-1))


SCATTERS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(node: Node) -> Call:
    """Element by element along an axis."""
    axis, how = node.get("axis", 0), node.get("reduction", "none")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        places = torch.where(index < 0, index + x.shape[axis], index).to(x.device)
        if how == "none":
            return x.scatter(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, SCATTERS[how])

    return run


def scatter_nd(node: Node) -> Call:
    """Index tuples in the last axis."""
    how = node.get("reduction", "none")
    if how not in ("none", "add"):
        raise node.refuse(f"reduction {how}")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        return x.index_put(_nd_places(index.to(x.device), 0), updates, accumulate=how == "add")

    return run


def expand(node: Node) -> Call:
    """By numpy's broadcasting, in both directions."""
    wanted = node.values(1)
    return lambda *inputs: inputs[0].expand(torch.broadcast_shapes(inputs[0].shape, wanted(inputs)))


def tile(node: Node) -> Call:
    """As often as said along each axis."""
    counts = node.values(1)
    return lambda *inputs: inputs[0].repeat(counts(inputs))


def pad(node: Node) -> Call:
    """Begins and ends, for all axes or for some; negative ones cut."""
    amounts, value, some = node.values(1, "pads"), node.values(2, "value"), node.values(3)
    mode = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}[
        node.get("mode", "constant")
    ]

    def run(*inputs: Any) -> Tensor:
        x, given = inputs[0], amounts(inputs)
        axes = [a % x.ndim for a in (some(inputs) or range(x.ndim))]
        sides = dict(zip(axes, zip(given[: len(axes)], given[len(axes) :], strict=True), strict=True))
        if mode == "constant":
            flat = [n for axis in reversed(range(x.ndim)) for n in sides.get(axis, (0, 0))]
            fill = value(inputs)
            fill = fill[0] if isinstance(fill, list) else fill
            return F.pad(x, flat, value=fill or 0)
        for axis, (before, after) in sides.items():
            if before or after:
                x = _pad_axis(x, axis, before, after, mode)
        return x

    return run


def _pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """torch pads the last axes of 3-D tensors in these modes: bring the axis there."""
    moved = x.movedim(axis, -1)
    flat = F.pad(moved.reshape(1, -1, moved.shape[-1]), (before, after), mode=mode)
    return flat.reshape(*moved.shape[:-1], flat.shape[-1]).movedim(-1, axis)


def shape(node: Node) -> Call:
    """On the host, whatever the device: what follows is arithmetic on a few integers."""
    start, end = node.get("start", 0), node.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def constant_of_shape(node: Node) -> Call:
    """Filled with one value, float 0 by default."""
    value, wanted = torch.tensor(node.get("value", np.zeros(1, np.float32))), node.values(0)
    return lambda *inputs: torch.full(wanted(inputs), value.item(), dtype=value.dtype, device=inputs[0].device)


def range_(node: Node) -> Call:
    """From start to limit by delta."""
    ends = [node.values(i) for i in range(3)]
    return lambda *inputs: torch.arange(*(end(inputs) for end in ends), dtype=inputs[0].dtype, device=inputs[0].device)


def one_hot(node: Node) -> Call:
    """Off and on values at the place of each index, along a new axis."""
    depth, axis = node.values(1), node.get("axis", -1)

    def run(*inputs: Any) -> Tensor:
        count = depth(inputs)
        count = int(count[0] if isinstance(count, list) else count)
        index, (off, on) = inputs[0].long(), inputs[2]
        hot = torch.arange(count, device=index.device) == torch.where(index < 0, index + count, index).unsqueeze(-1)
        return torch.where(hot, on, off).movedim(-1, axis)

    return run


def depth_to_space(node: Node) -> Call:
    """Channels to blocks of pixels: depth first (DCR) or column first (CRD, torch's pixel shuffle)."""
    size, mode = node.get("blocksize"), node.get("mode", "DCR")

    def run(x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        if mode == "CRD":
            return F.pixel_shuffle(x, size)
        parts = x.reshape(N, size, size, C // size**2, H, W)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(N, C // size**2, H * size, W * size)

    return run


def space_to_depth(node: Node) -> Call:
    """Blocks of pixels to channels."""
    size = node.get("blocksize")

    def run(x: Tensor) -> Tensor:
        N, C, H, W = x.shape
        parts = x.reshape(N, C, H // size, size, W // size, size)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(N, C * size**2, H // size, W // size)

    return run


def trilu(node: Node) -> Call:
    """The upper or lower triangle of the last two axes."""
    diagonal, upper = node.values(1), node.get("upper", 1)

    def run(*inputs: Any) -> Tensor:
        k = diagonal(inputs) or 0
        k = int(k[0] if isinstance(k, list) else k)
        return torch.triu(inputs[0], k) if upper else torch.tril(inputs[0], k)

    return run


def resize(node: Node) -> Call:
    """Nearest, linear and cubic, axis by axis: each axis is one small matrix, as ONNX defines its weights."""
    if node.get("antialias", 0) or node.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise node.refuse("antialias or tf_crop_and_resize")
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("keep_aspect_ratio_policy")
    scales, sizes, chosen = node.values(2), node.values(3), node.get("axes")
    how = (
        node.get("mode", "nearest"),
        node.get("coordinate_transformation_mode", "half_pixel"),
        node.get("nearest_mode", "round_prefer_floor"),
        node.get("cubic_coeff_a", -0.75),
        bool(node.get("exclude_outside", 0)),
    )

    def run(*inputs: Any) -> Tensor:
        x = inputs[0]
        axes = [a % x.ndim for a in (chosen or range(x.ndim))]
        wanted, factors = sizes(inputs), scales(inputs)
        for place, axis in enumerate(axes):
            old = x.shape[axis]
            new = int(wanted[place]) if wanted else math.floor(old * factors[place])
            factor = new / old if wanted else factors[place]
            if new != old or factor != 1:
                weights = torch.from_numpy(resize_matrix(old, new, factor, *how)).to(x)
                x = torch.tensordot(x, weights, ([axis], [1])).movedim(-1, axis)
        return x

    return run


@functools.lru_cache(maxsize=64)
def resize_matrix(
    old: int, new: int, scale: float, mode: str, transform: str, nearest: str, a: float, exclude: bool
) -> np.ndarray[Any, Any]:
    """Weights float32 (new, old) with which one axis is resized."""
    out = np.arange(new, dtype=np.float64)
    if transform == "asymmetric":
        at = out / scale
    elif transform == "align_corners":
        at = out * (old - 1) / (new - 1) if new > 1 else out * 0
    elif transform == "pytorch_half_pixel" and new == 1:
        at = out * 0
    elif transform == "half_pixel_symmetric":
        at = old / 2 * (1 - new / (scale * old)) + (out + 0.5) / scale - 0.5
    else:
        at = (out + 0.5) / scale - 0.5
    matrix = np.zeros((new, old), np.float32)
    rows = np.arange(new)
    if mode == "nearest":
        shift = {"round_prefer_ceil": 0.5, "round_prefer_floor": -0.5}.get(nearest, 0.0)
        places = (np.floor if nearest in ("floor", "round_prefer_ceil") else np.ceil)(at + shift)
        matrix[rows, places.clip(0, old - 1).astype(int)] = 1
        return matrix
    base = np.floor(at).astype(int)
    for tap in (0, 1) if mode == "linear" else (-1, 0, 1, 2):
        distance = np.abs(at - base - tap)
        weight = 1 - distance if mode == "linear" else _cubic(distance, a)
        inside = (base + tap >= 0) & (base + tap < old)
        weight = np.where(inside | (not exclude), weight, 0)
        np.add.at(matrix, (rows, (base + tap).clip(0, old - 1)), weight)
    return matrix / matrix.sum(1, keepdims=True) if exclude else matrix


def _cubic(d: np.ndarray[Any, Any], a: float) -> np.ndarray[Any, Any]:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


OPS: dict[str, Callable[[Node], Call]] = {
    "Identity": lambda node: lambda x: x,
    "Dropout": lambda node: lambda x, *_: x,  # an exported graph is one in evaluation mode
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Expand": expand,
    "Tile": tile,
    "Pad": pad,
    "Shape": shape,
    "Size": lambda node: lambda x: torch.tensor(x.numel()),
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "OneHot": one_hot,
    "NonZero": lambda node: lambda x: x.nonzero().T,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Trilu": trilu,
    "Resize": resize,
}
