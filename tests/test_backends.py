"""The contract of the runtimes: held for every file in ``backends/`` and every file in ``targets/``."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest

from edgekit import backends, child, rooms
from edgekit.backends import LayerPrecision, Port
from edgekit.errors import InputError, StageError, UnavailableError
from edgekit.target import Target, availability, lacks, load_target, names

NAMES = rooms.members("backends")


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.conv_net(tmp_path_factory.mktemp("models") / "float.onnx")


@pytest.fixture(scope="module")
def int8_model(float_model: Path) -> Path:
    return onnx_models.quantized(float_model, float_model.with_name("int8.onnx"))


def compiled(model: Path, target: Target, out: Path) -> Path:
    made = backends.compile_job(str(model), target.model_dump(mode="json"), str(out))
    assert made["path"] in made["files"]
    return out / made["path"]


def torch_answer(model: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The float model's answer by torch itself."""
    import onnx
    import torch
    import torch.nn.functional as F
    from onnx import numpy_helper

    w = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(model).graph.initializer}
    y = F.relu(F.conv2d(torch.from_numpy(x), w["w0"], w["b0"], padding=1))
    y = F.relu(F.conv2d(y, w["w1"], w["b1"], padding=1, groups=16))
    y = F.relu(F.conv2d(y, w["w2"], w["b2"]))
    return F.linear(y.mean((2, 3)), w["w3"], w["b3"]).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_is_a_backend(name: str) -> None:
    backend = backends.load(name)
    for member in ("probe", "version", "compile_model", "open_model", "profile", "layers"):
        function = getattr(backend, member)
        assert callable(function)
        assert function.__doc__, f"{name}.{member} says nothing"
    low, high = backend.TESTED
    assert [int(n) for n in low.split(".")] <= [int(n) for n in high.split(".")]
    for options in backend.DEVICES.values():
        backend.Options.model_validate(options)
    for field, info in backend.Options.model_fields.items():
        assert f"{field}:" in (backend.Options.__doc__ or ""), f"the option {field} is not explained"
        assert not info.is_required(), f"the option {field} has no default"


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_computes_or_says_why_not(name: str) -> None:
    facts, reason = proved(name)
    if reason:
        assert reason.startswith("not available here, because")
        pytest.skip(f"not run: {reason}")
    assert facts["version"]
    assert facts["devices"]


def proved(name: str) -> tuple[dict[str, str], str]:
    try:
        return child.call("edgekit.backends:prove_job", backend=name, options={}), ""
    except UnavailableError as error:
        return {}, error.problem


@pytest.mark.parametrize("name", names())
def test_every_target_runs_is_built_for_or_says_why_not(name: str, float_model: Path, tmp_path: Path) -> None:
    target = load_target(name)
    can = availability(target)
    if can.status == "unavailable":
        assert can.reason.startswith("not available here, because")
        assert can.remedy
        return
    artifact = compiled(float_model, target, tmp_path)
    if can.status == "cross" and target.compile_on_device:
        assert artifact.read_bytes() == float_model.read_bytes()
        return
    x = onnx_models.samples(5)
    session = backends.load(target.backend).open_model(artifact, target)
    assert session.inputs[0].name == "x"
    (y,) = backends.run_batched(session, {"x": x})
    np.testing.assert_allclose(y, torch_answer(float_model, x), atol=2e-5)


def test_backends_agree_on_an_int8_model(int8_model: Path, float_model: Path, tmp_path: Path) -> None:
    """The same Q/DQ file, by every runtime that is here: single roundings may differ, no more."""
    x, answers = onnx_models.samples(32), {}
    for name in ("x86-cpu", "x86-openvino"):
        target = load_target(name)
        if availability(target).status != "runs":
            pytest.skip(f"{name} does not run here")
        artifact = compiled(int8_model, target, tmp_path / name)
        answers[name] = backends.load(target.backend).open_model(artifact, target).run({"x": x})[0]
    scale = np.ptp(answers["x86-cpu"])
    assert np.abs(answers["x86-cpu"] - answers["x86-openvino"]).max() < 0.02 * scale
    assert np.abs(answers["x86-cpu"] - torch_answer(float_model, x)).max() < 0.1 * scale
    assert (answers["x86-cpu"].argmax(1) == answers["x86-openvino"].argmax(1)).mean() > 0.9


