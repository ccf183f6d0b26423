"""What an ONNX graph costs: multiply-adds of each node, for one sample."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.onnxfile import check as onnxcheck

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
SHAPES_KEY = "edgekit.shapes"  # of the file's metadata: input name → shape of one sample, batch 1
SMALL = 4096  # bytes: constants up to here may hold shapes that inference needs


def macs(path: Path | str, shapes: Mapping[str, Sequence[int]] | None = None) -> int:
    """Multiply-adds of one sample: convolutions, matrix products, recurrent layers and attention.

    Args:
        path: The ONNX file.
        shapes: Input shapes to count for, by name; by default those that the file carries, with batch 1.

    Raises:
        InputError: A size other than the batch is free, and no shape says what it is.
    """
    from edgekit.onnxfile import read_model

    return sum(node_macs(read_model(path), shapes).values())


def facts_job(model: str) -> dict[str, int]:
    """``macs`` and ``parameters`` of a file, for a child process to return.

    Raises:
        InputError: See :func:`macs`.
    """
    from edgekit.onnxfile import parameters

    return {"macs": macs(model), "parameters": parameters(model)}


def node_macs(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, int]:
    """Multiply-adds of each node that has any: node name (or first output, where it has none) → count.

    Bodies of loops are not counted: how often they run is not in the file.

    Raises:
        InputError: See :func:`macs`.
    """
    counted = [node for node in model.graph.node if node.op_type in _RULES]
    if not counted:
        return {}
    known = infer_shapes(model, input_shapes(model, shapes))
    if any(not _complete(node, known) for node in counted):
        known = {**known, **_observed_shapes(model, counted, input_shapes(model, shapes))}
    return {
        node.name or node.output[0]: _RULES[node.op_type](node, known) for node in counted if _complete(node, known)
    }


def input_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Shape]:
    """A concrete shape for every input: given, else as the file carries it, else as declared with batch 1.

    Raises:
        InputError: A size other than the first is free, and nothing says what it is.
    """
    carried = {e.key: e.value for e in model.metadata_props}.get(SHAPES_KEY, "{}")
    told = {**json.loads(carried), **(shapes or {})}
    initial = {tensor.name for tensor in model.graph.initializer}
    return {v.name: _concrete(v, told.get(v.name)) for v in model.graph.input if v.name not in initial}


def _concrete(value: onnx.ValueInfoProto, told: Sequence[int] | None) -> Shape:
    if told is not None:
        return tuple(told)
    sizes = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.dim_value <= 0 and axis:
            name = dim.dim_param or f"{value.name}_{axis}"
            raise InputError(
                f"the size {onnxcheck.shown(name)} of the input {onnxcheck.shown(value.name)} is free, "
                "and nothing says what to count and try for",
                remedy=f"say it in the recipe: [export] sizes = {{ {name} = … }} keeps it free, shapes fixes it",
            )
        sizes.append(dim.dim_value if dim.dim_value > 0 else 1)
    return tuple(sizes)


def infer_shapes(model: onnx.ModelProto, inputs: Shapes) -> dict[str, Shape]:
    """Static shapes of the main graph's values, for inputs of these shapes; what can't be inferred is left out."""
    import onnx

    light = _light(model)
    for value in light.graph.input:
        if value.name in inputs:
            _set_shape(value, inputs[value.name])
    for value in (*light.graph.output, *light.graph.value_info):
        value.type.tensor_type.ClearField("shape")  # sizes declared for another batch would be in the way
    del light.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    known = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            known[value.name] = tuple(d.dim_value for d in dims)
    return known


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the bytes of large weights, which shape inference does not read."""
    import onnx

    large = {t.name: t for t in model.graph.initializer if len(t.raw_data) > SMALL}
    held = {name: tensor.raw_data for name, tensor in large.items()}
    for tensor in large.values():
        tensor.ClearField("raw_data")
    try:
        light = onnx.ModelProto()
        light.CopyFrom(model)
    finally:
        for name, tensor in large.items():
            tensor.raw_data = held[name]
    return light


