"""Residual branches go whole where that costs the outputs least, and what must stay is not offered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import edgekit
from edgekit import exported, rooms
from edgekit.pruners import _plan
from edgekit.pruners._check import Proof, prove
from edgekit.pruners._plan import Choice, Choose, Plan, Wish, prune_once
from tests.pruning_patterns import IMAGE, TOKENS, Layers, proved

BATCHES = [(torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(i)), None) for i in range(3)]

RANK = rooms.load("pruners", "magnitude").rank


class Block(nn.Module):
    def __init__(self, width: int, scale: float, *, in_place: bool) -> None:
        super().__init__()
        self.scale = scale
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.an, self.bn = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu, self.in_place = nn.ReLU(inplace=in_place), in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.b(self.relu(self.an(self.a(x))))) * self.scale
        return self.relu(out.add_(x) if self.in_place else out + x)


class Net(nn.Module):
    """Three residual blocks, of which the middle one gives nearly nothing."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16, 4)
        self.blocks = nn.Sequential(*(Block(16, scale, in_place=in_place) for scale in (1, 1e-3, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


def plan_of(model: nn.Module, inputs: Any, **wish: Any) -> Plan:
    found: list[Plan] = []

    def choose(plan: Plan, _: Wish) -> Choice:
        found.append(plan)
        return Choice(plan.gone({}))

    prune_once(exported.capture(model, inputs), Wish(**wish), RANK, None, choose)
    return found[0]


def without(*numbers: int) -> Choose:
    """A choice of branches, by their numbers."""

    def choose(plan: Plan, _: Wish) -> Choice:
        return Choice(plan.gone({len(plan.groups) + number: 0 for number in numbers}))

    return choose


def cut(model: nn.Module, inputs: Any, *numbers: int) -> _plan.Outcome:
    module = exported.capture(model, inputs)
    return prune_once(module, Wish(), RANK, None, without(*numbers))


@pytest.mark.parametrize("in_place", [False, True])
def test_the_branch_that_gives_nothing_goes_whole(in_place: bool, tmp_path: Path) -> None:
    model = Net(in_place=in_place)
    result = proved(model, IMAGE, target_macs=0.68, calibration=BATCHES)
    rows = {row["layer"]: row for row in result.table}
    assert [rows[f"blocks.1.{name}"]["channels"] for name in "ab"] == [(16, 0), (16, 0)]
    assert rows["blocks.0.b"]["channels"] == (16, 16)
    assert rows["blocks.1.a"]["parameters"] == (2304, 0)
    assert result.notes == ("residual branches that went whole: blocks.1.a, blocks.1.b",)
    lost = {entry["layer"]: entry["lost"] for entry in result.sensitivity}
    assert lost["all of blocks.1.a, blocks.1.b"] < 0.001 < lost["all of blocks.0.a, blocks.0.b"]
    assert list(lost.values()) == sorted(lost.values(), reverse=True)
    assert result.macs[1] == sum(row["macs"][1] for row in result.table)
    assert result.parameters[1] == sum(p.numel() for p in result.model.parameters())
    assert not any(entry["layer"].startswith("blocks.1") for entry in result.kept)
    kinds = [str(node.target) for node in result.model.graph.nodes if "relu" in str(node.target)]
    assert len(kinds) == 5  # of 7: the block's own two went, too, as what came before is not negative already
    x = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(edgekit.load(result.save(tmp_path / "m.pt2"))(x), result.model(x))


def test_a_branch_that_goes_in_a_later_step_leaves_nothing_of_its_parameters() -> None:
    result = proved(Net(), IMAGE, target_macs=0.25, iterations=3, calibration=BATCHES)
    assert result.notes
    assert set(result.origin()) == set(dict(result.model.named_parameters()))


def test_its_onnx_file_has_nothing_left_of_it(tmp_path: Path) -> None:
    import onnxruntime

    outcome = cut(Net().eval(), IMAGE, 0, 2)
    path = edgekit.export(outcome.module, IMAGE, tmp_path / "m.onnx").path
    graph = onnx.load(path).graph
    assert sum(node.op_type == "Conv" for node in graph.node) == 3
    assert not any("blocks.0" in i.name or "blocks.2" in i.name for i in graph.initializer)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {graph.input[0].name: IMAGE.numpy()})
    np.testing.assert_allclose(found, outcome.module(IMAGE).detach().numpy(), rtol=1e-4, atol=1e-5)


FORWARDS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "around another branch": (lambda m, y: m.b(m.c(y)) + m.c(y), 1),
    "to what does not depend on the input": (lambda m, y: m.b(y) + m.p, 0),
    "to what is of another size": (lambda m, y: m.b(y) + y.mean(1, keepdim=True), 0),
    "that changes its own in place": (lambda m, y: y.sigmoid() + m.b(y.sigmoid().relu_()), 1),
    "that changes what stays in place": (lambda m, y: y + m.b(y.relu_()), 1),
    "whose sum is changed in place": (lambda m, y: (y + m.b(y)).sigmoid_() * y, 1),
    "in place, inside another": (lambda m, y: m.b(y).add_(y).relu_() + y, 2),
    "to a multiple of what stays": (lambda m, y: torch.add(m.b(y), y, alpha=3.0), 0),
    "a multiple of it": (lambda m, y: torch.add(y, m.b(y), alpha=0.5), 1),
    "that is none": (lambda m, y: m.b(y), 0),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_branch(name: str) -> None:
    """Without it the model is what it was with the branch's last layer at zero."""
    forward, count = FORWARDS[name]
    torch.manual_seed(0)
    layers = {kind: nn.Conv2d(8, 8, 1) for kind in "bc"}
    first, last, p = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Parameter(torch.randn(2, 8, 16, 16))
    model = Layers(lambda m, x: m.last(forward(m, m.first(x))), first=first, last=last, p=p, **layers).eval()
    assert len(plan_of(model, IMAGE).branches) == count
    if count:
        outcome = cut(model, IMAGE, 0)
        assert len(outcome.cut.branches) == 1
        nn.init.zeros_(model.b.weight)
        nn.init.zeros_(model.b.bias)
        torch.testing.assert_close(outcome.module(IMAGE), model(IMAGE))


def test_a_branch_that_changes_what_stays_through_a_view_is_put_back() -> None:
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 1), "head": nn.Conv2d(8, 4, 1)}

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        whole = y.view(2, 8, -1).relu_().view(2, 8, 16, 16)
        return m.head(y + m.b(whole))

    model = Layers(forward, **layers)
    assert len(plan_of(model, IMAGE).branches) == 1

    def choose(plan: Plan, wish: Wish) -> Choice:
        return without(*range(len(plan.branches)))(plan, wish)

    outcome = prune_once(exported.capture(model, IMAGE), Wish(), RANK, None, choose)
    assert not outcome.cut.branches
    torch.testing.assert_close(outcome.module(IMAGE), model(IMAGE))


