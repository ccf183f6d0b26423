"""Run an ONNX graph in torch, node by node, and train it.

The graph is compiled once into a list of calls; float weights are parameters, and a weight that is
stored as integers behind a DequantizeLinear is a float parameter that is rounded on the way, with
gradients straight through; so is one of few bits behind a table. After training the parameters go
back into the same file: what was trained is what ships.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit import onnxfile
from edgekit.errors import EdgekitError, StageError
from edgekit.quantizers import _torch_layers, _torch_math, _torch_moves
from edgekit.quantizers._torch_codebook import Signs, chains
from edgekit.quantizers._torch_integers import Kept, Rounding, grid_of, latent, narrowed
from edgekit.quantizers._torch_node import Call, Node, read, unsupported

if TYPE_CHECKING:
    import onnx

    from edgekit.training.models import Trainee

Array = np.ndarray[Any, Any]

OPS: dict[str, Callable[[Node], Call]] = {**_torch_math.OPS, **_torch_moves.OPS, **_torch_layers.OPS}
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

# Which inputs of an operator are weights: a float constant there is trained.
WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), (1, 2)),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "MatMul"), (0, 1)),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), (1, 2)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), (1, 2)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)),
    "Gather": (0,),
    "PRelu": (1,),
    QUANTIZE: (0,),  # a weight that another tool left in float, rounded at run time
}
STATISTICS = {("BatchNormalization", 3), ("BatchNormalization", 4)}
HOST = 64  # integers of at most that many elements stay on the host: shapes, axes, indices


@dataclass(frozen=True)
class Step:
    """One call: where its inputs lie, where its outputs go, and what no one reads afterwards."""

    run: Call
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]
    node: Node


class TorchGraph(nn.Module):
    """An ONNX graph as a module: ``forward(feeds)`` gives the outputs as a tuple, in the file's order.

    Args:
        proto: The model.
        floats: Weights of the same model before quantization, in any order: finer than the stored integers.
        learn_scales: Train the scales of weights and activations too.

    Raises:
        StageError: An operator, or a variant of one, that can't be run in torch; names the node.
    """

    def __init__(self, proto: onnx.ModelProto, floats: Iterable[Array] = (), *, learn_scales: bool = False) -> None:
        super().__init__()
        self.kept = nn.ModuleDict()
        self.roundings = nn.ModuleList()
        self.signs = nn.ModuleList()
        self.names: dict[str, str] = {}  # constant of the file → its key in ``kept``
        self.logs: dict[str, nn.Parameter] = {}  # scale of the file → what is learned of it
        self._slots: dict[str, int] = {"": 0}
        self._constants: list[tuple[int, Tensor | str]] = []  # a tensor on the host, or a buffer's name
        self._loads: list[tuple[int, Call]] = []
        self._steps: list[Step] = []
        self._outputs = [value.name for value in proto.graph.output]
        _Compiler(self, proto, list(floats), learn_scales).compile()

    def slot(self, name: str) -> int:
        """The place of a value."""
        return self._slots.setdefault(name, len(self._slots))

    def forward(self, feeds: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Run the graph; input name → tensor."""
        values: list[Any] = [None] * len(self._slots)
        for name, value in feeds.items():
            if name in self._slots:
                values[self._slots[name]] = value
        for slot, constant in self._constants:
            values[slot] = getattr(self, constant) if isinstance(constant, str) else constant
        for slot, load in self._loads:
            values[slot] = load()
        for step in self._steps:
            try:
                made = step.run(*[values[i] for i in step.inputs])
            except EdgekitError:
                raise
            except Exception as error:
                raise StageError(
                    f"the node '{step.node.name}' ({step.node.op}) fails in torch: {type(error).__name__}: {error}",
                    where="quantization-aware training",
                    remedy="check that the data fit the model; else use method = 'static'",
                ) from error
            for slot, value in zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                if slot:  # an output without a name is nobody's
                    values[slot] = value
            for slot in step.dead:
                values[slot] = None
        return tuple(values[self._slots[name]] for name in self._outputs)

    def constants(self) -> dict[str, Array]:
        """The trained constants by name, of the file's own types and shapes."""
        changed = {name: self.kept[key].written() for name, key in self.names.items()}
        for rounding in self.roundings:
            if rounding.log is not None:
                changed[rounding.name] = rounding.scale().detach().cpu().numpy()
        for kept in self.kept.values():
            if kept.factors and self.logs:
                changed[kept.rounding.name] = kept.scale().detach().cpu().numpy()
        for signs in self.signs:
            changed |= signs.written()
        return changed


