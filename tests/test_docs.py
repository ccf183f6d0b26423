"""The documentation can't go stale: generated pages follow the code, commands are run."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

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


def test_every_command_that_is_named_is_one() -> None:
    """Verbs and options, wherever a page writes a command; the tutorial's are run, below."""
    named = 0
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for command in re.findall(r"(?:^|`|&& |bin/|python -m )edgekit ([a-z][^`\n]*)", page.read_text(), re.MULTILINE):
            words = command.partition(" #")[0].split()
            if words[0] not in cli.commands:
                assert not re.fullmatch("[a-z]+", words[0]) or "--" not in command, f"{page.name}: edgekit {command}"
                continue
            known = {name for one in cli.commands[words[0]].params for name in (*one.opts, *one.secondary_opts)}
            unknown = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)} - known - {"--help"}
            assert not unknown, f"{page.name}: edgekit {command}"
            named += 1
    assert named > 30


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
