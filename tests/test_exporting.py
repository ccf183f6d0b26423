"""Export and simplification of whole models, with the runtime as judge."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import edgekit
from edgekit import child, console, exported, exporting, onnxfile
from edgekit.agree import trial_feeds
from edgekit.errors import InputError, StageError
from edgekit.exporting.preprocessing import with_preprocessing
from edgekit.onnxfile.edit import MODULE_KEY, SOURCE_KEY
from edgekit.onnxfile.running import Runtime
from edgekit.recipe import ExportSection, Preprocess


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(image).mean((2, 3)))


class Lstm(nn.Module):
    """Integers in a dict, three outputs, one of them an input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = self.table(batch["ids"])
        y, _ = self.lstm(x)
        return self.head(y[:, -1]), batch["ids"], x


class Two(nn.Module):
    """Two inputs; outputs by name, one of them as the graph would name an inner value."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(3, 6)
        self.register_parameter("a", nn.Parameter(torch.ones(6)))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        both = (self.left(a) + self.right(b)) * self.a
        return {"linear": both + 1, "score": both.sigmoid(), "again": both, "same": a}


def mlp() -> nn.Module:
    sizes = (1000, 500, 250, 100)
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(100, 1), nn.Sigmoid())


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3))


MODELS: dict[str, tuple[Any, Any]] = {
    "cnn": (Cnn, lambda: torch.rand(2, 3, 8, 8)),
    "mlp": (mlp, lambda: torch.rand(1, 1000)),
    "encoder": (encoder, lambda: torch.rand(2, 5, 16)),
    "lstm": (Lstm, lambda: {"ids": torch.randint(0, 10, (2, 7))}),
    "two": (Two, lambda: (torch.rand(2, 4), torch.rand(2, 3))),
}
PORTS = {
    "cnn": (("image",), ("output",)),
    "mlp": (("input",), ("output",)),
    "encoder": (("input",), ("output",)),
    "lstm": (("batch_ids",), ("output_0", "output_1", "output_2")),
    "two": (("a", "b"), ("linear", "score", "again", "same")),
}


def captured(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    build, example = MODELS[name]
    return exported.save(exported.capture(build(), example()), folder / f"{name}.pt2")


def run(path: Path | str, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return Runtime(path)(feeds)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind_export_and_simplify(tmp_path: Path, name: str) -> None:
    source, raw, simple = captured(name, tmp_path), tmp_path / "raw.onnx", tmp_path / "simple.onnx"
    made = exporting.export_job(str(source), {}, str(raw))
    assert made["parity"]["max_rel"] < 1e-5
    assert made["parity"]["samples"] >= 8
    with console.overhearing() as said:
        simplified = exporting.simplify_job(str(raw), str(simple))
    assert said == []
    assert simplified["parity"]["max_rel"] < 1e-5
    assert simplified["nodes"] <= made["nodes"] == simplified["nodes_before"]
    json.dumps([made, simplified], allow_nan=False)
    module = exported.load(source)
    example = {key: value.numpy() for key, value in exported.signature(module).example.items()}
    for feeds in trial_feeds(example, exported.signature(module).dynamic, seed=5):
        with torch.no_grad():
            wanted = exported.run(module, {key: torch.from_numpy(value) for key, value in feeds.items()})
        for path in (raw, simple):
            for want, got in zip(wanted, run(path, feeds), strict=True):
                assert np.allclose(want.numpy(), got, atol=1e-5)
    for path in (raw, simple):
        graph = onnx.load(path).graph
        assert tuple(v.name for v in graph.input) == PORTS[name][0]
        assert tuple(v.name for v in graph.output) == PORTS[name][1]
        assert {v.type.tensor_type.shape.dim[0].dim_param for v in (*graph.input, *graph.output)} == {"batch"}
        onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("opset", [18, 20, 21, 23, 25])
def test_the_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    source, out = captured("two", tmp_path), tmp_path / "m.onnx"
    assert exporting.export_job(str(source), {"opset": opset}, str(out))["opset"] == opset
    assert next(e.version for e in onnx.load(out).opset_import if not e.domain) == opset


@pytest.mark.usefixtures("at_once")
def test_nodes_keep_module_and_line_and_nothing_of_this_machine(tmp_path: Path) -> None:
    raw, simple = tmp_path / "raw.onnx", tmp_path / "simple.onnx"
    exporting.export_job(str(captured("cnn", tmp_path)), {}, str(raw))
    exporting.simplify_job(str(raw), str(simple))
    line = inspect.getsourcelines(Cnn.forward)[1] + 1
    for path in (raw, simple):
        notes = {n.op_type: {p.key: p.value for p in n.metadata_props} for n in onnx.load(path).graph.node}
        assert notes["Gemm"] == {MODULE_KEY: "head", SOURCE_KEY: f"test_exporting.py:{line}"}
        assert notes["MaxPool"][MODULE_KEY] == "body.3"
        assert str(Path(__file__).parent).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


def test_costs_are_those_of_the_module(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    exporting.export_job(str(captured("mlp", tmp_path)), {}, str(out))
    layers = [m for m in mlp().modules() if isinstance(m, nn.Linear)]
    assert onnxfile.facts_job(str(out)) == {
        "macs": sum(m.weight.numel() for m in layers),
        "parameters": sum(p.numel() for m in layers for p in m.parameters()),
    }


# ── free and fixed sizes ─────────────────────────────────────────────────────────────────


def test_shapes_are_fixed_on_request(tmp_path: Path) -> None:
    source, out = captured("cnn", tmp_path), tmp_path / "m.onnx"
    made = exporting.export_job(str(source), {"shapes": {"image": [1, 3, 8, 8]}}, str(out))
    assert made["parity"]["max_rel"] < 1e-5
    assert onnxfile.inputs(out)[0].shape == (1, 3, 8, 8)
    assert [d.dim_value for d in onnx.load(out).graph.output[0].type.tensor_type.shape.dim] == [1, 5]
    with pytest.raises(InputError, match="batch × 3 × 8 × 8"):
        exporting.export_job(str(source), {"shapes": {"image": [1, 3, 9, 8]}}, str(out))


@pytest.mark.usefixtures("at_once")
def test_further_free_sizes_keep_the_users_names(tmp_path: Path) -> None:
    axes = {"image": {"2": "height", "3": "width"}}
    made = edgekit.export(Cnn(), torch.rand(2, 3, 8, 8), tmp_path / "m.onnx", dynamic_axes=axes)
    dims = onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 3, "height", "width"]
    (got,) = run(made.path, {"image": np.zeros((3, 3, 12, 20), np.float32)})
    assert got.shape == (3, 5)
    assert onnxfile.macs(made.path) == 8 * 27 * 64 + 8 * 5


@pytest.mark.usefixtures("at_once")
def test_a_fixed_batch_on_request(tmp_path: Path) -> None:
    made = edgekit.export(Cnn(), torch.rand(4, 3, 8, 8), tmp_path / "m.onnx", dynamic_batch=False)
    assert onnxfile.inputs(made.path)[0].shape == (4, 3, 8, 8)


# ── preprocessing ────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_preprocessing_is_folded_in(tmp_path: Path, layout: str) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    settings = {"scale": 1 / 255, "mean": mean, "std": std, "layout": layout}
    torch.manual_seed(0)
    module = Cnn().eval()
    keys = set(module.state_dict())
    made = edgekit.export(module, torch.rand(2, 3, 8, 8), tmp_path / "m.onnx", preprocess=settings)
    raw = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    spread = (1, 3, 1, 1)
    x = ((raw / 255.0 - np.reshape(mean, spread)) / np.reshape(std, spread)).astype(np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    fed = np.ascontiguousarray(raw.transpose(0, 2, 3, 1)) if layout == "nhwc" else raw
    assert np.allclose(run(made.path, {"image": fed})[0], wanted, atol=1e-5)
    assert onnxfile.inputs(made.path)[0].dtype == "uint8"
    assert set(module.state_dict()) == keys


def test_preprocessing_names_its_input_among_several() -> None:
    module, example = Two(), (torch.rand(2, 4), torch.rand(2, 3))
    with pytest.raises(InputError, match="several inputs") as error:
        with_preprocessing(module, example, Preprocess())
    assert "'a', 'b'" in error.value.remedy
    twin, raw = with_preprocessing(module, example, Preprocess(input="b", mean=(0.0, 0.5, 1.0), std=(1.0,)))
    assert raw[1].dtype == torch.uint8
    x = raw[1] / 255 - torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(twin(*raw)["score"], module(raw[0], x)["score"], atol=1e-6)
    by_name = {"a": example[0], "b": example[1]}
    _, raw_by_name = with_preprocessing(module, by_name, Preprocess(input="b"))
    assert set(raw_by_name) == {"a", "b"}
    with pytest.raises(InputError, match="channels"):
        with_preprocessing(module, example, Preprocess(input="b", mean=(0.1, 0.2), std=(1.0, 1.0)))


@pytest.mark.parametrize("already", [False, True], ids=["module", "exported"])
def test_preprocessing_keeps_the_weights_trainable_under_their_names(already: bool) -> None:
    module: nn.Module = Cnn().eval()
    example = torch.rand(2, 3, 8, 8)
    names = {name for name, _ in module.named_parameters()}
    if already:
        module = exported.capture(module, example)
    made = exported.capture(*with_preprocessing(module, example, Preprocess(scale=1 / 255, mean=(0.5,), std=(0.25,))))
    assert {name for name, _ in made.named_parameters()} == names
    raw = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(made(raw), module((raw / 255 - 0.5) / 0.25), atol=1e-5)
        next(p for n, p in made.named_parameters() if n == "head.bias").add_(1.0)
        assert torch.allclose(made(raw), module((raw / 255 - 0.5) / 0.25) + 1.0, atol=1e-5)
    stacks = [node.meta.get("nn_module_stack") for node in made.graph.nodes if "conv2d" in node.name]
    assert list(stacks[0].values())[-1][0] == "body.0"


def test_preprocessing_reaches_an_exported_program_in_a_recipe(tmp_path: Path) -> None:
    from edgekit import workload

    captured("cnn", tmp_path)
    export = {"preprocess": {"mean": [0.5], "std": [0.25], "layout": "nhwc"}}
    workload.load_job({"path": "cnn.pt2"}, str(tmp_path), 0, export, str(tmp_path / "out"))
    example = exported.signature(exported.load(tmp_path / "out" / "model.pt2")).example["image"]
    assert (example.dtype, example.shape) == (torch.uint8, (2, 8, 8, 3))


def test_preprocessing_that_divides_by_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        Preprocess(std=(0.0,))


@pytest.mark.usefixtures("at_once")
def test_a_trained_resnet20_takes_raw_images(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real weights, real images: pixels in as the JPEG decoder gives them, the same decisions out."""
    monkeypatch.syspath_prepend(str(shared_data.parent / "tools"))
    import cifar10

    pixels, labels = (part[::40] for part in cifar10.images("test"))
    model = cifar10.resnet20()
    statistics = {"mean": cifar10.MEAN.ravel().tolist(), "std": cifar10.STD.ravel().tolist(), "layout": "nhwc"}
    made = edgekit.export(model, torch.zeros(2, 3, 32, 32), tmp_path / "m.onnx", preprocess=statistics)
    (logits,) = run(made.path, {onnxfile.inputs(made.path)[0].name: np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))})
    with torch.no_grad():
        wanted = model(torch.from_numpy(cifar10.normalize(pixels))).numpy()
    assert np.allclose(logits, wanted, atol=1e-3)
    assert (logits.argmax(1) == wanted.argmax(1)).all()
    assert (logits.argmax(1) == labels).mean() > 0.8
    convolutions = sum(macs for name, macs in onnxfile.node_macs(onnx.load(made.path)).items() if "onv" in name)
    assert convolutions == 40_550_400