def _set_shape(value: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    value.type.tensor_type.shape.ClearField("dim")
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size


def _observed_shapes(model: onnx.ModelProto, counted: Sequence[onnx.NodeProto], inputs: Shapes) -> dict[str, Shape]:
    """Shapes of the counted nodes' values, seen by running the graph once on zeros."""
    import numpy as np
    import onnx

    from edgekit.onnxfile.running import Runtime, with_outputs

    wanted = {name for node in counted for name in (*node.input, *node.output) if name}
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    feeds = {n: np.zeros(s, onnx.helper.tensor_dtype_to_np_dtype(types[n])) for n, s in inputs.items()}
    exposed, names = with_outputs(model, wanted)
    try:
        values = Runtime(exposed)(feeds)
    except Exception:
        return {}  # a graph that this runtime can't run: what inference found has to do
    return {name: value.shape for name, value in zip(names, values, strict=True)}


def _complete(node: onnx.NodeProto, known: Shapes) -> bool:
    first_output = node.output[0] if node.output and node.output[0] else None
    needed = [node.input[i] for i in _OPERANDS.get(node.op_type, (0, 1)) if i < len(node.input) and node.input[i]]
    return all(name in known for name in needed) and (first_output is None or first_output in known)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _convolution(node: onnx.NodeProto, known: Shapes) -> int:
    weight = known[node.input[_OPERANDS.get(node.op_type, (0, 1))[1]]]
    return math.prod(known[node.output[0]]) * math.prod(weight[1:])


def _transposed(node: onnx.NodeProto, known: Shapes) -> int:
    return math.prod(known[node.input[0]]) * math.prod(known[node.input[1]][1:])


def _product(node: onnx.NodeProto, known: Shapes) -> int:
    left = known[node.input[0]]
    inner = left[-2] if _attribute(node, "transA", 0) and len(left) > 1 else left[-1]
    return math.prod(known[node.output[0]]) * inner


def _packed_product(node: onnx.NodeProto, known: Shapes) -> int:
    return math.prod(known[node.output[0]]) * int(_attribute(node, "K", 0))


def _einsum(node: onnx.NodeProto, known: Shapes) -> int:
    terms = _attribute(node, "equation", b"").decode().replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=False):
        shape = known[name]
        head, _, tail = term.partition("...")
        sizes.update(zip(head, shape, strict=False))
        sizes.update(zip(reversed(tail), reversed(shape), strict=False))
        if "..." in term:
            middle = shape[len(head) : len(shape) - len(tail)]
            sizes["..."] = max(sizes.get("...", 1), math.prod(middle))
    return math.prod(sizes.values()) if len(node.input) > 1 else 0


def _recurrent(node: onnx.NodeProto, known: Shapes) -> int:
    steps, batch, width = known[node.input[0]]
    gates = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}[node.op_type]
    hidden = int(_attribute(node, "hidden_size", 0))
    directions = 2 if _attribute(node, "direction", b"") == b"bidirectional" else 1
    return steps * batch * directions * gates * hidden * (width + hidden)


def _attention(node: onnx.NodeProto, known: Shapes) -> int:
    """Scores and their product with the values; keys and values are as wide as a query here."""
    query, key = known[node.input[0]], known[node.input[1]]
    return math.prod(query) * key[-2] * 2


# Which inputs' shapes a rule reads: data, then weight.
_OPERANDS: dict[str, tuple[int, ...]] = {
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0,),
    "QGemm": (0,),
    "MatMulNBits": (0,),
    "LSTM": (0,),
    "GRU": (0,),
    "RNN": (0,),
    "DynamicQuantizeLSTM": (0,),
}
_CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "FusedConv", "NhwcFusedConv", "NhwcConv")
_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "FusedGemm", "QGemm")
_INTEGER_PRODUCTS = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_RULES: dict[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys((*_PRODUCTS, *_INTEGER_PRODUCTS), _product),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
    "ConvTranspose": _transposed,
    "MatMulNBits": _packed_product,
    "Einsum": _einsum,
}
