"""Whether two models agree, and where they part: tried by breaking graphs on purpose."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgekit import agree, exported, exporting, onnxfile
from edgekit.agree import bisection
from edgekit.errors import InputError, StageError
from edgekit.workload import spool


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# ── differences and tolerance ────────────────────────────────────────────────────────────


def test_differences_are_shares_of_the_outputs_scale() -> None:
    assert agree.compare([f32(0, 100)], [f32(1, 100)]) == {"max_abs": 1.0, "max_rel": 0.01}
    assert agree.compare([f32(0, 0)], [f32(0, 0)]) == {"max_abs": 0.0, "max_rel": 0.0}
    assert agree.compare([], []) == {"max_abs": 0.0, "max_rel": 0.0}


def test_integers_count_by_the_share_that_differs() -> None:
    assert agree.compare([np.array([1, 2, 3, 4])], [np.array([1, 2, 3, 9])]) == {"max_abs": 5.0, "max_rel": 0.25}
    assert agree.compare([np.array([True, False])], [np.array([True, True])]) == {"max_abs": 1.0, "max_rel": 0.5}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([f32(1)], []),
        ([f32(1)], [f32(1, 1)]),
        ([f32(1)], [np.array([1])]),
        ([f32(np.nan)], [f32(1)]),
        ([f32(1)], [f32(np.inf)]),
        ([f32(np.inf)], [f32(-np.inf)]),
        ([f32(0)], [f32(1e-30)]),
    ],
)
def test_what_can_not_be_compared_disagrees_utterly(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    assert agree.compare(a, b)["max_rel"] == agree.WORST
    assert not agree.agree([a], [b]).agrees


def test_the_same_nan_and_infinity_agree() -> None:
    both = [f32(np.nan, np.inf, -np.inf, 1)]
    assert agree.compare(both, both)["max_rel"] == 0.0


def test_the_scale_is_at_least_the_first_trials() -> None:
    """An output near zero in one trial is not held against itself alone."""
    small, large = [f32(1e-6)], [f32(1.0)]
    assert agree.agree([large, small], [large, [f32(2e-6)]]).agrees
    assert not agree.agree([small], [[f32(2e-6)]]).agrees


def test_tolerance_grows_with_the_models_own_sensitivity() -> None:
    feeds = {"x": np.linspace(1, 2, 50, dtype=np.float32)}

    def calm(f: agree.Feeds) -> list[np.ndarray]:
        return [f["x"] * 2]

    def wild(f: agree.Feeds) -> list[np.ndarray]:
        return [np.sin(f["x"] * 1000)]

    assert agree.tolerance_of(calm, feeds, calm(feeds)) == agree.FLOOR
    assert agree.FLOOR < agree.tolerance_of(wild, feeds, wild(feeds)) <= agree.CEILING
    half = [np.zeros(2, np.float16)]
    assert agree.floor_of(half) == agree.HALF_FLOOR


def test_trials_keep_range_and_kind_and_try_other_batches() -> None:
    example = {
        "image": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 12),
        "ids": np.array([[3, 9], [4, 5]]),
        "mask": np.array([[True, False], [True, True]]),
    }
    trials = agree.trial_feeds(example, {name: {0: "batch"} for name in example})
    assert [len(t["image"]) for t in trials] == [2, 2, 2, 1, 3]
    assert all(t["ids"].min() >= 3 and t["ids"].max() <= 9 and t["ids"].dtype == np.int64 for t in trials)
    assert all(t["mask"].dtype == bool for t in trials)
    assert trials[1]["image"].min() >= 0
    assert trials[1]["image"].max() <= 1
    assert trials[2]["image"].sum() < 0 < trials[0]["image"].sum()
    assert len(agree.trial_feeds(example)) == 3


def test_a_branch_on_the_data_that_was_baked_in_is_caught() -> None:
    """The example takes one side; a mirrored trial takes the other."""

    def model(f: agree.Feeds) -> list[np.ndarray]:
        return [f["x"] * 2 if f["x"].sum() > 0 else f["x"] * 3]

    def baked(f: agree.Feeds) -> list[np.ndarray]:
        return [f["x"] * 2]

    trials = agree.trial_feeds({"x": np.random.default_rng(0).random((2, 4)).astype(np.float32)})
    assert agree.agree([model(trials[0])], [baked(trials[0])]).agrees
    assert not agree.check(model, baked, trials).agrees


def test_a_trial_that_blows_up_hides_nothing_and_accuses_nobody() -> None:
    """1/x near zero: rounding is magnified there, and there alone."""

    def inverse(f: agree.Feeds) -> list[np.ndarray]:
        return [1 / f["x"].sum(1)]

    def in_double(f: agree.Feeds) -> list[np.ndarray]:
        return [(1 / f["x"].astype(np.float64).sum(1)).astype(np.float32)]

    def wrong(f: agree.Feeds) -> list[np.ndarray]:
        return [1 / f["x"].sum(1) * np.float32(1.01)]

    tame = {"x": np.ones((2, 4), np.float32)}
    blown = {"x": np.array([[1, 1, 1, -2.99999], [3, -1, -1, -1.00001]], np.float32)}
    assert agree.check(inverse, in_double, [tame, blown]).agrees
    found = agree.check(inverse, wrong, [tame, blown])
    assert not found.agrees
    assert found.max_rel == pytest.approx(0.01, rel=1e-3)
    assert found.samples == 2


def test_a_mask_of_ones_stays_near_ones() -> None:
    trials = agree.trial_feeds({"mask": np.ones((2, 4), np.float32)})
    assert 0.5 <= trials[1]["mask"].min() < trials[1]["mask"].max() <= 1.5


def test_a_trial_that_the_reference_refuses_is_left_out() -> None:
    def only_two(f: agree.Feeds) -> list[np.ndarray]:
        if len(f["x"]) != 2:
            raise ValueError("batch")
        return [f["x"]]

    trials = agree.trial_feeds({"x": np.ones((2, 2), np.float32)}, {"x": {0: "batch"}})
    assert agree.check(only_two, only_two, trials).samples == 6
    with pytest.raises(ValueError, match="batch"):
        agree.check(only_two, only_two, trials[3:])


# ── where they part ──────────────────────────────────────────────────────────────────────


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x))) + x  # the line that is looked for


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = Block(8)
        self.second = Block(8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(self.stem(image)))
        return torch.softmax(self.head(x.mean((2, 3))), dim=1)


LINE = f"test_agree.py:{inspect.getsourcelines(Block.forward)[1] + 1}"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    paths = {"torch": folder / "net.pt2", "onnx": folder / "net.onnx"}
    exported.save(exported.capture(Net(), {"image": torch.rand(2, 3, 8, 8)}), paths["torch"])
    exporting.export_job(str(paths["torch"]), {}, str(paths["onnx"]))
    return paths


def conv_of(model: onnx.ModelProto, module: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == "Conv" and bisection.origin(n)[0].startswith(module))


def other_weight(model: onnx.ModelProto) -> str:
    name = conv_of(model, "second").input[1]
    tensor = next(t for t in model.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor).copy()
    value[0] *= 1.05
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return "Conv"


def dropped_node(model: onnx.ModelProto) -> str:
    relu = [n for n in model.graph.node if n.op_type == "Relu"][1]
    relu.op_type = "Identity"
    return "Identity"


def other_axis(model: onnx.ModelProto) -> str:
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    next(a for a in softmax.attribute if a.name == "axis").i = 0
    return "Softmax"


def other_padding(model: onnx.ModelProto) -> str:
    attribute = next(a for a in conv_of(model, "second").attribute if a.name == "pads")
    attribute.ints[:] = [2, 2, 0, 0]
    return "Conv"


FAULTS = [(other_weight, "second.conv"), (dropped_node, "second"), (other_axis, ""), (other_padding, "second.conv")]


@pytest.mark.parametrize(("damage", "module"), FAULTS, ids=[d.__name__ for d, _ in FAULTS])
def test_the_first_wrong_node_is_named(
    net: dict[str, Path], tmp_path: Path, damage: Callable[[onnx.ModelProto], str], module: str
) -> None:
    model = onnx.load(net["onnx"])
    operator = damage(model)
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    feeds = {"image": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    by_torch = bisection.bisect_torch_onnx(net["torch"], broken, feeds)
    by_onnx = bisection.bisect_onnx(net["onnx"], broken, feeds)
    for found in (by_torch, by_onnx):
        assert found is not None
        assert found.operator == operator
        assert found.module.startswith(module)
        assert found.max_rel > agree.FLOOR
    assert by_torch.value == by_onnx.value


def test_the_users_line_is_named(net: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(net["onnx"])
    dropped_node(model)
    onnx.save(model, tmp_path / "broken.onnx")
    feeds = {"image": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    found = bisection.bisect_torch_onnx(net["torch"], tmp_path / "broken.onnx", feeds)
    assert found is not None
    assert found.source == LINE
    assert LINE in str(found)


def test_a_compiled_graph_is_bisected_too(net: dict[str, Path], tmp_path: Path) -> None:
    """ONNX Runtime's own graph, fused, from a model whose weight was changed on the way."""
    import onnxruntime as ort

    model = onnx.load(net["onnx"])
    other_weight(model)
    onnx.save(model, tmp_path / "broken.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "compiled.onnx")
    ort.InferenceSession(str(tmp_path / "broken.onnx"), options, providers=["CPUExecutionProvider"])
    feeds = {"image": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    np.savez(tmp_path / "feeds.npz", **feeds)
    for before in net.values():
        found = bisection.bisect_job(str(before), str(tmp_path / "compiled.onnx"), str(tmp_path / "feeds.npz"))
        assert found is not None
        assert found["operator"] == "FusedConv"
        assert found["module"].startswith("second")
        assert found["text"].startswith("node ")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("precision", ["fp32", "half"])
def test_a_wrong_compilation_is_refused_with_its_node(net: dict[str, Path], tmp_path: Path, precision: str) -> None:
    model = onnx.load(net["onnx"])
    dropped_node(model)
    artifact = tmp_path / "model.onnx"
    onnx.save(model, artifact)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    data = spool.write([({"image": x}, np.zeros(2))], tmp_path / "data")
    with pytest.raises(StageError, match=r"computes something else .* node .* from the module 'second'"):
        bisection.check_compiled({"max_rel": 0.4}, net["onnx"], artifact, data.folder, precision=precision)
    bisection.check_compiled({"max_rel": 0.4}, net["onnx"], artifact, data.folder, precision="integer")
    blob = tmp_path / "model.xml"
    with pytest.raises(StageError, match="computes something else"):
        bisection.check_compiled({"max_rel": agree.WORST}, net["onnx"], blob, data.folder, precision="integer")


def test_graphs_that_agree_have_no_wrong_node(net: dict[str, Path]) -> None:
    feeds = {"image": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    assert bisection.bisect_torch_onnx(net["torch"], net["onnx"], feeds) is None
    assert bisection.bisect_onnx(net["onnx"], net["onnx"], feeds) is None


def test_a_difference_that_is_put_right_again_is_not_blamed(tmp_path: Path) -> None:
    """−inf and −3e38 before a Softmax are the same; the wrong node comes after."""

    def graph(mask: float, factor: float) -> onnx.ModelProto:
        nodes = [
            onnx.helper.make_node("Add", ["x", "mask"], ["masked"], "mask"),
            onnx.helper.make_node("Softmax", ["masked"], ["p"], "softmax"),
            onnx.helper.make_node("Mul", ["p", "factor"], ["y"], "scale"),
        ]
        ports = [onnx.helper.make_tensor_value_info(n, 1, [1, 3]) for n in "xy"]
        held = [numpy_helper.from_array(f32(0, mask, 0), "mask"), numpy_helper.from_array(f32(factor), "factor")]
        made = onnx.helper.make_graph(nodes, "g", ports[:1], ports[1:], held)
        return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)

    onnx.save(graph(-np.inf, 1.0), tmp_path / "a.onnx")
    onnx.save(graph(-3e38, 1.1), tmp_path / "b.onnx")
    found = bisection.bisect_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", {"x": f32(1, 2, 3)[None]})
    assert found is not None
    assert found.node == "scale"


# ── a wrong stage fails by name ──────────────────────────────────────────────────────────


def test_a_wrong_export_fails_with_node_and_module(
    net: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir as ir

    real = exporting.save

    def damaged(graph: ir.Model, path: Path) -> None:
        real(graph, path)
        model = onnx.load(path)
        other_weight(model)
        onnx.save(model, path)

    monkeypatch.setattr(exporting, "save", damaged)
    with pytest.raises(StageError, match=r"export changed .* node .*Conv.* from the module 'second\.conv'") as error:
        exporting.export_job(str(net["torch"]), {}, str(tmp_path / "m.onnx"))
    assert error.value.where == "second.conv"


def test_a_wrong_simplification_fails_with_node_and_module(
    net: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(source: Path, target: Path) -> None:
        model = onnxfile.read_model(source)
        dropped_node(model)
        onnxfile.write_model(model, target)

    monkeypatch.setattr(exporting, "_simplified", damaged)
    with pytest.raises(StageError, match=r"simplify changed .* from the module 'second'"):
        exporting.simplify_job(str(net["onnx"]), str(tmp_path / "m.onnx"))


def test_an_example_can_be_made_for_any_file(net: dict[str, Path]) -> None:
    feeds, dynamic = agree.example_for(onnx.load(net["onnx"]))
    assert feeds["image"].shape == (2, 3, 8, 8)
    assert dynamic == {"image": {0: "batch"}}
    model = onnx.load(net["onnx"])
    del model.metadata_props[:]
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(InputError, match="free"):
        agree.example_for(model)
