"""The report as files: what stands in it, for every kind of row, and what can't get into it."""

from __future__ import annotations

import base64
import copy
import csv
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_sample import NAMES, hostile, many, mixed, row, sample
from rich.console import Console

from edgekit import report, result
from edgekit.errors import StageError
from edgekit.report import charts, findings, words
from edgekit.report.page import page
from edgekit.report.rows import rows_of
from edgekit.report.scatter import CROWD, LATENCY, SIZE, scatter, spots
from edgekit.report.table import cell, csv_text

needs_charts = pytest.mark.skipif(not charts.available(), reason="vl-convert is not installed")


class Page(HTMLParser):
    """An HTML page taken apart: elements with their attributes, text by element, balance."""

    VOID = frozenset({"br", "col", "hr", "input", "link", "meta"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.inside: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.inside.setdefault(self.stack[-1], []).append(data)

    def text(self) -> str:
        return " ".join(t for tag, parts in self.inside.items() if tag not in ("script", "style") for t in parts)


def html_of(record: dict[str, Any], folder: Path | None = None) -> str:
    return page(words.tidy(record), folder)


@pytest.fixture(autouse=True, scope="module")
def _draw_each_picture_once() -> Iterator[None]:
    """Keep what was drawn: most tests draw the same pictures, and drawing is the slow part."""
    if not charts.available():
        yield
        return
    import vl_convert

    patch = pytest.MonkeyPatch()
    patch.setattr(vl_convert, "vegalite_to_svg", functools.cache(vl_convert.vegalite_to_svg))
    yield
    patch.undo()


def small() -> dict[str, Any]:
    """The record with the rows of two targets: every state but ``built``."""
    record = sample()
    record["variants"] = [v for v in record["variants"] if v["target"] in ("x86-cpu", "nvidia-gpu")]
    return record


def test_the_samples_of_these_tests_are_valid_records() -> None:
    result.validate(sample())
    result.validate(many(40))


# ── the files ─────────────────────────────────────────────────────────────────────────────


def test_three_files_are_written_beside_the_record(tmp_path: Path) -> None:
    written = report.write(sample(), tmp_path)
    assert [p.name for p in written] == ["report.html", "report.md", "report.csv"]
    assert all(p.is_file() and p.parent == tmp_path for p in written)
    assert written[0].stat().st_size < 3_000_000
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in written}  # no temporary file is left


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="can't write"):
        report.write(sample(), tmp_path / "file")


def test_the_same_record_makes_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        if charts.available():
            import vl_convert

            vl_convert.vegalite_to_svg.cache_clear()
        made.append([p.read_bytes() for p in report.write(small(), tmp_path / name)])
    assert made[0] == made[1]


def test_the_record_that_was_given_is_left_alone(tmp_path: Path) -> None:
    record = sample()
    report.write(record, tmp_path)
    assert record == sample()


# ── the verdict ───────────────────────────────────────────────────────────────────────────


def test_the_verdict_names_the_best_variant_and_what_it_gained() -> None:
    assert report.summary_sentence(sample()) == (
        "Gate passed: all 15 limits hold. int8 on x86-cpu is 1.94× as fast as the original [1.89, 1.99], "
        "at 0.29× its size; accuracy 97.11 % (−0.22 pt [−1.02, +0.48])."
    )


def test_a_broken_limit_and_an_unsure_one_are_told_apart() -> None:
    record = sample()
    record["gate"]["checks"][0]["passed"] = None
    record["gate"]["passed"] = None
    assert report.summary_sentence(record).startswith("Gate inconclusive: this run can't prove 1 of 15 limits.")
    record["gate"]["checks"][1]["passed"] = False
    record["gate"]["passed"] = False
    assert report.summary_sentence(record).startswith("Gate failed: 1 of 15 limits broken.")


def test_a_gate_without_a_check_never_reads_as_passed() -> None:
    record = sample()
    record["gate"] = {"passed": None, "checks": []}
    assert report.summary_sentence(record).startswith("No limits were set.")
    record["gate"]["passed"] = False
    assert report.summary_sentence(record).startswith("Gate failed: it had nothing to check.")
    record["gate"]["passed"] = True
    assert not report.summary_sentence(record).startswith("Gate passed")


