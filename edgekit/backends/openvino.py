"""OpenVINO: Intel CPUs, integrated GPUs and NPUs (and other x86-64 CPUs)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekit import store
from edgekit.backends import (
    Feeds,
    LayerPrecision,
    LayerTime,
    Port,
    _ov_cache,
    _ov_graph,
    _ov_infer,
    check_feeds,
    check_file,
    options_of,
    zero_feeds,
)
from edgekit.errors import EdgekitError, InputError, StageError, UnavailableError, missing_package

if TYPE_CHECKING:
    import numpy as np

    from edgekit.target import Target

EXTRA = "openvino"
PACKAGE = "openvino"
TESTED = ("2025.2", "2026.4")
DEVICES: dict[str, dict[str, Any]] = {
    "CPU": {},
    "GPU": {"device": "GPU"},
    "NPU": {"device": "NPU", "static_batch": True},
}
KINDS = (".xml", ".onnx")
MOST_SHAPES = 16  # compiled models that a session keeps
Shapes = dict[str, tuple[int, ...]]
COMBINING = ("AUTO", "HETERO", "MULTI", "BATCH")  # devices that choose among others
WARM_UP, FEWEST_RUNS, MOST_RUNS, PROFILE_S = 5, 20, 200, 5.0  # of profiling


class Options(BaseModel):
    """What a target's ``[options]`` may say.

    Attributes:
        device: ``CPU``, ``GPU``, ``GPU.1``, ``NPU``, ``AUTO``, ``AUTO:GPU,CPU`` …
        inference_precision: What float operators compute in: ``f32``, ``f16``, ``bf16``; ``auto``: the plug-in
            chooses. For CPU and AUTO the default is ``f32``, for a CPU with bf16 runs "fp32" models in bf16 otherwise.
        performance_hint: ``latency``, ``throughput`` or ``none``.
        static_batch: The artifact takes ``run.batch`` alone (an NPU needs it).
        specialize: Compile a model with free sizes for the very shapes that come (for ``run.batch`` when it is loaded):
            a tenth faster on small models, and right where OpenVINO is wrong with free sizes.
        cache_dir: Where compiled blobs are kept, in a folder ``edgekit`` of their own, each with its hash: one that was
            damaged since is dropped, for OpenVINO would compute with it. Empty: none are kept.
        properties: Further properties by OpenVINO's own names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "CPU"
    inference_precision: Literal["f32", "f16", "bf16", "auto"] | None = None
    performance_hint: Literal["latency", "throughput", "none"] = "latency"
    static_batch: bool = False
    specialize: bool = True
    cache_dir: str = ""
    properties: dict[str, str | int | bool] = Field(default_factory=dict)


def version() -> str:
    """OpenVINO's version."""
    return str(_runtime().get_version()).split("-")[0]


def probe() -> dict[str, str]:
    """Version and devices.

    Raises:
        UnavailableError: Not installed, or its native library does not load, or it sees no device.
    """
    core = _runtime().Core()
    names = {device: core.get_property(device, "FULL_DEVICE_NAME") for device in core.available_devices}
    if not names:
        raise UnavailableError(
            "not available here, because OpenVINO finds no device",
            remedy="use an x86-64 or ARM64 CPU, or install the driver of the Intel GPU or NPU",
        )
    return {"version": version(), "devices": ", ".join(f"{device} ({name})" for device, name in names.items())}


def compile_model(model: Path, target: Target, out: Path) -> Path:
    """Convert ``model`` (``.onnx``) to OpenVINO's IR in ``out``: ``model.xml`` and ``model.bin``.

    Raises:
        InputError: Not a model. UnavailableError: An operator or device is missing.
    """
    options = options_of(Options, target)
    check_file(model, (".onnx",))
    runtime = _runtime()
    graph = _read(runtime.Core(), model)
    try:
        if options.static_batch:
            _fix_batch(graph, target.run.batch)
        _fold(graph)
        runtime.save_model(graph, str(out / "model.xml"), compress_to_fp16=False)
        text = (out / "model.xml").read_text()
        store.write_text(out / "model.xml", re.sub(r">\s+<", "><", text))  # a fifth of it is blanks
    except Exception as error:
        raise _failed(error, model) from error
    session = _session(out / "model.xml", target, options)
    if session.compiled is None:  # sizes besides the batch are free: whether the device can, is tried without them
        _session(out / "model.xml", target, options.model_copy(update={"specialize": False}))
    return out / "model.xml"


