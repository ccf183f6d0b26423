"""The documentation can't go stale: generated pages follow the code, commands are run."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgekit.cli import cli
from edgekit.pipeline.routes import routes_of
from edgekit.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["recipe.md", "cli.md"])
def test_generated_pages_follow_the_code(page: str) -> None:
    pages = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
    assert (DOCS / page).read_text() == pages[page](), "stale: run python docs/generate.py"


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readmes_recipe_is_one(tmp_path: Path) -> None:
    (recipe,) = [block for block in _blocks(ROOT / "README.md", "toml") if "recipe_version" in block]
    (tmp_path / "recipe.toml").write_text(recipe)
    assert [r.id for r in routes_of(load_recipe(tmp_path / "recipe.toml"))][:1] == ["fp32@x86-cpu"]


def test_the_readmes_python_names_exist() -> None:
    (code,) = _blocks(ROOT / "README.md", "python")
    import edgekit

    assert set(re.findall(r"edgekit\.(\w+)\(", code)) <= set(edgekit.__all__)


def _commands() -> Iterator[tuple[str, str]]:
    """Page, and the words behind ``edgekit`` wherever it writes a command: a block, a workflow, between backticks."""
    place = re.compile(r"(?:^ *(?:- )?(?:run: )?|`|&& |bin/|python -m )edgekit ([a-z][^`\n]*)", re.MULTILINE)
    for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        for command in place.findall(page.read_text()):
            yield page.name, command.partition(" #")[0].strip()


def test_every_command_that_is_named_is_one() -> None:
    """Verbs and options."""
    named = 0
    for page, command in _commands():
        words = command.split()
        if words[0] not in cli.commands:
            assert not re.fullmatch("[a-z]+", words[0]) or "--" not in command, f"{page}: edgekit {command}"
            continue
        known = {name for one in cli.commands[words[0]].params for name in (*one.opts, *one.secondary_opts)}
        unknown = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)} - known - {"--help"}
        assert not unknown, f"{page}: edgekit {command}"
        named += 1
    assert named > 40


# Commands that are run elsewhere, and where.
ELSEWHERE = {
    "demo --out demo": "before all others, here",
    "deploy ": "needs a board: tests/test_deploy.py deploys to servers on loopback",
    "doctor --host": "needs a board: tests/test_deploy.py examines servers on loopback",
    "--remeasure": "measures two records' artifacts, for minutes: tests/test_gate_baseline.py",
}


def _runnable() -> list[str]:
    """The commands, outside the tutorial, that can run on the demo's output; first those whose output others read."""
    found: list[str] = []
    for where, command in _commands():
        words = command.split()
        if (
            words[0] not in cli.commands
            or where in ("tutorial.md", "cli.md")
            or any(part in command for part in ELSEWHERE)
        ):
            continue
        with contextlib.suppress(click.MissingParameter):  # it names the verb only
            cli.commands[words[0]].make_context(words[0], words[1:])
            found.append(command)
    return sorted(dict.fromkeys(found), key=lambda one: ("run recipe" not in one, "--update-baseline" not in one))


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in _blocks(DOCS / "tutorial.md", "sh"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "bundle" / "edgekit_runner.py").is_file()
    assert (tmp_path / "gate.xml").is_file()


@pytest.mark.slow
def test_every_other_command_runs_on_the_demos_output(tmp_path: Path) -> None:
    _edgekit("demo --out demo", tmp_path)
    for name in ("recipe.toml", "model.py", "weights.safetensors"):
        shutil.copy(tmp_path / "demo" / name, tmp_path / name)
    for name, variant in (("original", "fp32"), ("smaller", "pruned")):
        shutil.copy(tmp_path / f"demo/artifacts/{variant}@x86-cpu/model.onnx", tmp_path / f"{name}.onnx")
    for name in ("main", "pull-request"):
        (tmp_path / name).symlink_to("demo")
    (tmp_path / "results.json").symlink_to("demo/results.json")
    commands = _runnable()
    assert len(commands) > 12
    for command in commands:
        command = command.replace("ARTIFACT", "out/artifacts/int8@x86-cpu/model.onnx").replace("OUT", "out")
        _edgekit(f"{command} --budget 10" if command.startswith("bench") else command, tmp_path)  # not a minute
    assert (tmp_path / "pi" / "edgekit_runner.py").is_file()
    assert (tmp_path / "report.html").is_file()


def _edgekit(command: str, folder: Path) -> None:
    words = [sys.executable, "-m", "edgekit", *command.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"edgekit {command}\n{done.stdout}\n{done.stderr}"
