"""ONNX Runtime: CPUs everywhere; NVIDIA GPUs through its CUDA and TensorRT providers.

The graph is optimized ahead of time and saved, so that a device does not do it at every start.
How far depends on where it will run: see :func:`_saved_level`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekit.backends import (
    Feeds,
    LayerPrecision,
    LayerTime,
    Port,
    _ort_graph,
    check_feeds,
    check_file,
    options_of,
)
from edgekit.errors import EdgekitError, InputError, StageError, UnavailableError, missing_package

if TYPE_CHECKING:
    import numpy as np

    from edgekit.target import Target

EXTRA = "onnxruntime"
PACKAGE = "onnxruntime"
TESTED = ("1.22", "1.32")
DEVICES: dict[str, dict[str, Any]] = {"CPU": {}, "CUDA": {"provider": "cuda"}, "TensorRT": {"provider": "tensorrt"}}
KINDS = (".onnx", ".ort")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
LARGE = 2**30  # bytes: beyond this, weights go into a file of their own (protobuf holds 2 GiB)
WARM_UP, FEWEST_RUNS, MOST_RUNS, PROFILE_S = 5, 20, 200, 5.0  # of profiling
Level = Literal["auto", "none", "basic", "extended", "all"]


class Options(BaseModel):
    """What a target's ``[options]`` may say.

    Attributes:
        provider: ``cpu``, ``cuda`` or ``tensorrt``; one that can't be used is an error, never a fallback.
        provider_options: Passed to the provider as they are.
        format: ``onnx``, or ``ort`` (flatbuffers: loads faster, runs in minimal builds).
        optimization: How far the graph is optimized before it is saved; ``auto``: see the module's text.
        spinning: Threads busy-wait between operators: lower latency, a busy CPU.
        arena: Memory is kept between inferences: faster, larger.
        memory_pattern: Memory is planned from the first inference's shapes.
        flush_denormals: Treat denormal numbers as zero.
        session: Further session entries by ONNX Runtime's own keys.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    provider_options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    format: Literal["onnx", "ort"] = "onnx"
    optimization: Level = "auto"
    spinning: bool = False
    arena: bool = True
    memory_pattern: bool = True
    flush_denormals: bool = False
    session: dict[str, str] = Field(default_factory=dict)


# Weights that are stored small on purpose (a codebook and its indices) are unfolded when the file is loaded, not in it.
GROWN = 1.5  # of the source's size: what was stored small was unfolded
KEEP_STORED = {"optimization.disable_specified_optimizers": "ConstantFolding;WeightBiasQuantization"}

# ONNX Runtime quantizes float weights between Q/DQ by itself, also of a layer that was put back to float for its
# accuracy. A file with such layers is marked at its end (as metadata of the model, which any reader skips).
KEEP_FLOAT = {"optimization.disable_specified_optimizers": "WeightBiasQuantization"}
MARK = b"\x72\x17\x0a\x12edgekit.keep_float\x12\x011"  # metadata_props {key: edgekit.keep_float, value: 1}


def options_for(artifact: Path, target: Target) -> Options:
    """A target's options, with the session entries that this very artifact needs to run as it was measured.

    Raises:
        InputError: See :func:`edgekit.backends.options_of`.
    """
    options = options_of(Options, target)
    with artifact.open("rb") as file:
        file.seek(-min(len(MARK), artifact.stat().st_size), os.SEEK_END)
        marked = file.read() == MARK
    return options.model_copy(update={"session": {**KEEP_FLOAT, **options.session}}) if marked else options


def version() -> str:
    """ONNX Runtime's version."""
    return str(_runtime().__version__)


def probe() -> dict[str, str]:
    """Version and providers.

    Raises:
        UnavailableError: Not installed, or its native library does not load.
    """
    runtime = _runtime()
    devices = [name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers()]
    return {"version": runtime.__version__, "devices": ", ".join(d for d in devices if d != "Azure")}


