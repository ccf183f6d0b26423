"""What docs/report.md says works as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_sample import sample

from edgekit import report, result
from edgekit.cli import cli
from edgekit.report import charts

PAGE = (Path(__file__).parent.parent / "docs" / "report.md").read_text()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs' records, as the page names them; without pictures, which other tests draw."""
    monkeypatch.setattr(charts, "available", lambda: False)
    monkeypatch.chdir(tmp_path)
    for name in ("main", "pull-request", "."):
        (tmp_path / name).mkdir(exist_ok=True)
        result.write_results(sample(), tmp_path / name / "results.json")
    return tmp_path


def test_the_pages_python_runs(runs: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names = {"folder": runs / "out", "other": sample()}
    exec(code, names)
    assert (runs / "out" / "report.html").is_file()


def test_the_pages_command_compares(runs: Path) -> None:
    (command,) = re.findall(r"^    edgekit (report .+ .+)$", PAGE, re.MULTILINE)
    done = CliRunner().invoke(cli, command.split())
    assert done.exit_code == 0, done.output
    assert "pull-request/results.json against main/results.json" in done.output
    done = CliRunner().invoke(cli, [*command.split(), "--json", "--out", str(runs / "both")])
    assert len(json.loads(done.stdout)["runs"]) == 1
    assert (runs / "both" / "comparison.html").is_file()


def test_a_report_of_one_record_says_where_it_lies(runs: Path) -> None:
    done = CliRunner().invoke(cli, ["report", "results.json", "--json"])
    assert done.exit_code == 0, done.output
    assert [Path(p).name for p in json.loads(done.stdout)["files"]] == ["report.html", "report.md", "report.csv"]


def test_everything_public_is_in_the_package() -> None:
    assert set(report.__all__) == {"Comparison", "bad_news", "compare", "summary_sentence", "terminal_table", "write"}
