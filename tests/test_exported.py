"""The exported graph behaves like the user's module, trains, saves and loads; hostile archives are refused."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit import console, exported
from edgekit.errors import InputError


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.block(x).mean((2, 3))
        return self.head(self.drop(y if mask is None else y * mask))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(8, 3, 8, 8))  # moves the running statistics off their initial values
    return model.eval()


X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_it_computes_the_same_at_any_batch_and_leaves_the_model_alone() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    graph = exported.capture(model, X[:1])
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    for batch in (1, 2, 5):
        torch.testing.assert_close(graph(X[:batch]), model(X[:batch]))
    assert set(graph.state_dict()) == {k for k in before if not k.endswith("num_batches_tracked")}


def test_signature_names_inputs_outputs_and_free_sizes() -> None:
    graph = exported.capture(net(), {"x": X[:1], "mask": torch.ones(1, 8)}, dynamic_axes={"x": {"2": "height"}})
    told = exported.signature(graph)
    assert told.inputs == ("x", "mask")
    assert told.outputs == ("output",)
    assert told.dynamic == {"x": {0: "batch", 2: "height"}, "mask": {0: "batch"}}
    assert told.example["x"].shape == (2, 3, 8, 8)
    feeds = exported.feeds_of(graph, {"x": torch.randn(3, 3, 5, 8), "mask": torch.ones(3, 8)})
    assert exported.run(graph, feeds)[0].shape == (3, 4)


def test_feeds_take_arrays_and_convert_width_but_not_kind() -> None:
    graph = exported.capture(net(), X[:2])
    feeds = exported.feeds_of(graph, X.double().numpy())
    assert feeds["x"].dtype == torch.float32
    torch.testing.assert_close(exported.run(graph, feeds)[0], graph(X))
    assert exported.feeds_of(graph, {"x": X})["x"] is X
    with pytest.raises(InputError, match="is uint8; the model takes float32"):
        exported.feeds_of(graph, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"shape \(1, 3, 8\)"):
        exported.feeds_of(graph, torch.zeros(1, 3, 8))
    with pytest.raises(InputError, match="takes 1 inputs"):
        exported.feeds_of(graph, (X, X))


class DictIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.gru = nn.GRU(6, 5, batch_first=True)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        y, _ = self.gru(self.embed(batch["ids"]) * batch["scale"].unsqueeze(1))
        return {"last": y[:, -1], "nothing": None, "all": (y, 3)}


def test_dict_and_integer_inputs_and_nested_outputs() -> None:
    model = DictIn().eval()
    batch = {"ids": torch.randint(0, 10, (1, 7)), "scale": torch.rand(1, 6)}
    graph = exported.capture(model, batch)
    told = exported.signature(graph)
    assert told.inputs == ("batch_ids", "batch_scale")
    assert told.outputs == ("last", "all_0")
    more = {"ids": torch.randint(0, 10, (4, 7)), "scale": torch.rand(4, 6)}
    torch.testing.assert_close(graph(more)["last"], model(more)["last"])
    outputs = exported.run(graph, exported.feeds_of(graph, more))
    torch.testing.assert_close(outputs[1], model(more)["all"][0])


def test_train_and_eval_switch_norms_and_dropout_and_return_the_module(tmp_path: Path) -> None:
    graph = exported.load(exported.save(exported.capture(net(), X[:2]), tmp_path / "m.pt2"))
    assert graph.train() is graph
    assert graph.training
    mean = graph.state_dict()["block.bn.running_mean"].clone()
    assert not torch.equal(graph(X), graph(X))  # dropout
    assert not torch.equal(graph.state_dict()["block.bn.running_mean"], mean)
    graph(X).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in graph.parameters())
    assert graph.eval() is graph
    assert torch.equal(graph(X), graph(X))
    twin = copy.deepcopy(graph).train()
    assert not graph.training
    assert not torch.equal(twin(X), twin(X))


class AlwaysOn(nn.Module):
    """Dropout and batch statistics that stay on in evaluation, by the user's own wish."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.norm(x), 0.5)


def test_what_is_always_on_stays_on(tmp_path: Path) -> None:
    graph = exported.capture(AlwaysOn(), torch.randn(8, 4))
    x = torch.randn(64, 4)
    for module in (graph, graph.train().eval(), exported.load(exported.save(graph, tmp_path / "m.pt2"))):
        assert not torch.equal(module(x), module(x))


