"""What CI wants to have of a verdict: JUnit XML, Markdown, GitHub's annotations, summary and outputs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from edgekit import console
from edgekit.errors import EdgekitError
from edgekit.gating.places import Place, places
from edgekit.store import write_text

ANNOTATIONS = 10  # GitHub shows that many errors of a step and drops the rest without a word
SUMMARY_LIMIT = 1024 * 1024  # bytes; above it GitHub drops the whole summary of the step


def write(
    verdict: dict[str, Any],
    *,
    junit: str | Path | None = None,
    markdown: str | Path | None = None,
    recipe: Path | None = None,
) -> None:
    """Tell GitHub Actions where it runs this, and write the files that were asked for.

    Args:
        verdict: Of :func:`edgekit.gating.judge`. junit, markdown: Where to write these; None: not.
        recipe: The file that holds the limits, for JUnit and for annotations at their lines.

    Raises:
        StageError: A file that was asked for can't be written.
    """
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in workflow_commands(verdict, recipe):
            console.command(line)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _append(Path(summary), _markdown(verdict, limit=SUMMARY_LIMIT // 2), SUMMARY_LIMIT)
    if outputs := os.environ.get("GITHUB_OUTPUT"):
        _append(Path(outputs), _outputs(verdict))
    if junit:
        from edgekit.report import junit as junit_xml

        found = places(recipe, verdict["checks"])
        write_text(Path(junit), junit_xml.render(verdict, [(p.file, p.line) if p else None for p in found]))
    if markdown:
        write_text(Path(markdown), _markdown(verdict))


def _markdown(verdict: dict[str, Any], **options: int) -> str:
    from edgekit.report import gate_markdown  # the reports take a while to import

    return gate_markdown.render(verdict, **options)


def workflow_commands(verdict: dict[str, Any], recipe: Path | None = None, limit: int = ANNOTATIONS) -> list[str]:
    """GitHub workflow commands for what is broken (``::error``) or can't be told (``::warning``), worst first.

    Each points at the line of its limit, where ``recipe`` has it.
    """
    wrong = [check for check in verdict["checks"] if check["passed"] is not True]
    shown = wrong if len(wrong) <= limit else wrong[: limit - 1]
    lines = [
        f"::{'error' if check['passed'] is False else 'warning'} {_at(place)}"
        f"title={_property('edgekit gate: ' + check['name'])}::{_data(check['sentence'])}"
        for check, place in zip(shown, places(recipe, shown), strict=True)
    ]
    if left := len(wrong) - len(shown):
        lines.append(f"::error title=edgekit gate::+{left} more, see the summary")
    return lines


def _at(place: Place | None) -> str:
    return f"file={_property(place.file)},line={place.line}," if place else ""


def _data(text: str) -> str:
    whole = text.encode(errors="replace").decode()  # a lone surrogate can't be printed
    return whole.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _outputs(verdict: dict[str, Any]) -> str:
    """The step's outputs, with a delimiter that no value can hold."""
    word = {True: "pass", False: "fail", None: "inconclusive"}[verdict["passed"]]
    broken = "\n".join(c["sentence"] for c in verdict["checks"] if c["passed"] is False)
    end = f"edgekit_{secrets.token_hex(16)}"
    return f"verdict={word}\nbroken<<{end}\n{broken}\n{end}\n"


def _append(path: Path, text: str, limit: int | None = None) -> None:
    """Append to one of GitHub's files; that it can't be done is said, and changes no verdict."""
    try:
        size = path.stat().st_size if path.exists() else 0
        if limit is not None and size + len(text.encode()) > limit:
            console.warn(f"the step's summary is full ({size} bytes): the gate's verdict is not in it")
            return
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text if text.endswith("\n") else text + "\n")
    except (OSError, EdgekitError) as error:
        console.warn(f"can't write {path}: {error}")
