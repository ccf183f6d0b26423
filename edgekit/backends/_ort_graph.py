"""What ONNX Runtime really runs: read from its optimized graph and from its profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.backends import LayerPrecision, LayerTime, Port, zero_feeds
from edgekit.errors import InputError

if TYPE_CHECKING:
    import onnx

INTEGER_OPERATORS = (
    *("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul"),
    *("DynamicQuantizeLSTM", "MatMulNBits"),
)
PROFILER_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
ONNX_TYPES = {1: "fp32", 10: "fp16", 16: "bf16", 11: "fp64"}
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INT8 = 3  # of onnx.TensorProto
NEEDS_OUTPUT = ("Conv", "FusedConv", "NhwcFusedConv")  # the integer convolution writes integers only


def is_integer(operator: str) -> bool:
    """Whether an operator computes in integers; 4-bit weights count, their kernel makes the input int8."""
    return operator.startswith(INTEGER_OPERATORS)


def layer_times(events: Iterable[Mapping[str, Any]], skip: int) -> list[LayerTime]:
    """Time of each node from the profiler's events, in execution order: the mean of the middle half.

    Args:
        events: The JSON list that ``InferenceSession.end_profiling`` wrote.
        skip: Inferences at the start that don't count (warm-up).
    """
    samples: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = f"{event['args'].get('node_index')}:{event['name'].removesuffix('_kernel_time')}"
            samples[key].append(event["dur"] / 1000)
            facts[key] = event["args"]
    return [
        LayerTime(
            name=key.partition(":")[2],
            operator=str(facts[key].get("op_name", "unknown")),
            milliseconds=_middle_mean(values[skip:]),
            precision=_event_precision(facts[key]),
            bytes_moved=sum(int(facts[key].get(f"{part}_size", 0)) for part in ("activation", "output", "parameter")),
        )
        for key, values in samples.items()
    ]


def _middle_mean(values: list[float]) -> float:
    """Mean of the middle half: finer than the profiler's whole microseconds, deaf to interruptions."""
    quarter = len(values) // 4
    middle = sorted(values)[quarter : len(values) - quarter]
    return sum(middle) / max(len(middle), 1)


def _event_precision(facts: Mapping[str, Any]) -> str:
    if is_integer(str(facts.get("op_name", ""))):
        return "int8"
    kinds = [kind for entry in facts.get("input_type_shape", []) for kind in entry]
    return next((PROFILER_TYPES.get(kind, kind) for kind in kinds), "unknown")


def layer_precisions(model: Path, inputs: Iterable[Port], *, arch: str, seen: bool) -> list[LayerPrecision]:
    """The nodes of a graph that ONNX Runtime optimized and saved, with the reason for each that stayed float.

    Args:
        model: The optimized ``.onnx``.
        inputs: The model's inputs; free sizes besides the batch count as 32 where the file carries no shapes.
        arch: The CPU that it is for.
        seen: Whether this is the graph that runs there; if not, a node that has all that an integer kernel
            wants counts as int8, for the fusing is left to the device.
    """
    from edgekit import onnxfile
    from edgekit.onnxfile import cost as onnxcost

    proto = onnxfile.read_model(model)
    try:
        macs = onnxcost.node_macs(proto)
    except InputError:
        shapes = {name: value.shape for name, value in zero_feeds(tuple(inputs)).items()}
        macs = onnxcost.node_macs(proto, shapes)
    graph = _Graph.of(proto.graph)
    pairs = () if seen else ("QuantizeLinear", "DequantizeLinear")  # which of them are fused away is not seen
    return [
        _layer(n, macs.get(n.name or n.output[0], 0), graph, arch, seen)
        for n in proto.graph.node
        if n.op_type not in pairs
    ]


def leaves_float(model: Path) -> bool:
    """Whether a Q/DQ file quantizes the weights of some layers and leaves those of others, fed by integers, in float.

    Such a layer was put back to float on purpose; a file that quantizes no weights leaves them to the runtime.
    """
    import onnx

    graph = _Graph.of(onnx.load(str(model), load_external_data=False).graph)
    weighted = [n for n in graph.producers.values() if n.op_type in WEIGHTED and graph.dequantized(n.input[0])]
    floats = [n for n in weighted if graph.types.get(n.input[1]) in ONNX_TYPES and n.input[1] not in graph.producers]
    return bool(floats) and len(floats) < len(weighted)


