"""TensorRT: NVIDIA GPUs and Jetson; version 10 (JetPack stays on it) and 11.

Networks are strongly typed on both: precision stands in the ONNX graph (Q/DQ with zero point 0,
casts for fp16), so one ONNX file serves both. An engine is bound to GPU, driver and TensorRT
version; a fingerprint beside it is compared before TensorRT reads a byte of it, and code inside
an engine is never allowed to run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgekit.backends import Feeds, LayerPrecision, LayerTime, _cuda, _trt, _trt_layers, check_file, options_of
from edgekit.backends._trt_session import Session
from edgekit.errors import InputError, StageError, UnavailableError
from edgekit.store import Store, cache_dir, sha256_file, sha256_json, write_bytes, write_json

if TYPE_CHECKING:
    from edgekit.target import Target

EXTRA = "tensorrt"
PACKAGE = "tensorrt"
TESTED = ("10.3", "11.4")
DEVICES: dict[str, dict[str, Any]] = {"GPU": {}}
KINDS = (".engine", ".onnx")
OLDEST_GPU = {10: (7, 0), 11: (7, 5)}  # compute capability, by TensorRT's major version (its support matrix)
PROFILED = 30  # inferences whose layer times are averaged


class Options(BaseModel):
    """What a target's ``[options]`` may say.

    Attributes:
        max_batch: Largest batch of the optimization profile; it is tuned for ``run.batch``.
        shapes: For inputs with further free sizes: name → ``[min, opt, max]`` shapes.
        optimization_level: TensorRT's builder optimization level, 0 (builds fast) to 5 (runs fast).
        workspace_mb: Limit of scratch memory in MiB; None: the whole GPU's.
        version_compatible: The engine runs on newer TensorRT of the same major version; it then needs ``lean_runtime``.
        lean_runtime: Path of the lean runtime library that loads a version-compatible engine.
        hardware_compatible: Which other GPUs the engine runs on.
        dla_core: Run on this deep-learning accelerator (Jetson AGX), what it lacks on the GPU.
        timing_cache: Keep measured tactics between builds.
        tf32: Let "fp32" round its factors to 10 bits.
        device: Number of the GPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_batch: int = Field(32, ge=1)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = Field(default_factory=dict)
    optimization_level: int = Field(3, ge=0, le=5)
    workspace_mb: int | None = Field(None, ge=1)
    version_compatible: bool = False
    lean_runtime: str = ""
    hardware_compatible: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    dla_core: int | None = Field(None, ge=0)
    timing_cache: bool = True
    tf32: bool = False
    device: int = Field(0, ge=0)


def version() -> str:
    """TensorRT's version."""
    return str(_trt.runtime().__version__)


def probe(device: int = 0) -> dict[str, str]:
    """Version, GPU, compute capability and driver; that GPU is the one that is used from now on.

    Raises:
        UnavailableError: Not installed, libnvinfer does not load, no GPU, or a GPU too old.
    """
    trt = _trt.runtime()
    gpu = _cuda.use(device)
    major = int(trt.__version__.split(".")[0])
    oldest = OLDEST_GPU.get(major, OLDEST_GPU[11])
    if gpu.capability < oldest:
        raise UnavailableError(
            f"not available here, because the {gpu.name} is too old: TensorRT {trt.__version__} needs compute "
            f"capability {_dotted(oldest)}, it has {_dotted(gpu.capability)}",
            remedy="use a newer GPU, or an older TensorRT",
        )
    return {
        "version": trt.__version__,
        "devices": gpu.name,
        "compute_capability": _dotted(gpu.capability),
        "driver": gpu.driver,
    }


