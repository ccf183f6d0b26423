# ruff: noqa: B905, UP006, UP035  (a board may have Python 3.8)
"""TensorRT on the device: the engine is built here on first use, kept, and run.

By TensorRT's Python package and the CUDA runtime library; where that package is missing, by ``trtexec``.
An engine fits one GPU, driver and TensorRT version only, so it is kept under all of them.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from edgekit_board import BundleError, read  # type: ignore[import-not-found]

Feeds = Dict[str, Any]
Run = Callable[[Feeds], List[Any]]
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack has it
BUILD_S = 3600


def open_model(path: Path, run: Dict[str, Any]) -> Run:
    """Load the engine of an ONNX file, building it first if this machine has not yet."""
    try:
        import tensorrt as trt
    except ModuleNotFoundError:
        tool = shutil.which("trtexec") or (TRTEXEC if os.access(TRTEXEC, os.X_OK) else None)
        if tool is None:
            raise
        return Trtexec(tool, path, run).run
    cuda = Cuda(run["options"]["device"])
    logger = trt.Logger(trt.Logger.ERROR)
    if path.suffix == ".engine":
        check_fingerprint(path, trt.__version__, cuda)
        engine_file = path
    else:
        bound = [trt.__version__, cuda.name, cuda.capability, cuda.driver]
        engine_file = kept(path, run, bound, lambda out: build(trt, logger, path, run, out))
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = False
    if run["options"]["dla_core"] is not None:
        runtime.DLA_core = run["options"]["dla_core"]
    engine = runtime.deserialize_cuda_engine(engine_file.read_bytes())
    if engine is None:
        if engine_file != path:
            engine_file.unlink()
        raise BundleError(3, "TensorRT refuses the engine", "run again: one that was built here is built anew")
    return Engine(trt, cuda, runtime, engine).run


def kept(path: Path, run: Dict[str, Any], bound: List[Any], make: Callable[[Path], None]) -> Path:
    """The engine's file under all that it is bound to; made if it is not there, and never seen half-made."""
    model = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = json.dumps([model, run["batch"], run["options"], bound], sort_keys=True)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "engines"
    file = folder / (hashlib.sha256(facts.encode()).hexdigest()[:32] + ".engine")
    seal = file.with_suffix(".sha256")
    if file.is_file() and seal.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == seal.read_text():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}.new")
    try:
        make(fresh)
        seal.write_text(hashlib.sha256(fresh.read_bytes()).hexdigest())
        fresh.replace(file)
    finally:
        if fresh.exists():
            fresh.unlink()
    return file


def check_fingerprint(path: Path, version: str, cuda: Any) -> None:
    """Refuse an engine that was built for another machine, before TensorRT reads a byte of it."""
    try:
        made = json.loads(path.with_name(path.name + ".json").read_text())
    except (OSError, ValueError) as error:
        raise BundleError(2, "the engine's fingerprint can't be read", "make the bundle again") from error
    words = [word for word in cuda.driver.split() if word[:1].isdigit() and "." in word]
    here = {
        "tensorrt": (version, version.split(".")[0] + ".*"),
        "gpu": (f"{cuda.name} ({cuda.capability})", f"compute capability {cuda.capability}", "Ampere or newer"),
        "driver": ("any", *words[:1], cuda.driver),
    }
    for key, fitting in here.items():
        if made.get(key) not in fitting:
            raise BundleError(
                4,
                f"this engine was built for another machine ({key}: {str(made.get(key))[:80]}, here {fitting[0]})",
                "make a bundle for a target that compiles on the device, or one on this machine",
            )
    if made["gpu"] == "Ampere or newer" and float(cuda.capability) < 8:
        raise BundleError(4, f"this engine needs an Ampere GPU or newer; this is a {cuda.name}", "use another GPU")


