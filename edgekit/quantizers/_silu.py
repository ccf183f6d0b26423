"""SiLU (x · sigmoid(x)) in float between integers, in the form that ONNX Runtime makes one operator of.

In integers it is two operators, a table and a product; in float it is one, and with the conversions around it that
takes two thirds of their time (144 channels of 56 × 56, one thread of a Zen 5: 131 microseconds, not 196). But ONNX
Runtime fuses it only if a single node reads the DequantizeLinear, and its integer convolutions lay channels last, past
which it moves no fused operator. So the SiLU is written with channels last and flat: Transpose → Flatten → SiLU →
Reshape → Transpose. These Transposes meet those that ONNX Runtime puts around convolutions, and both are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from edgekit.quantizers import _graph

if TYPE_CHECKING:
    import onnx_ir as ir

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # channels


def silus(nodes: Iterable[ir.Node]) -> Iterator[tuple[ir.Node, ir.Node]]:
    """``(Sigmoid, Mul)`` of every SiLU of an (N, C, H, W) with known sizes that is more than a vector of channels."""
    for mul in nodes:
        for gate, value in (mul.inputs, mul.inputs[::-1]) if mul.op_type == "Mul" else ():
            sigmoid = gate.producer() if gate is not None else None
            if sigmoid is None or sigmoid.op_type != "Sigmoid" or sigmoid.inputs[0] is not value:
                continue
            sizes = list(value.shape)[1:] if value is not None and value.shape is not None else []
            alone = len(sigmoid.outputs[0].consumers()) == 1 and not sigmoid.outputs[0].is_graph_output()
            if alone and len(sizes) == 3 and all(isinstance(size, int) for size in sizes) and sizes[1:] != [1, 1]:
                yield sigmoid, mul


def between_integers(nodes: Collection[ir.Node]) -> list[tuple[ir.Node, ir.Node]]:
    """Those SiLUs of which both nodes, and all that reads them, are among ``nodes``."""
    return [
        (sigmoid, mul)
        for sigmoid, mul in silus(nodes)
        if sigmoid in nodes
        and not mul.outputs[0].is_graph_output()
        and all(reader in nodes for reader in mul.outputs[0].consumers())
    ]


def flatten(graph: ir.Graph, sigmoid: ir.Node, mul: ir.Node) -> None:
    """Let a SiLU compute on an (N, H · W · C), in place; the caller sorts the graph."""
    import numpy as np
    import onnx_ir as ir

    value, out, name = sigmoid.inputs[0], mul.outputs[0], mul.outputs[0].name
    assert out.shape is not None
    _, channels, height, width = out.shape
    turn = ir.node("Transpose", [value], {"perm": LAST}, name=f"{name}_channels_last")
    flat = ir.node("Flatten", turn.outputs, {"axis": 1}, name=f"{name}_flat")
    sizes = _graph.add_constant(graph, f"{name}_sizes", np.array([0, height, width, channels], np.int64))
    unflat = ir.node("Reshape", [out, sizes], name=f"{name}_unflat")
    back = ir.node("Transpose", unflat.outputs, {"perm": FIRST}, name=f"{name}_channels_first")
    for node in (turn, flat, unflat, back):
        node.outputs[0].name, node.outputs[0].type = node.name, out.type
    back.outputs[0].shape, out.shape = out.shape, None
    out.replace_all_uses_with(back.outputs[0])
    unflat.replace_input_with(0, out)
    sigmoid.replace_input_with(0, flat.outputs[0])
    mul.replace_input_with(1 if mul.inputs[0] is sigmoid.outputs[0] else 0, flat.outputs[0])
    graph.insert_before(sigmoid, [turn, flat])
    graph.insert_after(mul, [unflat, back])
