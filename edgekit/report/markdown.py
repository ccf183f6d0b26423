"""The report as Markdown: for a pull request, a wiki or a terminal."""

from __future__ import annotations

import re
from typing import Any

from edgekit.report import words
from edgekit.report.details import flat
from edgekit.report.findings import findings, verdict
from edgekit.report.rows import columns, metric_of, part, rows_of, stage_names

MOST_ROWS = 200
_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "none": "ℹ️"}
# Markup, HTML, links, mentions, issue numbers, maths; a colon only where it starts an emoji or an address.
_SPECIAL = re.compile(r"[\\`*_\[\]<>|~$&@#]|:(?=\S)|(?<=www)\.|^[-+=](?=[\s=+-]|$)|^\d+(?=[.)]\s)")
_ENTITIES = "<>&@|#:.`~"


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in a table's cell too: no markup, link, mention or line break."""
    return _SPECIAL.sub(lambda found: _escaped(found[0]), " ".join(text.split()))


def _escaped(special: str) -> str:
    """An entity where a backslash would be shown, or would not help against autolinks; a backslash elsewhere."""
    if special.isdigit():
        return f"&#{ord(special[0])};{special[1:]}"
    return f"&#{ord(special)};" if special in _ENTITIES else f"\\{special}"


def table(head: list[str], body: list[list[str]], *, numbers_from: int = 1) -> str:
    """A Markdown table of escaped cells; columns from ``numbers_from`` on are right-aligned."""
    rule = ["---:" if index >= numbers_from else "---" for index in range(len(head))]
    lines = [[escape(cell) for cell in head], rule, *([escape(cell) for cell in line] for line in body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(results: dict[str, Any]) -> str:
    """The whole report of a tidied record."""
    rows = rows_of(results)
    metric = metric_of(rows)
    found = verdict(results, rows)
    parts = [f"## {_SIGNS[found.kind]} {escape(found.title)}", escape(found.sentence)]
    if lines := findings(results, rows):
        signs = {"good": "▲", "note": "●", "bad": "▼"}
        parts.append("\n".join(f"- {signs[f.kind]} {escape(f.sentence)}" for f in lines[:20]))
    shown = columns(metric)
    body = [[words.short(column.show(row), 80) for column in shown] for row in rows[:MOST_ROWS]]
    parts += ["### Variants", table([column.title for column in shown], body, numbers_from=3)]
    if len(rows) > MOST_ROWS:
        parts.append(f"… and {len(rows) - MOST_ROWS} more in report.csv.")
    parts += _stages(results) + _environment(results)
    return "\n\n".join(parts) + "\n"


def _stages(results: dict[str, Any]) -> list[str]:
    rows = [row for row in rows_of(results) if any(stage.metric is not None for stage in row.stages)][:MOST_ROWS]
    if not rows:
        return []
    metric = metric_of(rows)
    names = stage_names(rows)
    body = []
    for row in rows:
        after = {stage.name: words.metric_text(stage.metric, metric) for stage in row.stages}
        body.append([row.label, *(after.get(name, "") for name in names)])
    return [f"### {escape(words.title(metric))} after each stage", table(["Variant", *names], body)]


def _environment(results: dict[str, Any]) -> list[str]:
    facts = [[name, words.short(value, 100)] for name, value in flat(part(results, "environment"))][:60]
    if not facts:
        return []
    body = table(["What", "Value"], facts, numbers_from=9)
    return ["### Where it was measured", f"<details><summary>Machine and versions</summary>\n\n{body}\n\n</details>"]