def test_the_fastest_that_lost_the_metric_is_not_the_headline() -> None:
    record = sample()
    fastest = row(record, "int8@x86-cpu")
    next(c for c in record["gate"]["checks"] if c["variant"] == "int8@x86-cpu")["passed"] = False
    tidied = words.tidy(record)
    best = findings.headline(tidied, rows_of(tidied))
    assert best is not None
    assert best.id == "pruned-int8-qat@x86-cpu" != fastest["id"]


def test_where_the_limit_cannot_be_told_the_gain_is_said_with_that_doubt() -> None:
    record = sample()
    for check in record["gate"]["checks"]:
        check["passed"] = None
    said = report.summary_sentence(record)
    assert "as fast as the original" in said
    assert "Whether its accuracy holds the limit, these test samples can't tell." in said


def test_without_limits_on_the_metric_99_per_cent_of_the_original_counts_as_kept() -> None:
    record = sample()
    record["gate"] = {"passed": True, "checks": []}
    low = row(record, "int8@x86-cpu")
    low["metric"]["value"] = 0.9
    low["vs_reference"].update(metric_delta=-0.0733, metric_delta_ci95=[-0.09, -0.06])
    tidied = words.tidy(record)
    kept = {r.id for r in rows_of(tidied) if findings.kept(tidied, r)}
    assert "int8@x86-cpu" not in kept
    assert "pruned-int8-qat@x86-cpu" in kept


def test_for_an_error_metric_lower_is_better_everywhere() -> None:
    record = sample()
    record["gate"] = {"passed": True, "checks": []}
    for variant in record["variants"]:
        if variant["metric"]:
            variant["metric"].update(name="mse", higher_is_better=False)
            variant["vs_reference"]["metric_delta_ci95"] = [0.001, 0.01]
    rows = rows_of(words.tidy(record))
    assert all(r.worse for r in rows if r.metric is not None)
    front = {s.row.variant for s in spots([r for r in rows if r.target == "x86-cpu"], LATENCY) if s.front}
    assert "pruned-int8" in front  # the lowest value
    assert "fp32" not in front


def test_nothing_measured_is_said_so() -> None:
    record = sample()
    record["variants"] = [v for v in record["variants"] if v["target"] in ("raspberry-pi-5", "nvidia-gpu")]
    assert "Nothing was measured on this machine (5 built and 5 unavailable)." in report.summary_sentence(record)


def test_only_the_original_is_said_so() -> None:
    record = sample()
    record["variants"] = record["variants"][:1]
    assert "Only the original was measured: 97.33 % and 86.2 µs on x86-cpu." in report.summary_sentence(record)


# ── honest sentences ──────────────────────────────────────────────────────────────────────


def sentences(record: dict[str, Any]) -> list[str]:
    tidied = words.tidy(record)
    return [f.sentence for f in findings.findings(tidied, rows_of(tidied))]


def test_a_slower_variant_is_said_to_be_slower_and_why() -> None:
    said = " ".join(sentences(sample()))
    assert "pruned-int8 on x86-openvino is slower than the original: 0.91× [0.89, 0.93] as fast." in said
    assert "FakeQuantize takes 16.3 µs (not in the original)" in said
    assert "It does 0.54× the multiply-adds, but time does not follow them" in said


def test_the_measurements_own_explanation_comes_before_a_guess() -> None:
    record = sample()
    row(record, "pruned-int8@x86-openvino")["explain"] = ["Its convolutions fell back to float."]
    mine = next(s for s in sentences(record) if s.startswith("pruned-int8 on x86-openvino is slower than the original"))
    assert mine.endswith("as fast. Its convolutions fell back to float.")


def test_no_measurable_gain_is_said_so_with_what_could_have_been_proved() -> None:
    assert any(
        s.startswith("int8 on x86-openvino is not measurably faster than the original: 1.01× [0.98, 1.03] as fast; ")
        and "the smallest change this run could have proved is 2.1 %" in s
        for s in sentences(sample())
    )


def test_a_gain_that_is_seen_but_not_proven_is_told_as_that() -> None:
    record = sample()
    for variant in record["variants"]:
        if variant.get("measured"):
            variant["measured"].update(different=None, pairs=6)
    said = " ".join(sentences(record))
    assert "6 pairs of runs are too few for a 99 % interval" in said
    assert (
        "int8 on x86-cpu is 1.94× as fast as the original [1.89, 1.99] (seen, not proven)"
        in report.summary_sentence(record)
    )


