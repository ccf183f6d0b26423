"""What changed between runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """What changed."""

    results: list[dict[str, Any]]


def compare(results: list[dict[str, Any]]) -> Comparison:
    """Compare."""
    return Comparison(results)