def open_model(artifact: Path, target: Target) -> _Session:
    """Load an ``.xml`` (with its ``.bin``) or an ``.onnx`` file.

    Raises:
        InputError: Not a model. UnavailableError: The device is not here.
    """
    options = options_of(Options, target)
    check_file(artifact, KINDS)
    return _session(artifact, target, options)


def profile(artifact: Path, target: Target, feeds: Feeds) -> list[LayerTime]:
    """Time by layer from OpenVINO's profiler: mean of 20 to 200 inferences after warm-up.

    The profiler counts whole microseconds: read the times as shares.
    """
    options = options_of(Options, target)
    check_file(artifact, KINDS)
    session = _session(artifact, target, options, PERF_COUNT=True)
    check_feeds(session.inputs, feeds)
    for _ in range(WARM_UP):
        session.run(feeds)
    before = _ov_graph.read(session.compiled)
    deadline, runs = time.monotonic() + PROFILE_S, WARM_UP
    while runs < WARM_UP + FEWEST_RUNS or (runs < WARM_UP + MOST_RUNS and time.monotonic() < deadline):
        session.run(feeds)
        runs += 1
    return _ov_graph.layer_times(before, _ov_graph.read(session.compiled), WARM_UP, runs)


def layers(artifact: Path, target: Target) -> list[LayerPrecision]:
    """What each layer of OpenVINO's runtime model computes in, conversions included.

    Raises:
        InputError, UnavailableError: As :func:`open_model`.
    """
    session, batch = open_model(artifact, target), target.run.batch
    session.run(zero_feeds(session.inputs, batch=batch))  # free sizes are known after an inference only
    products = _ov_graph.products(session.graph, batch)
    return _ov_graph.layer_precisions(_ov_graph.read(session.compiled), batch, products)


