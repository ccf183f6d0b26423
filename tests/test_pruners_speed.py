"""``target_speedup``: layers are really timed; the search is tried on machines whose times are data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgekit
from edgekit import child, exported
from edgekit.errors import InputError, UnavailableError
from edgekit.pruners import _cost, _descent, _speed, prune_job
from edgekit.target import load_target

TARGET = load_target("x86-cpu")
CONV = ("conv", (1, 8, 6, 6), (12, 4, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2)
GEMM = ("gemm", 5, 16, 24)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("layer", "sizes"), [(CONV, (1, 12, 3, 3)), (GEMM, (5, 24))])
def test_a_layer_alone_is_a_model_that_runs(layer: Any, sizes: tuple[int, ...], precision: str) -> None:
    model = _cost.layer_model(layer, TARGET, precision).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    held = np.uint8 if precision == "int8" else np.float32
    shape = layer[1] if layer[0] == "conv" else layer[1:3]
    (found,) = session.run(None, {"x": np.ones(shape, held)})
    assert found.shape == sizes
    assert found.dtype == held


def test_layers_are_timed_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    times = _cost.measured([CONV, GEMM], TARGET, "fp32")
    assert set(times) == {CONV, GEMM}
    assert all(0 < t < 1000 for t in times.values())

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("timed again")

    monkeypatch.setattr(child, "call", refuse)
    assert _cost.measured([GEMM, CONV], TARGET, "fp32") == times


@pytest.mark.parametrize("count", [1, 3, 16, 32, 64, 100, 256, 2048])
def test_widths_go_down_from_the_whole(count: int) -> None:
    widths = _descent.widths(count)
    assert widths[0] == count
    assert widths == sorted(set(widths), reverse=True)
    assert widths[-1] >= 1
    assert len(widths) <= 17


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def stairs(specs: Any, target: Any, precision: str) -> dict[Any, float]:
    """A machine on which channels count in sixteens, and an odd multiple of four costs double."""

    def blocks(n: int) -> float:
        return -(-n // 16) * (1.0 if n % 8 == 0 or n < 8 else 2.0)

    return {s: (blocks(s[2][0]) * blocks(s[2][1]) if s[0] == "conv" else 0.01) for s in specs}


@pytest.fixture
def archive(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return str(exported.save(exported.capture(Net(), torch.randn(2, 3, 8, 8)), tmp_path / "m.pt2"))


def run(archive: str, goal: float, tmp_path: Path) -> dict[str, Any]:
    latency = {"target": TARGET.model_dump(mode="json"), "precision": "fp32"}
    return prune_job(archive, {"target_speedup": goal}, str(tmp_path / "out.pt2"), latency=latency)


def honest(line: Any, gone: Tensor, effort: Any) -> float:
    """A whole model that is as fast as its layers say."""
    costs = stairs_of(line.plan)

    def milliseconds(cut: Any) -> float:
        return float(sum(costs.node(node, cut) for node in line.plan.costly if node not in cut.unread))

    return milliseconds(line.plan.cut(torch.zeros_like(gone))) / milliseconds(line.plan.cut(gone))


def stairs_of(plan: Any) -> Any:
    return _speed._Costs(plan, [_descent.widths(len(g.members)) for g in plan.groups], TARGET, "fp32")


def test_widths_are_those_that_this_machine_likes(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cost, "measured", stairs)
    monkeypatch.setattr(_speed._Line, "speed", honest)
    report = run(archive, 2.0, tmp_path)
    channels = {row["layer"]: row["channels"][1] for row in report["table"]}
    assert sorted((channels["a"], channels["b"])) == [16, 32]  # not 28, 24 or 20: they save nothing here
    assert "times as fast on x86-cpu, measured" in report["notes"][0]
    assert edgekit.load(tmp_path / "out.pt2")(torch.randn(3, 3, 8, 8)).shape == (3, 4)


def test_a_speed_and_a_size_are_both_kept(archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cost, "measured", stairs)
    monkeypatch.setattr(_speed._Line, "speed", honest)
    for share in (0.9, 0.3):
        latency = {"target": TARGET.model_dump(mode="json"), "precision": "fp32"}
        goals = {"target_speedup": 1.5, "target_parameters": share}
        report = prune_job(archive, goals, str(tmp_path / "out.pt2"), latency=latency)
        assert float(report["notes"][0].split()[0]) >= 1.5 * (1 - _speed.SLACK)
        assert report["parameters"][1] <= share * report["parameters"][0]
    with pytest.raises(InputError, match="can't be reached together"):
        prune_job(archive, {**goals, "target_parameters": 0.001}, str(tmp_path / "out.pt2"), latency=latency)


def test_a_pessimist_of_a_cost_model_is_corrected(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cost, "measured", stairs)
    monkeypatch.setattr(_speed._Line, "speed", lambda *a: 1 + (honest(*a) - 1) * 0.5)
    report = run(archive, 1.9, tmp_path)
    channels = {row["layer"]: row["channels"][1] for row in report["table"]}
    assert channels["a"] * channels["b"] < 16 * 32  # more went than was predicted to be needed


def test_a_lucky_glance_is_measured_again_and_corrected(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cost, "measured", stairs)

    def lucky(line: Any, gone: Tensor, effort: Any) -> float:
        return honest(line, gone, effort) * (1.0 if effort is _speed.CAREFUL else 1.5)

    monkeypatch.setattr(_speed._Line, "speed", lucky)
    said = run(archive, 2.0, tmp_path)["notes"][0]
    assert float(said.split()[0]) >= 2.0 * (1 - _speed.SLACK)


def test_a_step_that_gains_nothing_in_whole_models_is_taken_back(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two layers, the one that seems to gain most does not: the goal is reached through the other."""
    monkeypatch.setattr(_cost, "measured", stairs)

    def false_promise(line: Any, gone: Tensor, effort: Any) -> float:
        group = next(g for g in line.plan.groups if "a" in g.layers)
        return 1.0 if gone[group.members].any() else honest(line, gone, effort)

    monkeypatch.setattr(_speed._Line, "speed", false_promise)
    report = run(archive, 1.45, tmp_path)
    channels = {row["layer"]: row["channels"][1] for row in report["table"]}
    assert channels["a"] == 32
    assert channels["b"] <= 16


