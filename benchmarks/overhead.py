"""Is our clock right? edgekit's timing loop against the bare call, and against the runtimes' own tools.

    python benchmarks/overhead.py [--pairs 8] [--out benchmarks/overhead.md]

Three questions, each answered interleaved: what the loop and the session add to the runtime's own call (in one
process, block by block); whether our median agrees with ONNX Runtime's profiler ("model_run" events) and
with OpenVINO's benchmark_app (fresh processes in ABBA order). About 3 minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._repetition import cnn  # noqa: E402
from edgekit import child, machine  # noqa: E402
from edgekit.measure import loop  # noqa: E402
from edgekit.measure import statistics as rules  # noqa: E402
from edgekit.measure.engine import Row, launched  # noqa: E402
from edgekit.measure.lock import machine_lock  # noqa: E402
from edgekit.measure.loop import Effort  # noqa: E402
from edgekit.target import load_target  # noqa: E402

PROFILED = """
import json, os, sys, time
os.sched_setaffinity(0, {int(c) for c in sys.argv[3].split(",")})
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.enable_profiling, options.profile_file_prefix = 1, True, sys.argv[2]
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
port = session.get_inputs()[0]
feeds = {port.name: np.random.default_rng(0).standard_normal(port.shape).astype("float32")}
start = time.monotonic()
count = 0
while time.monotonic() - start < 0.5 or count < 60:
    session.run(None, feeds)
    count += 1
print(session.end_profiling())
"""


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("overhead.md"))
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, machine_lock():
        folder = Path(name)
        lines = [*loop_overhead(folder), "", *agreement(folder, options.pairs)]
    facts = machine.describe()
    head = [
        "# The clock, checked",
        "",
        f"On {facts['cpu']}, {facts['cores']['available']} cores, load {machine.load()}, in "
        f"{(time.monotonic() - start) / 60:.1f} minutes; written by `python benchmarks/overhead.py`.",
        "",
    ]
    text = "\n".join([*head, *lines, ""])
    print(text)
    options.out.write_text(text)


def loop_overhead(folder: Path) -> list[str]:
    """What our loop and session add to the runtime's own call, blocks of both in turn in one process."""
    lines = [
        "| one inference of | bare call, µs | through edgekit, µs | added, µs | added |",
        "| --- | --- | --- | --- | --- |",
    ]
    for runtime, layers in (("onnxruntime", 1), ("onnxruntime", 20), ("openvino", 1), ("openvino", 20)):
        path = folder / f"overhead{layers}.onnx"
        cnn(path, layers)
        found = child.call(
            "benchmarks.overhead:_added", env={"PYTHONPATH": str(ROOT)}, runtime=runtime, model=str(path)
        )
        bare, ours = found["bare_us"], found["ours_us"]
        lines.append(
            f"| {runtime}, {layers} layers | {bare:.2f} | {ours:.2f} | {ours - bare:+.2f} | {ours / bare - 1:+.2%} |"
        )
    return lines


def _added(runtime: str, model: str) -> dict[str, float]:
    """Runs in a child process: the fastest tenth of 1,500 alternating blocks, in microseconds for one inference."""
    import os

    os.sched_setaffinity(0, machine.pick_cores(1))
    clock = time.perf_counter_ns
    from edgekit import backends

    target = load_target("x86-cpu" if runtime == "onnxruntime" else "x86-openvino")
    session = backends.load(runtime).open_model(Path(model), target)
    import numpy as np

    feeds = {p.name: np.zeros([s or 1 for s in p.shape], "float32") for p in session.inputs}
    bare = _bare(session, feeds)
    # Short blocks and many: some of each are left undisturbed even on a busy machine.
    count = max(3, round(1.5e6 / (loop.median_ms(loop.warm_up(lambda: session.run(feeds), clock, Effort())[0]) * 1e6)))
    block = Effort(inferences=count, block_ms=0)

    def call() -> None:
        session.run(feeds)

    def bare_block() -> float:
        start = clock()
        for _ in range(count):
            bare()
        return (clock() - start) / count

    def our_block() -> float:
        start = clock()
        samples = loop.block(call, clock, block)
        return (clock() - start) / len(samples)  # the whole loop, its clock reads too

    pairs = [(bare_block(), our_block()) if i % 2 else (our_block(), bare_block())[::-1] for i in range(1500)]
    # The fastest tenth is what it costs undisturbed, for a neighbour only ever adds; the very least is a lucky moment.
    bare_us, ours_us = (statistics.quantiles([pair[k] for pair in pairs], n=10)[0] / 1e3 for k in (0, 1))
    return {"bare_us": bare_us, "ours_us": ours_us}


