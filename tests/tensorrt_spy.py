"""Run edgekit's TensorRT code against NVIDIA's real Python bindings, without NVIDIA's libraries.

The bindings load when stand-ins define the entry points that they link to. What needs the real
builder is then replaced by spies: each stands for one class of the real binding, lets only members
through that this class has, and checks every call against the signature in the binding's own text.
Functions here run in a child process (``child.call("tensorrt_spy:…")``), for what they load
must not stay in the test's own.
"""

# ruff: noqa: N802 - the fakes bear CUDA's own names

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)
LAYERS = {
    "Layers": [
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "OutMaps": 16,
            "Weights": {"Type": "Int8", "Count": 432},
            "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Thirty-two wide channel Int8"}],
            "Outputs": [{"Name": "t", "Dimensions": [1, 16, 8, 8], "Format/Datatype": "Row major Int8"}],
        },
        {
            "Name": "Reformatting CopyNode for y",
            "LayerType": "Reformat",
            "Inputs": [{"Dimensions": [1, 16], "Format/Datatype": "Row major Int8"}],
            "Outputs": [{"Dimensions": [1, 16], "Format/Datatype": "Row major linear FP32"}],
        },
        {
            "Name": "fc",
            "LayerType": "gemm",
            "Inputs": [{"Dimensions": [1, 16], "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "y", "Dimensions": [1, 2], "Format/Datatype": "Row major linear FP32"}],
        },
    ],
    "Bindings": ["x", "y"],
}


def build_stand_ins(folder: Path, major: int) -> None:
    """Compile libraries that define the entry points and do nothing."""
    source = folder / "stand_in.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in ENTRY_POINTS))
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True, capture_output=True)


@dataclass
class Call:
    """One recorded use of the API: ``Class.member``, and what was given."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class World:
    """The spied TensorRT: the real module, what was called, and what each member answers."""

    real: Any
    calls: list[Call] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    uploaded: dict[int, bytes] = field(default_factory=dict)

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]


class Spy:
    """Stands for an object of one class of the binding."""

    def __init__(self, kind: str, world: World, **given: Any) -> None:
        self.__dict__.update(_kind=kind, _world=world, _given=given)

    def __getattr__(self, name: str) -> Any:
        kind, world = self._kind, self._world
        member = getattr(getattr(world.real, kind), name)  # AttributeError: the API has no such member
        if name in self._given:
            return self._given[name]
        key = f"{kind}.{name}"
        if isinstance(member, property):
            world.calls.append(Call(key, (), {}))
            return world.answers[key]
        return lambda *args, **kwargs: _answer(key, member, world, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        member = getattr(getattr(self._world.real, self._kind), name)
        assert isinstance(member, property), f"{self._kind}.{name} is no property"
        assert member.fset, f"{self._kind}.{name} can't be set"
        self._world.calls.append(Call(f"{self._kind}.{name}=", (value,), {}))

    def __bytes__(self) -> bytes:
        assert self._kind == "IHostMemory"
        return self._given["content"]


def _answer(key: str, member: Any, world: World, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    returned = check_call(key, member.__doc__, world, args, kwargs)
    world.calls.append(Call(key, args, kwargs))
    if key in world.answers:
        answer = world.answers[key]
        return answer(*args, **kwargs) if callable(answer) else answer
    kind = returned.rpartition(".")[2]
    return Spy(kind, world) if hasattr(world.real, kind) else None


def check_call(key: str, text: str, world: World, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Hold a call against the signatures in a member's text; returns what the matching one returns."""
    name = key.rpartition(".")[2]
    problems = []
    for parameters, returned in signatures(name, text):
        problem = _mismatch(parameters, world, args, kwargs)
        if not problem:
            return returned
        problems.append(problem)
    raise AssertionError(f"{key}{args}{kwargs} fits no signature: {problems}")


def signatures(name: str, text: str) -> Iterator[tuple[list[tuple[str, str, bool]], str]]:
    """``([(parameter, type, has a default)], returned type)`` of each overload in a pybind11 text."""
    for found in re.finditer(rf"(?m)^(?:\d+\. )?{re.escape(name)}\((self: .*)\) -> (.+)$", text):
        parameters = []
        for part in re.split(r", (?=\w+: )", found[1])[1:]:
            parameter, _, rest = part.partition(": ")
            kind, _, default = rest.partition(" = ")
            parameters.append((parameter, kind, bool(default)))
        yield parameters, found[2]