def test_saves_and_loads_after_training_without_the_class(tmp_path: Path) -> None:
    graph = exported.capture(net(), {"x": X[:1], "mask": torch.ones(1, 8)})
    optimizer = torch.optim.SGD(graph.train().parameters(), 0.1)
    graph(x=X, mask=torch.ones(5, 8)).square().sum().backward()
    optimizer.step()
    path = exported.save(graph, tmp_path / "m.pt2")
    assert graph.training
    loaded = exported.load(path)
    feeds = {"x": X, "mask": torch.rand(5, 8)}
    torch.testing.assert_close(loaded(**feeds), graph.eval()(**feeds))
    assert exported.signature(loaded).dynamic == exported.signature(graph).dynamic
    assert list(loaded.state_dict()) == list(graph.state_dict())
    nodes = [n for n in loaded.graph.nodes if str(n.target) == "aten.conv2d.default"]
    assert [path for path, _ in nodes[0].meta["nn_module_stack"].values()][-1] == "block.conv"


def test_loads_what_torch_itself_saved(tmp_path: Path) -> None:
    model = net()
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("n")}, None)[:1])
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = exported.load(tmp_path / "m.pt2")
    torch.testing.assert_close(loaded(X[:3]), model(X[:3]))
    assert exported.signature(loaded).dynamic == {"x": {0: "batch"}}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.out = nn.Linear(6, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(x))


def test_tied_and_frozen_weights_stay_so(tmp_path: Path) -> None:
    model = Tied()
    graph = exported.load(exported.save(exported.capture(model, torch.randint(0, 10, (2, 3))), tmp_path / "m.pt2"))
    assert len(list(graph.parameters())) == 1
    model.embed.weight.requires_grad_(False)
    assert not any(p.requires_grad for p in exported.capture(model, torch.randint(0, 10, (2, 3))).parameters())


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return self.line(x)
        return x


def test_a_branch_on_data_is_refused_with_module_and_line() -> None:
    with pytest.raises(InputError, match=r"depends on the data.* in the module '0'") as caught:
        exported.capture(nn.Sequential(Branches()), torch.randn(2, 4))
    assert caught.value.where.startswith(f"{__file__}:")
    assert "x.sum() > 0" in Path(__file__).read_text().splitlines()[int(caught.value.where.rpartition(":")[2]) - 1]


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x.view(2, 3, 4))


def test_a_fixed_batch_is_kept_and_said() -> None:
    told = exported.signature(exported.capture(FixedBatch(), torch.randn(1, 24)))
    assert told.dynamic == {}
    assert told.example["x"].shape == (1, 24)
    assert any("free batch" in text and f"{__file__}:" in text for text in told.lost)


def test_what_evaluation_loses_is_said() -> None:
    console.clear_warnings()
    model = net()
    model.auxiliary = nn.Linear(3, 3)
    assert any("'auxiliary'" in text for text in exported.signature(exported.capture(model, X)).lost)
    assert any("'auxiliary'" in text for text in console.warnings())


