"""What the TensorRT tests do in their child process: each case uses the backend as a user's target would."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt_spy

from edgekit.backends import PROOF_MODEL
from edgekit.errors import EdgekitError
from edgekit.target import Target


def target(**options: Any) -> Target:
    document = {"name": "gpu", "title": "", "source": "", "backend": "tensorrt", "device": {"arch": "aarch64"}}
    return Target.model_validate({**document, "options": options})


def every_case(libraries: str, bindings: str, folder: str) -> dict[str, Any]:
    """Run every case below in a folder of its own; a result is JSON, an error is its kind and text."""
    real = tensorrt_spy.load(libraries, bindings)
    cases = {name.removeprefix("case_"): run for name, run in globals().items() if name.startswith("case_")}
    return {name: _tried(run, real, Path(folder, name)) for name, run in cases.items()}


def _tried(run: Any, real: Any, folder: Path) -> Any:
    world, fake = tensorrt_spy.enter(real)
    out, model = folder / "out", folder / "proof.onnx"
    out.mkdir(parents=True)
    model.write_bytes(base64.b64decode(PROOF_MODEL))
    os.environ["EDGEKIT_CACHE_DIR"] = str(folder / "cache")
    try:
        return run(world, fake, out, model)
    except EdgekitError as error:
        return {"error": type(error).__name__, "text": str(error), "calls": [call.name for call in world.calls]}


def _backend() -> Any:
    from edgekit.backends import tensorrt

    return tensorrt


def case_compile(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    trt = world.real
    aim = target(max_batch=8, optimization_level=4, workspace_mb=64)
    artifact = _backend().compile_model(model, aim, folder)
    first = [call.args[0] for call in world.named("IBuilderConfig.create_timing_cache")]
    _backend().compile_model(model, aim, folder)
    second = [call.args[0] for call in world.named("IBuilderConfig.create_timing_cache")][1:]
    flags = world.named("Builder.create_network")[0].args[0]
    return {
        "content": artifact.read_bytes().decode(),
        "fingerprint": Path(f"{artifact}.json").read_text(),
        "strongly_typed": flags == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        "tf32_cleared": world.named("IBuilderConfig.clear_flag")[0].args[0] == trt.BuilderFlag.TF32,
        "shapes": world.named("IOptimizationProfile.set_shape")[0].args,
        "level": world.named("IBuilderConfig.builder_optimization_level=")[0].args[0],
        "workspace": world.named("IBuilderConfig.set_memory_pool_limit")[0].args[1],
        "timing_cache": [first[0].decode(), second[0].decode()],
    }


def case_flags(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    trt = world.real
    aim = target(version_compatible=True, hardware_compatible="ampere_plus", dla_core=1, timing_cache=False)
    _backend().compile_model(model, aim, folder)
    flags = [call.args[0] for call in world.named("IBuilderConfig.set_flag")]
    (level,) = world.named("IBuilderConfig.hardware_compatibility_level=")
    (device,) = world.named("IBuilderConfig.default_device_type=")
    return {
        "flags": [flag.name for flag in flags],
        "hardware": level.args[0] == trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        "dla": [device.args[0] == trt.DeviceType.DLA, world.named("IBuilderConfig.DLA_core=")[0].args[0]],
        "fingerprint": Path(folder, "model.engine.json").read_text(),
    }


def case_run(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    artifact = _backend().compile_model(model, target(), folder)
    session = _backend().open_model(artifact, target())
    outputs = [session.run({"x": np.ones((n, 3, 8, 8), np.float32)})[0].shape for n in (1, 4)]
    refused = ""
    try:
        session.run({"x": np.ones((5, 3, 8, 8), np.float32)})
    except EdgekitError as error:
        refused = str(error)
    return {
        "inputs": [[port.name, port.dtype, list(port.shape)] for port in session.inputs],
        "outputs": outputs,
        "refused": refused,
        "copied": fake.copied[:4],
        "allocated": [len(buffer) for buffer in fake.held],
        "host_code_allowed": [call.args[0] for call in world.named("Runtime.engine_host_code_allowed=")],
        "stream": world.named("IExecutionContext.execute_async_v3")[0].args[0],
    }


def case_layers(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    artifact = _backend().compile_model(model, target(), folder)
    layers = _backend().layers(artifact, target())
    profiled = _backend().profile(artifact, target(), {"x": np.ones((1, 3, 8, 8), np.float32)})
    profiler = world.named("IExecutionContext.profiler=")[0].args[0]
    profiler.report_layer_time("fc", 1.5)
    profiler.report_layer_time("fc", 0.5)
    return {
        "layers": [[p.name, p.operator, p.macs, p.precision, p.reason] for p in layers],
        "profiled": len(profiled),
        "totals": profiler.totals,
    }


def case_unsupported(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    error = tensorrt_spy.Spy("ParserError", world)
    world.answers |= {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 1,
        "OnnxParser.get_error": lambda _: error,
        "ParserError.node_operator": "Hardmax",
        "ParserError.node_name": "head/hardmax",
        "ParserError.desc": "no importer",
    }
    return _backend().compile_model(model, target(), folder)


def case_foreign(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    artifact = _backend().compile_model(model, target(), folder)
    fake.capability = (8, 9)
    world.calls.clear()
    return _backend().open_model(artifact, target())


def case_damaged(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    artifact = _backend().compile_model(model, target(), folder)
    artifact.write_bytes(b"an engins")
    world.calls.clear()
    return _backend().open_model(artifact, target())


def case_unknown_origin(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    artifact = folder / "found.engine"
    artifact.write_bytes(b"an engine from somewhere")
    return _backend().open_model(artifact, target())


def case_old_gpu(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    fake.capability = (5, 3)
    return _backend().probe()


def case_no_gpu(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    fake.count = 0
    return _backend().probe()


def case_onnx_is_built_once(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    for _ in range(2):
        _backend().open_model(model, target())
    before = len(world.named("Builder.build_serialized_network"))
    fake.capability = (8, 9)
    _backend().open_model(model, target())
    return {"builds": before, "other_gpu": len(world.named("Builder.build_serialized_network"))}


def case_second_gpu(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    _backend().compile_model(model, target(device=1), folder)
    used = fake.used
    try:
        _backend().compile_model(model, target(device=2), folder)
    except EdgekitError as error:
        return {"used": used, "refused": str(error)}
    return None


def case_free_sizes(world: tensorrt_spy.World, fake: Any, folder: Path, model: Path) -> Any:
    world.answers["INetworkDefinition.get_input"] = lambda _: tensorrt_spy.Spy(
        "ITensor", world, name="x", shape=(-1, 3, -1, -1)
    )
    return _backend().compile_model(model, target(), folder)
