"""Q/DQ in torch: rounding that gradients pass straight through, and weights kept as integers.

A tensor of integers is carried as floats, so any operator may stand between a QuantizeLinear and its
DequantizeLinear. Where the two stand together, as they do nearly everywhere, one fused call of
torch does both: ``clamp(round(x / scale), low, high) * scale``, whose gradient is 1 inside the range
and 0 outside (the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.quantizers._torch_node import Node

Array = np.ndarray[Any, Any]

LIMITS = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values that an integer tensor can stand for.

    Attributes:
        scale: float32, () or (channels,). zero: The zero point, int64, alike.
        axis: Of the channels. low, high: The least and greatest integer.
    """

    scale: Array
    zero: Array
    axis: int
    low: int
    high: int

    def integers(self, values: Array, scale: Array | None = None) -> Array:
        """Real values as integers, half to even as ONNX rounds."""
        along = self.along(self.scale if scale is None else scale, values.ndim)
        rounded = np.rint(values.astype(np.float64) / along.astype(np.float64)) + self.along(self.zero, values.ndim)
        return rounded.clip(self.low, self.high)

    def reals(self, integers: Array) -> Array:
        """Integers as the real values that they stand for, float32."""
        shifted = integers.astype(np.float64) - self.along(self.zero, integers.ndim)
        return (shifted * self.along(self.scale, integers.ndim)).astype(np.float32)

    def along(self, value: Array, ndim: int) -> Array:
        """A scale or zero point, so shaped that it broadcasts over a tensor of ``ndim`` axes."""
        if value.ndim == 0:
            return value
        return value.reshape([-1 if axis == self.axis % ndim else 1 for axis in range(ndim)])


def grid_of(node: Node, integer_type: str) -> Grid:
    """The grid of a QuantizeLinear or DequantizeLinear whose scale and zero point are constants.

    Raises:
        StageError: They are computed, blocked, or of a type that is not an integer.
    """
    if node.get("block_size", 0):
        raise node.refuse("with blocks")
    if integer_type not in LIMITS:
        raise node.refuse(f"of type {integer_type}")
    if 1 not in node.constants or (node.has(2) and 2 not in node.constants):
        raise node.refuse("with a computed scale or zero point")
    scale = node.constants[1].astype(np.float32)
    zero = node.constants[2].astype(np.int64) if node.has(2) else np.zeros(scale.shape, np.int64)
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    low, high = LIMITS[integer_type]
    return Grid(scale=scale, zero=zero, axis=int(node.get("axis", 1)), low=low, high=high)


def narrowed(grid: Grid, stored: Array) -> Grid:
    """The grid that stored weights were made for: symmetric (±127), or of 7 bits (±63), where they keep to that."""
    if grid.zero.any() or grid.low >= 0 or stored.dtype != np.int8:
        return grid
    most = int(np.abs(stored.astype(np.int64)).max(initial=0))
    limit = 63 if most <= 63 else 127
    if most > limit:
        return grid
    return Grid(scale=grid.scale, zero=grid.zero, axis=grid.axis, low=-limit, high=limit)


class Rounding(nn.Module):
    """A QuantizeLinear with its DequantizeLinear: to the nearest value of the grid, and back.

    Args:
        grid: Whose values.
        name: Of the scale in the file.
        log: The logarithm of a factor on the scale where scales are learned: it gets the gradient of LSQ
            (Esser et al. 2020, arXiv:1902.08153). Shared by all that read the same scale in the file.
    """

    def __init__(self, grid: Grid, name: str = "", log: nn.Parameter | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.name = name
        self.log = log
        self.register_buffer("base", torch.from_numpy(grid.scale.copy()))
        self.register_buffer("zero", torch.from_numpy(grid.zero.astype(np.int32)))

    def scale(self) -> Tensor:
        """The scale as it is now, float32, () or (channels,)."""
        return self.base if self.log is None else self.base * self.log.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Float to float; rounding comes before the zero point, as in ONNX."""
        grid = self.grid
        if self.log is not None:
            s, z = self._along(self.scale(), x), self._along(self.zero, x)
            scaled = (x / s).clamp(grid.low - z, grid.high - z)
            return (scaled + (scaled.round() - scaled).detach()) * s
        if grid.scale.ndim == 0:
            z = int(grid.zero)
            return torch.fake_quantize_per_tensor_affine(x, float(grid.scale), 0, grid.low - z, grid.high - z)
        return torch.fake_quantize_per_channel_affine(x, self.base, self.zero, grid.axis % x.ndim, grid.low, grid.high)

    def quantize(self, x: Tensor) -> Tensor:
        """QuantizeLinear alone; the integers are carried as floats."""
        scaled = x / self._along(self.scale(), x)
        whole = scaled + (scaled.round() - scaled).detach() + self._along(self.zero, x)
        return whole.clamp(self.grid.low, self.grid.high)

    def dequantize(self, q: Tensor) -> Tensor:
        """DequantizeLinear alone."""
        return (q - self._along(self.zero, q)) * self._along(self.scale(), q)

    def _along(self, value: Tensor, like: Tensor) -> Tensor:
        if value.ndim == 0:
            return value
        return value.reshape([-1 if a == self.grid.axis % like.ndim else 1 for a in range(like.ndim)])


class Kept(nn.Module):
    """A constant of the file that is trained: a float weight, or one stored as integers.

    Args:
        value: Its real values, float32.
        dtype: The file's type.
        rounding: For one stored as integers. factors: For a bias: the roundings of its node's input and weight,
            whose scales' product its own scale is.
    """

    def __init__(self, value: Array, dtype: Any, rounding: Rounding | None = None) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.from_numpy(np.array(value, np.float32)))
        self.dtype = dtype
        self.rounding = rounding
        self.factors: tuple[Rounding, Rounding] | tuple[()] = ()

    def forward(self) -> Tensor:
        """The values that the graph computes with."""
        if self.rounding is None:
            return self.value
        if self.dtype == np.int32:  # far from saturating: only rounded
            step = self.scale().detach()
            return self.value + ((self.value / step).round() * step - self.value).detach()
        return self.rounding(self.value)

    def scale(self) -> Tensor:
        """Of the integers."""
        assert self.rounding is not None
        if not self.factors or all(factor.log is None for factor in self.factors):
            return self.rounding.scale()
        return self.factors[0].scale() * self.factors[1].scale()

    def written(self) -> Array:
        """The constant as the file holds it."""
        value = self.value.detach().cpu().numpy()
        if self.rounding is None:
            return value.astype(self.dtype)
        return self.rounding.grid.integers(value, self.scale().detach().cpu().numpy()).astype(self.dtype)


def latent(stored: Array, grid: Grid, sources: list[Array]) -> Array:
    """The real weights behind stored integers, float32.

    Args:
        stored: The integers in the file.
        grid: What they stand for.
        sources: Float weights of the same shape from the model before quantization. The one that rounds to the
            stored integers (within 1: rounding may have been learned) is finer than they are, and is taken, moved so
            that it rounds to exactly them.
    """
    exact = grid.reals(stored)
    for candidate in sources:
        if candidate.shape == stored.shape and np.abs(grid.integers(candidate) - stored).max(initial=0) <= 1:
            reach = 0.499 * grid.along(grid.scale, stored.ndim)
            return (exact + (candidate - exact).clip(-reach, reach)).astype(np.float32)
    return exact
