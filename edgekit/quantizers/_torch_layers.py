"""ONNX in torch: convolutions, products, pooling, normalization, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekit.quantizers._torch_node import Call, Node


def _pads(node: Node, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Padding as ONNX has it: all begins, then all ends."""
    mode = node.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return list(node.get("pads", [0] * 2 * len(kernel)))
    if mode == "VALID":
        return [0] * 2 * len(kernel)
    totals = []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        totals.append(max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size))
    small = [t // 2 for t in totals]
    large = [t - t // 2 for t in totals]
    return [*small, *large] if mode == "SAME_UPPER" else [*large, *small]


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Padding that torch's layers take themselves, where both sides are alike; else pad first."""
    half = len(pads) // 2
    if list(pads[:half]) == list(pads[half:]):
        return x, list(pads[:half])
    flat = [n for axis in reversed(range(half)) for n in (pads[axis], pads[half + axis])]
    return F.pad(x, flat, value=value), [0] * half


def conv(node: Node) -> Call:
    """Any number of dimensions, groups, uneven and automatic padding."""

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        rank = w.ndim - 2
        strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
        x, padding = _padded(x, _pads(node, x, w.shape[2:], strides, dilations))
        return torch.convolution(x, w, b, strides, padding, dilations, False, [0] * rank, node.get("group", 1))

    return run


def conv_transpose(node: Node) -> Call:
    """Padding cuts the output; uneven padding is cut afterwards."""
    if node.get("auto_pad", "NOTSET") != "NOTSET" or node.get("output_shape"):
        raise node.refuse("auto_pad or output_shape")

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        rank = w.ndim - 2
        strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
        extra, pads = node.get("output_padding", [0] * rank), node.get("pads", [0] * 2 * rank)
        even = list(pads[:rank]) == list(pads[rank:])
        inner = list(pads[:rank]) if even else [0] * rank
        y = torch.convolution(x, w, b, strides, inner, dilations, True, extra, node.get("group", 1))
        if not even:
            for axis in range(rank):
                size = y.shape[2 + axis] - pads[axis] - pads[rank + axis]
                y = y.narrow(2 + axis, pads[axis], size)
        return y

    return run


def gemm(node: Node) -> Call:
    """``alpha * A' B' + beta * C``."""
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    flip_a, flip_b = node.get("transA", 0), node.get("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        y = (a.mT if flip_a else a) @ (b.mT if flip_b else b)
        y = y if alpha == 1 else alpha * y
        return y if c is None else y + (c if beta == 1 else beta * c)

    return run


def einsum(node: Node) -> Call:
    """By its equation."""
    equation = node.get("equation")
    return lambda *inputs: torch.einsum(equation, *inputs)


MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def max_pool(node: Node) -> Call:
    """Without its second output, the places."""
    if any(node.outputs[1:]):
        raise node.refuse("with indices")
    kernel = node.get("kernel_shape")
    rank = len(kernel)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    ceil = bool(node.get("ceil_mode", 0))

    def run(x: Tensor) -> Tensor:
        x, padding = _padded(x, _pads(node, x, kernel, strides, dilations), float("-inf"))
        return MAX_POOLS[rank](x, kernel, strides, padding, dilations, ceil)

    return run


def average_pool(node: Node) -> Call:
    """The padding counts or not; where it is uneven, the real elements are counted by pooling ones."""
    kernel = node.get("kernel_shape")
    rank = len(kernel)
    strides, ceil = node.get("strides", [1] * rank), bool(node.get("ceil_mode", 0))
    counted, ones = bool(node.get("count_include_pad", 0)), [1] * rank
    if any(d != 1 for d in node.get("dilations", ones)):
        raise node.refuse("dilations")
    pool: Any = AVERAGE_POOLS[rank]

    def run(x: Tensor) -> Tensor:
        padded, padding = _padded(x, _pads(node, x, kernel, strides, ones))
        if padded is x or counted:
            return pool(padded, kernel, strides, padding, ceil, counted)
        real, _ = _padded(torch.ones_like(x[:1, :1]), _pads(node, x, kernel, strides, ones))
        return pool(padded, kernel, strides, padding, ceil) / pool(real, kernel, strides, padding, ceil)

    return run


def global_pool(node: Node) -> Call:
    """Over all axes but batch and channels."""
    function = torch.amax if node.op == "GlobalMaxPool" else torch.mean
    return lambda x: function(x, tuple(range(2, x.ndim)), keepdim=True)


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(1, -1, *[1] * (x.ndim - 2))


def batch_norm(node: Node) -> Call:
    """By the running statistics."""
    if node.get("training_mode", 0):
        raise node.refuse("training_mode")
    epsilon = node.get("epsilon", 1e-5)
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def layer_norm(node: Node) -> Call:
    """Over the axes from ``axis`` on; ``RMSNormalization`` without mean and bias."""
    if any(node.outputs[1:]):
        raise node.refuse("with mean or deviation as outputs")
    axis, epsilon, rms = node.get("axis", -1), node.get("epsilon", 1e-5), node.op == "RMSNormalization"

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        sizes = x.shape[axis:]
        y = F.rms_norm(x, sizes, None, epsilon) if rms else F.layer_norm(x, sizes, None, None, epsilon)
        y = y * scale
        return y if bias is None else y + bias

    return run


def instance_norm(node: Node) -> Call:
    """Over each channel of each sample."""
    epsilon = node.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return F.group_norm(x, x.shape[1], scale, bias, epsilon)

    return run


def group_norm(node: Node) -> Call:
    """A scale and bias for each channel from opset 21 on, for each group before."""
    groups, epsilon, by_channel = node.get("num_groups"), node.get("epsilon", 1e-5), node.opset >= 21

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if not by_channel:
            times = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(times), bias.repeat_interleave(times)
        return F.group_norm(x, groups, scale, bias, epsilon)

    return run


def lp_norm(node: Node) -> Call:
    """Divided by the norm along an axis."""
    order, axis = node.get("p", 2), node.get("axis", -1)
    return lambda x: x / torch.linalg.vector_norm(x, order, axis, keepdim=True)


def lrn(node: Node) -> Call:
    """Local response normalization over channels."""
    size, alpha = node.get("size"), node.get("alpha", 1e-4)
    beta, bias = node.get("beta", 0.75), node.get("bias", 1.0)
    return lambda x: F.local_response_norm(x, size, alpha, beta, bias)


def grid_sample(node: Node) -> Call:
    """At the places of a grid from -1 to 1."""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    padding, corners = node.get("padding_mode", "zeros"), bool(node.get("align_corners", 0))
    return lambda x, grid: F.grid_sample(x, grid, mode, padding, corners)


# Where torch keeps a gate's rows, in ONNX's order of gates: i o f c → i f c o, and z r h → r z h.
GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}


def recurrent(node: Node) -> Call:
    """LSTM, GRU and RNN of one layer, forward, reverse or both, on whole sequences."""
    reset = node.op == "GRU" and not node.get("linear_before_reset", 0)
    usual = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[node.op]
    chosen = node.get("activations", usual)
    if reset or node.has(4) or node.has(7) or node.get("layout", 0) or node.get("clip") or node.get("input_forget", 0):
        raise node.refuse("reset before the product, lengths, peepholes, layout, clip or input_forget")
    if chosen[: len(usual)] not in (usual, ["Relu"]):
        raise node.refuse(f"activations {chosen}")
    function = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_relu if "Relu" in chosen else torch.rnn_tanh}[
        node.op
    ]
    backward, gates = node.get("direction", "forward") == "reverse", GATES[node.op]

    def run(x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, *states: Tensor | None) -> tuple[Tensor, ...]:
        directions, hidden = w.shape[0], r.shape[-1]
        zero = x.new_zeros(directions, x.shape[1], hidden)
        h, c = (states[i] if len(states) > i and states[i] is not None else zero for i in (1, 2))
        weights = [t for d in range(directions) for t in _direction(w[d], r[d], None if b is None else b[d], gates)]
        first = (h, c) if node.op == "LSTM" else h
        source = x.flip(0) if backward else x
        y, *last = function(source, first, weights, b is not None, 1, 0.0, False, directions == 2, False)
        y = y.flip(0) if backward else y
        return (y.reshape(*y.shape[:2], directions, hidden).transpose(1, 2), *last)

    return run


def _direction(w: Tensor, r: Tensor, b: Tensor | None, gates: Sequence[int]) -> list[Tensor]:
    """One direction's weights in torch's order: input, recurrent, and their biases."""

    def ordered(value: Tensor) -> Tensor:
        parts = value.chunk(len(gates))
        return torch.cat([parts[g] for g in gates])

    if b is None:
        return [ordered(w), ordered(r)]
    return [ordered(w), ordered(r), *(ordered(half) for half in b.chunk(2))]


OPS: dict[str, Callable[[Node], Call]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": lambda node: torch.matmul,
    "Einsum": einsum,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalMaxPool": global_pool,
    "GlobalAveragePool": global_pool,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": layer_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "LpNormalization": lp_norm,
    "LRN": lrn,
    "GridSample": grid_sample,
    "LSTM": recurrent,
    "GRU": recurrent,
    "RNN": recurrent,
}
