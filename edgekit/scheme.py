"""How a target's integer kernels want to be fed: one place, in the target's file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Scheme(BaseModel):
    """A target's quantization scheme (``[quantize]`` in the target's file).

    Attributes:
        activations: Integer type of activations.
        symmetric_activations: Zero point 0 (for uint8: 128) for every activation.
        weights: Integer type of weights; always symmetric.
        per_channel: A scale for each output channel of a weight, instead of one for the tensor.
        weight_bits: 8, or 7 where kernels add int8 products in 16 bits (x86 without VNNI).
        saturates: Whether the target's kernels add pairs of products in 16 bits, so that they can overflow.
        bias: ``int32`` with the scale of input times weight, or left ``float``.
        compute: Operators with weights that have integer kernels.
        elementwise: Operators that run in integers between integer neighbours.
        quantize_outputs: Operators of ``compute`` whose integer kernel is only used if their output is quantized.
        timed_outputs: Operators whose outputs are quantized too where that is measured to be faster.
        silu: Whether a SiLU between integers (a Sigmoid and a Mul of ``elementwise``) computes in integers or in float;
            ``timed``: in float where that is measured to be faster.
        quantize_skips: Whether a residual's float Add reads the integers too, where its other reader has them made.
        embeddings: Whether tables that rows are gathered from are int8, turned into floats behind the Gather.
        products: Whether products of two activations (attention's) run in integers.
        absorb_clip: Whether a Relu or Clip before a QuantizeLinear is left to the saturation of its integers.
        prepare: Rewriting rules that bring the graph into the form that the integer kernels know, in this order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    activations: Literal["uint8", "int8"] = "uint8"
    symmetric_activations: bool = False
    weights: Literal["int8"] = "int8"
    per_channel: bool = True
    weight_bits: Literal[7, 8] = 8
    saturates: bool = False
    bias: Literal["int32", "float"] = "int32"
    compute: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    elementwise: tuple[str, ...] = ("Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid")
    quantize_outputs: tuple[str, ...] = ("Conv",)
    timed_outputs: tuple[str, ...] = ()
    silu: Literal["integer", "float", "timed"] = "timed"
    quantize_skips: bool = False
    embeddings: bool = True
    products: bool = False
    absorb_clip: bool = True
    prepare: tuple[str, ...] = (
        "gemm_to_matmul",
        "select_early",
        "mean_to_pool",
        "shortcut_to_conv",
        "pad_channels",
        "unfold_transpose",
    )
