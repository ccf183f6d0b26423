"""The command line as a user meets it: messages, exit codes, signals, odd paths."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gate_records import record

from edgekit.cli import cli
from edgekit.cli.line import exit_code

RECIPE = 'targets = ["x86-cpu", "nvidia-gpu"]\n[model]\nentry = "model.py:build"\n[[variant]]\nname = "fp32"\n'
MODEL = "import torch\ndef build():\n    return torch.nn.Linear(4, 2), torch.zeros(2, 4)\n"
SLOW = "import time, pathlib\ndef build():\n    pathlib.Path('started').touch()\n    time.sleep(60)\n"


def edgekit(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_verb_has_help(verb: str) -> None:
    done = edgekit(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: python -m edgekit {verb}")


def test_nothing_heavy_is_imported_for_help() -> None:
    script = (
        "import sys; from edgekit.cli import cli\n"
        "try: cli.main(['--help'], standalone_mode=False)\nexcept SystemExit: pass\n"
        "print([m for m in ('torch','onnx','onnxruntime','openvino','numpy','pydantic','rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run",), "Missing argument 'RECIPE'"),
        (("run", "gone.toml"), "gone.toml: can't read this file"),
        (("rnu",), "No such command 'rnu'"),
        (("run", "recipe.toml", "--outt", "x"), "No such option '--outt'"),
        (("run", "recipe.toml", "--set", "seed"), "write it as key=value"),
        (("run", "recipe.toml", "--set", "sede=1"), "did you mean 'seed'"),
        (("run", "recipe.toml", "--target", "x86cpu"), "the recipe has no target 'x86cpu'; did you mean 'x86-cpu'"),
        (("run", "recipe.toml", "--only", "fp3"), "the recipe has no variant 'fp3'; did you mean 'fp32'"),
        (("run", "recipe.toml", "--out", "recipe.toml"), "recipe.toml: can't write to the output folder"),
        (("run", "recipe.toml", "--locked"), "there is no record to be locked to"),
        (("gate", "gone.json"), "gone.json"),
        (("verify", "gone"), "gone"),
        (("report", "gone.json"), "gone.json"),
        (("init", "."), "this recipe exists"),
    ],
)
def test_wrong_input_exits_with_2_and_says_what(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "model.py").write_text(MODEL)
    done = edgekit(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_target_that_is_not_here_exits_with_4(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    done = edgekit("run", "recipe.toml", "--target", "nvidia-gpu", cwd=tmp_path)
    if done.returncode == 0:
        pytest.skip("this machine has an NVIDIA GPU and TensorRT")
    assert done.returncode == 4
    assert "not available here, because" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_ends_its_children_and_says_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "model.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", "run", "recipe.toml"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    for _ in range(300):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in said
    assert "goes on where it was" in said


def test_a_closed_pipe_is_quiet() -> None:
    script = f"{sys.executable} -m edgekit targets --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)  # 0 where all of it fitted into the pipe
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["with space ünïcode-目", "-" + "x" * 200, "new\nline"])
def test_odd_paths_work(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE.replace(', "nvidia-gpu"', ""))
    (folder / "model.py").write_text(MODEL)
    out = folder / "out"
    done = edgekit("run", str(folder / "recipe.toml"), "--out", str(out), "--set", "measure.pairs=2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variants"][0]["status"] == "ok"


def test_a_poor_terminal_gets_plain_ascii(tmp_path: Path) -> None:
    done = edgekit("targets", LANG="C", PYTHONIOENCODING="ascii", TERM="dumb", COLUMNS="20")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout


def test_targets_say_why_not_and_what_to_do() -> None:
    from edgekit.cli.devices import _target_cells

    row = {"name": "npu", "title": "NPU", "status": "unavailable", "warning": "", "remedy": "install it"}
    assert _target_cells({**row, "reason": "not available here, because no device"}) == (
        *("npu", "unavailable", "NPU", "no device", "install it"),
    )
    warned = {**row, "status": "runs", "reason": "", "warning": "sums may overflow", "remedy": ""}
    assert _target_cells(warned)[3:] == ("sums may overflow", "")
    done = edgekit("targets", "raspberry-pi-5", COLUMNS="160")
    assert "what to do" in done.stdout
    assert "bundle it, and run it on the device" in done.stdout or " runs " in done.stdout


def test_an_unwritable_cache_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "file").write_text("")
    done = edgekit("run", "recipe.toml", cwd=tmp_path, EDGEKIT_CACHE_DIR=str(tmp_path / "file" / "x"))
    assert done.returncode == 2
    assert "EDGEKIT_CACHE_DIR" in done.stderr


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_file_that_can_not_be_written_hides_no_verdict(option: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(record(gate={"max_size_bytes": 1})))
    (tmp_path / "taken").touch()
    done = edgekit("gate", "results.json", option, "taken/gate", cwd=tmp_path, GITHUB_ACTIONS="true")
    assert done.returncode == 3
    assert "gate failed" in done.stdout
    assert "::error" in done.stderr
    assert "can't write this file" in done.stderr


def test_a_failed_row_comes_before_the_gate() -> None:
    def record(status: str, passed: bool | None) -> dict[str, object]:
        return {"variants": [{"status": status}], "gate": {"passed": passed, "checks": [{}]}}

    assert exit_code(record("failed", False), "fail") == 3
    assert exit_code(record("ok", False), "fail") == 1
    assert exit_code(record("ok", None), "fail") == 5
    assert exit_code(record("ok", None), "pass") == 0
    assert exit_code(record("built", True), "fail") == 0