class _Compiler:
    """Turns a model into a :class:`TorchGraph`'s steps; used once."""

    def __init__(self, graph: TorchGraph, proto: onnx.ModelProto, floats: list[Array], learn_scales: bool) -> None:
        self.graph, self.floats, self.learn_scales = graph, floats, learn_scales
        self.nodes, self.constants = read(proto)
        self.maker = {output: node for node in self.nodes for output in node.outputs}
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)
        self.rounding_of: dict[str, Rounding] = {}  # the output of a DequantizeLinear → what rounds it
        self.biases: list[tuple[Node, Kept]] = []
        self.calls: list[tuple[Call, tuple[str, ...], tuple[str, ...], Node]] = []

    def compile(self) -> None:
        """Fill the graph."""
        unfolding = self.signs()
        for node in self.nodes:
            if id(node) in unfolding:
                continue
            if node.op == DEQUANTIZE:
                self.dequantize(node)
            elif node.op == QUANTIZE:
                self.quantize(node)
            elif node.op in OPS:
                self.calls.append((OPS[node.op](node), node.inputs, node.outputs, node))
            else:
                raise unsupported(node.op, node.name)
        self.tie_biases()
        self.place_constants()
        self.place_steps()

    def signs(self) -> set[int]:
        """Make parameters of binary and ternary weights; the nodes that unfold them, which need not run."""
        done: set[int] = set()
        for chain in chains(self.nodes, self.constants, self.readers):
            signs = Signs(chain, self.constants, self.floats)
            self.graph.signs.append(signs)
            self.graph._loads.append((self.graph.slot(chain.output), signs))
            done |= {id(node) for node in chain.nodes}
        return done

    def dequantize(self, node: Node) -> None:
        """A stored weight, the second half of a pair, or one that stands alone."""
        source = node.inputs[0]
        if source in self.constants:
            self.stored(node, self.constants[source])
            return
        maker = self.maker.get(source)
        paired = maker is not None and maker.op == QUANTIZE and self.same_grid(maker, node)
        rounding = self.rounding(node, self.integer_type(maker if paired and maker else node))
        run, read_from = (rounding, maker.inputs[0]) if paired and maker else (rounding.dequantize, source)
        self.calls.append((run, (read_from,), node.outputs, node))

    def quantize(self, node: Node) -> None:
        """Nothing to do where only the DequantizeLinear of its pair reads it."""
        readers = self.readers.get(node.outputs[0], [])
        whole = all(r.op == DEQUANTIZE and self.same_grid(node, r) for r in readers)
        if whole and node.outputs[0] not in self.graph._outputs:
            return
        rounding = self.rounding(node, self.integer_type(node))
        self.calls.append((rounding.quantize, node.inputs[:1], node.outputs, node))

    def stored(self, node: Node, integers: Array) -> None:
        """A constant behind a DequantizeLinear."""
        grid = grid_of(node, str(integers.dtype))
        if integers.size == 1:
            self.constants[node.outputs[0]] = grid.reals(integers)
            return
        grid = narrowed(grid, integers)
        is_bias = integers.dtype == np.int32
        rounding = self.rounding(node, str(integers.dtype), grid, learned=not is_bias)
        value = grid.reals(integers) if is_bias else latent(integers, grid, self.floats)
        kept = self.keep(node.inputs[0], Kept(value, integers.dtype, rounding))
        self.graph._loads.append((self.graph.slot(node.outputs[0]), kept))
        if is_bias:
            self.biases.append((node, kept))

    def rounding(self, node: Node, integer_type: str, grid: Any = None, *, learned: bool = True) -> Rounding:
        """What rounds at this node; all nodes that read one scale learn it together."""
        grid = grid or grid_of(node, integer_type)
        name, log = node.inputs[1], None
        if self.learn_scales and learned:
            log = self.graph.logs.setdefault(name, nn.Parameter(torch.zeros(grid.scale.shape)))
        made = Rounding(grid, name, log)
        self.graph.roundings.append(made)
        self.rounding_of[node.outputs[0]] = made
        return made

    def keep(self, name: str, kept: Kept) -> Kept:
        """Register a trained constant; one that several nodes read is one parameter."""
        if name in self.graph.names:
            kept.value = self.graph.kept[self.graph.names[name]].value
            return kept
        key = str(len(self.graph.names))
        self.graph.names[name] = key
        self.graph.kept[key] = kept
        return kept

    def integer_type(self, node: Node) -> str:
        """Of the integers at a QuantizeLinear or DequantizeLinear: its zero point's; uint8 where there is none."""
        return str(node.constants[2].dtype) if 2 in node.constants else "uint8"

    def same_grid(self, a: Node, b: Node) -> bool:
        """Whether two nodes have one scale and zero point."""
        for index in (1, 2):
            if a.inputs[index : index + 1] != b.inputs[index : index + 1]:
                left, right = a.constants.get(index), b.constants.get(index)
                if left is None or right is None or not np.array_equal(left, right):
                    return False
        return bool(a.get("axis", 1) == b.get("axis", 1))

    def tie_biases(self) -> None:
        """A bias's scale is that of its node's input times that of its weight."""
        for node, kept in self.biases:
            for reader in self.readers.get(node.outputs[0], []):
                found = [self.rounding_of.get(name) for name in reader.inputs[:2]]
                if reader.inputs[2:] == node.outputs and found[0] is not None and found[1] is not None:
                    kept.factors = (found[0], found[1])

    def place_constants(self) -> None:
        """Weights become parameters; small integers stay on the host; the rest goes where the module goes."""
        graph = self.graph
        for _, inputs, _, _ in self.calls:
            for name in inputs:
                if name not in self.constants or name in graph._slots:
                    continue
                array, slot = self.constants[name], graph.slot(name)
                if array.dtype.kind == "f" and array.size > 1 and self.is_weight(name):
                    kept = self.keep(name, Kept(array, array.dtype))
                    graph._loads.append((slot, kept))
                elif array.dtype.kind in "iub" and array.size <= HOST:
                    graph._constants.append((slot, torch.from_numpy(np.array(array))))
                else:
                    buffer = f"constant_{slot}"
                    graph.register_buffer(buffer, torch.from_numpy(np.array(array)), persistent=False)
                    graph._constants.append((slot, buffer))

    def is_weight(self, name: str) -> bool:
        """Whether any reader takes that constant as a weight, and none as a statistic (exporters merge equal ones)."""
        places = {
            (r.op, i) for r in self.readers.get(name, []) for i, read_from in enumerate(r.inputs) if read_from == name
        }
        return any(i in WEIGHTS.get(op, ()) for op, i in places) and not places & STATISTICS

    def place_steps(self) -> None:
        """Number the values, and find where each is read for the last time."""
        graph = self.graph
        made = {name for _, _, outputs, _ in self.calls for name in outputs if name}
        last = {name: place for place, (_, inputs, _, _) in enumerate(self.calls) for name in inputs}
        for place, (run, inputs, outputs, node) in enumerate(self.calls):
            dead = {n for n in inputs if n in made and last[n] == place and n not in graph._outputs}
            graph._steps.append(
                Step(
                    run,
                    tuple(graph.slot(n) for n in inputs),
                    tuple(graph.slot(n) for n in outputs),
                    tuple(graph.slot(n) for n in dead),
                    node,
                )
            )


