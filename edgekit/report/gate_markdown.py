"""The gate's verdict as Markdown: a pull-request comment, and GitHub's step summary."""

from __future__ import annotations

import re
from typing import Any

MARKER = "<!-- edgekit:gate -->"  # by which a bot finds its own comment to update
COMMENT_LIMIT = 64 * 1024  # bytes that a comment may have
_SIGNS = {True: "✅ holds", False: "❌ broken", None: "❔ can't tell"}


def render(verdict: dict[str, Any], *, limit: int = COMMENT_LIMIT) -> str:
    """The document, cut to ``limit`` bytes by whole lines; it says how many it left out.

    Args:
        verdict: Of :func:`edgekit.gating.judge`. limit: Bytes of UTF-8.
    """
    checks = verdict["checks"]
    wrong = [c for c in checks if c["passed"] is not True]
    head = [MARKER, f"### {_title(verdict)}", ""]
    body = _table(wrong) if wrong else []
    kept = [c for c in checks if c["passed"] is True]
    if kept:
        body += ["", f"<details><summary>{len(kept)} checks hold</summary>", "", *_table(kept), "", "</details>"]
    notes = [f"- {escape(note)}" for note in verdict.get("notes", [])]
    return _cut([*head, *body, *(["", "Notes:", *notes] if notes else [])], limit)


def _title(verdict: dict[str, Any]) -> str:
    checks = verdict["checks"]
    broken = sum(c["passed"] is False for c in checks)
    unsure = sum(c["passed"] is None for c in checks)
    if verdict["passed"]:
        return f"✅ edgekit gate passed: {len(checks)} checks"
    if verdict["passed"] is False:
        return f"❌ edgekit gate failed: {broken} of {len(checks)} checks broken"
    return f"❔ edgekit gate inconclusive: {unsure} of {len(checks)} checks can't be told"


def _table(checks: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {_SIGNS[c['passed']]} | {escape(c['variant'] or 'run')} | {escape(c['name'])} "
        f"| {_number(c['value'])} | {_number(c['limit'])} | {escape(c['sentence'])} |"
        for c in checks
    ]
    return ["| | row | limit on | value | limit | in words |", "|---|---|---|---:|---:|---|", *rows]


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, int | float) else escape(str(value))


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, in one line of a table."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    html = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", html)
    return re.sub(r"(?<!\w)([@#])", r"\1<!-- -->", plain)  # or GitHub would call people and link issues


def _cut(lines: list[str], limit: int) -> str:
    total, kept = 0, []
    for number, line in enumerate(lines):
        size = len(line.encode()) + 1
        if total + size > limit - 200:
            kept += ["", f"… and {len(lines) - number} more lines: see results.json"]
            break
        total += size
        kept.append(line)
    return "\n".join(kept) + "\n"
