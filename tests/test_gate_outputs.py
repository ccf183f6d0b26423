"""What CI reads: JUnit XML, Markdown, GitHub's annotations, summary and outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from gate_records import Record, absent, record, row

from edgekit import console
from edgekit import gating as gate
from edgekit.errors import InputError
from edgekit.gating import outputs, places
from edgekit.recipe import GateSection
from edgekit.report import gate_markdown, junit

EVIL = 'a|b<script>alert(1)</script>`x`@team #7 ]]>&"\x00\x0b\ud800\n::error::owned'


def verdict_of(count: int = 1, **limits: Any) -> Record:
    rows = [row("fp32"), *(row(f"int8-{i}") for i in range(count))]
    return gate.judge(record(*rows), GateSection(**limits))


def check(passed: bool | None, **changes: Any) -> Record:
    made = {
        "name": "max_macs",
        "variant": "v@t",
        "target": "t",
        "limit": 1,
        "value": 2,
        "passed": passed,
        "sentence": "says",
    }
    return {**made, **changes}


ALL = {
    "passed": False,
    "checks": [
        check(False, sentence=EVIL, variant=EVIL, name=EVIL),
        check(False, name="status", value="failed", limit="ok"),
        check(None, target=None, variant=None),
        check(True, limit=None, value=None),
    ],
    "notes": [EVIL],
}


# ── JUnit ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "verdict", [ALL, verdict_of(3, max_macs=1, min_speedup=2.01, max_size_bytes=10**6), verdict_of()]
)
@pytest.mark.parametrize("place", [None, ("ci/recipe.toml", 9), (EVIL, 1)])
def test_junit_is_valid_by_its_schema(verdict: Record, place: tuple[str, int] | None) -> None:
    schema = pytest.importorskip("xmlschema").XMLSchema(str(Path(__file__).parent / "samples" / "junit.xsd"))
    schema.validate(junit.render(verdict, [place] * len(verdict["checks"])))


def test_the_schema_refuses_what_is_wrong() -> None:
    schema = pytest.importorskip("xmlschema").XMLSchema(str(Path(__file__).parent / "samples" / "junit.xsd"))
    good = junit.render(ALL)
    for bad in (
        good.replace("<testcase ", "<testcase shoe='1' "),
        good.replace("failures=", "failed="),
        "<testsuite/>",
    ):
        assert not schema.is_valid(bad)


def test_junit_says_what_the_gate_says() -> None:
    root = Xml.fromstring(junit.render(ALL))
    assert root.attrib["tests"] == "4"
    assert (root.attrib["failures"], root.attrib["errors"]) == ("1", "1")
    outcomes = [child.tag for case in root.iter("testcase") for child in case]
    assert sorted(outcomes) == ["error", "failure", "skipped", "system-out"]
    suites = {suite.attrib["name"]: suite.attrib for suite in root.iter("testsuite")}
    assert suites["t"]["tests"] == "3"
    assert suites["run"]["skipped"] == "1"
    failure = next(root.iter("failure"))
    assert "<script>" in str(failure.text)  # escaped in the file, whole for the reader
    assert "\x00" not in junit.render(ALL)


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────────


def test_markdown_tells_the_verdict_and_hides_nothing_broken() -> None:
    text = gate_markdown.render(verdict_of(2, max_macs=1, max_size_bytes=10**6))
    assert text.startswith(gate_markdown.MARKER)
    assert "edgekit gate failed: 2 of 4 checks broken" in text
    head, _, kept = text.partition("<details>")
    assert head.count("❌ broken") == 2
    assert kept.count("✅ holds") == 2


def test_foreign_text_stays_text_in_markdown() -> None:
    text = gate_markdown.render(ALL)
    assert "<script>" not in text
    assert "@team" not in text
    assert "#7" not in text
    assert "`x`" not in text.replace("\\`", "")
    assert not any(line.startswith("::") for line in text.splitlines())
    rows = [line for line in text.splitlines() if line.startswith("| ❌")]
    assert all(line.replace("\\|", "").count("|") == 7 for line in rows)
    assert "\x00" not in text


def test_markdown_keeps_to_its_limit_by_whole_lines() -> None:
    verdict = verdict_of(1000, max_macs=1)
    text = gate_markdown.render(verdict)
    assert len(text.encode()) <= gate_markdown.COMMENT_LIMIT
    assert "more lines: see results.json" in text
    assert all(line.endswith("|") for line in text.splitlines() if line.startswith("|"))


# ── GitHub ───────────────────────────────────────────────────────────────────────────────────────


def test_annotations_are_ten_at_most_worst_first() -> None:
    lines = outputs.workflow_commands(verdict_of(40, max_macs=1))
    assert len(lines) == 10
    assert lines[-1] == "::error title=edgekit gate::+31 more, see the summary"
    assert len(outputs.workflow_commands(verdict_of(10, max_macs=1))) == 10
    assert outputs.workflow_commands(verdict_of(3, max_macs=10**9)) == []


def test_annotations_can_not_be_escaped_from() -> None:
    lines = outputs.workflow_commands(ALL)
    assert all("\n" not in line and "\r" not in line for line in lines)
    assert "%0A::error::owned" in lines[0]
    command, _, message = lines[0][2:].partition("::")
    assert "%3A" in command
    assert message.startswith("a|b<script>")
    assert outputs.workflow_commands({"checks": [check(False, sentence="100 % off")]})[0].endswith("::100 %25 off")
    assert lines[2].startswith("::warning ")


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    return tmp_path


def run(folder: Path, results: Record, **options: Any) -> tuple[Record, int]:
    path = folder / "results.json"
    path.write_text(json.dumps(results))
    return gate.run_gate(path, **options)


def test_github_gets_summary_outputs_and_annotations(github: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "command", said.append)
    (github / "summary.md").write_text("before\n")
    results = record(gate={"max_macs": 1})
    assert run(github, results, junit=github / "g.xml", markdown=github / "g.md")[1] == 1
    assert [line for line in said if line.startswith("::error")] == [
        "::error title=edgekit gate%3A max_macs::int8@x86-cpu: max_macs: multiply-adds for one sample is 10,000, "
        "limit at most 1: broken by 9,999"
    ]
    summary = (github / "summary.md").read_text()
    assert summary.startswith("before\n")
    assert "edgekit gate failed" in summary
    output = (github / "output").read_text()
    assert output.startswith("verdict=fail\nbroken<<edgekit_")
    assert "int8@x86-cpu: max_macs" in output
    assert Xml.fromstring((github / "g.xml").read_text()).tag == "testsuites"
    assert (github / "g.md").read_text().startswith(gate_markdown.MARKER)


RECIPE = """
[export]
max_macs = 1             # another table's
[gate]
max_macs = 5             # overridden by the rule below
max_size_bytes = 1_0     # bytes
[[gate.rule]]
variant = "int8"
max_macs = 1
[gate.baseline]
max_slowdown = 1.05
"""


def test_annotations_point_at_the_line_of_the_limit_that_was_judged(
    github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "command", said.append)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(github))
    (github / "ci, 1").mkdir()
    (github / "ci, 1" / "recipe.toml").write_text(RECIPE)
    rules = {"rule": [{"variant": "int8", "max_macs": 1}]}
    run(github / "ci, 1", record(gate={"max_macs": 5, "max_size_bytes": 10, **rules}))
    where = {line.partition("::")[2].partition("::")[2].split(": ")[1]: line.split("title=")[0] for line in said}
    assert where == {
        "max_macs": "::error file=ci%2C 1/recipe.toml,line=9,",
        "max_size_bytes": "::error file=ci%2C 1/recipe.toml,line=6,",
    }
    check = {"name": "baseline.max_slowdown", "limit": 1.05}
    assert places.places(github / "ci, 1" / "recipe.toml", [check]) == [places.Place("ci, 1/recipe.toml", 11)]
    assert places.places(github / "ci, 1" / "recipe.toml", [{**check, "limit": 1.5}]) == [None]
    assert places.places(github / "gone.toml", [check]) == [None]


def test_junit_points_at_the_line_of_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where GitLab, Jenkins and GitHub's test reporters look: the class and the text."""
    monkeypatch.setenv("CI_PROJECT_DIR", str(tmp_path))
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "recipe.toml").write_text(RECIPE)
    run(tmp_path / "ci", record(gate={"max_macs": 5, "min_int8_macs_share": 0.5}), junit=tmp_path / "gate.xml")
    found = {case.attrib["name"]: case for case in Xml.parse(tmp_path / "gate.xml").iter("testcase")}
    macs, share = found["int8@x86-cpu: max_macs"], found["int8@x86-cpu: min_int8_macs_share"]
    assert macs.attrib["classname"] == "ci/recipe.toml"
    assert str(macs.find("failure").text).endswith("\nat ci/recipe.toml:5")  # type: ignore[union-attr]
    assert share.attrib["classname"] == "edgekit.x86-cpu", "the file has no such limit"


def test_a_recipe_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe"):
        run(tmp_path, record(gate={"max_macs": 1}), recipe=tmp_path / "gone.toml")


def test_a_full_summary_is_left_alone_and_changes_no_verdict(github: Path) -> None:
    full = "x" * (outputs.SUMMARY_LIMIT - 10)
    (github / "summary.md").write_text(full)
    assert run(github, record(gate={"max_macs": 10**9}))[1] == 0
    assert (github / "summary.md").read_text() == full


def test_files_that_github_took_away_change_no_verdict(github: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(github / "gone" / "summary.md"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(github))
    assert run(github, record(gate={"max_macs": 1}))[1] == 1
    assert any("can't write" in w for w in console.warnings())


def test_outside_of_github_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    said: list[str] = []
    monkeypatch.setattr(console, "command", said.append)
    run(tmp_path, record(row("fp32"), absent("int8", "failed"), gate={"max_macs": 1}))
    assert said == []
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
