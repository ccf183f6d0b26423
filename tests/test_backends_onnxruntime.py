"""ONNX Runtime's own matters: what is saved ahead of time, for which machine, and how sessions are set."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import pytest

from edgekit import backends
from edgekit.backends import _ort_graph, onnxruntime
from edgekit.errors import UnavailableError
from edgekit.target import Target, load_target


def target(arch: str = platform.machine(), threads: int = 1, **options: Any) -> Target:
    document = {"name": "t", "title": "", "source": "", "backend": "onnxruntime", "device": {"arch": arch}}
    return Target.model_validate({**document, "run": {"threads": threads}, "options": options})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    plain = onnx_models.conv_net(folder / "float.onnx")
    return {
        "float": plain,
        "uint8": onnx_models.quantized(plain, folder / "u8.onnx"),
        "int8": onnx_models.quantized(plain, folder / "s8.onnx", activations="int8"),
        "mixed": onnx_models.quantized(plain, folder / "mixed.onnx", leave=("conv2",)),
    }


def operators(artifact: Path) -> list[str]:
    return [f"{node.domain}:{node.op_type}".lstrip(":") for node in onnx.load(artifact).graph.node]


def test_fusions_are_saved_ahead_of_time_and_the_machines_own_layout_is_not(
    models: dict[str, Path], tmp_path: Path
) -> None:
    found = operators(onnxruntime.compile_model(models["float"], target(), tmp_path))
    assert "com.microsoft:FusedConv" in found
    assert not [operator for operator in found if "nchwc" in operator], "its block size is this very CPU's"


def test_types_that_are_inferred_again_are_not_saved(models: dict[str, Path], tmp_path: Path) -> None:
    artifact = onnxruntime.compile_model(models["uint8"], target(), tmp_path)
    graph = onnx.load(artifact).graph
    foreign = {name for node in graph.node if node.domain for name in node.output}
    assert "QLinearConv" in operators(artifact)
    assert {value.name for value in graph.value_info} <= foreign


@pytest.mark.skipif(platform.machine() != "x86_64", reason="shows what x86 does to a model for ARM")
def test_a_model_for_arm_keeps_its_int8_activations(models: dict[str, Path], tmp_path: Path) -> None:
    """Optimizing for x86 turns them into uint8 and drops integer kernels; for ARM the file must stay as it was made."""

    def types(arch: str) -> set[str]:
        artifact = onnxruntime.compile_model(models["int8"], target(arch), tmp_path)
        graph = onnx.load(artifact).graph
        zero_points = {n.input[2] for n in graph.node if n.op_type == "QuantizeLinear"}
        return {onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer if t.name in zero_points}

    assert types("aarch64") == {"INT8"}
    assert "UINT8" in types("x86_64")


def test_integer_share_for_arm_is_read_from_the_file(models: dict[str, Path], tmp_path: Path) -> None:
    arm = target("aarch64" if platform.machine() == "x86_64" else "x86_64")
    kind = "int8" if arm.device.arch == "aarch64" else "uint8"
    layers = onnxruntime.layers(onnxruntime.compile_model(models[kind], arm, tmp_path), arm)
    assert backends.int8_macs_share(layers) == 1
    assert not backends.conversions(layers), "which of them are fused away is seen on the device only"


def qdq_conv(path: Path, *, kind: str = "uint8", without: tuple[str, ...] = (), extra_reader: bool = False) -> Path:
    """One convolution with Q/DQ around it, but for what ``without`` names: input, weight, bias, output."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, constants = [], []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def pair(data: str, zero: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [data, "scale", zero], [f"{data}_q"], f"{data}_quantize"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{data}_q", "scale", zero], [f"{data}_dq"], f"{data}_back"))
        return f"{data}_dq"

    def dequantized(name: str, value: Any) -> str:
        zero = constant(f"{name}_zero", np.zeros((), value.dtype))
        nodes.append(helper.make_node("DequantizeLinear", [constant(f"{name}_q", value), "scale", zero], [name]))
        return name

    constant("scale", np.float32(0.1))
    zero = constant("zero", np.zeros((), kind))
    data = "x" if "input" in without else pair("x", zero)
    floats = {"w": rng.standard_normal((4, 3, 3, 3)), "b": rng.standard_normal(4)}
    parts = [data]
    for name, long, integers in (("w", "weight", np.int8), ("b", "bias", np.int32)):
        value = floats[name]
        parts.append(
            constant(name, value.astype(np.float32))
            if long in without
            else dequantized(name, (value * 9).astype(integers))
        )
    nodes.append(helper.make_node("Conv", parts, ["c"], "conv", kernel_shape=[3, 3]))
    outputs = ["c" if "output" in without else pair("c", zero)]
    if extra_reader:
        nodes.append(helper.make_node("Relu", ["c"], ["r"], "relu"))
        outputs.append("r")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])
    graph = helper.make_graph(nodes, "g", [x], ports, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"without": ("input",)}, "its input is not quantized (the model's own float input)"),
        ({"without": ("weight",)}, "its weight was left in float"),
        ({"without": ("input", "weight")}, "no quantize/dequantize pair"),
        ({"without": ("bias",)}, "its bias is float"),
        ({"without": ("output",)}, "its output is not quantized: it goes in float to the model's output"),
        ({"extra_reader": True}, "its output is read in float by another node too"),
        ({"kind": "int8"}, "its activations are int8"),
        ({}, "no integer kernel for this Conv"),
    ],
)
def test_the_reason_for_float_is_told(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    """On the graph as it is, before ONNX Runtime fuses it: that convolution is float, and why it could stay so."""
    model = qdq_conv(tmp_path / "conv.onnx", **change)
    layers = _ort_graph.layer_precisions(model, (), arch="x86_64", seen=True)
    (conv,) = [layer for layer in layers if layer.macs]
    assert conv.macs == 4 * 27 * 36
    assert words in conv.reason
    left = _ort_graph.layer_precisions(model, (), arch="aarch64", seen=False)
    fits = not change or change == {"kind": "int8"}
    assert backends.int8_macs_share(left) == float(fits), "on ARM int8 activations have kernels"


def test_a_layer_put_back_to_float_stays_float(models: dict[str, Path], tmp_path: Path) -> None:
    """ONNX Runtime by itself quantizes the weights of a layer between Q/DQ; an accuracy guard relies on it not to."""
    raw = onnxruntime.layers(models["mixed"], target())
    artifact = onnxruntime.compile_model(models["mixed"], target(), tmp_path)
    kept = onnxruntime.layers(artifact, target())
    assert backends.int8_macs_share(raw) == 1, "if this fails, ONNX Runtime has changed and the mark is not needed"
    assert [layer.macs for layer in kept if layer.macs and layer.precision == "fp32"] == [32 * 16 * 256]
    assert onnxruntime.options_for(artifact, target()).session == onnxruntime.KEEP_FLOAT
    assert onnxruntime.options_for(models["mixed"], target()).session == {}
    x = onnx_models.samples(4)
    (y,) = onnxruntime.open_model(artifact, target()).run({"x": x})
    (z,) = onnxruntime.open_model(models["mixed"], target()).run({"x": x})
    assert not np.array_equal(y, z)
    np.testing.assert_allclose(y, z, atol=0.1 * np.ptp(z))


def test_ort_format_gives_the_same_answers(models: dict[str, Path], tmp_path: Path) -> None:
    x = onnx_models.samples(3)
    answers = []
    for form in ("onnx", "ort"):
        aim = target(format=form)
        artifact = onnxruntime.compile_model(models["uint8"], aim, tmp_path)
        assert artifact.suffix == f".{form}"
        answers.append(onnxruntime.open_model(artifact, aim).run({"x": x})[0])
        assert backends.int8_macs_share(onnxruntime.layers(artifact, aim)) == 1
    np.testing.assert_array_equal(*answers)


def test_sessions_are_set_as_the_target_says(models: dict[str, Path]) -> None:
    aim = target(
        threads=2, spinning=True, arena=False, memory_pattern=False, session={"session.use_env_allocators": "1"}
    )
    settings = onnxruntime.open_model(models["float"], aim).session.get_session_options()
    assert settings.intra_op_num_threads == 2
    assert settings.inter_op_num_threads == 1
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert settings.get_session_config_entry("session.use_env_allocators") == "1"
    assert (settings.enable_cpu_mem_arena, settings.enable_mem_pattern) == (False, False)
    default = onnxruntime.open_model(models["float"], target()).session.get_session_options()
    assert default.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert default.intra_op_num_threads == 1


def test_every_target_of_this_runtime_sets_its_threads() -> None:
    aim = load_target("raspberry-pi-5")
    assert onnxruntime._settings(aim, onnxruntime.Options(), "all").intra_op_num_threads == 4


def test_a_provider_that_is_missing_is_an_error_not_a_fallback(models: dict[str, Path]) -> None:
    import onnxruntime as runtime

    if "CUDAExecutionProvider" in runtime.get_available_providers():
        pytest.skip("this machine has the CUDA provider")
    with pytest.raises(UnavailableError, match="no CUDAExecutionProvider"):
        onnxruntime.open_model(models["float"], target(provider="cuda"))


def test_a_provider_that_falls_back_is_an_error(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that has the provider, on a machine where it does not start: ONNX Runtime goes on with the CPU."""
    import onnxruntime as runtime

    real = runtime.InferenceSession
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        runtime, "InferenceSession", lambda path, settings, providers: real(path, settings, providers=providers[1:])
    )
    with pytest.raises(UnavailableError, match="fell back to the CPU"):
        onnxruntime.open_model(models["float"], target(provider="cuda"))


def test_telemetry_is_off_before_the_library_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    onnxruntime._runtime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_profile_means_the_middle_half_after_warm_up() -> None:
    def event(name: str, index: int, micros: int) -> dict[str, Any]:
        facts = {"node_index": str(index), "op_name": "Conv", "output_size": "8", "input_type_shape": [{"float": [1]}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": micros, "args": facts}

    times = [900, 10, 10, 12, 12, 14, 14, 500, 2]
    events = [event("a", 0, t) for t in times] + [{"cat": "Session", "name": "x", "dur": 1, "args": {}}]
    (layer,) = _ort_graph.layer_times(events, skip=1)
    assert layer.milliseconds == pytest.approx(0.012)
    assert (layer.precision, layer.bytes_moved) == ("fp32", 8)
