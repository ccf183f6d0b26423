"""ONNX in torch: arithmetic, comparisons, activations, reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekit.quantizers._torch_node import Call, Node

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def plain(function: Callable[..., Any]) -> Callable[[Node], Call]:
    """The rule for an operator that is one torch function, whatever its attributes."""
    return lambda node: function


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def modulo(node: Node) -> Call:
    """``fmod`` takes the dividend's sign, else the divisor's."""
    return torch.fmod if node.get("fmod", 0) else torch.remainder


def power(a: Tensor, b: Tensor) -> Tensor:
    """The result has the base's type."""
    return torch.pow(a, b).to(a.dtype)


def folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node], Call]:
    """The rule for an operator on any number of inputs."""

    def run(*inputs: Tensor) -> Tensor:
        total = inputs[0]
        for value in inputs[1:]:
            total = function(total, value)
        return total

    return lambda node: run


def mean_of(*inputs: Tensor) -> Tensor:
    """Element by element, with broadcasting."""
    total: Tensor = sum(inputs[1:], start=inputs[0])
    return total / len(inputs)


def clip(node: Node) -> Call:
    """Limits are inputs, or attributes before opset 11."""
    low, high = node.values(1, "min"), node.values(2, "max")

    def run(*inputs: Any) -> Tensor:
        least, most = low(inputs), high(inputs)
        if least is None and most is None:
            return inputs[0]
        return inputs[0].clamp(least, most)

    return run


def cast(node: Node) -> Call:
    """To the type of attribute ``to``; floats become integers towards zero."""
    if node.get("to") not in DTYPES:
        raise node.refuse(f"to type {node.get('to')}")
    dtype = DTYPES[node.get("to")]
    return lambda x, *_: x.to(dtype)


def softmax(node: Node) -> Call:
    """Along one axis; before opset 13 over all axes from it on."""
    function = F.log_softmax if node.op == "LogSoftmax" else F.softmax
    axis = node.get("axis", -1 if node.opset >= 13 else 1)
    if node.opset >= 13:
        return lambda x: function(x, axis)

    def run(x: Tensor) -> Tensor:
        flat = x.reshape(math.prod(x.shape[:axis]), -1)
        return function(flat, 1).reshape(x.shape)

    return run


def gelu(node: Node) -> Call:
    """Exact, or by tanh."""
    approximate = node.get("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


def with_alpha(function: Callable[[Tensor, float], Tensor], default: float) -> Callable[[Node], Call]:
    """The rule for an activation with one number."""

    def rule(node: Node) -> Call:
        alpha = node.get("alpha", default)
        return lambda x: function(x, alpha)

    return rule


def selu(node: Node) -> Call:
    """With its two constants as attributes."""
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    return lambda x: gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


def hard_sigmoid(node: Node) -> Call:
    """A line, cut at 0 and 1."""
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0, 1)


def hard_swish(x: Tensor) -> Tensor:
    """``x * max(0, min(1, x / 6 + 1/2))``, as ONNX writes it."""
    return x * (x / 6 + 0.5).clamp(0, 1)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """A slope for each channel, or any that broadcasts."""
    return torch.where(x < 0, x * slope, x)


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceProd": lambda x, axes, keep: product(x, axes, keep),
}


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Over several axes, which torch's own does not take."""
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def reduction(node: Node) -> Call:
    """Axes are an attribute in older operator sets; none means all, unless the node says it does nothing then."""
    function, keep = REDUCTIONS[node.op], bool(node.get("keepdims", 1))
    wanted, idle = node.values(1, "axes"), bool(node.get("noop_with_empty_axes", 0))

    def run(*inputs: Any) -> Tensor:
        x, axes = inputs[0], wanted(inputs)
        if not axes:
            if idle:
                return x
            axes = list(range(x.ndim))
        return function(x, list(axes), keep)

    return run


def arg_extreme(node: Node) -> Call:
    """The first place of the extreme along an axis, or the last."""
    function = torch.argmax if node.op == "ArgMax" else torch.argmin
    axis, keep, last = node.get("axis", 0), bool(node.get("keepdims", 1)), node.get("select_last_index", 0)

    def run(x: Tensor) -> Tensor:
        if last:
            return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
        return function(x, dim=axis, keepdim=keep)

    return run


def cumulative_sum(node: Node) -> Call:
    """Along the axis that is its second input."""
    axis, exclusive, reverse = node.values(1), node.get("exclusive", 0), node.get("reverse", 0)

    def run(*inputs: Any) -> Tensor:
        along = axis(inputs)
        along = int(along[0] if isinstance(along, list) else along)
        x = inputs[0].flip(along) if reverse else inputs[0]
        total = x.cumsum(along) - (x if exclusive else 0)
        return total.flip(along) if reverse else total

    return run


def top_k(node: Node) -> Call:
    """Values and places."""
    count, axis = node.values(1), node.get("axis", -1)
    largest, ordered = bool(node.get("largest", 1)), bool(node.get("sorted", 1))

    def run(*inputs: Any) -> tuple[Tensor, Tensor]:
        k = count(inputs)
        found = torch.topk(inputs[0], int(k[0] if isinstance(k, list) else k), axis, largest, ordered)
        return found.values, found.indices

    return run


def shrink(node: Node) -> Call:
    """Nothing near zero, a step towards it elsewhere."""
    bias, limit = node.get("bias", 0.0), node.get("lambd", 0.5)
    return lambda x: torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


# torch has these under the same name.
SAME = (
    *(
        "Abs",
        "Neg",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Erf",
        "Tanh",
        "Sigmoid",
        "Relu",
    ),
    *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"),
    *("Add", "Sub", "Mul", "Less", "Greater", "Where", "IsNaN", "IsInf"),
)

OPS: dict[str, Callable[[Node], Call]] = {
    **{name: plain(getattr(torch, name.lower())) for name in SAME},
    **dict.fromkeys(REDUCTIONS, reduction),
    "Not": plain(torch.logical_not),
    "And": plain(torch.logical_and),
    "Or": plain(torch.logical_or),
    "Xor": plain(torch.logical_xor),
    "Equal": plain(torch.eq),
    "LessOrEqual": plain(torch.le),
    "GreaterOrEqual": plain(torch.ge),
    "Div": plain(divide),
    "Mod": modulo,
    "Pow": plain(power),
    "Sum": folded(torch.add),
    "Max": folded(torch.maximum),
    "Min": folded(torch.minimum),
    "Mean": plain(mean_of),
    "Clip": clip,
    "Cast": cast,
    "CastLike": plain(lambda x, like: x.to(like.dtype)),
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Gelu": gelu,
    "LeakyRelu": with_alpha(F.leaky_relu, 0.01),
    "Elu": with_alpha(F.elu, 1.0),
    "Celu": with_alpha(F.celu, 1.0),
    "ThresholdedRelu": with_alpha(lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), 1.0),
    "Selu": selu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": plain(hard_swish),
    "Mish": plain(F.mish),
    "Softplus": plain(F.softplus),
    "Softsign": plain(F.softsign),
    "Shrink": shrink,
    "PRelu": plain(prelu),
    "ArgMax": arg_extreme,
    "ArgMin": arg_extreme,
    "CumSum": cumulative_sum,
    "TopK": top_k,
}  # fmt: skip