@pytest.mark.parametrize("name", ["x86-cpu", "x86-openvino"])
def test_layers_count_the_multiply_adds_and_their_integers(
    name: str, int8_model: Path, float_model: Path, tmp_path: Path
) -> None:
    target = load_target(name)
    if lacks(target):
        pytest.skip(lacks(target))
    settings = target.model_dump(mode="json")
    found: dict[str, list[LayerPrecision]] = {}
    for model in (float_model, int8_model):
        artifact = compiled(model, target, tmp_path / model.stem)
        rows = backends.layers_job(str(artifact), settings)
        found[model.stem] = [LayerPrecision(**row) for row in rows]
    assert backends.int8_macs_share(found["float"]) == 0
    assert all(layer.reason == "the model is not quantized" for layer in found["float"] if layer.macs)
    assert backends.int8_macs_share(found["int8"]) == 1
    assert sum(layer.macs for layer in found["int8"]) == onnx_models.MACS
    assert sum(layer.macs for layer in found["float"]) == onnx_models.MACS
    assert sum(backends.conversions(found["int8"]).values()) <= 8


@pytest.mark.parametrize("name", ["x86-cpu", "x86-openvino"])
def test_a_layer_left_in_float_is_named_with_its_reason(name: str, float_model: Path, tmp_path: Path) -> None:
    target = load_target(name)
    if lacks(target):
        pytest.skip(lacks(target))
    model = onnx_models.quantized(float_model, tmp_path / "mixed.onnx", leave=("conv2",))
    artifact = compiled(model, target, tmp_path / "out")
    layers = backends.load(target.backend).layers(artifact, target)
    (left,) = [layer for layer in layers if layer.macs and layer.precision not in backends.INTEGER]
    assert left.macs == 32 * 16 * 256
    assert "float" in left.reason
    share = backends.int8_macs_share(layers)
    assert share == pytest.approx(1 - left.macs / onnx_models.MACS)


@pytest.fixture(scope="module")
def attention_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attention block and an LSTM, as torch exports them."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.back = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
            self.memory = torch.nn.LSTM(32, 16, batch_first=True)

        def forward(self, x: Any) -> Any:
            q, k, v = self.mix(x).reshape(-1, 8, 3, 4, 8).permute(2, 0, 3, 1, 4)
            attended = (q @ k.transpose(-1, -2)).softmax(-1) @ v
            return self.memory(x + self.back(attended.transpose(1, 2).reshape(-1, 8, 32)))[0][:, -1]

    path = tmp_path_factory.mktemp("attention") / "net.onnx"
    example = (torch.zeros(1, 8, 32),)
    free = {"x": {0: "batch"}}
    torch.onnx.export(Net(), example, path, dynamo=False, opset_version=18, dynamic_axes=free, input_names=["x"])
    return path


ATTENTION_MACS = 8 * 32 * 96 + 8 * 32 * 32 + 2 * 4 * 8 * 8 * 8 + 8 * 4 * 16 * (32 + 16)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["x86-cpu", "x86-openvino"])
def test_attention_and_lstm_are_counted(name: str, attention_model: Path, tmp_path: Path) -> None:
    target = load_target(name)
    if lacks(target):
        pytest.skip(lacks(target))
    artifact = compiled(attention_model, target, tmp_path)
    layers = backends.load(target.backend).layers(artifact, target)
    assert sum(layer.macs for layer in layers) == ATTENTION_MACS


