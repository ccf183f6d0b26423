"""ONNX Runtime as a reference: one thread, no rewriting of the graph, any value made visible.

This is how edgekit asks what a graph computes, not how fast; what ships runs through the
backends. Use it in a child process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]


class Runtime:
    """A loaded graph; call it with feeds (input name → array), get its outputs in order.

    Args:
        model: A file or a model in memory.
        optimized: Whether the runtime may rewrite the graph first.
    """

    def __init__(self, model: Path | str | onnx.ModelProto, *, optimized: bool = False) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        source = str(model) if isinstance(model, (str, Path)) else model.SerializeToString()
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.inputs: tuple[str, ...] = tuple(port.name for port in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(port.name for port in self._session.get_outputs())

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        """One inference; feeds that the graph does not read are left out."""
        return self._session.run(None, {name: feeds[name] for name in self.inputs})


def with_outputs(model: onnx.ModelProto, values: Iterable[str]) -> tuple[onnx.ModelProto, list[str]]:
    """A copy of the model whose outputs are these values of the main graph, and their names in order.

    Constants and inputs among them are left out.
    """
    import onnx

    wanted = set(values)
    names = [name for node in model.graph.node for name in node.output if name in wanted]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy, names


def run_values(model: onnx.ModelProto, values: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What the graph computes for these values of its main graph."""
    exposed, names = with_outputs(model, values)
    return dict(zip(names, Runtime(exposed)(feeds), strict=True))