def open_graph(path: Path, source: Path | None = None, *, learn_scales: bool = False) -> TorchGraph:
    """The graph of an ONNX file.

    Args:
        path: The file. source: The float ``.onnx`` that a Q/DQ file was made from.
        learn_scales: Train scales too.
    """
    floats: list[Array] = []
    if source is not None and source.suffix == ".onnx":
        from onnx import numpy_helper

        before = onnxfile.read_model(source)
        floats = [a for a in map(numpy_helper.to_array, before.graph.initializer) if a.dtype.kind == "f"]
    return TorchGraph(onnxfile.read_model(path), floats, learn_scales=learn_scales)


def open_trainee(path: Path, source: Path | None = None, *, learn_scales: bool = False) -> Trainee:
    """An ONNX file as the training loop takes it; it saves into a copy of the file."""
    from edgekit.training.models import Trainee

    graph = open_graph(path, source, learn_scales=learn_scales)
    return Trainee(module=graph, ending=ending(graph), save=lambda out: write(path, graph.constants(), out))


def write(path: Path, constants: dict[str, Array], out: Path) -> None:
    """Copy an ONNX file with other values for some of its constants."""
    from onnx import numpy_helper

    proto = onnxfile.read_model(path)
    for tensor in proto.graph.initializer:
        if tensor.name in constants:
            array = constants[tensor.name].reshape(tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    onnxfile.write_model(proto, out)


def ending(graph: TorchGraph) -> str:
    """What the first output comes from: ``sigmoid``, ``softmax``, ``log_softmax``, else ``logits``."""
    makers = {slot: step.node for step in graph._steps for slot in step.outputs}
    node = makers.get(graph._slots[graph._outputs[0]])
    names = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "log_softmax"}
    shaping = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", QUANTIZE, DEQUANTIZE)
    while node is not None and node.op in shaping:
        step = next(s for s in graph._steps if s.node is node)
        node = makers.get(step.inputs[0])
    return names.get(node.op, "logits") if node is not None else "logits"
