"""Where in a recipe's file a limit stands, so that an annotation or a report can point at it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Place:
    """A line of a file; the file as the repository's root sees it."""

    file: str
    line: int


def recipe_near(results: Path) -> Path | None:
    """The recipe of a record, where one lies at its usual place: here, beside the record or above it."""
    folder = results if results.is_dir() else results.parent
    near = (Path(RECIPE), folder / RECIPE, folder.parent / RECIPE)
    return next((path for path in near if path.is_file()), None)


def places(recipe: Path | None, checks: list[dict[str, Any]]) -> list[Place | None]:
    """The line of each check's limit: the one with the very value that was judged; None where there is none."""
    if recipe is None:
        return [None] * len(checks)
    try:
        lines = list(_limits(recipe.read_text(errors="replace")))
        root = Path(os.environ.get("GITHUB_WORKSPACE") or os.environ.get("CI_PROJECT_DIR") or ".").resolve()
        file = Path(os.path.relpath(recipe.resolve(), root)).as_posix()
    except (OSError, ValueError):
        return [None] * len(checks)
    return [next((Place(file, n) for n, key, limit in lines if _is(check, key, limit)), None) for check in checks]


def _is(check: dict[str, Any], key: str, limit: object) -> bool:
    return bool(check["name"] == key and check["limit"] == limit)


def _limits(text: str) -> Iterator[tuple[int, str, object]]:
    """Line, name as a check has it, and value of every key in ``[gate]`` and the tables under it."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.partition("#")[0].strip()
        if bare.startswith("["):
            section = bare.strip("[] ")
        elif section.split(".")[0] == "gate" and "=" in bare:
            try:
                (found,) = tomllib.loads(bare).items()
            except ValueError:  # a value of several lines is no limit
                continue
            yield number, f"baseline.{found[0]}" if section == "gate.baseline" else found[0], found[1]
