"""The bundle's TensorRT code: NVIDIA's real bindings with spies in place of the GPU, and a stand-in for trtexec."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_maker as make
import tensorrt_spy

from edgekit import bundle, child, runner, target

RUNNER = Path(runner.__file__).parent
OPTIONS = {
    "max_batch": 4,
    "shapes": {},
    "optimization_level": 3,
    "workspace_mb": 64,
    "tf32": False,
    "dla_core": None,
    "device": 0,
}


class Library:
    """libcudart over host memory, called as ctypes calls it."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.copied: list[tuple[int, int]] = []

    def cudaSetDevice(self, device: int) -> int:  # noqa: N802
        return 0

    def cudaGetDeviceProperties(self, properties: Any, device: int) -> int:  # noqa: N802
        properties.value = b"Orin"
        return 0

    def cudaDeviceGetAttribute(self, value: Any, number: int, device: int) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[number]
        return 0

    def cudaMalloc(self, pointer: Any, size: Any) -> int:  # noqa: N802
        self.held.append((ctypes.c_char * size.value)())
        pointer._obj.value = ctypes.addressof(self.held[-1])
        return 0

    def cudaMemcpy(self, to: Any, source: Any, size: Any, kind: int) -> int:  # noqa: N802
        ctypes.memmove(to, source, size.value)
        self.copied.append((size.value, kind))
        return 0

    def cudaDeviceSynchronize(self) -> int:  # noqa: N802
        return 0