def test_of_parallel_branches_each_can_go_and_the_stream_stays() -> None:
    layers = {kind: nn.Conv2d(8, 8, 1) for kind in "abc"}
    model = Layers(lambda m, x: m.c((y := m.stem(x)) + m.a(y) + m.b(y)), stem=nn.Conv2d(3, 8, 1), **layers).eval()
    inside = [{str(n.target) for n in b.inside if n.op == "get_attr"} for b in plan_of(model, IMAGE).branches]
    assert inside == [{"a.weight", "a.bias"}, {"b.weight", "b.bias"}]


def test_a_proof_adds_nothing_to_what_stays_as_the_addition_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch at an addition that scales what stays is not offered; if it were, the proof would put it back."""
    offered = _plan.branches

    def careless(analysis: Any, costly: Any, still: Any) -> Any:
        for node in analysis.module.graph.nodes:
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "alpha"}
        found = offered(analysis, costly, still)
        for branch in found:
            branch.join.kwargs = {"alpha": 3.0}
        return found

    monkeypatch.setattr(_plan, "branches", careless)
    model = Layers(lambda m, x: torch.add(m.b(y := m.a(x)), y, alpha=3.0), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 1))

    def choose(plan: Plan, wish: Wish) -> Choice:
        return without(*range(len(plan.branches)))(plan, wish)

    outcome = prune_once(exported.capture(model, IMAGE), Wish(), RANK, None, choose)
    assert not outcome.cut.branches


def test_a_goal_that_branches_alone_can_reach_is_reached() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        for layer in (m.a, m.b, m.c, m.d):
            y = torch.relu(y + layer(y))
        return m.head(y.mean((2, 3)))

    torch.manual_seed(0)
    layers = {kind: nn.Conv2d(16, 16, 3, padding=1) for kind in "abcd"}
    model = Layers(forward, stem=nn.Conv2d(3, 16, 1), head=nn.Linear(16, 4), **layers).eval()
    result = edgekit.prune(model, IMAGE, target_macs=0.6, calibration=BATCHES, ratios={"stem": 0.0})
    assert result.macs[1] <= 0.6 * result.macs[0]
    assert result.notes[0].startswith("residual branches that went whole")


class Masked(nn.Module):
    """Two inputs, one of which a single branch reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.a(x)
        return self.head(x + self.b(x) * mask)


def test_a_branch_that_alone_reads_an_input_stays() -> None:
    plan = plan_of(Masked(), (TOKENS, torch.ones(2, 5, 1)))
    assert [b.join.name for b in plan.branches] == ["add"]


@pytest.mark.parametrize("wish", [{"protect": ("blocks.1.b",)}, {"ratios": {"blocks.1.*": 0.2}}])
def test_what_the_user_has_a_say_in_is_not_taken_whole(wish: dict[str, Any]) -> None:
    assert len(plan_of(Net(), IMAGE).branches) == 3
    assert len(plan_of(Net(), IMAGE, **wish).branches) == 2


def test_a_branch_that_can_not_be_proved_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The channels that were to go with it go all the same."""

    def doubtful(analysis: Any, what: Any, *rest: Any) -> Proof:
        return Proof(1.0, what.branches[0].join, "it differs") if what.branches else prove(analysis, what, *rest)

    def choose(plan: Plan, wish: Wish) -> Choice:
        gone = without(*range(len(plan.branches)))(plan, wish).gone
        gone[next(g for g in plan.groups if "blocks.0.a" in g.layers).members[:8]] = True
        return Choice(gone)

    monkeypatch.setattr(_plan, "prove", doubtful)
    outcome = prune_once(exported.capture(Net().eval(), IMAGE), Wish(), RANK, None, choose)
    assert not outcome.cut.branches
    assert outcome.plan.parameters(outcome.cut) < outcome.plan.parameters()


def test_all_branches_of_a_transformer_can_go() -> None:
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(24, 24), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    outcome = cut(model, TOKENS, 0, 1, 2, 3)
    assert len(outcome.cut.branches) == 4
    assert outcome.parity < 1e-6
    expected = model[0](TOKENS)
    for block in model[1].layers:
        expected = block.norm2(block.norm1(expected))
    torch.testing.assert_close(outcome.module(TOKENS), expected)
