"""The benchmarks' one command: it lists what is there, runs what is named, and says how it went."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks

ROOT = Path(benchmarks.__file__).resolve().parent.parent


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_script_is_listed() -> None:
    done = command()
    assert done.returncode == 0, done.stderr
    for script in benchmarks.scripts():
        assert f"{script.name:13} {script.asks}" in done.stdout
        assert script.asks.endswith((".", "?"))
        assert script.takes in done.stdout


def test_one_that_fails_stops_no_other_and_one_without_data_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "_shared.py").write_text("raise SystemExit(9)")
    (tmp_path / "bad.py").write_text('"""Does it break? About 1 minute."""\nraise SystemExit(3)')
    (tmp_path / "good.py").write_text('"""Does it go on?\n\nAbout 2 minutes.\n"""\nimport sys; print(sys.argv[1:])')
    (tmp_path / "needy.py").write_text('"""With data?\n\n    needy.py --data DIR\n\nAbout 2 hours.\n"""')
    monkeypatch.setattr(benchmarks, "HERE", tmp_path)
    monkeypatch.delenv("EDGEKIT_TEST_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "all", "--", "--pairs", "2"])
    assert benchmarks.main() == 3
    said = capfd.readouterr().out
    assert "== bad: failed (3)" in said
    assert "== good: Does it go on? (about 2 minutes)" in said
    assert "['--pairs', '2']" in said
    assert "== needy: left out, it needs --data DIR" in said
    assert "shared" not in said


def test_a_name_that_is_no_benchmark_is_told() -> None:
    done = command("overhaed")
    assert done.returncode == 2
    assert "no benchmark overhaed; there are " in done.stderr
