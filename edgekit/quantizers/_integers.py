"""Scales, zero points and integers: the arithmetic of affine quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from edgekit.scheme import Scheme

    Array = np.ndarray[Any, Any]

BIAS_LIMIT = 2.0**30  # half of int32's range: the accumulator adds products to the bias


@dataclass(frozen=True)
class Affine:
    """``real = (integer - zero_point) * scale``; scale and zero point are scalars, or vectors along an axis."""

    scale: Array
    zero_point: Array

    def bounds(self) -> tuple[float, float]:
        """The reals that the smallest and greatest integer stand for (of a scalar one)."""
        import numpy as np

        info = np.iinfo(self.zero_point.dtype)
        zero, scale = int(self.zero_point), float(self.scale)
        return (info.min - zero) * scale, (info.max - zero) * scale


def activation(low: float, high: float, scheme: Scheme) -> Affine:
    """The scale and zero point for reals in ``[low, high]``; zero is always exact.

    A range of zero gets scale 1, as every value in it is then exact.
    """
    import numpy as np

    low, high = min(low, 0.0), max(high, 0.0)
    info = np.iinfo(scheme.activations)
    if scheme.symmetric_activations:
        zero = 0 if scheme.activations == "int8" else 128
        scale = max(-low, high) / 127
    else:
        scale = (high - low) / 255
        zero = round(info.min - low / scale) if scale > 0 else info.min
    if scale < np.finfo(np.float32).tiny:
        scale = 1.0
    return Affine(np.array(scale, np.float32), np.array(np.clip(zero, info.min, info.max), scheme.activations))


def weight(array: Array, axis: int | None, bits: int) -> Affine:
    """Symmetric int8 scales from the greatest magnitude, for each channel along ``axis`` or for the whole tensor."""
    import numpy as np

    others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    peak = np.abs(array).max(axis=others) if array.size else np.zeros(())
    scale = np.asarray(peak / (2 ** (bits - 1) - 1), np.float32)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    return Affine(scale, np.zeros(scale.shape, np.int8))


def quantize(array: Array, affine: Affine, axis: int | None = None) -> Array:
    """Round to the nearest integer (halves to even, as ONNX does) and saturate."""
    import numpy as np

    scale, zero = (along(part, axis, array.ndim) for part in (affine.scale, affine.zero_point))
    info = np.iinfo(affine.zero_point.dtype)
    integers = np.rint(array / scale) + zero.astype(np.float32)
    return np.clip(integers, info.min, info.max).astype(affine.zero_point.dtype)


def dequantize(integers: Array, affine: Affine, axis: int | None = None) -> Array:
    """The reals (float32) that integers stand for."""
    import numpy as np

    scale, zero = (along(part, axis, integers.ndim) for part in (affine.scale, affine.zero_point))
    return ((integers.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)


def along(vector: Array, axis: int | None, ndim: int) -> Array:
    """Reshape a vector so that it broadcasts along one axis of an array of ``ndim`` axes."""
    if axis is None or vector.ndim == 0:
        return vector
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])


def widen_for_bias(affine: Affine, bias: Array, input_scale: float) -> Affine:
    """Raise a weight's scales where ``bias / (input_scale * scale)`` would leave int32."""
    import numpy as np

    least = np.abs(bias) / (input_scale * BIAS_LIMIT)
    least = least.max() if affine.scale.ndim == 0 else least
    return Affine(np.maximum(affine.scale, least).astype(np.float32), affine.zero_point)
