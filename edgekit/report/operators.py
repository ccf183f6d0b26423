"""Time by operator, from a row's optional ``operators`` (or ``layers``) list."""

from __future__ import annotations

from typing import Any

from edgekit.report import words
from edgekit.report.rows import number_in, text


def by_operator(raw: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of one inference by kind of operator, the slowest first; empty where none were recorded.

    Args:
        raw: A variant of the record. Its ``operators`` are objects with ``operator`` and ``milliseconds``,
            one for each operator or each layer: equal kinds are added up.
    """
    total: dict[str, float] = {}
    entries = raw.get("operators")
    for entry in entries if isinstance(entries, list) else []:
        spent = number_in(entry, "milliseconds") if isinstance(entry, dict) else None
        if spent is not None:
            kind = text(entry, "operator") or "?"
            total[kind] = total.get(kind, 0.0) + spent
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def grown_most(raw: dict[str, Any], reference: dict[str, Any]) -> str:
    """The operator that costs most more time than in the reference, in words; empty where none does."""
    mine, before = by_operator(raw), by_operator(reference)
    if not mine or not before:
        return ""
    grown = {kind: spent - before.get(kind, 0.0) for kind, spent in mine.items()}
    kind = max(grown, key=lambda k: grown[k])
    if grown[kind] <= 0:
        return ""
    then = f"{words.milliseconds(before[kind])} before" if kind in before else "not in the original"
    return f"{kind} takes {words.milliseconds(mine[kind])} ({then})"
