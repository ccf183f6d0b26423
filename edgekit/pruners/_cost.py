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
        "version": 1,
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
    """One layer and its activation as an ONNX model; for int8 with integers in and out and Q/DQ between."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    quantized = precision == "int8"
    kind = layer[0]
    weight_shape = list(layer[2]) if kind == "conv" else [layer[2], layer[3]]
    sizes = list(layer[1]) if kind == "conv" else [layer[1], layer[2]]
    random = np.random.default_rng(0)
    weight = random.standard_normal(weight_shape).astype(np.float32) * 0.1
    axis = 0 if kind == "conv" else 1
    nodes, initializers = [], []

    def constant(name: str, value: Any) -> str:
        initializers.append(numpy_helper.from_array(value, name))
        return name

    bias = constant("b", np.zeros(weight_shape[axis], np.float32))
    unsigned = target.quantize.activations == "uint8"
    integer = np.uint8 if unsigned else np.int8
    x, w, y = "x", "w", "y"
    if quantized:
        scale = constant("s", np.float32(0.05))
        zero = constant("z", integer(128 if unsigned else 0))
        per = weight_shape[axis] if target.quantize.per_channel else 1
        scales = constant("ws", np.full(per, 0.01, np.float32) if per > 1 else np.float32(0.01))
        zeros = constant("wz", np.zeros(per, np.int8) if per > 1 else np.int8(0))
        constant("wq", np.clip(weight / 0.01, -64, 64).astype(np.int8))
        nodes += [
            helper.make_node("DequantizeLinear", ["x", scale, zero], ["xf"]),
            helper.make_node("DequantizeLinear", ["wq", scales, zeros], ["w"], axis=axis),
        ]
        x = "xf"
    else:
        constant("w", weight)
    if kind == "conv":
        _, _, _, stride, pads, dilation, groups = layer
        options = {"strides": stride, "pads": pads, "dilations": dilation, "group": groups}
        nodes.append(helper.make_node("Conv", [x, w, bias], ["c"], **options))
    else:
        nodes += [helper.make_node("MatMul", [x, w], ["m"]), helper.make_node("Add", ["m", bias], ["c"])]
    nodes.append(helper.make_node("Relu", ["c"], ["r"]))
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["r", "s", "z"], [y]))
    else:
        nodes[-1].output[0] = y
    held = (TensorProto.UINT8 if unsigned else TensorProto.INT8) if quantized else TensorProto.FLOAT
    ports = (
        [helper.make_tensor_value_info("x", held, sizes)],
        [helper.make_tensor_value_info(y, held, [None] * len(sizes))],
    )
    graph = helper.make_graph(nodes, "layer", *ports, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