def compile_model(model: Path, target: Target, out: Path) -> Path:
    """Optimize ``model`` (``.onnx``) for the target and save it in ``out``.

    Raises:
        InputError: Not a model, or one too new for this runtime.
        UnavailableError: An operator or provider is missing.
    """
    options = options_of(Options, target)
    check_file(model, (".onnx",))
    artifact = out / f"model.{options.format}"
    parses = importlib.util.find_spec("onnx") is not None  # a board need not have it
    keep_float = parses and _ort_graph.leaves_float(model)
    if keep_float:
        options = options.model_copy(update={"session": {**KEEP_FLOAT, **options.session}})
    _save(model, artifact, target, options)
    if not _is_large(model) and artifact.stat().st_size > GROWN * model.stat().st_size:
        options = options.model_copy(update={"session": {**options.session, **KEEP_STORED}})
        _save(model, artifact, target, options)
    if parses and options.format == "onnx":
        _ort_graph.lighten(artifact)
    if keep_float and options.format == "onnx":
        with artifact.open("ab") as file:
            file.write(MARK)
    return artifact


def _save(model: Path, artifact: Path, target: Target, options: Options) -> None:
    settings = _settings(target, options, _saved_level(target, options))
    settings.optimized_model_filepath = str(artifact)
    settings.add_session_config_entry("session.save_model_format", options.format.upper())
    if _is_large(model):
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.data")
    _create(model, settings, _providers(options))


def open_model(artifact: Path, target: Target) -> _Session:
    """Load an ``.onnx`` or ``.ort`` file.

    Raises:
        InputError: Not a model, or one too new for this runtime.
        UnavailableError: An operator or provider is missing.
    """
    check_file(artifact, KINDS)
    options = options_for(artifact, target)
    return _Session(_create(artifact, _settings(target, options, "all"), _providers(options)))


def profile(artifact: Path, target: Target, feeds: Feeds) -> list[LayerTime]:
    """Time by node from ONNX Runtime's profiler: mean of 20 to 200 inferences after warm-up.

    The profiler counts whole microseconds, and costs some itself: read the times as shares.
    """
    check_file(artifact, KINDS)
    options = options_for(artifact, target)
    with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
        settings = _settings(target, options, "all")
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder, "trace"))
        session = _Session(_create(artifact, settings, _providers(options)))
        check_feeds(session.inputs, feeds)
        deadline = time.monotonic() + PROFILE_S
        for count in range(WARM_UP + MOST_RUNS):
            session.run(feeds)
            if count >= WARM_UP + FEWEST_RUNS and time.monotonic() > deadline:
                break
        events = json.loads(Path(session.session.end_profiling()).read_text())
    return _ort_graph.layer_times(events, WARM_UP)


def layers(artifact: Path, target: Target) -> list[LayerPrecision]:
    """What each node of the graph that really runs computes in, conversions included.

    For a CPU of another family, whose kernels are not here to be seen, it is read from the Q/DQ in the file.

    Raises:
        InputError, UnavailableError: As :func:`open_model`.
    """
    check_file(artifact, KINDS)
    options = options_for(artifact, target)
    seen = target.device.arch in ("", platform.machine())
    with tempfile.TemporaryDirectory(prefix="edgekit-layers-") as folder:
        settings = _settings(target, options, "all" if seen else "basic")
        settings.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        settings.add_session_config_entry("session.save_model_format", "ONNX")
        if _is_large(artifact):
            settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
        session = _Session(_create(artifact, settings, _providers(options)))
        optimized = Path(settings.optimized_model_filepath)
        return _ort_graph.layer_precisions(optimized, session.inputs, arch=target.device.arch, seen=seen)


class _Session:
    """A loaded model (see :class:`edgekit.backends.Session`)."""

    __slots__ = ("_names", "_run", "inputs", "outputs", "session")

    def __init__(self, session: Any) -> None:
        self.session = session
        self.inputs = tuple(_port(node) for node in session.get_inputs())
        self.outputs = tuple(_port(node) for node in session.get_outputs())
        self._names = [port.name for port in self.outputs]
        self._run = session.run

    def run(self, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
        return self._run(self._names, feeds)


_DTYPES = {"float": "float32", "double": "float64", "bool": "bool", "string": "object"}


def _port(node: Any) -> Port:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape)
    return Port(name=node.name, dtype=_DTYPES.get(kind, kind), shape=shape)


