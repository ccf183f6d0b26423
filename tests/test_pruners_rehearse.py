"""Cuts are judged by how they recover: the original teaches each for a while, on the calibration samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgekit
from edgekit import exported, rooms
from edgekit.pruners import _descent, _rehearse
from edgekit.pruners._plan import Choice, Plan, Wish, prune_once
from edgekit.pruners._rewrite import rewrite
from edgekit.pruners._sensitivity import disturbances, error, outputs


class Net(nn.Module):
    """Half of the first layer's channels are constants, which a bias can stand for; the others carry the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 4)
        with torch.no_grad():
            self.a.weight[:8] = 0
            self.a.bias[:8] = 1.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


@pytest.fixture
def plan() -> Plan:
    found: list[Plan] = []

    def choose(plan: Plan, _: Wish) -> Choice:
        found.append(plan)
        return Choice(plan.gone({}))

    module = exported.capture(Net(), torch.randn(2, 3, 4, 4))
    prune_once(module, Wish(), rooms.load("pruners", "magnitude").rank, None, choose)
    return found[0]


FEEDS = [torch.randn(256, 3, 4, 4, generator=torch.Generator().manual_seed(1))]


def without(plan: Plan, layer: str, channels: slice) -> Tensor:
    gone = plan.gone({})
    gone[next(g for g in plan.groups if layer in g.layers).members[channels]] = True
    return gone


@torch.no_grad()
def at_once(plan: Plan, gone: Tensor) -> float:
    pruned, _ = rewrite(plan.analysis.module, plan.analysis, plan.cut(gone))
    return float(error(outputs(pruned, FEEDS), outputs(plan.analysis.module, FEEDS)))


def test_the_cut_that_recovers_is_chosen_and_not_the_one_that_disturbs_less_at_once(plan: Plan) -> None:
    constants, image = without(plan, "a", slice(0, 8)), without(plan, "a", slice(8, 16))
    assert at_once(plan, constants) > at_once(plan, image)
    assert _rehearse.ranked(plan, [image, constants], FEEDS) == [1, 0]
    assert _rehearse.ranked(plan, [constants, image, constants], FEEDS) == [0, 1]


def test_a_rehearsal_leaves_no_trace(plan: Plan) -> None:
    cuts = [without(plan, "a", slice(0, 8)), without(plan, "a", slice(8, 16))]
    before = {name: value.clone() for name, value in plan.analysis.module.state_dict().items()}
    state = torch.random.get_rng_state()
    _rehearse.ranked(plan, cuts, FEEDS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in plan.analysis.module.state_dict().items())
    assert not plan.analysis.module.training


def test_without_samples_or_time_cuts_stay_in_their_order(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = [without(plan, "a", slice(8, 16)), without(plan, "a", slice(0, 8))]
    assert _rehearse.ranked(plan, cuts, [FEEDS[0][:16]]) == [0, 1]
    monkeypatch.setattr(_rehearse, "WORK", 1e6)
    assert _rehearse.ranked(plan, cuts, FEEDS) == [0, 1]


def test_a_group_that_is_lost_costs_more_with_every_further_channel(plan: Plan) -> None:
    with torch.no_grad():
        for name, value in plan.analysis.module.named_parameters():
            if name.endswith("head.weight"):
                value *= 1e3  # whatever goes, the outputs are not what they were
    steps = [[16, 12, 8, 4] for _ in plan.groups]
    for row in disturbances(plan, steps, FEEDS):
        each = [lost / (16 - width) for lost, width in zip(row[1:], steps[0][1:], strict=True)]
        assert each[0] > 0
        assert each == sorted(each)


def test_an_even_cut_leaves_each_group_the_same_share_and_keeps_to_the_cost(plan: Plan) -> None:
    steps = [_descent.widths(len(group.members)) for group in plan.groups]
    gone = _descent.even(plan, steps, _descent.floors(plan, {"macs": 0.5 * plan.macs()}))
    assert [int(gone[group.members].sum()) for group in plan.groups] == [8, 8]
    assert plan.macs(plan.cut(gone)) <= 0.5 * plan.macs()


def test_a_fixed_batch_is_judged_by_the_example() -> None:
    class Fixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(2, 3, 4, 4))

    batches: list[Any] = [(torch.randn(2, 3, 4, 4), None) for _ in range(100)]
    result = edgekit.prune(Fixed(), torch.randn(2, 3, 4, 4), target_macs=0.5, calibration=batches)
    assert result.macs[1] <= 0.5 * result.macs[0]


class Mean(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean()


class Class(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class Frozen(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("model", [Mean, Class, Frozen])
def test_what_can_not_be_taught_is_pruned_all_the_same(model: type[Net]) -> None:
    batches: list[Any] = [(torch.randn(64, 3, 4, 4), None) for _ in range(3)]
    result = edgekit.prune(model(), torch.randn(2, 3, 4, 4), target_macs=0.5, calibration=batches)
    assert result.macs[1] <= 0.5 * result.macs[0]