def build(trt: Any, logger: Any, path: Path, run: Dict[str, Any], out: Path) -> None:
    """Build an engine by the Python API, strongly typed: precision stands in the ONNX graph."""
    options = run["options"]
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise BundleError(
            4, f"TensorRT {trt.__version__} can't take this model: {'; '.join(errors)[:400]}", "use a newer TensorRT"
        )
    config = builder.create_builder_config()
    config.builder_optimization_level = options["optimization_level"]
    if options["workspace_mb"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace_mb"] * 2**20)
    if not options["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options["dla_core"] is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options["dla_core"]
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    profile = builder.create_optimization_profile()
    free = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 in tuple(tensor.shape):
            free[tensor.name] = ranges(tensor.name, tuple(tensor.shape), run)
            profile.set_shape(tensor.name, *free[tensor.name])
    if free:
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BundleError(3, "TensorRT could not build the engine", "see its messages above; free some memory")
    out.write_bytes(bytes(plan))


def ranges(name: str, shape: Tuple[int, ...], run: Dict[str, Any]) -> List[Tuple[int, ...]]:
    """Smallest, usual and largest shape of an input with free sizes."""
    given = run["options"]["shapes"].get(name)
    if given:
        return [tuple(sizes) for sizes in given]
    if -1 in shape[1:]:
        raise BundleError(2, f"the input '{name}' has free sizes besides the batch", "set [options.shapes] and bundle")
    largest = max(run["options"]["max_batch"], run["batch"])
    return [(n, *shape[1:]) for n in (1, run["batch"], largest)]


class Cuda:
    """The few calls of the CUDA runtime library that buffers need."""

    def __init__(self, device: int, library: Any = None) -> None:
        self.library = library or self._load()
        self.check("cudaSetDevice", device)
        properties = ctypes.create_string_buffer(65536)  # its first field is the name, in every version
        self.check("cudaGetDeviceProperties", properties, device)
        self.name = properties.value.decode(errors="replace")
        self.capability = f"{self._attribute(75, device)}.{self._attribute(76, device)}"
        version = read("proc/driver/nvidia/version", "etc/nv_tegra_release") or ""
        self.driver = version.split("\n")[0]

    def _load(self) -> Any:
        names = [ctypes.util.find_library("cudart"), "libcudart.so"]
        names += [f"libcudart.so.{n}" for n in (13, 12, 11)] + ["/usr/local/cuda/lib64/libcudart.so"]
        for name in filter(None, names):
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        raise BundleError(4, "the CUDA runtime library (libcudart) is not here", "install CUDA, or on a Jetson JetPack")

    def _attribute(self, number: int, device: int) -> int:
        value = ctypes.c_int()
        self.check("cudaDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def check(self, function: str, *arguments: Any) -> None:
        """Call a function; an error code is trouble."""
        code = getattr(self.library, function)(*arguments)
        if code:
            raise BundleError(
                4 if code in (35, 100) else 3, f"{function} failed with CUDA error {code}", "see nvidia-smi"
            )

    def allocate(self, size: int) -> ctypes.c_void_p:
        """Memory on the GPU."""
        pointer = ctypes.c_void_p()
        self.check("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer

    def copy(self, to: Any, source: Any, size: int, kind: int) -> None:
        """Copy; kind 1: to the GPU, 2: from it."""
        self.check("cudaMemcpy", to, source, ctypes.c_size_t(size), kind)


class Engine:
    """A loaded engine with its buffers."""

    def __init__(self, trt: Any, cuda: Cuda, runtime: Any, engine: Any) -> None:
        import numpy as np

        self.np, self.cuda, self.engine, self._runtime = np, cuda, engine, runtime
        self.context = engine.create_execution_context()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self.kinds = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self.buffers: Dict[str, Tuple[Any, int]] = {}

    def run(self, feeds: Feeds) -> List[Any]:
        """One inference, copies to the GPU and back included."""
        for name in self.inputs:
            value = self.np.ascontiguousarray(feeds[name], self.kinds[name])
            if not self.context.set_input_shape(name, value.shape):
                raise BundleError(2, f"'{name}' has a shape this engine does not take: {value.shape}", "see max_batch")
            self.cuda.copy(self._buffer(name, value.nbytes), ctypes.c_void_p(value.ctypes.data), value.nbytes, 1)
        results = []
        for name in self.outputs:
            results.append(self.np.empty(tuple(self.context.get_tensor_shape(name)), self.kinds[name]))
            self._buffer(name, results[-1].nbytes)
        if not self.context.execute_async_v3(0):
            raise BundleError(3, "TensorRT failed to run the model", "see its messages above")
        self.cuda.check("cudaDeviceSynchronize")
        for name, result in zip(self.outputs, results):
            self.cuda.copy(ctypes.c_void_p(result.ctypes.data), self.buffers[name][0], result.nbytes, 2)
        return results

    def _buffer(self, name: str, size: int) -> Any:
        if name not in self.buffers or self.buffers[name][1] < size:
            self.buffers[name] = (self.cuda.allocate(size), size)
            self.context.set_tensor_address(name, self.buffers[name][0].value)
        return self.buffers[name][0]


class Trtexec:
    """The same by NVIDIA's command-line tool: a process for each inference, so its own clock tells the latency."""

    def __init__(self, tool: str, path: Path, run: Dict[str, Any]) -> None:
        self.tool, self.path, self.facts = tool, path, run
        self.manifest = json.loads((path.parent / "manifest.json").read_text())
        bound = [self._call("--help")[:200], read("proc/driver/nvidia/version", "etc/nv_tegra_release")]
        self.engine = path if path.suffix == ".engine" else kept(path, run, bound, self._build)

    def _build(self, out: Path) -> None:
        options = self.facts["options"]
        command = [f"--onnx={self.path}", f"--saveEngine={out}", "--stronglyTyped", "--skipInference"]
        command.append(f"--builderOptimizationLevel={options['optimization_level']}")
        if options["workspace_mb"]:
            command.append(f"--memPoolSize=workspace:{options['workspace_mb']}")
        if not options["tf32"]:
            command.append("--noTF32")
        if options["dla_core"] is not None:
            command += [f"--useDLACore={options['dla_core']}", "--allowGPUFallback"]
        shapes: Dict[str, List[Tuple[int, ...]]] = {}
        for port in self.manifest["inputs"]:
            if None in port["shape"]:
                sizes = tuple(-1 if n is None else n for n in port["shape"])
                shapes[port["name"]] = ranges(port["name"], sizes, self.facts)
        for index, kind in enumerate(("min", "opt", "max")):
            if shapes:
                command.append(f"--{kind}Shapes=" + spelt({name: three[index] for name, three in shapes.items()}))
        self._call(*command)

    def times_ms(self, feeds: Feeds, seconds: float) -> List[float]:
        """Latencies of many inferences on inputs of the tool's own, copies to the GPU and back included."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "times.json"
            command = [f"--loadEngine={self.engine}", f"--exportTimes={out}", f"--duration={max(1, round(seconds))}"]
            self._call(*command, *self._shapes(feeds), "--iterations=100")
            return [float(entry["latencyMs"]) for entry in json.loads(out.read_text())]

    def _shapes(self, feeds: Feeds) -> List[str]:
        free = {p["name"]: feeds[p["name"]].shape for p in self.manifest["inputs"] if None in p["shape"]}
        return ["--shapes=" + spelt(free)] if free else []

    def run(self, feeds: Feeds) -> List[Any]:
        """One inference in a process of its own."""
        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            files = []
            for number, (name, value) in enumerate(sorted(feeds.items())):
                file = Path(folder) / f"{number}.bin"
                file.write_bytes(np.ascontiguousarray(value).tobytes())
                files.append(f"{name}:{file}")
            out = Path(folder) / "out.json"
            command = [f"--loadEngine={self.engine}", "--loadInputs=" + ",".join(files), f"--exportOutput={out}"]
            self._call(*command, *self._shapes(feeds), "--iterations=1", "--warmUp=0", "--duration=0")
            found = {entry["name"]: entry for entry in json.loads(out.read_text())}
        return [
            np.array(found[p["name"]]["values"], p["dtype"]).reshape(sizes(found[p["name"]]["dimensions"]))
            for p in self.manifest["outputs"]
        ]

    def _call(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.tool, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=BUILD_S,
        )
        text = done.stdout.decode(errors="replace")
        if done.returncode:
            raise BundleError(3, f"trtexec failed: {text.strip()[-400:]}", "check the TensorRT version of this device")
        return text


def spelt(shapes: Dict[str, Tuple[int, ...]]) -> str:
    """Shapes as trtexec takes them: ``name:1x3x8x8,…``."""
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def sizes(text: str) -> List[int]:
    """``1x10`` as numbers."""
    return [int(size) for size in text.split("x")]