def _runtime() -> Any:
    """The module, with its telemetry off (on by default since 1.29) before it loads."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing_package("onnxruntime", EXTRA, "to run ONNX Runtime models") from error
    except ImportError as error:
        raise UnavailableError(
            f"not available here, because ONNX Runtime is installed but its library does not load: {error}",
            remedy="install a build for this CPU, C library and Python version, for example an older onnxruntime",
        ) from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _saved_level(target: Target, options: Options) -> Level:
    """How far the graph may be optimized here.

    For this architecture: ``extended``; the last step, the blocked layout (NCHWc), depends on the
    very CPU and is done when the model is loaded. For another one: ``basic``, for the fusions of
    ``extended`` follow the machine they run on: on x86-64 they turn int8 activations into uint8 and
    leave integer kernels out that ARM has (tried with 1.32; tests/test_backends_onnxruntime.py).
    """
    if options.optimization != "auto":
        return options.optimization
    return "extended" if target.device.arch == platform.machine() else "basic"


def _is_large(model: Path) -> bool:
    return model.stat().st_size > LARGE or any(model.parent.glob("*.data"))


def _settings(target: Target, options: Options, level: Level) -> Any:
    runtime = _runtime()
    levels = runtime.GraphOptimizationLevel
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = {
        "none": levels.ORT_DISABLE_ALL,
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
    }.get(level, levels.ORT_ENABLE_ALL)
    settings.intra_op_num_threads = target.run.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    settings.enable_cpu_mem_arena = options.arena
    settings.enable_mem_pattern = options.memory_pattern
    entries = {
        "session.intra_op.allow_spinning": str(int(options.spinning)),
        "session.inter_op.allow_spinning": "0",
        "session.set_denormal_as_zero": str(int(options.flush_denormals)),
        **options.session,
    }
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    return settings


def _providers(options: Options) -> list[Any]:
    """The provider asked for, then the CPU for what it leaves; a provider that is missing is an error."""
    wanted = PROVIDERS[options.provider]
    if wanted == PROVIDERS["cpu"]:
        return [wanted]
    if wanted not in _runtime().get_available_providers():
        raise UnavailableError(
            f"not available here, because this build of ONNX Runtime has no {wanted}",
            remedy="install onnxruntime-gpu in place of onnxruntime, on a machine with an NVIDIA GPU",
        )
    return [(wanted, {key: str(value) for key, value in options.provider_options.items()}), PROVIDERS["cpu"]]


def _create(model: Path, settings: Any, providers: list[Any]) -> Any:
    try:
        session = _runtime().InferenceSession(str(model), settings, providers=providers)
    except Exception as error:
        raise _explained(error, model) from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if session.get_providers()[0] != wanted:
        raise UnavailableError(
            f"not available here, because {wanted} did not start and ONNX Runtime fell back to the CPU",
            remedy="check the driver, CUDA and cuDNN versions that this onnxruntime-gpu was built for",
        )
    session.disable_fallback()
    return session


def _explained(error: Exception, model: Path) -> EdgekitError:
    """ONNX Runtime's exception, in the words of the error tree."""
    kind, text = type(error).__name__, str(error).strip()
    short = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from \S+ failed:)?", "", text).split("\n")[0][:400]
    if "opset" in text and ("guarantees support" in text or "under development" in text):
        return InputError(
            f"the model's operator set is too new for ONNX Runtime {version()}: {short}",
            where=str(model),
            remedy="export with a lower opset, or install a newer onnxruntime",
        )
    if kind == "NotImplemented" or "is not a registered function/op" in text or "No Op registered" in text:
        return UnavailableError(
            f"ONNX Runtime {version()} lacks an operator of this model: {short}",
            where=str(model),
            remedy="replace the operator in the model, use a newer onnxruntime, or drop this target",
        )
    unreadable = ("InvalidProtobuf", "NoSuchFile", "InvalidGraph", "NoModel", "InvalidArgument")
    if kind in unreadable or "ORT model" in text or "ORT format" in text:
        return InputError(
            f"ONNX Runtime can't read this model: {short}",
            where=str(model),
            remedy="it is damaged or no ONNX model; make it again",
        )
    return StageError(
        f"ONNX Runtime failed on this model: {short}",
        where=str(model),
        remedy="run again with -v for the whole message, or try another onnxruntime",
        details=text[-4000:],
    )