def lighten(artifact: Path) -> None:
    """Leave out of a saved graph the types and shapes that ONNX Runtime infers again when it loads it."""
    import onnx

    from edgekit.onnxfile import edit

    onnx.save(edit.without_inferable(onnx.load(str(artifact), load_external_data=False)), str(artifact))


def _layer(node: onnx.NodeProto, macs: int, graph: _Graph, arch: str, seen: bool) -> LayerPrecision:
    bits = next((a.i for a in node.attribute if a.name == "bits"), 8)
    integer = is_integer(node.op_type)
    reason = _reason(node, graph, arch) if macs and not integer else ""
    if macs and not integer and not reason:
        integer = not seen
        reason = f"ONNX Runtime has no integer kernel for this {node.op_type}: its attributes or shapes rule it out"
    return LayerPrecision(
        name=node.name or node.output[0],
        operator=node.op_type,
        macs=macs,
        precision=f"int{bits}" if integer else graph.precision(node),
        reason="" if integer else reason,
    )


@dataclass(frozen=True)
class _Graph:
    """Who makes and who reads each value, and the values' types."""

    producers: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[onnx.NodeProto]]
    types: Mapping[str, int]
    outputs: frozenset[str]
    constants: frozenset[str]
    quantized: bool

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Graph:
        readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                readers[name].append(node)
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        types.update({t.name: t.data_type for t in graph.initializer})
        return cls(
            producers={name: node for node in graph.node for name in node.output},
            readers=readers,
            types=types,
            outputs=frozenset(v.name for v in graph.output),
            constants=frozenset(t.name for t in graph.initializer),
            quantized=any(is_integer(n.op_type) or n.op_type == "QuantizeLinear" for n in graph.node),
        )

    def precision(self, node: onnx.NodeProto) -> str:
        kinds = [self.types.get(name, 0) for name in (*node.input, *node.output)]
        return next((ONNX_TYPES[kind] for kind in kinds if kind in ONNX_TYPES), "fp32")

    def is_constant(self, name: str) -> bool:
        """Whether a value is an initializer, or made from initializers alone by a conversion."""
        node = self.producers.get(name)
        return name in self.constants or (node is not None and all(n in self.constants for n in node.input if n))

    def integer_type(self, node: onnx.NodeProto) -> int:
        """The integer type of a QuantizeLinear or DequantizeLinear."""
        if len(node.input) > 2 and node.input[2] in self.types:
            return self.types[node.input[2]]
        return self.types.get(node.input[0] if node.op_type == "DequantizeLinear" else node.output[0], 0)

    def dequantized(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that makes this value, if one does; changes of layout between don't count."""
        node = self.producers.get(name)
        while node is not None and node.op_type in ("ReorderInput", "ReorderOutput", "Transpose"):
            node = self.producers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None


def _reason(node: onnx.NodeProto, graph: _Graph, arch: str) -> str:
    """Why a convolution or matrix product stays float, in words; empty: it has all that an integer kernel wants."""
    if not graph.quantized:
        return "the model is not quantized"
    data, weight = (graph.dequantized(name) for name in node.input[:2])
    if not graph.is_constant(node.input[1]) and weight is None:
        return "it multiplies two activations (attention does), which were left in float"
    if data is None and weight is None:
        return "it was left in float: no quantize/dequantize pair stands at its input or weight"
    if data is None:
        source = graph.producers.get(node.input[0])
        made = f"made in float by {source.op_type} '{source.name}'" if source else "the model's own float input"
        return f"its input is not quantized ({made})"
    if weight is None:
        return "its weight was left in float"
    if len(node.input) > 2 and node.input[2] and graph.dequantized(node.input[2]) is None:
        return "its bias is float: integer kernels want an int32 bias with the scale of input times weight"
    readers = graph.readers.get(node.output[0], [])
    quantizers = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
    if arch == "x86_64" and INT8 in {graph.integer_type(n) for n in (data, *quantizers)}:
        return (
            "its activations are int8: on x86 ONNX Runtime fuses int8 weights with uint8 activations; "
            "quantize with activations = 'uint8'"
        )
    if not quantizers and node.op_type in NEEDS_OUTPUT:
        whither = f"{readers[0].op_type} '{readers[0].name}'" if readers else "the model's output"
        return f"its output is not quantized: it goes in float to {whither}"
    if quantizers and (len(readers) > 1 or node.output[0] in graph.outputs):
        return "its output is read in float by another node too, so it can't be fused with its QuantizeLinear"
    return ""