def test_dynamic_int8_leaves_the_products_of_activations_in_float(attention_model: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(attention_model, tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8)
    target = load_target("x86-cpu")
    layers = backends.load("onnxruntime").layers(tmp_path / "dynamic.onnx", target)
    left = [layer for layer in layers if layer.macs and layer.precision not in backends.INTEGER]
    assert sum(layer.macs for layer in left) == 2 * 4 * 8 * 8 * 8
    assert all("two activations" in layer.reason for layer in left)


@pytest.mark.parametrize("name", ["x86-cpu", "x86-openvino"])
def test_profile_times_every_layer_of_the_compiled_graph(name: str, int8_model: Path, tmp_path: Path) -> None:
    target = load_target(name)
    if lacks(target):
        pytest.skip(lacks(target))
    artifact = compiled(int8_model, target, tmp_path)
    settings = target.model_dump(mode="json")
    rows = backends.profile_job(str(artifact), settings)
    layers = backends.layers_job(str(artifact), settings)
    assert {row["name"] for row in rows} == {row["name"] for row in layers}
    assert sum(row["milliseconds"] for row in rows) > 0
    assert all(row["milliseconds"] >= 0 for row in rows)
    weighted = [row for row in rows if "Conv" in row["operator"]]
    assert len(weighted) == 3
    assert all(row["precision"] == "int8" and row["bytes_moved"] > 0 for row in weighted)


def test_no_profile_of_a_device_that_is_not_here(int8_model: Path) -> None:
    target = load_target("raspberry-pi-5")
    if not lacks(target):
        pytest.skip("this is a Raspberry Pi 5")
    with pytest.raises(UnavailableError, match="can't profile for raspberry-pi-5 here"):
        backends.profile_job(str(int8_model), target.model_dump(mode="json"))


DAMAGES = {
    "empty": (lambda data: b"", "empty"),
    "cut off": (lambda data: data[: len(data) // 2], "can't read"),
    "random": (lambda data: np.random.default_rng(0).bytes(4000), "can't read"),
    "a web page": (lambda data: b"<!DOCTYPE html><html></html>", "web page"),
    "an LFS pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("form", [".onnx", ".ort", ".xml", ".bin"])
def test_damaged_artifacts_are_refused(
    form: str, int8_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target("x86-openvino" if form in (".xml", ".bin") else "x86-cpu")
    if form == ".ort":
        target = target.model_copy(update={"options": {"format": "ort"}})
    damaged = []
    for name, (change, _) in DAMAGES.items():
        artifact = compiled(int8_model, target, tmp_path / name)
        victim = artifact.with_suffix(form)
        victim.write_bytes(change(victim.read_bytes()))
        damaged.append(str(artifact))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    settings = target.model_dump(mode="json")
    found = child.call("backend_cases:refusals", artifacts=damaged, target=settings)
    for path, (kind, text), (_, words) in zip(damaged, found, DAMAGES.values(), strict=True):
        assert kind == "InputError", (path, kind, text)
        assert path in text
        assert words in text or form == ".bin"


def test_foreign_artifacts_are_refused_by_their_kind(int8_model: Path, tmp_path: Path) -> None:
    target = load_target("x86-cpu")
    ours = compiled(int8_model, load_target("x86-openvino"), tmp_path)
    with pytest.raises(InputError, match=r"does not read '\.xml' files"):
        backends.load("onnxruntime").open_model(ours, target)
    with pytest.raises(InputError, match="a folder"):
        backends.load("onnxruntime").open_model(tmp_path, target)


@pytest.mark.parametrize("name", ["x86-cpu", "x86-openvino"])
def test_a_missing_operator_and_a_future_opset_are_told_apart(name: str, float_model: Path, tmp_path: Path) -> None:
    import onnx

    target = load_target(name)
    proto = onnx.load(float_model)
    proto.graph.node[1].op_type = "Frobnicate"
    onnx.save(proto, tmp_path / "operator.onnx")
    with pytest.raises(UnavailableError, match="Frobnicate"):
        compiled(tmp_path / "operator.onnx", target, tmp_path / "out")
    proto = onnx.load(float_model)
    proto.opset_import[0].version = 99
    onnx.save(proto, tmp_path / "opset.onnx")
    with pytest.raises(InputError, match=r"operator set 99 is newer"):
        compiled(tmp_path / "opset.onnx", target, tmp_path / "out")


@pytest.mark.parametrize("name", ["x86-cpu", "x86-openvino", "jetson-orin-nano"])
def test_weights_in_a_file_of_their_own_come_along(name: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    model = onnx_models.conv_net(source / "net.onnx", external=True)
    target = load_target(name)
    artifact = compiled(model, target, out)
    x = onnx_models.samples(2)
    expected = torch_answer_of_external(model, x)
    shutil.rmtree(source)
    plain = load_target("x86-cpu")
    runner = plain if name == "jetson-orin-nano" else target
    (y,) = backends.load(runner.backend).open_model(artifact, runner).run({"x": x})
    np.testing.assert_allclose(y, expected, atol=2e-5)


def torch_answer_of_external(model: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnx

    inline = model.with_name("inline.onnx")
    onnx.save(onnx.load(model), inline)
    return torch_answer(inline, x)


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    model = onnx_models.conv_net(tmp_path / "net.onnx", external=True)
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    (tmp_path / "net.onnx.data").rename(secret)
    (tmp_path / "net.onnx.data").hardlink_to(secret)
    with pytest.raises(InputError):
        compiled(model, load_target("x86-cpu"), tmp_path / "out")


FAKE = '''
import ctypes
from edgekit.backends import Port
from pydantic import BaseModel

EXTRA, PACKAGE, TESTED, DEVICES = "", "", ("1", "2"), {"here": {}}

class Options(BaseModel, extra="forbid"):
    """crash: where to crash."""
    crash: str = ""

class Session:
    inputs = (Port(name="x", dtype="float32", shape=(None, 3)),)
    outputs = (Port(name="y", dtype="float32", shape=(None, 3)),)
    def run(self, feeds):
        ctypes.string_at(0)

def version(): return "1.5"
def probe(): return {"version": "1.5", "devices": "here"}
def compile_model(model, target, out):
    if target.options.get("crash") == "compile":
        ctypes.string_at(0)
    (out / "model.fake").write_bytes(model.read_bytes())
    return out / "model.fake"
def open_model(artifact, target): return Session()
def profile(artifact, target, feeds): raise RuntimeError("no profiler")
def layers(artifact, target): return []
'''


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A target file whose backend is the user's own file beside it."""
    (tmp_path / "fake.py").write_text(FAKE)
    target = tmp_path / "board.toml"
    target.write_text(
        textwrap.dedent(
            """
            title = "A board"
            source = "its maker"
            backend = "./fake.py"
            [device]
            arch = ""
            """
        )
    )
    return target


def test_a_users_own_backend_works_by_path(fake: Path, float_model: Path, tmp_path: Path) -> None:
    target = load_target(str(fake))
    artifact = compiled(float_model, target, tmp_path / "out")
    assert artifact.name == "model.fake"
    changed = target.digest()
    (tmp_path / "fake.py").write_text(FAKE + "\n# another version\n")
    assert target.digest() != changed, "an artifact of another backend file would be stale"


def test_a_crash_in_native_code_kills_its_child_alone(fake: Path, float_model: Path, tmp_path: Path) -> None:
    target = load_target(str(fake)).model_dump(mode="json")
    compile_job, given = "edgekit.backends:compile_job", {"model": str(float_model), "out": str(tmp_path / "out")}
    with pytest.raises(StageError, match="SIGSEGV"):
        child.call(compile_job, **given, target={**target, "options": {"crash": "compile"}})
    with pytest.raises(StageError, match="SIGSEGV"):
        child.call("edgekit.inspection:time_job", artifact=str(float_model), target=target)
    made = child.call(compile_job, **given, target=target)
    assert made["version"] == "1.5", "the next one works"


def test_an_unknown_option_names_the_key_and_the_nearest() -> None:
    target = load_target("x86-cpu").model_copy(update={"options": {"spining": True}})
    with pytest.raises(InputError, match=r"unknown key 'options\.spining'; did you mean 'spinning'"):
        backends.options_of(backends.load("onnxruntime").Options, target)


def ports(*shapes: tuple[int | None, ...]) -> list[Port]:
    return [Port(name=f"i{n}", dtype="float32", shape=shape) for n, shape in enumerate(shapes)]


def test_feeds_are_compared_with_the_model_before_it_runs() -> None:
    inputs = ports((None, 3), (2,))
    good = {"i0": np.zeros((5, 3), np.float32), "i1": np.zeros(2, np.float32)}
    backends.check_feeds(inputs, good)
    for change, words in [
        ({"i1": np.zeros(2)}, "float64, the model wants float32"),
        ({"i0": np.zeros((5, 4), np.float32)}, r"\(5, 4\), the model wants \('any', 3\)"),
        ({"i2": np.zeros(2)}, "inputs are"),
    ]:
        with pytest.raises(InputError, match=words):
            backends.check_feeds(inputs, {**good, **change})


def test_a_fixed_batch_is_fed_in_pieces() -> None:
    class Fixed:
        inputs = ports((4, 3))
        outputs = ports((4, 3))

        def __init__(self) -> None:
            self.seen: list[int] = []

        def run(self, feeds: Any) -> list[Any]:
            self.seen.append(len(feeds["i0"]))
            return [feeds["i0"] * 2]

    session = Fixed()
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    (y,) = backends.run_batched(session, {"i0": x})
    np.testing.assert_array_equal(y, x * 2)
    assert session.seen == [4, 4, 4]


def test_share_of_integers_where_there_is_nothing_to_count() -> None:
    assert backends.int8_macs_share([]) is None
    assert backends.int8_macs_share([LayerPrecision(name="a", operator="Relu", macs=0, precision="fp32")]) is None


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_in_the_documentation(name: str) -> None:
    page = (Path(__file__).parent.parent / "docs" / "backends.md").read_text()
    section = page.split(f"### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
    for field in backends.load(name).Options.model_fields:
        assert f"| `{field}` |" in section


@pytest.mark.parametrize("name", names())
def test_every_target_is_in_the_documentation(name: str) -> None:
    page = (Path(__file__).parent.parent / "docs" / "targets.md").read_text()
    assert f"| `{name}` |" in page
