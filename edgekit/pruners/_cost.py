"""What a layer costs at a width: measured on the target's runtime, at the precision that ships.

Each layer is built alone as a small ONNX model, with random weights of that width, and timed
by the target's backend in a child process. Times are kept in the store, by target and machine.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgekit import backends, child, machine
from edgekit.store import Store, write_json
from edgekit.target import Target

Spec = tuple[Any, ...]  # ("conv", input sizes, weight sizes, stride, pads, dilation, groups) or ("gemm", rows, in, out)
ROUNDS = 5
BLOCK_S = 0.002
OPSET = 18


def measured(specs: Iterable[Spec], target: Target, precision: str) -> dict[Spec, float]:
    """Milliseconds of one inference of each layer alone, from the store or measured now."""
    wanted = sorted(set(specs), key=repr)
    backend = backends.load(target.backend)
    inputs = {
        "layers": json.loads(json.dumps(wanted)),
        "target": target.digest(),
        "machine": machine.fingerprint(),
        "precision": precision,
        "runtime": backend.version() if hasattr(backend, "version") else "",
        "version": 2,
    }

    def make(folder: Path, _: Path) -> dict[str, Any]:
        aim = target.model_dump(mode="json")
        job = "edgekit.pruners._cost:time_job"
        layers = json.loads(json.dumps(wanted))
        times = child.call(job, layers=layers, target=aim, precision=precision, threads=target.run.threads)
        write_json(folder / "times.json", times)
        return {"layers": len(wanted)}

    entry = Store().build(inputs, make)
    times = json.loads(entry.path("times.json").read_text())
    return dict(zip(wanted, times, strict=True))


def time_job(layers: list[Any], target: dict[str, Any], precision: str) -> list[float]:
    """Time every layer, interleaved; the least of several rounds each. Runs in a child process."""
    from edgekit.console import track

    aim = Target.model_validate(target)
    backend = backends.load(aim.backend)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        calls = [_session(layer, aim, backend, precision, Path(folder) / str(i)) for i, layer in enumerate(layers)]
        best = [float("inf")] * len(calls)
        for _ in track(range(ROUNDS), "timing layers"):
            for i, call in enumerate(calls):
                best[i] = min(best[i], _block(*call))
    return best


def _session(layer: Any, target: Target, backend: Any, precision: str, folder: Path) -> tuple[Any, Any]:
    import numpy as np
    import onnx

    (folder / "out").mkdir(parents=True)
    source = folder / "layer.onnx"
    onnx.save(layer_model(layer, target, precision), source)
    session = backend.open_model(backend.compile_model(source, target, folder / "out"), target)
    port = session.inputs[0]
    random = np.random.default_rng(0)
    shape = layer[1] if layer[0] == "conv" else [layer[1], layer[2]]
    raw = random.integers(0, 100, shape) if "int" in port.dtype else random.standard_normal(shape)
    return session, {port.name: raw.astype(port.dtype if port.dtype != "float" else "float32")}


def _block(session: Any, feeds: Any) -> float:
    """Milliseconds of one run: the mean over a block of a few milliseconds."""
    session.run(feeds)
    count, start = 0, time.perf_counter()
    while True:
        session.run(feeds)
        count += 1
        spent = time.perf_counter() - start
        if spent > BLOCK_S and count >= 3:
            return 1000 * spent / count


def layer_model(layer: Any, target: Target, precision: str) -> Any:
    """One layer and its activation as an ONNX model; for int8 with integers in and out, as the target wants them."""
    from onnx import helper

    quantized = precision == "int8"
    sizes = list(layer[1]) if layer[0] == "conv" else [layer[1], layer[2]]
    parts = _Parts(target, quantized)
    x, weight, bias = parts.operands(list(layer[2]) if layer[0] == "conv" else [layer[2], layer[3]], layer[0] == "conv")
    if layer[0] == "conv":
        _, _, _, stride, pads, dilation, groups = layer
        options = {"strides": stride, "pads": pads, "dilations": dilation, "group": groups}
        parts.add(
            "Conv", [x, weight, bias], "r" if quantized else "c", **options
        )  # the output's zero point is the ReLU
        if not quantized:
            parts.add("Relu", ["c"], "r")
    else:
        parts.add("MatMul", [x, weight], "m" if not quantized else "r")
        if not quantized:
            parts.add("Add", ["m", bias], "r")
    if quantized:
        parts.add("QuantizeLinear", ["r", "s", "z"], "y")
    last = "y" if quantized else "r"
    ports = [helper.make_tensor_value_info(n, parts.held, s) for n, s in (("x", sizes), (last, [None] * len(sizes)))]
    graph = helper.make_graph(parts.nodes, "layer", ports[:1], ports[1:], parts.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


class _Parts:
    """The nodes and constants of a layer's model as they are put together."""

    def __init__(self, target: Target, quantized: bool) -> None:
        from onnx import TensorProto

        self.target, self.quantized = target, quantized
        self.unsigned = target.quantize.activations == "uint8"
        integer = TensorProto.UINT8 if self.unsigned else TensorProto.INT8
        self.held = integer if quantized else TensorProto.FLOAT
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, kind: str, inputs: list[str], output: str, **options: Any) -> str:
        """A node; the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **options))
        return output

    def constant(self, name: str, value: Any) -> str:
        """A constant; its name."""
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def operands(self, shape: list[int], conv: bool) -> tuple[str, str, str]:
        """Input, weight and bias; dequantized from integers where the layer is quantized."""
        import numpy as np

        axis = 0 if conv else 1
        weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.1
        if not self.quantized:
            return "x", self.constant("w", weight), self.constant("b", np.zeros(shape[axis], np.float32))
        self.constant("s", np.asarray(0.05, np.float32))
        self.constant("z", np.asarray(128 if self.unsigned else 0, np.uint8 if self.unsigned else np.int8))
        per = (shape[axis],) if self.target.quantize.per_channel else ()
        self.constant("ws", np.full(per, 0.01, np.float32))
        self.constant("wz", np.zeros(per, np.int8))
        self.constant("wq", np.clip(weight / 0.01, -64, 64).astype(np.int8))
        x = self.add("DequantizeLinear", ["x", "s", "z"], "xf")
        w = self.add("DequantizeLinear", ["wq", "ws", "wz"], "w", axis=axis)
        if not conv:
            return x, w, ""
        self.constant("bs", np.full(per, 0.0005, np.float32))  # input's scale times weight's: as integer kernels add it
        self.constant("bq", np.zeros(shape[axis], np.int32))
        return x, w, self.add("DequantizeLinear", ["bq", "bs"], "b", **({"axis": 0} if per else {}))
