"""Which process runs when, and when it is enough: simulated machines, no process and no clock."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from edgekit.errors import StageError
from edgekit.measure.rounds import Answer, half_width, run_rounds
from edgekit.recipe import MeasureSection


class Machine:
    """A simulated machine: each process takes a second; times drift and scatter as told."""

    def __init__(self, factors: list[float], *, sigma: float = 0.0, drift: float = 0.0, seed: int = 0) -> None:
        self.factors, self.sigma, self.drift = factors, sigma, drift
        self.draw, self.seconds, self.order = random.Random(seed), 0.0, list[int]()

    def clock(self) -> float:
        return self.seconds

    def launch(self, index: int) -> Answer:
        self.order.append(index)
        self.seconds += 1
        noise = math.exp(self.draw.gauss(0, self.sigma)) if self.sigma else 1.0
        return {"median_ms": self.factors[index] * noise * math.exp(self.drift * self.seconds)}


def plan(**options: Any) -> MeasureSection:
    return MeasureSection(**{"budget_s": 1e6, **options})


def test_rounds_are_forth_and_back_over_all_rows() -> None:
    machine = Machine([1.0, 1.0, 2.0])
    tracks = run_rounds(3, machine.launch, plan(), machine.clock)
    rounds = [machine.order[i : i + 3] for i in range(0, len(machine.order), 3)]
    assert len(rounds) == 8
    assert all(sorted(r) == [0, 1, 2] for r in rounds)
    assert all(rounds[i] == rounds[i + 1][::-1] for i in range(0, 8, 2))
    assert len({tuple(r) for r in rounds}) > 2  # the order itself varies
    comparison = tracks[2].comparison
    assert comparison is not None
    assert (comparison.ratio, comparison.different) == (2.0, True)
    assert tracks[1].comparison is not None
    assert tracks[1].comparison.different is False


def test_a_linear_drift_cancels_out() -> None:
    """A machine that slows by 1 % a process: one after the other would be 8 % off."""
    machine = Machine([1.0, 1.0], drift=0.01)
    comparison = run_rounds(2, machine.launch, plan(), machine.clock)[1].comparison
    assert comparison is not None
    assert comparison.ratio == pytest.approx(1.0, abs=1e-6)
    assert comparison.different is False


def test_a_noisy_machine_gets_more_pairs_and_a_quiet_one_the_least() -> None:
    quiet, noisy = Machine([1.0, 1.0], sigma=0.001), Machine([1.0, 1.0], sigma=0.04)
    assert len(run_rounds(2, quiet.launch, plan(), quiet.clock)[1].answers) == 8
    assert len(run_rounds(2, noisy.launch, plan(), noisy.clock)[1].answers) > 12


def test_only_the_rows_that_are_not_known_well_enough_go_on() -> None:
    machine = Machine([1.0, 1.0, 1.0], seed=4)
    steady = machine.launch

    def launch(index: int) -> Answer:
        answer = steady(index)
        return {"median_ms": answer["median_ms"] * (math.exp(machine.draw.gauss(0, 0.05)) if index == 2 else 1)}

    tracks = run_rounds(3, launch, plan(), machine.clock)
    assert len(tracks[1].answers) == 8
    assert len(tracks[2].answers) > 8
    assert len(tracks[0].answers) == len(tracks[2].answers)


def test_the_budget_ends_a_run_and_its_comparison_says_what_it_can_prove() -> None:
    machine = Machine([1.0, 1.5], sigma=0.2)
    tracks = run_rounds(2, machine.launch, plan(budget_s=9.0), machine.clock)
    assert machine.seconds <= 9.0
    comparison = tracks[1].comparison
    assert comparison is not None
    assert comparison.pairs == 4
    assert comparison.different is None  # four pairs can prove nothing at 99 %
    assert half_width([1.0] * 4, [1.5] * 4, plan()) == math.inf


def test_a_crash_costs_its_own_row_only() -> None:
    machine = Machine([1.0, 1.0, 3.0])

    def launch(index: int) -> Answer:
        if index == 1 and machine.order.count(1) == 3:
            raise StageError("the runtime crashed", remedy="none")
        return machine.launch(index)

    tracks = run_rounds(3, launch, plan(), machine.clock)
    assert tracks[1].error is not None
    assert len(tracks[1].answers) == 3
    assert tracks[1].comparison is None
    assert tracks[2].comparison is not None
    assert tracks[2].comparison.pairs == 8


def test_without_the_reference_the_others_are_still_measured_but_not_compared() -> None:
    machine = Machine([1.0, 1.0])

    def launch(index: int) -> Answer:
        if index == 0:
            raise StageError("the runtime crashed", remedy="none")
        return machine.launch(index)

    tracks = run_rounds(2, launch, plan(), machine.clock)
    assert tracks[0].error is not None
    assert len(tracks[1].answers) == 8
    assert tracks[1].comparison is None


def test_one_row_alone_is_measured_the_least_number_of_times() -> None:
    machine = Machine([1.0])
    assert len(run_rounds(1, machine.launch, plan(), machine.clock)[0].answers) == 8


LAWS = {
    "quiet": lambda draw: draw.gauss(0, 0.008),
    "busy": lambda draw: draw.gauss(0, 0.03),
    "very busy": lambda draw: draw.gauss(0, 0.06),
    "long tails": lambda draw: draw.choice((-1, 1)) * draw.expovariate(1 / 0.02),
    "neighbour comes and goes": lambda draw: draw.gauss(0, 0.01 if draw.random() < 0.8 else 0.1),
    "skewed": lambda draw: draw.expovariate(1 / 0.03) - 0.03 * math.log(2),
}


def simulate(law: Any, change: float, runs: int) -> float:
    """Share of runs of the whole procedure, with its early ends, that call two models different."""
    draw, different = random.Random(7), 0
    for run in range(runs):

        def launch(index: int) -> Answer:
            # All of a pair's scatter is put on the second: only the ratio counts.
            return {"median_ms": math.exp(law(draw) + math.log(1 + change)) if index else 1.0}

        comparison = run_rounds(2, launch, plan(), lambda: 0.0, seed=run)[1].comparison
        different += bool(comparison and comparison.different)
    return different / runs


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_two_copies_are_called_different_in_at_most_one_of_a_hundred(law: Any, monkeypatch: Any) -> None:
    from edgekit.measure import statistics

    # The shown interval decides nothing, and takes long.
    monkeypatch.setattr(statistics, "bootstrap_interval", lambda *a, **k: (0.0, 0.0))
    runs = 1000
    assert simulate(law, 0.0, runs) <= 0.01 + 2.6 * math.sqrt(0.01 * 0.99 / runs)


@pytest.mark.parametrize("law", [v for k, v in LAWS.items() if k != "very busy"])
def test_five_percent_are_found(law: Any, monkeypatch: Any) -> None:
    from edgekit.measure import statistics

    monkeypatch.setattr(statistics, "bootstrap_interval", lambda *a, **k: (0.0, 0.0))
    assert simulate(law, 0.05, 300) >= 0.95