# ── what goes wrong ──────────────────────────────────────────────────────────────────────


class Decomposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), Decomposed())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.usefixtures("at_once")
def test_an_operation_without_onnx_form_names_module_and_line(tmp_path: Path) -> None:
    line = inspect.getsourcelines(Decomposed.forward)[1] + 1
    with pytest.raises(InputError, match=r"svd.* no ONNX form, in the module 'inner\.1'") as error:
        edgekit.export(Outer(), torch.rand(3, 4), tmp_path / "m.onnx")
    assert error.value.where == f"test_exporting.py:{line}"
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x * 3


@pytest.mark.usefixtures("at_once")
def test_an_input_that_no_runtime_takes_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'input' is bfloat16"):
        edgekit.export(nn.ReLU(), torch.rand(2, 4, dtype=torch.bfloat16), tmp_path / "m.onnx")


def test_where_bisection_fails_the_disagreement_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise ValueError("too large")

    real = exporting.translate
    monkeypatch.setattr(exporting.bisection, "bisect_torch_onnx", fails)
    source, other = captured("two", tmp_path), exported.load(captured("two", tmp_path))
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    monkeypatch.setattr(exporting, "translate", lambda program, opset: real(exported.program(other), opset))
    with pytest.raises(StageError, match=r"export changed what the model computes: .* tolerated\)\n"):
        exporting.export_job(str(source), {}, str(tmp_path / "m.onnx"))