def case(libraries: str, bindings: str, folder: str) -> dict[str, Any]:
    """In a child process: build, keep, load and run through the spied binding."""
    sys.path.insert(0, str(RUNNER))
    world, _ = tensorrt_spy.enter(tensorrt_spy.load(libraries, bindings))
    import edgekit_tensorrt  # type: ignore[import-not-found]
    import tensorrt

    kinds = {world.real.DataType.FLOAT: np.float32}
    assert hasattr(world.real, "nptype")
    tensorrt.nptype = kinds.__getitem__
    library = Library()
    edgekit_tensorrt.Cuda._load = lambda self: library
    os.environ["XDG_CACHE_HOME"] = folder
    model = Path(folder) / "model.onnx"
    model.write_bytes(b"a model")
    facts = {"threads": 1, "batch": 1, "options": OPTIONS}
    run = edgekit_tensorrt.open_model(model, facts)
    one = run({"x": np.ones((1, 3, 8, 8), np.float32)})
    four = run({"x": np.ones((4, 3, 8, 8), np.float32)})
    built = len(world.named("Builder.build_serialized_network"))
    edgekit_tensorrt.open_model(model, facts)
    again = len(world.named("Builder.build_serialized_network"))
    model.write_bytes(b"another model")
    edgekit_tensorrt.open_model(model, facts)
    other = len(world.named("Builder.build_serialized_network"))
    (engine, _) = sorted((Path(folder) / "edgekit" / "engines").glob("*.engine"))
    engine.write_bytes(b"damaged")
    for text in (b"a model", b"another model"):
        model.write_bytes(text)
        edgekit_tensorrt.open_model(model, facts)
    try:
        run({"x": np.ones((5, 3, 8, 8), np.float32)})
        refused = ""
    except edgekit_tensorrt.BundleError as error:
        refused = error.problem

    def opened(**change: str) -> str:
        made = {"tensorrt": world.real.__version__, "gpu": "Orin (8.7)", "driver": "any", "sha256": "-", **change}
        ready = Path(folder) / "model.engine"
        ready.write_bytes(b"an engine")
        ready.with_name("model.engine.json").write_text(json.dumps(made))
        try:
            edgekit_tensorrt.open_model(ready, facts)
        except edgekit_tensorrt.BundleError as error:
            return str(error.problem)
        return ""

    foreign = [opened(), opened(gpu="H100 (9.0)"), opened(tensorrt="8.6.1"), opened(driver="535.1"),
               opened(gpu="Ampere or newer"), opened(gpu="compute capability 8.7")]  # fmt: skip
    return {
        "foreign": foreign,
        "shapes": [list(o.shape) for o in (*one, *four)],
        "built": [built, again, other, len(world.named("Builder.build_serialized_network"))],
        "copied": library.copied[:4],
        "profile": list(world.named("IOptimizationProfile.set_shape")[0].args),
        "typed": world.named("Builder.create_network")[0].args[0]
        == 1 << int(world.real.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        "tf32": [call.args[0].name for call in world.named("IBuilderConfig.clear_flag")][:1],
        "host_code": [call.args[0] for call in world.named("Runtime.engine_host_code_allowed=")][:1],
        "left": [path.name for path in (Path(folder) / "edgekit" / "engines").glob("*.new")],
        "refused": refused,
    }  # fmt: skip


def test_every_call_fits_the_real_binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("NVIDIA's Python bindings are not here (pip install --no-deps tensorrt_cu13_bindings)")
    if not shutil.which("gcc"):
        pytest.skip("no C compiler for the stand-in libraries")
    (facts,) = Path(spec.origin).parent.parent.glob("tensorrt_cu*_bindings-*.dist-info")
    (tmp_path / "lib").mkdir()
    (tmp_path / "cache").mkdir()
    tensorrt_spy.build_stand_ins(tmp_path / "lib", int(facts.name.split("-")[1].split(".")[0]))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    made = child.call(
        "test_runner_tensorrt:case", libraries=str(tmp_path / "lib"), bindings="", folder=str(tmp_path / "cache")
    )
    assert made["shapes"] == [[1, 2], [4, 2]]
    assert made["built"] == [1, 1, 2, 3]  # kept; another model is another engine; a damaged one is built anew
    assert made["copied"] == [[768, 1], [8, 2], [3072, 1], [32, 2]]
    assert made["profile"] == ["x", [1, 3, 8, 8], [1, 3, 8, 8], [4, 3, 8, 8]]
    assert made["typed"]
    assert made["tf32"] == ["TF32"]
    assert made["host_code"] == [False]
    assert made["left"] == []
    assert "(5, 3, 8, 8)" in made["refused"]
    told = [text.partition("(")[2].partition(":")[0] for text in made["foreign"]]
    assert told == ["", "gpu", "tensorrt", "driver", "", ""]


# What trtexec does with the flags that the runner gives it, by ONNX Runtime; flags that it has not are an error.
TRTEXEC = """#!{python}
import json, sys
import numpy as np, onnxruntime as ort
KNOWN = {{"onnx", "saveEngine", "stronglyTyped", "skipInference", "builderOptimizationLevel", "memPoolSize", "noTF32",
         "minShapes", "optShapes", "maxShapes", "loadEngine", "loadInputs", "exportOutput", "shapes", "iterations",
         "warmUp", "duration", "help", "exportTimes"}}
given = dict(a.removeprefix("--").partition("=")[::2] for a in sys.argv[1:])
open({log!r}, "a").write(json.dumps(given) + chr(10))
if set(given) - KNOWN:
    sys.exit("unknown flag")
if "help" in given:
    print("&&&& RUNNING TensorRT.trtexec [TensorRT v101300]")
elif "onnx" in given:
    open(given["saveEngine"], "wb").write(b"ENGINE" + open(given["onnx"], "rb").read())
else:
    data = open(given["loadEngine"], "rb").read()
    assert data[:6] == b"ENGINE"
    shapes = {{n: [int(s) for s in t.split("x")] for n, t in (p.split(":") for p in given["shapes"].split(","))}}
    feeds = {{}}
    for pair in given.get("loadInputs", "").split(","):
        if pair:
            name, file = pair.split(":")
            feeds[name] = np.fromfile(file, np.float32).reshape(shapes[name])
    if not feeds:
        feeds = {{n: np.zeros(s, np.float32) for n, s in shapes.items()}}
    session = ort.InferenceSession(data[6:], providers=["CPUExecutionProvider"])
    outputs = session.run(None, feeds)
    if "exportOutput" in given:
        entries = [{{"name": o.name, "dimensions": "x".join(map(str, v.shape)), "values": v.ravel().tolist()}}
                   for o, v in zip(session.get_outputs(), outputs)]
        json.dump(entries, open(given["exportOutput"], "w"))
    if "exportTimes" in given:
        times = [{{"latencyMs": 1.0 + i / 1000, "computeMs": 0.5}} for i in range(700)]
        json.dump(times, open(given["exportTimes"], "w"))
"""


@pytest.fixture
def device(tmp_path: Path) -> dict[str, Any]:
    """A TensorRT bundle, and a PATH with a trtexec and no Python package of TensorRT."""
    aim = target.load_target("jetson-orin-nano")
    aim = aim.model_copy(
        update={"device": aim.device.model_copy(update={"arch": platform.machine(), "cpu": "", "isa": ()})}
    )
    rec = tmp_path / "rec"
    rec.mkdir()
    net = make.model(tmp_path / "net.onnx")
    make.record(rec, [make.row(rec, "fp32", aim, net)], make.images(tmp_path / "data"))
    place = bundle.bundle(rec, aim.name, out=tmp_path / "bundle")
    python = make.bare(tmp_path / "env", "numpy", "onnxruntime")
    (tmp_path / "bin").mkdir()
    tool, log = tmp_path / "bin" / "trtexec", tmp_path / "log"
    tool.write_text(TRTEXEC.format(python=python, log=str(log)))
    tool.chmod(0o755)
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), str(place / "edgekit_runner.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**env, **more}, cwd=tmp_path, timeout=120)

    return {"run": run, "log": log, "place": place}


def test_trtexec_builds_once_checks_and_runs(device: dict[str, Any], tmp_path: Path) -> None:
    done = device["run"]("check", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["difference"] < 1e-5
    calls = [json.loads(line) for line in device["log"].read_text().splitlines()]
    (build,) = [call for call in calls if "onnx" in call]
    assert build["minShapes"] == "image:1x3x16x16"
    assert build["maxShapes"] == "image:32x3x16x16"
    assert build["memPoolSize"] == "workspace:2048"
    assert "noTF32" in build
    assert "stronglyTyped" in build
    np.save(tmp_path / "in.npy", np.ones((2, 3, 16, 16), np.float32))
    done = device["run"]("run", "in.npy", "--json")
    assert json.loads(done.stdout)["outputs"][0]["shape"] == [2, 10]
    calls = [json.loads(line) for line in device["log"].read_text().splitlines()]
    assert len([call for call in calls if "onnx" in call]) == 1
    assert not (device["place"] / "__pycache__").exists()
    manifest = bundle.read_bundle(device["place"])  # nothing was written into the bundle
    assert manifest["target"]["compile_on_device"]


def test_trtexec_times_by_its_own_clock(device: dict[str, Any]) -> None:
    report = json.loads(device["run"]("bench", "--json", "--seconds", "1").stdout)
    assert report["latency_ms"]["runs"] == 700
    assert report["latency_ms"]["median"] == pytest.approx(1.3495)
    assert report["latency_ms"]["p99"] == pytest.approx(1.692)


def test_trtexec_that_fails_is_told(device: dict[str, Any]) -> None:
    done = device["run"]("check", PATH="/usr/bin:/bin")
    assert done.returncode == 4
    assert "'tensorrt' is not installed" in done.stderr
