"""What the backends' tests do in a child process, because it may kill it."""

from __future__ import annotations

from typing import Any

from edgekit import inspection
from edgekit.errors import EdgekitError


def refusals(artifacts: list[str], target: dict[str, Any]) -> list[tuple[str, str]]:
    """For each artifact: the kind of error that opening it gives, and its text; ("opened", "") where none."""
    found = []
    for artifact in artifacts:
        try:
            inspection.ports_job(artifact, target)
            found.append(("opened", ""))
        except EdgekitError as error:
            found.append((type(error).__name__, str(error)))
    return found