@pytest.mark.usefixtures("at_once")
def test_a_branch_on_the_data_names_the_line(tmp_path: Path) -> None:
    line = inspect.getsourcelines(Branching.forward)[1] + 1
    with pytest.raises(InputError) as error:
        edgekit.export(Branching(), torch.rand(2, 4), tmp_path / "m.onnx")
    assert error.value.where.endswith(f"test_exporting.py:{line}")


@pytest.mark.usefixtures("at_once")
def test_without_an_example_nothing_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no example"):
        edgekit.export(Cnn(), out=tmp_path / "m.onnx")
    with pytest.raises(InputError, match="unknown key 'opsets'; did you mean 'opset'"):
        edgekit.export(Cnn(), torch.rand(2, 3, 8, 8), tmp_path / "m.onnx", opsets=18)


class Tied(nn.Module):
    """The product's weight is the table's, transposed: what onnxsim unties."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 64)
        self.head = nn.Linear(64, 1000, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.table(ids)))


@pytest.mark.usefixtures("at_once")
def test_shared_weights_stay_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, simple = tmp_path / "raw.onnx", tmp_path / "simple.onnx"
    source = exported.save(exported.capture(Tied(), torch.randint(0, 1000, (2, 6))), tmp_path / "m.pt2")
    exporting.export_job(str(source), {}, str(raw))
    exporting.onnxsim_job(str(raw), str(simple))
    assert onnxfile.parameters(simple) == 2 * 64_000  # what onnxsim does by itself
    with console.overhearing() as said:
        exporting.simplify_job(str(raw), str(simple))
        assert said == []
        assert onnxfile.parameters(simple) == 64_000
        monkeypatch.setattr(exporting, "GROWTH", 0.5)
        exporting.simplify_job(str(raw), str(simple))
    assert "larger" in said[0]
    assert onnxfile.read_model(simple) == onnxfile.read_model(raw)


@pytest.mark.parametrize("kind", ["crash", "fail"])
def test_where_onnxsim_fails_the_graph_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    raw, simple = tmp_path / "raw.onnx", tmp_path / "simple.onnx"
    exporting.export_job(str(captured("two", tmp_path)), {}, str(raw))
    real = child.call
    instead = {"crash": "os:abort", "fail": "os:getloadavg_"}[kind]
    monkeypatch.setattr(child, "call", lambda function, /, **arguments: real(instead))
    with console.overhearing() as said:
        exporting.simplify_job(str(raw), str(simple))
    assert said[0].startswith("simplify: onnxsim failed")
    assert onnxfile.read_model(simple) == onnxfile.read_model(raw)


def test_a_graph_that_the_runtime_can_not_load_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "save", lambda graph, path: path.write_bytes(b"\x08\x0a"))
    with pytest.raises(StageError, match="can't load"):
        exporting.export_job(str(captured("two", tmp_path)), {}, str(tmp_path / "m.onnx"))


# ── large models ─────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("at_once")
def test_weights_beyond_the_limit_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxfile, "INLINE_BYTES", 1000)
    raw, simple = tmp_path / "raw" / "m.onnx", tmp_path / "simple" / "m.onnx"
    made = exporting.export_job(str(captured("mlp", tmp_path)), {}, str(raw))
    assert made["files"] == ["m.onnx", "m.onnx.data"]
    assert onnxfile.external_files(raw) == [raw.with_name("m.onnx.data")]
    assert raw.stat().st_size < 20_000
    simplified = exporting.simplify_job(str(raw), str(simple))
    assert simplified["parity"]["max_rel"] < 1e-6
    assert simplified["files"] == ["m.onnx", "m.onnx.data"]
    assert onnxfile.facts_job(str(simple)) == onnxfile.facts_job(str(raw))


# ── from Python ──────────────────────────────────────────────────────────────────────────


def test_export_and_compile_from_python(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Cnn().train()
    made = edgekit.export(module, torch.rand(2, 3, 8, 8), tmp_path / "m.onnx")
    assert module.training
    assert made.path == tmp_path / "m.onnx"
    assert made.report["parity"]["max_rel"] < 1e-5
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]
    built = edgekit.compile(made.path, "x86-cpu", tmp_path / "compiled")
    assert built.path.is_file()
    x = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(x)).numpy()
    assert np.allclose(run(built.path, {"image": x})[0], wanted, atol=1e-5)


@pytest.mark.usefixtures("at_once")
def test_export_takes_files_too(tmp_path: Path) -> None:
    source = captured("cnn", tmp_path)
    first = edgekit.export(source, out=tmp_path / "a.onnx")
    second = edgekit.export(first.path, out=tmp_path / "b.onnx", shapes={"image": (1, 3, 8, 8)})
    x = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)
    assert np.allclose(run(first.path, {"image": x})[0], run(second.path, {"image": x})[0], atol=1e-6)
    assert onnxfile.inputs(second.path)[0].shape == (1, 3, 8, 8)


def test_compile_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"<html>")
    with pytest.raises(InputError, match="web page"):
        edgekit.compile(tmp_path / "m.onnx", "x86-cpu", tmp_path / "out")
    assert ExportSection().opset >= 18
