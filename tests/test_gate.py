"""The gate's verdict on records whose every number is known."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from gate_records import Record, absent, built, record, row

import edgekit
from edgekit import gating as gate
from edgekit.errors import InputError
from edgekit.gating.limits import LIMITS
from edgekit.recipe import GateSection


def judged(results: Record, **limits: Any) -> Record:
    return gate.judge(results, GateSection(**limits))


def only(verdict: Record) -> Record:
    assert len(verdict["checks"]) == 1
    check: Record = verdict["checks"][0]
    return check


def test_every_limit_of_the_recipe_has_its_function() -> None:
    from edgekit.recipe import Limits

    assert set(LIMITS) == set(Limits.model_fields)


@pytest.mark.parametrize(
    ("limits", "changes", "passed"),
    [
        ({"min_metric": 0.89}, {}, True),
        ({"min_metric": 0.91}, {}, False),
        ({"min_metric": 10.0}, {"metric__higher_is_better": False}, True),
        ({"min_metric": 0.8}, {"metric__higher_is_better": False}, False),
        ({"max_metric_drop": 0.01}, {}, True),
        ({"max_metric_drop": 0.001}, {}, None),
        ({"max_metric_drop": 0.001}, {"vs_reference__metric_delta_ci95": [-0.004, -0.0015]}, False),
        (
            {"max_metric_drop": 0.01},
            {"vs_reference__metric_delta": 0.02, "vs_reference__metric_delta_ci95": [0.01, 0.03]},
            True,
        ),
        (
            {"max_metric_drop": 0.01},
            {
                "metric__higher_is_better": False,
                "vs_reference__metric_delta": 0.02,
                "vs_reference__metric_delta_ci95": [0.015, 0.03],
            },
            False,
        ),
        ({"max_size_bytes": 300}, {}, True),
        ({"max_size_bytes": 299}, {}, False),
        ({"max_size_ratio": 0.3}, {}, True),
        ({"max_size_ratio": 0.29}, {}, False),
        ({"max_latency_ms": 1.1}, {}, True),
        ({"max_latency_ms": 0.9}, {}, False),
        ({"max_latency_ms": 1.0}, {}, None),
        ({"min_speedup": 1.9}, {}, True),
        ({"min_speedup": 2.1}, {}, False),
        ({"min_speedup": 2.01}, {}, None),
        ({"max_memory_bytes": 5_000_000}, {}, True),
        ({"max_memory_bytes": 4_999_999}, {}, False),
        ({"max_macs": 10_000}, {}, True),
        ({"max_macs": 9_999}, {}, False),
        ({"min_int8_macs_share": 0.95}, {}, True),
        ({"min_int8_macs_share": 0.96}, {}, False),
    ],
)
def test_each_limit_passes_fails_or_can_not_tell(limits: Record, changes: Record, passed: bool | None) -> None:
    verdict = judged(record(row("fp32"), row("int8", **changes)), **limits)
    check = only(verdict)
    assert (check["passed"], verdict["passed"]) == (passed, passed)
    assert (check["variant"], check["target"], check["name"]) == ("int8@x86-cpu", "x86-cpu", next(iter(limits)))
    assert check["limit"] == next(iter(limits.values()))


def test_a_broken_limit_says_value_limit_and_by_how_much() -> None:
    check = only(judged(record(), max_size_bytes=250))
    assert check["sentence"] == (
        "int8@x86-cpu: max_size_bytes: the artifact's size is 300 bytes, limit at most 250 bytes: broken by 50 bytes"
    )
    assert (check["value"], check["excess"]) == (300, 50)


def test_what_can_not_be_told_says_the_smallest_change_that_could_have_been() -> None:
    check = only(judged(record(), min_speedup=2.01))
    assert "can't tell, the limit lies inside the interval" in check["sentence"]
    assert "the smallest change this run could have proved is 0.040x" in check["sentence"]
    assert check["provable"] == pytest.approx(0.04)


def test_200_samples_can_not_pass_what_only_10000_can_prove() -> None:
    """Two models that agree on all of 200 samples may still differ on 1 % of all there are."""
    same = {"vs_reference__metric_delta": 0.0, "vs_reference__metric_delta_ci95": [0.0, 0.0]}
    few = record(row("fp32"), row("int8", metric__samples=200, **same))
    many = record(row("fp32"), row("int8", metric__samples=10_000, **same))
    assert judged(few, max_metric_drop=0.01)["passed"] is None
    assert judged(many, max_metric_drop=0.01)["passed"] is True


@pytest.mark.parametrize(
    ("limit", "changes", "words"),
    [
        ("max_metric_drop", {"vs_reference__metric_delta_ci95": None}, "no confidence interval"),
        ("max_metric_drop", {"metric": None}, "no metric was compared"),
        ("min_metric", {"metric": None}, "no metric was computed"),
        ("max_latency_ms", {"latency_ms": None}, "no latency was measured"),
        ("min_speedup", {"vs_reference__speedup": None}, "no latency was compared"),
        ("min_speedup", {"measured__speedup_ci99": None}, "too few pairs of runs"),
        ("max_memory_bytes", {"peak_rss_bytes": None}, "no peak memory"),
        ("max_macs", {"macs": None}, "no multiply-adds"),
        ("min_int8_macs_share", {"int8_macs_share": None}, "share of int8 is not known"),
        ("max_size_ratio", {"vs_reference": None}, "no reference to compare sizes with"),
    ],
)
def test_a_number_that_is_missing_never_passes(limit: str, changes: Record, words: str) -> None:
    verdict = judged(record(row("fp32"), row("int8", **changes)), **{limit: 1})
    assert verdict["passed"] is None
    assert words in only(verdict)["sentence"]


@pytest.mark.parametrize("limits", [{"min_speedup": 1.5}, {"max_latency_ms": 100.0}])
def test_times_of_a_throttled_machine_are_not_judged(limits: Record) -> None:
    hot = row("int8", measured__trusted=False, measured__verdict="can't tell, because the machine slowed itself down")
    verdict = judged(record(row("fp32"), hot), **limits)
    assert verdict["passed"] is None
    assert "slowed itself down" in only(verdict)["sentence"]


def test_limits_are_for_all_rows_but_the_reference() -> None:
    verdict = judged(record(row("fp32"), row("pruned"), row("int8")), max_size_bytes=1)
    assert {c["variant"] for c in verdict["checks"]} == {"pruned@x86-cpu", "int8@x86-cpu"}
    named = judged(record(), rule=[{"variant": "fp32", "min_metric": 0.95}])
    assert only(named)["variant"] == "fp32@x86-cpu"


def test_rules_override_for_the_rows_that_they_name() -> None:
    rows = [row(v, t) for t in ("x86-cpu", "x86-openvino") for v in ("fp32", "int8", "pruned-int8")]
    rules = [
        {"variant": "*int8", "max_size_bytes": 400},
        {"variant": "pruned*", "target": "x86-o*", "max_size_bytes": 200},
    ]
    verdict = judged(record(*rows), max_size_bytes=1, rule=rules)
    limits = {c["variant"]: c["limit"] for c in verdict["checks"]}
    assert limits == {
        "int8@x86-cpu": 400,
        "int8@x86-openvino": 400,
        "pruned-int8@x86-cpu": 400,
        "pruned-int8@x86-openvino": 200,
    }


def test_a_rule_that_matches_nothing_fails() -> None:
    verdict = judged(record(), max_size_bytes=1000, rule=[{"variant": "int4", "max_size_bytes": 1}])
    assert verdict["passed"] is False
    assert "matches no row" in verdict["checks"][0]["sentence"]


def test_a_rule_for_a_row_that_this_run_left_out_is_noted() -> None:
    results = record()
    results["recipe"]["targets"] = ["x86-cpu", "x86-openvino"]
    verdict = judged(results, max_size_bytes=1000, rule=[{"target": "x86-openvino", "max_size_bytes": 1}])
    assert verdict["passed"] is True
    assert any("no such row in this run" in n for n in verdict["notes"])


def test_built_and_unavailable_rows_do_not_fail_the_gate() -> None:
    rows = [
        row("fp32"),
        row("int8"),
        built("fp32"),
        built("int8", size_bytes=900),
        absent("int8", "unavailable", "nvidia-gpu"),
    ]
    verdict = judged(record(*rows), max_size_bytes=500, min_speedup=1.5, max_memory_bytes=10**9)
    assert verdict["passed"] is True
    assert {c["variant"] for c in verdict["checks"]} == {"int8@x86-cpu"}
    notes = "\n".join(verdict["notes"])
    assert "int8@nvidia-gpu: not checked, can't run here" in notes
    assert "broken by 400 bytes (only built here" in notes


def test_a_rule_that_names_a_device_judges_what_is_known_of_its_built_row() -> None:
    rows = [row("fp32"), row("int8"), built("fp32"), built("int8", size_bytes=900)]
    rule = {"target": "raspberry-pi-5", "max_size_bytes": 500, "max_latency_ms": 1}
    verdict = judged(record(*rows), rule=[rule])
    assert verdict["passed"] is False
    assert only(verdict)["name"] == "max_size_bytes"


def test_a_failed_row_fails_the_gate() -> None:
    verdict = judged(record(row("fp32"), row("int8"), absent("pruned", "failed")), max_size_bytes=1000)
    assert verdict["passed"] is False
    assert verdict["checks"][0]["name"] == "status"


def test_worst_first() -> None:
    rows = [row("fp32"), row("a", size_bytes=110), row("b", size_bytes=900), row("c", size_bytes=90)]
    verdict = judged(record(*rows), max_size_bytes=100, min_speedup=2.01)
    names = [(c["variant"], c["name"]) for c in verdict["checks"][:2]]
    assert names == [("b@x86-cpu", "max_size_bytes"), ("a@x86-cpu", "max_size_bytes")]
    assert [c["passed"] for c in verdict["checks"]] == [False, False, None, None, None, True]
    assert verdict["passed"] is False


def test_nothing_asked_is_no_verdict_in_a_run_and_a_failure_of_the_gate() -> None:
    assert gate.judge(record(), None)["passed"] is None
    assert gate.judge(record(), GateSection())["checks"] == []
    assert not gate.asked(GateSection(on_inconclusive="pass"))
    assert gate.asked(GateSection(rule=({"max_macs": 1},)))  # type: ignore[arg-type]
    verdict = edgekit.gate(record())
    assert verdict["passed"] is False
    assert "nothing to check" in verdict["checks"][0]["sentence"]


def test_limits_without_a_row_to_check_fail() -> None:
    verdict = judged(record(row("fp32"), absent("int8", "unavailable")), max_size_bytes=1)
    assert verdict["passed"] is False
    assert "no row could be checked" in verdict["checks"][0]["sentence"]


def test_numbers_are_written_for_people() -> None:
    same = row("int8", vs_reference__metric_delta=0.0, vs_reference__metric_delta_ci95=[-0.001, 0.001])
    sentence = only(judged(record(row("fp32"), same), max_metric_drop=0.01))["sentence"]
    assert "-0.0000" not in sentence
    assert "is 0.0000 [-0.0010, 0.0010]" in sentence
    size = only(judged(record(row("fp32"), row("int8", size_bytes=1234567)), max_size_bytes=2_000_000))["sentence"]
    assert "1,234,567 bytes" in size


@pytest.mark.parametrize("page", ["gate", "measuring"])
def test_the_settings_in_the_documentation_are_valid_and_defaults_are_as_said(page: str) -> None:
    from edgekit.recipe import MeasureSection

    text = (Path(__file__).parent.parent / "docs" / f"{page}.md").read_text()
    blocks = [tomllib.loads(block) for block in re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    assert blocks
    for block in blocks:
        if "measure" in block:
            assert MeasureSection.model_validate(block["measure"]) == MeasureSection()
        elif "baseline" in block["gate"]:
            assert GateSection.model_validate(block["gate"]) == GateSection()
        else:
            assert gate.asked(GateSection.model_validate(block["gate"]))


# ── the verb ─────────────────────────────────────────────────────────────────────────────────────


def saved(tmp_path: Path, results: Record, name: str = "results.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(results))
    return path


@pytest.mark.parametrize(
    ("limits", "on_inconclusive", "code"),
    [
        ({"max_size_bytes": 300}, None, 0),
        ({"max_size_bytes": 299}, None, 1),
        ({"min_speedup": 2.01}, None, 5),
        ({"min_speedup": 2.01}, "pass", 0),
        ({"min_speedup": 2.01, "on_inconclusive": "pass"}, None, 0),
        ({"min_speedup": 2.01, "on_inconclusive": "pass"}, "fail", 5),
        ({"min_speedup": 2.01, "max_macs": 1}, "pass", 1),
        ({}, "pass", 1),
    ],
)
def test_exit_codes(tmp_path: Path, limits: Record, on_inconclusive: str | None, code: int) -> None:
    path = saved(tmp_path, record(gate=limits))
    verdict, found = gate.run_gate(path, on_inconclusive=on_inconclusive)
    assert found == code
    assert gate.run_gate(tmp_path, on_inconclusive=on_inconclusive)[1] == code  # the folder does as well
    assert gate.text(verdict).splitlines()[-1].startswith("gate ")


def test_one_line_for_each_broken_limit(tmp_path: Path) -> None:
    path = saved(tmp_path, record(gate={"max_size_bytes": 299, "max_macs": 1, "min_speedup": 1.5}))
    lines = gate.text(gate.run_gate(path)[0]).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["FAIL", "FAIL", "gate failed"]
    assert lines[-1] == "gate failed: 1 passed, 2 failed"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[: len(text) // 2], "truncated"),
        (lambda text: text.replace("edgekit.results/1", "edgekit.results/9"), "results/9"),
        (lambda text: text.replace('"size_bytes": 300', '"size_bytes": NaN'), "NaN"),
        (lambda text: text.replace("fp32@x86-cpu", "gone@x86-cpu", 1), "fp32@x86-cpu|gone@x86-cpu"),
        (lambda text: f"<<<<<<< ours\n{text}\n=======\n{text}\n>>>>>>> theirs\n", "merge conflict"),
        (lambda text: "", "empty"),
        (lambda text: text.replace('"max_size_bytes"', '"max_sise_bytes"'), "max_sise_bytes"),
        (lambda text: text.replace('"max_size_bytes": 299', '"max_size_bytes": -5'), "max_size_bytes"),
    ],
    ids=["truncated", "version", "NaN", "reference", "conflict", "empty", "unknown limit", "senseless limit"],
)
def test_bad_records_are_refused(tmp_path: Path, spoil: Any, words: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(spoil(json.dumps(record(gate={"max_size_bytes": 299}))))
    with pytest.raises(InputError, match=words) as caught:
        gate.run_gate(path)
    assert caught.value.exit_code == 2


def test_an_edited_record_is_warned_of(tmp_path: Path) -> None:
    from edgekit import result

    results = record(gate={"max_size_bytes": 299})
    results["digest"] = result.digest(results)
    assert not any("changed after" in n for n in gate.run_gate(saved(tmp_path, results))[0]["notes"])
    results["variants"][1]["size_bytes"] = 1
    assert any("changed after it was written" in n for n in gate.run_gate(saved(tmp_path, results))[0]["notes"])


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    path = saved(tmp_path, record())
    for option in ("update_baseline", "remeasure"):
        with pytest.raises(InputError, match="needs a baseline"):
            gate.run_gate(path, **{option: True})


def test_the_public_name_is_a_function(tmp_path: Path) -> None:
    path = saved(tmp_path, record(gate={"max_size_bytes": 299}))
    assert edgekit.gate(path)["passed"] is False
    assert edgekit.gate(str(tmp_path), settings=GateSection(max_size_bytes=300))["passed"] is True


def test_the_gate_loads_no_heavy_library(tmp_path: Path) -> None:
    path = saved(tmp_path, record(gate={"max_size_bytes": 299}))
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'openvino', 'numpy', 'sklearn'): sys.modules[name] = None\n"
        "from edgekit import gating as gate\n"
        "verdict, code = gate.run_gate(sys.argv[1])\n"
        "print(code)"
    )
    for flags in ((), ("-O",), ("-W", "error")):
        run = subprocess.run(
            [sys.executable, *flags, "-c", code, str(path)], capture_output=True, text=True, timeout=60
        )
        assert run.stdout.strip() == "1", run.stderr