def brought_back(speedup: float) -> dict[str, Any]:
    """The record with times of the untouched model and of int8 that deploy brought back from a device."""
    record = sample()
    for name, latency in (("fp32@raspberry-pi-5", 4.0), ("int8@raspberry-pi-5", 4.0 / speedup)):
        device = {"board": "Raspberry Pi 5", "cpu": None, "os": "Debian"}
        row(record, name).update(
            status="ok",
            reason="",
            measured=None,
            measured_on={"host": "pi@desk", "device": device},
            latency_ms={"median": latency, "p90": latency, "p99": None, "ci95": [latency, latency], "runs": 100},
        )
    row(record, "int8@raspberry-pi-5")["vs_reference"].update(speedup=speedup, speedup_ci95=None)
    return record


def test_numbers_from_a_device_say_that_they_have_no_interval() -> None:
    said = sentences(brought_back(2.0))
    assert (
        "On raspberry-pi-5, int8: the speed-up is seen but not proven; there is no interval, because the two were not "
        "measured in turns."
    ) in said
    assert any(s.startswith("int8 on raspberry-pi-5 is 2.00× as fast as the original (seen, not proven") for s in said)
    slower = next(s for s in sentences(brought_back(0.5)) if s.startswith("int8 on raspberry-pi-5"))
    assert "seems slower than the original (0.50× as fast), which is not proven: there is no interval" in slower
    assert "holds 1" not in " ".join([*said, slower])
    page = html_of(brought_back(2.0))
    assert '<td class="num" data-sort="2.0" data-label="Speed-up">2.00×<small>[no interval]</small></td>' in page
    assert "<dt>Measured on</dt><dd>pi@desk (Raspberry Pi 5, Debian)</dd>" in page
    assert "100 inferences" in page
    assert "[no interval]" not in html_of(sample())  # nor is the original's own 1.00 one that lacks it


def test_of_equally_fast_rows_the_better_metric_is_the_headline_then_the_smaller_file() -> None:
    record = sample()
    record["gate"] = {"passed": True, "checks": []}
    base = row(record, "int8@x86-cpu")
    twins = []
    for name, shift, metric, size in (
        ("slower", 0.2, 0.0, 0),
        ("better", 0.01, 0.001, 900),
        ("small", 0.02, 0.001, -9),
    ):
        twin = copy.deepcopy(base)
        twin.update(id=f"{name}@x86-cpu", variant=name, size_bytes=base["size_bytes"] + size)
        against = twin["vs_reference"]
        against.update(speedup=against["speedup"] - shift, speedup_ci95=[b - shift for b in against["speedup_ci95"]])
        twin["metric"]["value"] += metric
        twins.append(twin)

    def best() -> str:
        tidied = words.tidy(record)
        found = findings.headline(tidied, rows_of(tidied), "x86-cpu")
        return found.variant if found else ""

    record["variants"] += twins[:1]
    assert best() == "int8"  # a whole interval slower, whatever its metric
    record["variants"] += twins[1:2]
    assert best() == "better"
    record["variants"] += twins[2:]
    assert best() == "small"


def test_speed_that_heat_may_have_changed_is_not_trusted() -> None:
    record = sample()
    mine = row(record, "int8@x86-cpu")["measured"]
    mine.update(trusted=False, verdict="can't tell, because the CPU was throttled (1.9x as fast)")
    assert any("the CPU was throttled" in s for s in sentences(record))
    assert "int8 on x86-cpu" not in report.summary_sentence(record)


def test_a_loss_is_said_once_for_all_targets_and_placed_at_its_stage() -> None:
    said = [s for s in sentences(sample()) if s.startswith("pruned on ")]
    assert said[0] == (
        "pruned on x86-cpu, x86-openvino and raspberry-pi-5 is worse than the original: accuracy −1.11 pt "
        "[−1.91, −0.41], most of it at the stages prune and recover (−1.11 pt)."
    )


def test_a_loss_that_differs_between_targets_is_told_where_it_is_greatest() -> None:
    record = sample()
    row(record, "pruned@x86-openvino")["vs_reference"].update(metric_delta=-0.02, metric_delta_ci95=[-0.03, -0.01])
    said = [s for s in sentences(record) if s.startswith("pruned on ")]
    assert "accuracy −2.00 pt [−3.00, −1.00] on x86-openvino" in said[0]