class _Session:
    """A loaded model (see :class:`edgekit.backends.Session`), compiled anew for every set of input shapes that comes.

    OpenVINO computes some models wrongly when their batch is free (2026.4 on a CPU: an int8 ResNet-20 whose flatten
    was exported as a Gather of computed indices, logits off by 2.4; right with every fixed batch), and all slower.
    """

    __slots__ = ("_compile", "_free", "_infers", "_source", "compiled", "graph", "inputs", "outputs")

    def __init__(self, graph: Any, compile_for: Callable[[Any, Shapes], tuple[Any, Any]], specialize: bool) -> None:
        self.inputs = tuple(_port(port) for port in graph.inputs)
        self.outputs = tuple(_port(port) for port in graph.outputs)
        self._compile = compile_for
        self._free = tuple(port.name for port in self.inputs if specialize and None in port.shape)
        self._infers: dict[tuple[tuple[int, ...], ...], Callable[[Feeds], list[np.ndarray[Any, Any]]]] = {}
        self._source = self.graph = graph
        self.compiled: Any = None

    def run(self, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
        shapes = tuple([feeds[name].shape for name in self._free])
        return (self._infers.get(shapes) or self.prepare(shapes))(feeds)

    def prepare(self, shapes: tuple[tuple[int, ...], ...]) -> Callable[[Feeds], list[np.ndarray[Any, Any]]]:
        """Compile for these shapes of the inputs with free sizes; the oldest of many is forgotten."""
        while len(self._infers) >= MOST_SHAPES:
            self._infers.pop(next(iter(self._infers)))
        self.compiled, self.graph = self._compile(self._source, dict(zip(self._free, shapes, strict=True)))
        self._infers[shapes] = _ov_infer.bound(self.compiled, _runtime().Tensor)
        return self._infers[shapes]


def _port(port: Any) -> Port:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return Port(name=port.get_any_name(), dtype=str(port.get_element_type().to_dtype()), shape=shape)


def _runtime() -> Any:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise missing_package("openvino", EXTRA, "to run OpenVINO models") from error
    except ImportError as error:
        raise UnavailableError(
            f"not available here, because OpenVINO is installed but its library does not load: {error}",
            remedy="install a build for this CPU, C library and Python version",
        ) from error
    return openvino


def _properties(target: Target, options: Options) -> dict[str, Any]:
    device = options.device.split(":")[0].split(".")[0]
    precision = options.inference_precision or ("f32" if device in ("CPU", "AUTO") else "auto")
    properties: dict[str, Any] = {}
    if device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = target.run.threads
        properties["NUM_STREAMS"] = 1
    if precision != "auto":
        properties["INFERENCE_PRECISION_HINT"] = precision
    if options.performance_hint != "none":
        properties["PERFORMANCE_HINT"] = options.performance_hint.upper()
    if options.cache_dir:
        properties["CACHE_DIR"] = str(Path(options.cache_dir, "edgekit"))  # ours alone: see _ov_cache
    return {**properties, **options.properties}


def _session(artifact: Path, target: Target, options: Options, **extra: Any) -> _Session:
    """A session, compiled now for ``run.batch`` if no other size is free (else when shapes come)."""
    core = _runtime().Core()
    properties = {**_properties(target, options), **extra}
    cache = properties.get("CACHE_DIR")
    _check_device(core, options.device)

    def compile_for(graph: Any, shapes: Shapes) -> tuple[Any, Any]:
        try:
            if shapes:
                graph = graph.clone()
                graph.reshape(
                    {port: shapes.get(port.get_any_name(), port.get_partial_shape()) for port in graph.inputs}
                )
            with _ov_cache.vouched(Path(cache)) if cache else nullcontext():
                return core.compile_model(graph, options.device, properties), graph
        except EdgekitError:
            raise
        except Exception as error:
            raise _failed(error, artifact) from error

    session = _Session(_read(core, artifact), compile_for, options.specialize)
    free = [port.shape for port in session.inputs if None in port.shape and options.specialize]
    if all(shape[0] is None and None not in shape[1:] for shape in free):
        session.prepare(tuple((target.run.batch, *(size or 1 for size in shape[1:])) for shape in free))
    return session


def _check_device(core: Any, device: str) -> None:
    """Refuse a device that is not here; combining ones (AUTO …) are left to OpenVINO."""
    found = core.available_devices
    kind = device.split(":")[0].split(".")[0]
    known = {name.split(".")[0] for name in found}
    if kind in COMBINING or device in found or (device == kind and kind in known):
        return
    raise UnavailableError(
        f"not available here, because OpenVINO finds no device '{device}' (found: {', '.join(found) or 'none'})",
        remedy=f"install the {kind} driver, or run on a machine that has one",
    )


def _fix_batch(graph: Any, batch: int) -> None:
    shapes = {}
    for port in graph.inputs:
        shape = port.get_partial_shape()
        if len(shape) and shape[0].is_dynamic:
            shape[0] = batch
        shapes[port] = shape
    graph.reshape(shapes)


def _fold(graph: Any) -> None:
    """Compute what follows from constants alone, but leave weights in the type that they are stored in.

    OpenVINO does it for itself when it compiles, but its ONNX reader makes eight operators of every bias and four of
    every zero point, each hundreds of bytes of text in the file. (``openvino.convert_model`` would do this too, and
    report its use.)
    """
    from openvino import op, passes

    stored = [node.output(0) for node in graph.get_ops() if node.get_type_name() == "Constant" and _is_stored(node)]
    held = [op.Parameter(value.get_element_type(), value.get_partial_shape()) for value in stored]
    for value, parameter in zip(stored, held, strict=True):
        value.replace(parameter.output(0))
    graph.add_parameters(held)
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(graph)
    for value, parameter in zip(stored, held, strict=True):
        parameter.output(0).replace(value)
        graph.remove_parameter(parameter)


def _is_stored(constant: Any) -> bool:
    """Whether a constant is unfolded when it is read: a weight of few bits. Zero points, lone or all 0, are none."""
    readers = (port.get_node().get_type_name() for port in constant.output(0).get_target_inputs())
    return "Convert" in readers and constant.data.size > 1 and bool(constant.data.any())


def _read(core: Any, model: Path) -> Any:
    """The model's graph; what fails here is the file's fault, or an operator that OpenVINO lacks."""
    try:
        return core.read_model(str(model))
    except Exception as error:
        text = str(error).strip()
        lacking = re.search(r"(?:No conversion rule found for operations|Conversion is failed for): (.+)", text)
        if lacking:
            raise UnavailableError(
                f"OpenVINO {version()} lacks an operator of this model: {lacking[1]}",
                where=str(model),
                remedy="replace the operator in the model, use a newer openvino, or drop this target",
                details=text[-4000:],
            ) from error
        raise InputError(
            f"OpenVINO can't read this model: {_short(text)}",
            where=str(model),
            remedy="it is damaged or no model, or its .bin is not beside it; make it again",
            details=text[-4000:],
        ) from error


def _failed(error: Exception, model: Path) -> EdgekitError:
    """An exception while compiling, in the words of the error tree."""
    text = str(error).strip()
    return StageError(
        f"OpenVINO failed on this model: {_short(text)}",
        where=str(model),
        remedy="run again with -v for the whole message, or try another openvino",
        details=text[-4000:],
    )


def _short(text: str) -> str:
    """The line that says something, without the places in OpenVINO's source."""
    lines = [line for line in text.split("\n") if line and not line.startswith(("Exception from", "Check '"))]
    return (lines or [text])[0][:400]
