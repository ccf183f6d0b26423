"""Weights stored as bytes that a table turns into values: plain ONNX that every runtime unfolds when it loads the file.

A byte stands for 1, 2, 4 or 8 weights; the table has a row for each byte. What is read is
``Reshape(Gather(table, bytes))``, times a scale if there is one. So the file is smaller, and what runs is float:
no runtime here has kernels that are faster for it.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.quantizers._graph import add_constant, constant

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]

LEAST = 1024  # weights of a layer under which the table would cost more than it saves
COMPUTE = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))


def layers(model: ir.Model, patterns: Sequence[str]) -> Iterator[tuple[ir.Node, Array]]:
    """Compute nodes with a large enough constant weight whose name fits one of the patterns (none: all of them)."""
    for node in list(model.graph):
        weight = constant(node.inputs[1]) if node.op_type in COMPUTE and len(node.inputs) > 1 else None
        chosen = not patterns or any(fnmatch.fnmatch(node.name or "", pattern) for pattern in patterns)
        if weight is not None and chosen and weight.size >= LEAST and weight.dtype.kind == "f":
            yield node, weight


def per_byte(values: int) -> int:
    """How many weights a byte holds where each is one of so many values."""
    return next(count for count, limit in ((8, 2), (4, 4), (2, 16), (1, 256)) if values <= limit)


def table(values: Array) -> Array:
    """For every byte the weights that it stands for: float32 (256, per_byte)."""
    import numpy as np

    count = per_byte(len(values))
    base = round(256 ** (1 / count))
    padded = np.pad(np.asarray(values, np.float32), (0, base - len(values)), mode="edge")
    return np.array(list(itertools.product(padded, repeat=count)), np.float32)


def pack(indices: Array, values: int) -> Array:
    """Indices (any shape) below ``values`` as bytes: uint8 (ceil(size / per_byte),)."""
    import numpy as np

    count = per_byte(values)
    base = round(256 ** (1 / count))
    flat = np.pad(indices.reshape(-1), (0, -indices.size % count)).reshape(-1, count)
    return (flat @ base ** np.arange(count - 1, -1, -1)).astype(np.uint8)


def store(graph: ir.Graph, node: ir.Node, indices: Array, values: Array, scale: Array | None, shared: str = "") -> None:
    """Let a node read its weight through a table.

    Args:
        graph: Changed in place.
        node: A compute node; its second input is replaced.
        indices: Integers in the weight's shape: which of ``values`` each weight is.
        values: float (values,).
        scale: Broadcast onto the weight, or None.
        shared: A name for the table where all layers share it.
    """
    import numpy as np
    import onnx_ir as ir

    stem = node.inputs[1].name if node.inputs[1] is not None else node.name
    steps: list[ir.Node] = []

    def step(operator: str, inputs: list[ir.Value], name: str, **attributes: Any) -> ir.Value:
        made = ir.node(operator, inputs, attributes, name=f"{stem}_{name}")
        made.outputs[0].name = f"{stem}_{name}"
        steps.append(made)
        return made.outputs[0]

    whole = np.array([-1], np.int64)
    packed = add_constant(graph, f"{stem}_bytes", pack(indices, len(values)))
    book = add_constant(graph, f"{shared or stem}_table", table(values))
    value = step("Cast", [packed], "index", to=int(ir.DataType.INT32))
    value = step("Gather", [book, value], "rows", axis=0)
    value = step("Reshape", [value, add_constant(graph, "edgekit_flat", whole)], "flat")
    if indices.size % per_byte(len(values)):
        ends = [
            add_constant(graph, f"{stem}_{n}", np.array([v], np.int64))
            for n, v in (("start", 0), ("end", indices.size))
        ]
        value = step("Slice", [value, *ends], "cut")
    shape = add_constant(graph, f"{stem}_shape", np.array(indices.shape, np.int64))
    value = step("Reshape", [value, shape], "shaped")
    if scale is not None:
        value = step("Mul", [value, add_constant(graph, f"{stem}_scale", scale.astype(np.float32))], "scaled")
    graph.insert_before(node, steps)
    node.replace_input_with(1, value)