def test_pruning_that_costs_speed_is_said_so() -> None:
    assert any("pruned-int8 on x86-cpu is slower than int8" in s for s in report.bad_news(sample()))
    assert any("pruned-int8 on x86-cpu is slower than int8, which is not pruned" in s for s in sentences(sample()))


def test_many_losses_become_one_sentence_that_counts_them() -> None:
    said = [s for s in sentences(many(100)) if "worse than the original" in s]
    assert said == [
        "20 variants are worse than the original by more than chance: pruned, pruned-int8, pruned-1 and 17 more."
    ]


def test_every_limit_that_did_not_hold_stands_under_the_verdict_the_broken_first() -> None:
    record = sample()
    checks = record["gate"]["checks"]
    checks[0].update(passed=None, sentence="can't tell one")
    for number in range(1, 8):
        checks[number].update(passed=False, sentence=f"broken {number}")
    record["gate"]["passed"] = False
    text = html_of(record)
    verdict = text[text.index('class="verdict fail"') : text.index("</header>")]
    told = re.findall(r"<li>(.*?)</li>", verdict)
    assert told == [*(f"broken {n}" for n in range(1, 6)), "and 3 more: see the gate's checks below"]


def test_how_much_of_a_limit_is_used_is_shown() -> None:
    record = sample()
    record["gate"]["checks"] = [
        {"name": "max_size_ratio", "limit": 0.4, "value": 0.1, "passed": True, "variant": "a"},
        {"name": "min_speedup", "limit": 2.0, "value": 1.0, "passed": False, "variant": "b"},
        {"name": "max_metric_drop", "limit": 0.01, "value": -0.02, "passed": True, "variant": "c"},
    ]
    lines = re.findall(r'<tr><th scope="row">([abc])</th>(.*?)</tr>', html_of(record))
    assert [(name, re.findall(r"\d+ %", cells)) for name, cells in lines] == [
        ("b", ["200 %"]),
        ("a", ["25 %"]),
        ("c", ["0 %"]),
    ]


@needs_charts
def test_a_crowd_of_points_names_only_the_front() -> None:
    rows = [r for r in rows_of(many(100)) if r.target == "x86-cpu"]
    drawn = scatter(rows, LATENCY, "accuracy", "crowd")
    assert len(re.findall('aria-roledescription="point"', drawn)) == len(rows) > CROWD
    assert {t for t in re.findall(r">([a-z][^<>]*)</text>", drawn) if t.startswith(("fp32", "int8", "pruned"))} == {
        "fp32",
        "int8",
    }


@needs_charts
def test_of_many_rows_the_bars_show_the_original_and_the_front() -> None:
    text = html_of(many(100))
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    ranges = next(f for f in figures if "Latency of one inference on x86-cpu" in f)
    assert "(of 50, the original and the front)" in ranges
    assert len(re.findall('aria-roledescription="point"', ranges)) == 12
    assert ranges.count("<tr>") == 1 + 50  # the table has them all


def test_failed_and_missing_rows_keep_their_reason() -> None:
    record = sample()
    row(record, "pruned@x86-cpu").update(
        status="failed", reason="quantize: layer4.conv2 saturates", latency_ms=None, metric=None, vs_reference=None
    )
    said = sentences(record)
    assert said[0] == "pruned on x86-cpu failed: quantize: layer4.conv2 saturates"
    assert any(s.startswith("nvidia-gpu: fp32, pruned, int8") and "'tensorrt' is not installed" in s for s in said)
    assert any(s.startswith("raspberry-pi-5:") and "built here but not measured" in s for s in said)