def _bare(session: object, feeds: dict[str, object]) -> Callable[[], object]:
    """The runtime's own call, as its documentation shows it."""
    if hasattr(session, "session"):
        run, names = session.session.run, [o.name for o in session.session.get_outputs()]
        return lambda: run(names, feeds)
    from types import SimpleNamespace

    import openvino

    from edgekit.backends._ov_infer import bound

    compiled, ((shapes, _),) = session.compiled, session._infers.items()  # type: ignore[attr-defined]
    request = compiled.create_infer_request()  # one for both: another's buffers lie elsewhere
    same = SimpleNamespace(inputs=compiled.inputs, create_infer_request=lambda: request)
    session._infers[shapes] = bound(same, openvino.Tensor)  # type: ignore[attr-defined]
    session.run(feeds)  # type: ignore[attr-defined]  # hands the inputs over
    return lambda: list(request.infer().values())


def agreement(folder: Path, pairs: int) -> list[str]:
    """Our medians over those of the runtimes' own tools, in pairs of fresh processes."""
    lines = ["| our median over that of | ratio | 95 % | 99 % (exact) | pairs |", "| --- | --- | --- | --- | --- |"]
    model, cores = folder / "agreement.onnx", machine.pick_cores(1)
    # Under a time slice, so that a busy machine leaves most inferences whole; few nodes, for the profiler adds to each.
    cnn(model, 2, channels=64)
    _pooled(model)
    tools: list[tuple[str, str, Callable[[], float]]] = [
        ("onnxruntime", "ONNX Runtime's profiler", lambda: profiled(model, folder, cores))
    ]
    if app := shutil.which("benchmark_app", path=str(Path(sys.executable).parent)):
        tools.append(("openvino", "OpenVINO's benchmark_app", lambda: benchmark_app(app, model, cores)))
    for runtime, name, theirs in tools:
        target = load_target("x86-cpu" if runtime == "onnxruntime" else "x86-openvino")
        row = Row("ours", model, runtime)
        both: list[tuple[float, float]] = []
        for i in range(pairs):
            ours = launched(row, target, 1, cores, Effort())["median_ms"] if i % 2 else None
            their = theirs()
            both.append((their, ours or launched(row, target, 1, cores, Effort())["median_ms"]))
        found = rules.compare([b[0] for b in both], [b[1] for b in both])
        exact = "[{:.3f}, {:.3f}]".format(*found.ci99) if found.ci99 else "too few pairs"
        shown = "[{:.3f}, {:.3f}]".format(*found.ci95)
        lines.append(f"| {name} | {found.ratio:.3f} | {shown} | {exact} | {found.pairs} |")
    return lines


def _pooled(model: Path) -> None:
    """End the model in a global average: we hand outputs over, which copies them; benchmark_app leaves them inside."""
    proto = onnx.load(str(model))
    (last,) = proto.graph.output
    proto.graph.node.append(onnx.helper.make_node("GlobalAveragePool", [last.name], ["pooled"]))
    shape = [1, last.type.tensor_type.shape.dim[1].dim_value, 1, 1]
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("pooled", onnx.TensorProto.FLOAT, shape))
    onnx.save(proto, str(model))


def profiled(model: Path, folder: Path, cores: list[int]) -> float:
    """ONNX Runtime's own median of one inference, from its profile, in milliseconds."""
    command = [sys.executable, "-c", PROFILED, str(model), str(folder / "profile"), ",".join(map(str, cores))]
    run = subprocess.run(
        command, env=child.child_environment(1), capture_output=True, text=True, check=True, timeout=120
    )
    events = json.loads(Path(run.stdout.split()[-1]).read_text())
    times = [event["dur"] / 1000 for event in events if event["name"] == "model_run"]
    return statistics.median(times[len(times) // 2 :])


def benchmark_app(app: str, model: Path, cores: list[int]) -> float:
    """benchmark_app's median of one inference in milliseconds; it prints two digits, of µs where they are few."""
    command = [app, "-m", str(model), "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", "1"]
    command += ["-infer_precision", "f32", "-t", "1"]
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *command] if shutil.which("taskset") else command
    run = subprocess.run(
        pinned, env=child.child_environment(1), capture_output=True, text=True, check=False, timeout=120
    )
    found = re.search(r"Median:\s+([\d.]+) (us|ms)", run.stdout)
    return float(found[1]) / (1000 if found[2] == "us" else 1) if found else math.nan


if __name__ == "__main__":
    main()