def _mismatch(
    parameters: list[tuple[str, str, bool]], world: World, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    known = [name for name, _, _ in parameters]
    if len(args) > len(known) or set(kwargs) - set(known):
        return f"takes {known}"
    given = {**dict(zip(known, args, strict=False)), **kwargs}
    for name, kind, has_default in parameters:
        if name not in given:
            if not has_default:
                return f"'{name}' is missing"
        elif not _fits(given[name], kind, world):
            return f"'{name}' is {given[name]!r}, not {kind}"
    return ""


def _fits(value: Any, kind: str, world: World) -> bool:
    short = kind.rpartition(".")[2].rstrip("]")
    plain: dict[str, Any] = {"SupportsInt": int, "int": int, "str": str, "bool": bool, "Buffer": bytes}
    if short in plain:
        return isinstance(value, plain[short]) and (short == "bool" or not isinstance(value, bool))
    if short in ("Dims", "tuple") or "Sequence" in kind:
        return isinstance(value, tuple | list) and all(isinstance(v, int) for v in value)
    if kind.startswith(("nvonnxparser::", "nvinfer1::")):
        return type(value).__name__ == kind.rpartition("::")[2]
    if isinstance(value, Spy):
        return value._kind == short
    return isinstance(value, getattr(world.real, short))


def spied_module(world: World) -> types.ModuleType:
    """A module ``tensorrt`` whose builder, parser and runtime are spies; all else is the real binding's."""
    module = types.ModuleType("tensorrt")
    module.__dict__.update({name: getattr(world.real, name) for name in dir(world.real) if name[:2] != "__"})
    module.__version__ = world.real.__version__

    def maker(kind: str) -> Callable[..., Spy]:
        def make(*args: Any, **kwargs: Any) -> Spy:
            check_call(f"{kind}.__init__", getattr(world.real, kind).__init__.__doc__, world, args, kwargs)
            world.calls.append(Call(kind, args, kwargs))
            return Spy(kind, world)

        return make

    for kind in ("Builder", "OnnxParser", "Runtime"):
        setattr(module, kind, maker(kind))
    return module


def answers(real: Any, world: World) -> dict[str, Any]:
    """A small world: one input x (free batch, 3, 8, 8), one output y (batch, 2)."""
    shapes: dict[str, tuple[int, ...]] = {"x": (1, 3, 8, 8)}
    profile: list[tuple[int, ...]] = [(1, 3, 8, 8), (1, 3, 8, 8), (4, 3, 8, 8)]

    def set_shape(name: str, shape: tuple[int, ...]) -> bool:
        shapes[name] = tuple(shape)
        return shape[0] <= profile[2][0]

    def host(content: bytes) -> Spy:
        return Spy("IHostMemory", world, content=content)

    return {
        "Builder.num_DLA_cores": 2,
        "Builder.build_serialized_network": lambda *_: host(b"an engine"),
        "OnnxParser.parse_from_file": True,
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.get_input": lambda _: Spy("ITensor", world, name="x", shape=(-1, 3, 8, 8)),
        "IOptimizationProfile.set_shape": None,
        "IBuilderConfig.add_optimization_profile": 0,
        "IBuilderConfig.set_timing_cache": True,
        "ITimingCache.serialize": lambda: host(b"tactics"),
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.get_tensor_name": lambda i: ("x", "y")[i],
        "ICudaEngine.get_tensor_mode": lambda n: real.TensorIOMode.INPUT if n == "x" else real.TensorIOMode.OUTPUT,
        "ICudaEngine.get_tensor_dtype": real.DataType.FLOAT,
        "ICudaEngine.get_tensor_shape": lambda n: (-1, 3, 8, 8) if n == "x" else (-1, 2),
        "ICudaEngine.get_tensor_profile_shape": lambda *_: profile,
        "IExecutionContext.set_input_shape": set_shape,
        "IExecutionContext.get_tensor_shape": lambda _: (shapes["x"][0], 2),
        "IExecutionContext.get_max_output_size": 4 * 2 * 4,
        "IExecutionContext.set_tensor_address": True,
        "IExecutionContext.execute_async_v3": True,
        "EngineInspector.get_engine_information": json.dumps(LAYERS),
    }


class FakeCuda:
    """``cuda.bindings.runtime`` over host memory; every function used must exist in the real one, if that is here."""

    NAMES = ("cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaDriverGetVersion", "cudaStreamCreate", "cudaMalloc")
    NAMES += ("cudaMemcpyAsync", "cudaStreamSynchronize", "cudaSetDevice", "cudaFree", "cudaStreamDestroy")

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.copied: list[int] = []
        self.capability, self.count, self.used = (8, 7), 2, -1
        self.cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, self.count

    def cudaGetDeviceProperties(self, index: int) -> tuple[int, Any]:
        major, minor = self.capability
        return 0, types.SimpleNamespace(name=b"Orin", major=major, minor=minor, totalGlobalMem=8 << 30)

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return 0, 12060

    def cudaSetDevice(self, index: int) -> tuple[int]:
        self.used = index
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 1234

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        self.held.append((ctypes.c_char * size)())
        return 0, ctypes.addressof(self.held[-1])

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        ctypes.memmove(target, source, size)
        self.copied.append(size)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaFree(self, buffer: int) -> tuple[int]:
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (0,)


def load(libraries: str, bindings: str) -> Any:
    """The real binding, loaded over the stand-ins."""
    for library in LIBRARIES:
        (file,) = Path(libraries).glob(f"lib{library}.so.*")
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    if bindings:
        sys.path.insert(0, bindings)
    import tensorrt_bindings

    return tensorrt_bindings


def enter(real: Any) -> tuple[World, FakeCuda]:
    """Put fresh spies in the place of ``tensorrt``, and a fake GPU in CUDA's."""
    world = World(real)
    world.answers = answers(real, world)
    sys.modules["tensorrt"] = spied_module(world)
    from edgekit.backends import _cuda

    fake = FakeCuda()
    with contextlib.suppress(ImportError):
        from cuda.bindings import runtime

        for name in FakeCuda.NAMES:
            assert hasattr(runtime, name), f"cuda-python has no {name}"
        for name in vars(fake.cudaMemcpyKind):
            assert hasattr(runtime.cudaMemcpyKind, name)
    _cuda.runtime = lambda: fake  # type: ignore[assignment]
    return world, fake


def self_check(libraries: str, bindings: str) -> list[str]:
    """The kinds of error that four wrong uses of the API give."""
    world, _ = enter(load(libraries, bindings))
    config = Spy("IBuilderConfig", world)
    uses: list[Callable[[], Any]] = [
        lambda: config.set_int8_calibrator(None),
        lambda: config.set_flag("TF32"),
        lambda: config.set_memory_pool_limit(world.real.MemoryPoolType.WORKSPACE),
        lambda: setattr(config, "num_optimization_profiles", 2),
    ]
    kinds = []
    for use in uses:
        try:
            use()
            kinds.append("accepted")
        except (AttributeError, AssertionError) as error:
            kinds.append(type(error).__name__)
    return kinds