# ── the page ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r,
        lambda r: {**r, "variants": r["variants"][:1]},
        lambda r: {**r, "variants": [{**v, "latency_ms": None} for v in r["variants"]]},
        lambda r: {**r, "variants": [{**v, "metric": None} for v in r["variants"]]},
        lambda r: {**r, "variants": [{**v, "vs_reference": None, "stages": []} for v in r["variants"]]},
        lambda r: {**r, "variants": [{**v, "size_bytes": None, "artifact": None} for v in r["variants"]]},
        lambda r: {**r, "variants": [{**v, "status": "failed", "metric": None} for v in r["variants"]]},
        lambda r: {**r, "variants": [v for v in r["variants"] if v["status"] == "unavailable"]},
        lambda r: {**r, "environment": {}, "lock": {}, "recipe": {}, "warnings": []},
        lambda r: {**r, "variants": [{**v, "metric": {**(v["metric"] or {}), "value": 0.5}} for v in r["variants"]]},
        lambda r: {**r, "variants": [{**v, "size_bytes": 0, "latency_ms": {"median": 0.0}} for v in r["variants"]]},
    ],
    ids=[
        "whole",
        "one",
        "no latency",
        "no metric",
        "no reference",
        "no size",
        "failed",
        "unavailable",
        "bare",
        "equal",
        "zeros",
    ],
)
def test_every_kind_of_record_makes_a_whole_page(change: Any, tmp_path: Path) -> None:
    record = change(small())
    taken = Page(html_of(record, tmp_path))
    assert taken.stack == []
    assert len([t for t, _ in taken.tags if t == "h1"]) == 1
    report.write(record, tmp_path)
    report.terminal_table(record)
    report.summary_sentence(record)


def test_the_page_asks_nothing_of_the_network_and_allows_only_its_own_script() -> None:
    text = html_of(sample())
    taken = Page(text)
    policy = next(a["content"] for t, a in taken.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for element in ("style", "script"):
        source = "".join(taken.inside[element])
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    addresses = {v for _, a in taken.tags for k, v in a.items() if k in ("src", "href", "xlink:href", "action", "data")}
    assert {a for a in addresses if a and not a.startswith("#")} == {"report.csv", "report.md", "results.json"}
    assert not any(k.startswith("on") or k == "style" for _, a in taken.tags for k in a)


def test_every_number_is_there_without_the_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "available", lambda: False)
    taken = Page(html_of(sample()))
    assert "svg" not in {tag for tag, _ in taken.tags}
    assert "edgekit-compiler[report]" in taken.text()
    for shown in ("97.11 %", "44.4 µs", "1.94×", "81.11 %", "QLinearConv", "classifier.1"):
        assert shown in taken.text()


@needs_charts
def test_every_chart_has_its_numbers_as_a_table_beside_it() -> None:
    text = html_of(sample())
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    with_chart = [f for f in figures if "<svg" in f]
    assert len(with_chart) >= 15
    stages = [f for f in with_chart if "after each stage" in f]  # one table for all of them, below
    assert all("<table" in f for f in with_chart if f not in stages)
    assert "All targets, as a table" in text


@needs_charts
def test_every_point_says_all_to_a_screen_reader_and_leads_to_its_row() -> None:
    taken = Page(html_of(sample()))
    labels = [a["aria-label"] or "" for _, a in taken.tags if a.get("aria-roledescription") == "point"]
    mine = next(label for label in labels if label.startswith("int8 on x86-cpu\naccuracy"))
    for fact in (
        "accuracy 97.11 % (−0.22 pt [−1.02, +0.48])",
        "latency 44.4 µs, p99",
        "speed-up 1.94× [1.89, 1.99]",
        "size 27.0 kB",
    ):
        assert fact in mine
    ids = {a["id"] for _, a in taken.tags if "id" in a}
    goals = {a["href"][1:] for _, a in taken.tags if (a.get("href") or "").startswith("#")}
    assert goals <= ids


def test_ids_are_unique() -> None:
    ids = [a["id"] for t, a in Page(html_of(sample())).tags if a.get("id")]
    assert len(ids) == len(set(ids))