def test_a_step_too_long_is_partly_undone(archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cut of a group costs nearly all that its narrowest width does, so one step goes far beyond the goal."""

    def linear(specs: Any, target: Any, precision: str) -> dict[Any, float]:
        return {s: float(s[2][0] * s[2][1]) if s[0] == "conv" else 0.01 for s in specs}

    monkeypatch.setattr(_cost, "measured", linear)
    losses = lambda plan, steps, *_: [[0.0, *(1 + i / 100 for i in range(1, len(s)))] for s in steps]  # noqa: E731
    monkeypatch.setattr(_speed, "disturbances", losses)
    monkeypatch.setattr(_speed._Line, "speed", honest)
    report = run(archive, 1.2, tmp_path)
    found = float(report["notes"][0].split()[0])
    assert 1.2 * (1 - _speed.SLACK) <= found <= 1.2 * 1.15  # it was 2


def test_a_speed_that_no_width_gives_is_refused_with_what_could_be(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cost, "measured", stairs)
    monkeypatch.setattr(_speed._Line, "speed", lambda *_: 1.1)
    with pytest.raises(InputError, match=r"can't be reached: 1\.10 was measured"):
        run(archive, 2.0, tmp_path)


def test_a_speed_can_be_asked_for_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cost, "measured", stairs)
    monkeypatch.setattr(_speed._Line, "speed", honest)
    torch.manual_seed(0)
    result = edgekit.prune(Net(), torch.randn(2, 3, 8, 8), target_speedup=2.0, target="x86-cpu")
    assert result.notes[0].endswith("times as fast on x86-cpu, measured")
    with pytest.raises(UnavailableError, match="target_speedup is measured on the device, and"):
        edgekit.prune(Net(), torch.randn(2, 3, 8, 8), target_speedup=2.0, target="raspberry-pi-5")
    with pytest.raises(InputError, match="precision is 'int4'"):
        edgekit.prune(Net(), torch.randn(2, 3, 8, 8), target_speedup=2.0, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be above 1"):
        edgekit.prune(Net(), torch.randn(2, 3, 8, 8), target_speedup=0.5)


def test_batches_in_memory_reach_the_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole int8 models are really built; only what they take is data."""
    monkeypatch.setattr(_cost, "measured", stairs)
    built: list[Path] = []

    def speed(line: Any, gone: Tensor, effort: Any) -> float:
        built.append(line._build(gone))
        return honest(line, gone, effort)

    monkeypatch.setattr(_speed._Line, "speed", speed)
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3, 8, 8), None) for _ in range(3)]
    example = torch.randn(2, 3, 8, 8)
    edgekit.prune(Net(), example, target_speedup=2.0, precision="int8", calibration=batches)
    assert built


def test_a_target_and_data_are_asked_for(archive: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a target"):
        prune_job(archive, {"target_speedup": 1.5}, str(tmp_path / "out.pt2"))
    latency = {"target": TARGET.model_dump(mode="json"), "precision": "int8"}
    with pytest.raises(InputError, match="needs calibration data"):
        prune_job(archive, {"target_speedup": 1.5}, str(tmp_path / "out.pt2"), latency=latency)


def test_an_int8_layer_really_runs_on_integers(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    for layer, kind in ((CONV, "QLinearConv"), (GEMM, "QLinearMatMul")):
        model = _cost.layer_model(layer, TARGET, "int8").SerializeToString()
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        assert kind in {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
