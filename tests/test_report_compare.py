"""Two runs side by side: what changed, and what may not be compared."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from report_sample import NAMES, hostile, row, sample

from edgekit import report
from edgekit.report.compare import Change


def change(comparison: report.Comparison, variant: str, target: str = "x86-cpu") -> Change:
    return next(c for c in comparison.changes[0] if (c.variant, c.target) == (variant, target))


def slowed(factor: float, *, target: str = "x86-cpu", variants: tuple[str, ...] = ()) -> dict[str, Any]:
    record = sample()
    for v in record["variants"]:
        if v["latency_ms"] and v["target"] == target and (not variants or v["variant"] in variants):
            v["latency_ms"]["median"] *= factor
            v["latency_ms"]["ci95"] = [bound * factor for bound in v["latency_ms"]["ci95"]]
            if variants:
                v["vs_reference"]["speedup"] /= factor
                v["vs_reference"]["speedup_ci95"] = [bound / factor for bound in v["vs_reference"]["speedup_ci95"]]
    return record


def test_the_same_run_twice_differs_in_nothing() -> None:
    found = report.compare([sample(), sample()])
    for c in found.changes[0]:
        assert c.metric_delta in (0, None)
        assert c.size_ratio in (1, None)
        assert c.speedup_ratio in (1, None)
    assert found.inputs == ((),)
    assert "inputs: nothing differs" in found.text()


def test_a_slowdown_shows_its_ratio_with_an_interval_that_holds_both_runs() -> None:
    c = change(report.compare([sample(), slowed(1.2, variants=("int8",))]), "int8")
    assert c.latency_ratio == pytest.approx(1.2)
    assert c.latency_ci is not None
    low, high = c.latency_ci
    before = row(sample(), "int8@x86-cpu")["latency_ms"]
    half = math.log(before["ci95"][1] / before["median"]), math.log(before["median"] / before["ci95"][0])
    assert math.log(high / 1.2) == pytest.approx(math.hypot(*half), rel=1e-6)
    assert 1 < low < 1.2 < high
    assert "lost speed" in report.compare([sample(), slowed(1.2, variants=("int8",))]).text()


def test_a_slower_machine_is_no_slower_variant() -> None:
    text = report.compare([sample(), slowed(1.2)]).text()
    assert "lost speed" not in text
    assert "the original's own" in text


def test_milliseconds_of_another_machine_are_not_compared() -> None:
    other = slowed(0.5)
    other["environment"]["cpu"] = "Another CPU"
    found = report.compare([sample(), other], ["a", "b"])
    assert (
        "b was measured on another machine (Another CPU, not A test sample's CPU): milliseconds do not compare"
        in found.text()
    )
    assert all(c.latency_ratio is None for c in found.changes[0])
    assert change(found, "int8").speedup_ratio == pytest.approx(1)
    assert "lost speed" not in found.text()


def test_a_record_that_names_no_machine_is_not_taken_for_the_same() -> None:
    one, other = sample(), sample()
    one["environment"] = other["environment"] = {}
    assert "milliseconds do not compare" in report.compare([one, other]).text()


def test_lost_accuracy_and_other_test_data_are_told() -> None:
    other = sample()
    row(other, "int8@x86-cpu")["metric"]["value"] -= 0.05
    other["lock"]["data"]["test"] = "0" * 64
    text = report.compare([sample(), other], ["a", "b"]).text()
    assert "97.11 % → 92.11 % (−5.00 pt)" in text
    assert "worse beyond the first run's interval" in text
    assert "b was judged on other test data" in text


def test_rows_of_one_run_only_and_changed_states_are_told() -> None:
    other = sample()
    other["variants"] = [v for v in other["variants"] if v["id"] != "pruned@x86-cpu"]
    row(other, "int8@x86-cpu").update(status="failed", reason="it crashed", latency_ms=None, metric=None)
    text = report.compare([sample(), other]).text()
    assert "only in the first run" in text
    assert "was ok, is failed: it crashed" in text
    assert "only in this run" in report.compare([other, sample()]).text()


def test_every_setting_that_differs_is_named() -> None:
    other = sample()
    other["recipe"]["prune"]["ratio"] = 0.4
    other["environment"]["kernel"] = "6.2"
    other["environment"]["temperature_c"] = 71.0
    assert report.compare([sample(), other]).inputs[0] == (
        ("recipe.prune.ratio", "0.3", "0.4"),
        ("environment.kernel", "6.1", "6.2"),
    )


def test_three_runs_are_each_compared_with_the_first() -> None:
    found = report.compare([sample(), sample(), slowed(1.5)], ["a", "b", "c"])
    assert "b against a" in found.text()
    assert "c against a" in found.text()
    assert len(found.to_dict()["runs"]) == 2


def test_one_run_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="two records"):
        report.compare([sample()])
    with pytest.raises(ValueError, match="names"):
        report.compare([sample(), sample()], ["one name"])


def test_the_json_has_no_nan_and_the_unrounded_numbers() -> None:
    text = json.dumps(report.compare([sample(), slowed(1.2)]).to_dict(), allow_nan=False)
    assert '"latency_ratio": 1.2' in text


@pytest.mark.parametrize("name", NAMES)
def test_no_name_gets_out_of_its_place(name: str) -> None:
    from test_report import Page

    found = report.compare([hostile(name), sample()], [name, "b"])
    usual = Page(report.compare([hostile("x"), sample()]).html())
    taken = Page(found.html())
    assert taken.stack == []
    assert {t for t, _ in taken.tags} <= {t for t, _ in usual.tags}
    assert {k for _, a in taken.tags for k in a} <= {k for _, a in usual.tags for k in a}
    assert "\x1b" not in found.text() + found.markdown()