@needs_charts
def test_colours_of_the_charts_are_ones_that_the_style_sheet_knows() -> None:
    text = html_of(sample())
    drawn = set(
        re.findall(r'(?:fill|stroke)="(#[0-9a-f]{3,6}|[a-z]+)"', "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL)))
    )
    known = {charts.INK, charts.SOFT, charts.GRID, charts.PAPER, *charts.SERIES, "none", "transparent"}
    assert drawn <= known


@needs_charts
def test_the_specifications_are_valid_vega_lite(monkeypatch: pytest.MonkeyPatch) -> None:
    altair = pytest.importorskip("altair")
    vl_convert = pytest.importorskip("vl_convert")
    drawn: list[str] = []
    real = vl_convert.vegalite_to_svg
    monkeypatch.setattr(
        vl_convert, "vegalite_to_svg", lambda spec, **options: drawn.append(spec) or real(spec, **options)
    )
    html_of(sample())
    assert len(drawn) >= 15
    kinds = {}
    for spec in drawn:
        parts = json.loads(spec)
        kinds[str([layer["mark"] for layer in parts.get("layer", [parts])])] = spec
    assert len(kinds) >= 5
    for spec in kinds.values():
        altair.Chart.from_json(spec, validate=True)


def test_200_variants_stay_under_three_megabytes(tmp_path: Path) -> None:
    record = many(200)
    for variant in record["variants"]:
        layers = [
            {"name": f"layer{i}", "operator": "Conv", "macs": 1, "precision": "fp32", "reason": "r"} for i in range(60)
        ]
        variant["layers"] = layers
        variant["reports"] = {"prune": {"kept": [{"layer": f"layer{i}", "reason": "r" * 40} for i in range(60)]}}
    assert report.write(record, tmp_path)[0].stat().st_size < 3_000_000


def test_the_front_of_a_picture_is_what_nothing_beats() -> None:
    rows = [r for r in rows_of(sample()) if r.target == "x86-cpu"]
    assert {s.row.variant for s in spots(rows, LATENCY) if s.front} == {"fp32", "int8"}
    assert {s.row.variant for s in spots(rows, SIZE) if s.front} == {"fp32", "int8", "pruned-int8-qat"}


def test_other_scenarios_are_tables_and_those_that_cannot_run_say_why() -> None:
    record = sample()
    row(record, "int8@x86-cpu")["measured"]["scenarios"] = {
        "batches": {
            "points": [{"batch": 1, "latency_ms": 0.05, "samples_per_s": 20_000}, {"batch": 8, "unavailable": "fixed"}]
        },
        "paced": {"interval_ms": 33.0, "median_ms": 0.09, "core_share": 0.003, "late": 0},
        "energy": {"joules": 0.0012, "sensor": "RAPL: package"},
    }
    row(record, "fp32@x86-cpu")["measured"]["scenarios"] = {"energy": {"unavailable": "no energy counter"}}
    shown = Page(html_of(record)).text()
    for told in ("Throughput by batch", "20.0 k", "fixed", "33.0 ms", "90.0 µs", "< 1 %", "1.20 mJ", "RAPL: package"):
        assert told in shown
    assert "energy: no energy counter" in shown


@needs_charts
def test_layers_ranked_by_the_quantizers_guard_are_drawn() -> None:
    record = small()
    for variant in record["variants"]:
        variant.pop("sensitivity", None)
    row(record, "int8@x86-cpu")["reports"] = {
        "quantize": {
            "sensitivity": [
                {"layer": "stem", "metric_or_sqnr": 0.4, "kept_float": False},
                {"layer": "head", "metric_or_sqnr": 6.1, "kept_float": True},
            ]
        }
    }
    text = html_of(record)
    assert "1. head (kept in float)" in text
    assert "6.10 dB" in text


def test_what_pruning_took_and_noted_is_told() -> None:
    record = small()
    table = [{"layer": "block.conv", "channels": [16, 0], "macs": [900, 0], "parameters": [90, 0]}]
    notes = ["1.52 times as fast on x86-cpu, measured", "residual branches that went whole: <b>block.conv</b>"]
    row(record, "int8@x86-cpu")["reports"] = {"prune": {"table": table, "kept": [], "notes": notes}}
    shown = Page(html_of(record)).text()
    assert "16 → 0" in shown
    assert all(note in shown for note in notes)


@needs_charts
def test_layers_that_mind_pruning_are_drawn() -> None:
    record = small()
    lost = [{"layer": "stem, conv2", "lost": 0.03}, {"layer": "all of block.1", "lost": 0.215}]
    row(record, "int8@x86-cpu")["reports"] = {"prune": {"sensitivity": lost}}
    text = html_of(record)
    assert "that mind pruning most, on x86-cpu" in text
    assert text.index("1. all of block.1") < text.index("2. stem, conv2")


# ── raw samples ───────────────────────────────────────────────────────────────────────────


def with_times(folder: Path, file: str = "samples/int8.times.json", **changes: Any) -> dict[str, Any]:
    """A record of one measured row and its raw times in ``folder``; ``changes`` is what the record says wrongly."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    times = ", ".join(str(44_000 + i * 17) for i in range(500))
    path.write_text('{"runs": [{"valid": true, "samples_ns": [' + times + "]}]}")
    record = sample()
    mine = row(record, "int8@x86-cpu")
    told = {"path": file, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **changes}
    mine["measured"]["files"] = {"times": told}
    record["variants"] = [mine]
    return record


@needs_charts
def test_raw_times_beside_the_record_are_drawn(tmp_path: Path) -> None:
    assert "Latency of every inference on x86-cpu" in html_of(with_times(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"sha256": "0" * 64}, {"path": "samples/absent.json"}, {"path": "/etc/passwd"}, {"path": "samples"}]
)
def test_raw_times_that_are_not_what_the_record_says_are_left_out(changes: dict[str, str], tmp_path: Path) -> None:
    assert "Latency of every inference" not in html_of(with_times(tmp_path, **changes), tmp_path)


def test_raw_times_outside_the_folder_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    record = with_times(tmp_path / "run", "../outside.json")
    assert "Latency of every inference" not in html_of(record, tmp_path / "run")


def with_rounds(folder: Path, medians: list[float]) -> dict[str, Any]:
    """A record of one measured row whose processes had these medians, in milliseconds."""
    record = with_times(folder)
    path = folder / "samples/int8.times.json"
    runs = [{"round": n, "valid": True, "samples_ns": [1e6 * m] * 30} for n, m in enumerate(medians)]
    path.write_text(json.dumps({"runs": [*reversed(runs), {"round": 9, "valid": False, "samples_ns": [9e9]}]}))
    record["variants"][0]["measured"]["files"]["times"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return record


@needs_charts
def test_drift_is_drawn_by_round_against_the_rows_own_median(tmp_path: Path) -> None:
    text = html_of(with_rounds(tmp_path, [1.0, 1.0, 1.25, 0.9]), tmp_path)
    assert "Drift while it was measured on x86-cpu" in text
    assert "1. int8, round 3: +25.0 %" in text
    assert "1. int8, round 4: -10.0 %" in text
    assert '<td class="num">4</td><td class="num">−10.0 %</td><td class="num">+25.0 %</td>' in text
    assert "round 10" not in text  # it was invalid
    assert "Drift" not in html_of(with_rounds(tmp_path, [1.0, 1.2]), tmp_path)


def with_outputs(folder: Path, before: Any, after: Any) -> dict[str, Any]:
    """A record of a row and its reference with what each said of every test sample."""
    record = sample()
    rows = [row(record, name) for name in ("fp32@x86-cpu", "int8@x86-cpu")]
    for one, scores in zip(rows, (before, after), strict=True):
        path = folder / f"{one['variant']}.npz"
        np.savez(path, **{"0:logits": scores, "digest": "x"})
        told = {"path": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        one["measured"]["files"] = {"outputs": told}
    record["variants"] = rows
    return record


def test_samples_that_changed_their_class_are_listed_the_surest_first(tmp_path: Path) -> None:
    before = np.array([[2, 1, 0], [0, 3, 1], [0, 1, 5], [1, 0, 0]], "f")
    after = np.array([[1, 2, 0], [0, 3, 1], [9, 1, 5], [1, 0, 0]], "f")
    text = html_of(with_outputs(tmp_path, before, after), tmp_path)
    assert "Test samples that changed their class: 2 of 4" in text
    cells = '<th scope="row">{}</th><td class="num">{}</td><td class="num">{}</td><td class="num">{}</td>'
    first, second = cells.format(2, 2, 0, "5.00"), cells.format(0, 0, 1, "1.00")
    assert text.index(first) < text.index(second)
    assert "changed their class: 0 of 4" in html_of(with_outputs(tmp_path, before, before), tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.zeros((4, 1), "f"), np.ones((4, 1), "f")),  # no classes
        (np.zeros((4, 3), "f"), np.zeros((3, 3), "f")),
        (np.zeros((4, 3), "f"), np.full((4, 3), np.nan, "f")),
        (np.zeros((4, 3), "i"), np.zeros((4, 3), "i")),
        (np.array([{}], object), np.array([{}], object)),
    ],
)
def test_outputs_that_are_no_classes_give_no_list(before: Any, after: Any, tmp_path: Path) -> None:
    assert "changed their class" not in html_of(with_outputs(tmp_path, before, after), tmp_path)


def test_of_another_metric_than_a_share_no_classes_are_compared(tmp_path: Path) -> None:
    record = with_outputs(tmp_path, np.eye(4, dtype="f"), np.eye(4, dtype="f")[::-1])
    for variant in record["variants"]:
        variant["metric"]["name"] = "mse"
    assert "changed their class" not in html_of(record, tmp_path)


# ── attackers ─────────────────────────────────────────────────────────────────────────────


def contained(record: dict[str, Any], usual: Page) -> None:
    """Assert that a page has no element and no attribute that a page of plain names has not."""
    text = html_of(record)
    text.encode()
    taken = Page(text)
    assert taken.stack == []
    assert {t for t, _ in taken.tags} <= {t for t, _ in usual.tags}
    assert {k for _, a in taken.tags for k in a} <= {k for _, a in usual.tags for k in a}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)


def test_no_name_gets_out_of_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "available", lambda: False)
    usual = Page(html_of(hostile("plain")))
    for name in NAMES:
        record = hostile(name)
        record["variants"] = record["variants"][::4]  # one of each state and stage is enough
        contained(record, usual)


@needs_charts
def test_no_name_gets_out_of_its_picture() -> None:
    contained(mixed(NAMES), Page(html_of(mixed([f"plain{i}" for i in range(len(NAMES))]))))


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_of_the_csv_is_a_formula(name: str) -> None:
    text = csv_text(rows_of(words.tidy(hostile(name))))
    lines = list(csv.reader(io.StringIO(text)))
    assert {len(line) for line in lines} == {len(lines[0])}
    for line in lines[1:]:
        for value in line:
            number = re.fullmatch(r"-?[\d.]+(e-?\d+)?", value)
            assert number or not value.lstrip("\u00a0\ufffd ").startswith(
                ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
            )


def test_numbers_of_the_csv_stay_numbers() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(rows_of(sample())))))
    mine = next(line for line in lines if line["id"] == "int8@x86-cpu")
    assert float(mine["metric_delta"]) == pytest.approx(-0.0022)
    assert mine["size_bytes"] == "27023"
    assert mine["latency_ms"] != ""
    assert next(line for line in lines if line["id"] == "int8@raspberry-pi-5")["latency_ms"] == ""


def test_a_value_that_looks_like_a_formula_is_shown_as_text() -> None:
    assert cell("=1+1") == "'=1+1"
    assert cell("  @SUM(A1)") == "'  @SUM(A1)"
    assert cell(-1.5) == -1.5
    assert cell("conv-1") == "conv-1"


# ── the terminal ──────────────────────────────────────────────────────────────────────────


def printed(record: dict[str, Any], width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(report.terminal_table(record))
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue()


def test_the_terminals_table_tells_what_is_slower_and_what_was_not_measured() -> None:
    lines = printed(sample()).splitlines()
    assert len(lines) == 1 + 15 + 1  # the target where nothing can run is one line
    mine = next(line for line in lines if line.startswith("pruned-int8 ") and "x86-openvino" in line)
    assert re.split(r"\s{2,}|(?<=×|B) ", mine.rstrip())[-1] == "slower"
    assert "0.91×" in mine
    assert next(line for line in lines if "raspberry-pi-5" in line).rstrip().endswith("built")
    assert re.match(r"all 5 +nvidia-gpu .* n/a here$", lines[-1].rstrip())


def test_eighty_columns_hold_the_terminals_table() -> None:
    assert printed(sample(), 80).count("\n") == 17
    assert max(len(line) for line in printed(sample(), 200).splitlines()) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_a_name_cannot_talk_to_the_terminal(name: str) -> None:
    shown = printed(hostile(name)) + report.summary_sentence(hostile(name))
    assert "\x1b" not in shown
    assert not any(ord(c) < 32 and c != "\n" for c in shown)


def test_markup_of_the_terminal_library_is_shown_as_text() -> None:
    record = sample()
    row(record, "int8@x86-cpu")["variant"] = "[red]int8[/red]"
    assert "[red]int8[/red]" in printed(record)


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_terminal_loses_no_row(width: int) -> None:
    assert printed(sample(), width).strip()
