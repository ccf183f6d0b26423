"""The live table on a terminal, its plain lines elsewhere, and signs that an encoding lacks."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import board, console
from edgekit.gating import outputs

RUN = """
import sys
from edgekit import board, console
console.configure(quiet="--quiet" in sys.argv, plain="--json" in sys.argv)
with board.showing(["fp32@cpu", "int8@cpu", "bad@cpu"]):
    board.at("fp32@cpu", "export")
    board.done("fp32@cpu", "export", "1.0 s")
    board.at("int8@cpu", "quantize")
    console.warn("a word of warning")
    with console.progress("calibrating", 3) as advance:
        advance(2)
    board.at("bad@cpu", "export", "failed")
    board.done("int8@cpu", "quantize", "cached")
"""


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What the script draws on a terminal of 80 columns, its last picture included."""
    try:
        ours, theirs = pty.openpty()
    except OSError as error:
        pytest.skip(f"this machine gives no terminals: {error}")
    variables = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "40", **environment}
    command = [sys.executable, "-c", RUN, *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=variables) as process:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            drawn += chunk
        assert process.stdout is not None
        assert process.stdout.read() == b""
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())


def plainly(*arguments: str, **environment: str) -> str:
    variables = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, env=variables, check=True)
    assert done.stdout == b""
    return done.stderr.decode()


def test_a_terminal_shows_every_row_its_stage_state_and_time() -> None:
    drawn = on_a_terminal()
    last = drawn[drawn.rindex("row ") :]
    assert re.search(r"fp32@cpu +export +1\.0 s", last)
    assert re.search(r"int8@cpu +quantize +cached", last)
    assert re.search(r"bad@cpu +export +failed", last)
    assert re.search(r"int8@cpu +quantize +running +\d", drawn)
    assert re.search(r"bad@cpu +waiting", drawn)
    assert "warning: a word of warning" in drawn
    assert "calibrating" in drawn


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_elsewhere_each_finished_stage_is_a_plain_line(environment: dict[str, str]) -> None:
    assert plainly(**environment).splitlines() == [
        "fp32@cpu: export (1.0 s)",
        "warning: a word of warning",
        "int8@cpu: quantize (cached)",
    ]


def test_quiet_shows_warnings_alone_and_a_dumb_terminal_gets_lines() -> None:
    assert plainly("--quiet") == "warning: a word of warning\n"
    assert on_a_terminal("--quiet").split() == ["warning:", "a", "word", "of", "warning"]
    assert "fp32@cpu: export (1.0 s)" in on_a_terminal(TERM="dumb")


def test_beside_json_nothing_is_drawn_and_lines_remain() -> None:
    drawn = on_a_terminal("--json")
    assert "waiting" not in drawn
    assert "fp32@cpu: export (1.0 s)" in drawn


def test_one_setting_leaves_the_others_as_they_were() -> None:
    script = (
        "from edgekit import console as c; c.configure(quiet=True); c.configure(verbosity=1); c.note('x'); c.warn('y')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: y\n"


def test_more_rows_than_the_terminal_has_lines_are_counted() -> None:
    from rich.console import Console

    shown = board._Board({f"row{n}": board._Line() for n in range(100)})
    shown.lines["row60"] = board._Line("prune", "running", since=0.0)
    terminal = Console(width=80, height=30, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    terminal.print(shown)
    said = terminal.export_text()
    assert re.search(r"row60 +prune +running", said)
    assert len(said.splitlines()) <= 30 - board.ROOM + 2
    assert "and 80 more rows; 99 of 100 still wait" in said


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (60.0, "1:00"), (119.7, "1:59"), (3601.0, "60:01")]
)
def test_the_clock_of_a_row(seconds: float, shown: str) -> None:
    assert board._clock(seconds) == shown


def test_signs_that_an_encoding_lacks_become_ascii() -> None:
    script = "from edgekit import console; console.configure(); console.out('1.94× −0.2 → ok… ★ naïve 漢')"
    for encoding, said in (("ascii", "1.94x -0.2 -> ok... * naive ?"), ("latin-1", "1.94× -0.2 -> ok... * naïve ?")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=True,
        )
        assert done.stdout.decode(encoding).strip() == said


def test_annotations_are_said_under_quiet_too_and_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_state", console._State(speaking=True, quiet=True))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    check = {"name": "max_size_bytes", "passed": False, "sentence": "too large :bomb: [red]", "variant": "a"}
    outputs.write({"passed": False, "checks": [check], "notes": []})
    assert capsys.readouterr().err == ("::error title=edgekit gate%3A max_size_bytes::too large :bomb: [red]\n")