def test_many_modules_are_told_in_one_line() -> None:
    class DropPath(nn.Dropout):
        pass

    model = nn.Sequential(*(DropPath(0.1) for _ in range(9)))
    assert exported.signature(exported.capture(model, X)).lost == (
        "DropPath acts in training only, and is gone ('0', '1', '2' and 6 more)",
    )


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (net(), "text", "no tensor"),
        (net(), (), "no tensor"),
        (torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), torch.ones(1, 2), "TorchScript"),
        (len, X, "not a torch.nn.Module"),
        (nn.Linear(2, 2, device="meta"), torch.ones(1, 2), "meta device"),
        (net(), torch.ones(1, 4, 8, 8), "can't export"),
    ],
)
def test_what_can_not_be_captured_is_said(model: Any, inputs: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        exported.capture(model, inputs)


# ── archives ─────────────────────────────────────────────────────────────────────────────


def rewritten(path: Path, change: Any) -> Path:
    """A copy of an archive with ``change(name, data) -> data or None`` applied to every member."""
    out = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            if (data := change(info.filename.partition("/")[2], source.read(info))) is not None:
                target.writestr(info.filename, data)
    return out


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return exported.save(exported.capture(net(), X[:2]), tmp_path / "m.pt2")


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_pickle_in_the_sample_inputs_is_refused_and_not_run(archive: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bad = rewritten(archive, lambda n, d: pickled(((Canary(canary),), {})) if "sample_inputs" in n else d)
    with pytest.raises(InputError, match=r"refused.*sample inputs ask for pickle"):
        exported.load(bad)
    assert not canary.exists()


def test_a_pickled_weight_is_refused_and_not_run(archive: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    def change(name: str, data: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            config = json.loads(data)
            config["config"]["head.bias"] |= {"use_pickle": True, "tensor_meta": None}
            return json.dumps(config).encode()
        return pickled(Canary(canary)) if name.startswith("data/weights/") else data

    with pytest.raises(InputError, match=r"'head\.bias' is stored as a pickle"):
        exported.load(rewritten(archive, change))
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["data/weights/model.pt", "data/constants/custom_obj_0", "data/aotinductor/model/a.so"]
)
def test_members_that_would_run_are_refused(archive: Path, name: str) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        root = file.namelist()[0].partition("/")[0]
        file.writestr(f"{root}/{name}", pickled({}))
    with pytest.raises(InputError, match="refused"):
        exported.load(archive)


def edited(change: Any) -> Any:
    """For :func:`rewritten`: apply ``change`` to the program's JSON."""

    def apply(name: str, data: bytes) -> bytes:
        if not name.startswith("models/"):
            return data
        program = json.loads(data)
        change(program)
        return json.dumps(program).encode()

    return apply


def test_guard_code_is_never_run(archive: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    loaded = exported.load(rewritten(archive, edited(lambda p: p["guards_code"].append(code))))
    torch.testing.assert_close(loaded(X), net()(X))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("target", "torch.serialization.load", "calls"),
        ("target", "torch.ops.aten.from_file.default", "reads files"),
        ("name", "x\n    import os", "as a name"),
    ],
)
def test_programs_that_would_run_more_than_tensor_operations_are_refused(
    archive: Path, field: str, value: str, said: str
) -> None:
    bad = rewritten(archive, edited(lambda p: p["graph_module"]["graph"]["nodes"][0].update({field: value})))
    with pytest.raises(InputError, match=said):
        exported.load(bad)


def test_size_expressions_are_not_evaluated_unseen(archive: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        values = program["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0]["as_expr"]["expr_str"] = "__import__('os').system('true')"

    with pytest.raises(InputError, match="size expression"):
        exported.load(rewritten(archive, edited(change)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"PK\x03\x04 and no more", "damaged"),
    ],
)
def test_files_that_are_no_archive_are_told_apart(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "m.pt2"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        exported.load(file)
    assert said in str(caught.value)


def test_truncated_archives_are_refused(archive: Path) -> None:
    data = archive.read_bytes()
    for part in range(1, 16):
        archive.write_bytes(data[: len(data) * part // 16])
        with pytest.raises(InputError, match=r"damaged|archive"):
            exported.load(archive)


def test_a_flipped_byte_in_a_weight_is_noticed(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    place = data.find(net().head.weight.detach().numpy().tobytes())
    assert place > 0
    data[place] ^= 1
    archive.write_bytes(bytes(data))
    with pytest.raises(InputError, match="damaged"):
        exported.load(archive)


def test_a_state_dict_or_whole_module_is_no_program(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "m.pt2")
    with pytest.raises(InputError, match="no exported program"):
        exported.load(tmp_path / "m.pt2")


def test_regions_without_autocast_or_gradients_are_plain_operations(tmp_path: Path) -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.dead = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                taught, size = self.teacher(x.float()), x.shape[0] * 1.0
            with torch.autocast("cpu", enabled=False):
                y, z = self.body(taught), taught * 2
            self.dead(y)
            return self.head(y + z) * size

    model = Regions()
    graph = exported.capture(model, torch.randn(2, 4))
    assert not [n for n in graph.graph.nodes if "wrap_with" in str(n.target)]
    x = torch.randn(3, 4)
    torch.testing.assert_close(graph(x), model(x))
    graph.train()(x).sum().backward()
    without = {name for name, p in graph.named_parameters() if p.grad is None}
    assert without == {"teacher.weight", "teacher.bias"}
    assert any("'dead'" in text for text in exported.signature(graph).lost)
    torch.testing.assert_close(exported.load(exported.save(graph, tmp_path / "m.pt2"))(x), model(x))


def test_an_operation_of_another_library_is_refused_before_it_is_saved(tmp_path: Path) -> None:
    @torch.library.custom_op("elsewhere::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)

    class Foreign(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.elsewhere.twice(x)

    graph = exported.capture(Foreign(), X)
    with pytest.raises(InputError, match=r"torch\.ops\.elsewhere\.twice\.default"):
        exported.save(graph, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