def compile_model(model: Path, target: Target, out: Path) -> Path:
    """Build an engine from ``model`` (``.onnx``): ``model.engine`` and its fingerprint ``model.engine.json``.

    Raises:
        InputError: Not a model, or free sizes without a shape.
        UnavailableError: An operator is missing, or no GPU.
    """
    options = options_of(Options, target)
    check_file(model, (".onnx",))
    facts = probe(options.device)
    trt, logger = _trt.runtime(), _trt.logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if options.dla_core is not None and hasattr(trt.OnnxParserFlag, "ADJUST_FOR_DLA"):
        parser.set_flag(trt.OnnxParserFlag.ADJUST_FOR_DLA)
    if not parser.parse_from_file(str(model)):
        raise _parse_error(parser, model)
    config = _config(builder, options)
    _add_profile(builder, config, network, target, options)
    cache = _timing_cache_file(facts) if options.timing_cache else None
    if cache:
        held = cache.read_bytes() if cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(held), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise StageError(
            f"TensorRT {trt.__version__} could not build an engine: {_trt.last_error()}",
            where=str(model),
            remedy="see its log with -v; a larger [options] workspace_mb may help",
        )
    if cache:
        write_bytes(cache, bytes(config.get_timing_cache().serialize()))
    artifact = out / "model.engine"
    write_bytes(artifact, bytes(plan))
    write_json(_fingerprint_file(artifact), {**_fingerprint(facts, options), "sha256": sha256_file(artifact)})
    return artifact


def open_model(artifact: Path, target: Target) -> Session:
    """Load an ``.engine`` that edgekit built for this machine, or build one from an ``.onnx`` and keep it.

    Raises:
        InputError: Damaged, or built for another GPU, driver or version. UnavailableError: No GPU.
    """
    options = options_of(Options, target)
    check_file(artifact, KINDS)
    facts = probe(options.device)
    engine_file = _built(artifact, target, facts) if artifact.suffix == ".onnx" else artifact
    _check_fingerprint(engine_file, facts, options)
    return Session(_deserialized(engine_file, options))


def profile(artifact: Path, target: Target, feeds: Feeds) -> list[LayerTime]:
    """Time by layer from TensorRT's profiler, mean of 30 inferences after warm-up."""
    session = open_model(artifact, target)
    session.run(feeds)
    times = _trt.profiler()
    session.context.profiler = times
    for _ in range(PROFILED):
        session.run(feeds)
    kinds = {layer.name: layer for layer in _trt_layers.inspected(session.engine, session.context)}
    return [
        LayerTime(
            name=name,
            operator=kinds[name].operator if name in kinds else "unknown",
            milliseconds=total / PROFILED,
            precision=kinds[name].precision if name in kinds else "unknown",
        )
        for name, total in times.totals.items()
    ]


def layers(artifact: Path, target: Target) -> list[LayerPrecision]:
    """What each layer of the engine computes in, from TensorRT's engine inspector."""
    session = open_model(artifact, target)
    return _trt_layers.inspected(session.engine, session.context)


def _config(builder: Any, options: Options) -> Any:
    trt = _trt.runtime()
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector tells names alone
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * 2**20)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)  # no code inside the engine
    levels = trt.HardwareCompatibilityLevel
    config.hardware_compatibility_level = {
        "ampere_plus": levels.AMPERE_PLUS,
        "same_compute_capability": levels.SAME_COMPUTE_CAPABILITY,
    }.get(options.hardware_compatible, levels.NONE)
    if options.dla_core is not None:
        if builder.num_DLA_cores <= options.dla_core:
            raise UnavailableError(
                f"not available here, because this machine has {builder.num_DLA_cores} DLA cores, not one "
                f"numbered {options.dla_core}",
                remedy="remove dla_core from the target's [options]",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    return config


def _add_profile(builder: Any, config: Any, network: Any, target: Target, options: Options) -> None:
    """One optimization profile, where the model has free sizes: batch 1 to ``max_batch``, tuned for ``run.batch``."""
    profile = builder.create_optimization_profile()
    free = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        free = True
        ranges = options.shapes.get(tensor.name)
        if ranges is None and -1 in shape[1:]:
            raise InputError(
                f"the input '{tensor.name}' has free sizes besides the batch: {shape}",
                where=f"target {target.name}",
                remedy=f"say them: [options.shapes] {tensor.name} = [[min …], [opt …], [max …]]",
            )
        largest = max(options.max_batch, target.run.batch)
        profile.set_shape(tensor.name, *(ranges or [(n, *shape[1:]) for n in (1, target.run.batch, largest)]))
    if free:
        config.add_optimization_profile(profile)


def _parse_error(parser: Any, model: Path) -> Exception:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    found = [(e.node_operator(), e.node_name(), e.desc()) for e in errors] or [("", "", _trt.last_error())]
    operator, name, text = found[0]
    details = "\n".join(" ".join(parts) for parts in found)
    if operator:
        return UnavailableError(
            f"TensorRT {version()} does not take the operator {operator} (node '{name}'): {text[:300]}",
            where=str(model),
            remedy="replace the operator in the model, use a newer TensorRT, or drop this target",
            details=details,
        )
    remedy = "it is damaged or no ONNX model; make it again"
    return InputError(f"TensorRT can't read this model: {text[:300]}", where=str(model), remedy=remedy, details=details)


def _timing_cache_file(facts: dict[str, str]) -> Path:
    return cache_dir() / "tensorrt" / f"{sha256_json(facts)[:32]}.timing"


def _built(model: Path, target: Target, facts: dict[str, str]) -> Path:
    """The engine of an ONNX file, from the store, where it is keyed by GPU, driver, version, target and model."""
    inputs = {"stage": "tensorrt", "model": sha256_file(model), "target": target.digest(), "facts": facts}

    def make(folder: Path, scratch: Path) -> dict[str, Any]:
        return {"main": compile_model(model, target, folder).name}

    return Store().build(inputs, make).path("model.engine")


def _fingerprint_file(artifact: Path) -> Path:
    return artifact.with_name(artifact.name + ".json")


def _fingerprint(facts: dict[str, str], options: Options) -> dict[str, str]:
    """What an engine is bound to; compatibility flags loosen it."""
    version = facts["version"]
    gpu = f"{facts['devices']} ({facts['compute_capability']})"
    if options.version_compatible:
        version = version.split(".")[0] + ".*"
    if options.hardware_compatible == "ampere_plus":
        gpu = "Ampere or newer"
    elif options.hardware_compatible == "same_compute_capability":
        gpu = f"compute capability {facts['compute_capability']}"
    loose = options.version_compatible or options.hardware_compatible != "none"
    return {"tensorrt": version, "gpu": gpu, "driver": "any" if loose else facts["driver"]}


def _check_fingerprint(artifact: Path, facts: dict[str, str], options: Options) -> None:
    """Refuse a foreign or damaged engine before TensorRT reads it."""
    file = _fingerprint_file(artifact)
    try:
        made: dict[str, str] = json.loads(file.read_text())
        digest = made.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            "this engine has no fingerprint beside it that edgekit wrote",
            where=str(artifact),
            remedy="compile the ONNX file again; engines of unknown origin are not opened",
        ) from error
    if sha256_file(artifact) != digest:
        raise InputError("this engine is damaged", where=str(artifact), remedy="compile the ONNX file again")
    here = _fingerprint(facts, options)
    if differing := [f"{key}: {made.get(key)}, here {here[key]}" for key in here if made.get(key) != here[key]]:
        raise InputError(
            f"this engine was built for another machine ({'; '.join(differing)})",
            where=str(artifact),
            remedy="compile the ONNX file again on this machine",
        )


def _deserialized(artifact: Path, options: Options) -> Any:
    trt = _trt.runtime()
    runtime = trt.Runtime(_trt.logger())
    runtime.engine_host_code_allowed = False
    if options.lean_runtime:
        runtime = runtime.load_runtime(options.lean_runtime)
    if options.dla_core is not None:
        runtime.DLA_core = options.dla_core
    engine = runtime.deserialize_cuda_engine(artifact.read_bytes())
    if engine is None:
        raise InputError(
            f"TensorRT {trt.__version__} refuses this engine: {_trt.last_error()}",
            where=str(artifact),
            remedy="compile the ONNX file again on this machine",
        )
    return engine


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
