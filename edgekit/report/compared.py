"""A comparison as text, Markdown, HTML and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgekit.report import markdown as md
from edgekit.report import words
from edgekit.report.compare import MOST_DIFFERENCES, Change, Comparison
from edgekit.report.html import Child, Html, el, group, table
from edgekit.report.rows import Row, part
from edgekit.report.rows import text as text_of

_NOTHING = "nothing differs"


def headings(comparison: Comparison) -> list[str]:
    """The columns of a table of changes."""
    return ["Variant", "Target", words.title(comparison.metric), "Size", "Latency", "Speed-up", ""]


def line(change: Change, metric: str) -> list[str]:
    """One change as the cells of :func:`headings`."""
    before, after = change.before, change.after
    if before is None or after is None:
        gone = "only in the first run" if after is None else "only in this run"
        return [change.variant, change.target, "", "", "", "", gone]
    latency = words.joined(words.times(change.latency_ratio), words.ratio_interval(change.latency_ci))
    speed = words.joined(words.times(change.speedup_ratio), words.ratio_interval(change.speedup_ci))
    return [
        change.variant,
        change.target,
        _pair(
            words.metric_text(before.metric, metric),
            words.metric_text(after.metric, metric),
            words.delta_text(change.metric_delta, metric),
        ),
        _pair(words.size(before.size_bytes), words.size(after.size_bytes), words.times(change.size_ratio)),
        _pair(words.milliseconds(before.latency), words.milliseconds(after.latency), latency),
        "" if before.reference else _pair(words.times(before.speedup), words.times(after.speedup), speed),
        ", ".join(_remarks(change, before, after)),
    ]


def _pair(before: str, after: str, change: str) -> str:
    if before == after:
        return after
    return f"{before} → {after}" + ("" if change == words.MISSING else f" ({change})")


def _remarks(change: Change, before: Row, after: Row) -> Iterator[str]:
    """What a reader must not miss in a line."""
    if before.status != after.status:
        yield f"was {before.status}, is {after.status}{': ' + after.reason if after.reason else ''}"
    hashes = [text_of(part(row.raw, "artifact"), "sha256") for row in (before, after)]
    same = bool(hashes[0]) and hashes[0] == hashes[1]
    if same:
        yield "same artifact"
    if change.speedup_ci and _outside(change.speedup_ci, 1.0):
        yield "gained speed" if change.speedup_ci[0] > 1 else "lost speed"
    if before.reference and change.latency_ci and _outside(change.latency_ci, 1.0):
        yield f"the original's own time moved: another {'' if same else 'model, '}runtime or state of the machine"
    if (
        change.metric_delta
        and before.metric_ci
        and after.metric is not None
        and _outside(before.metric_ci, after.metric)
    ):
        better = (change.metric_delta > 0) == after.higher_is_better
        yield f"{'better' if better else 'worse'} beyond the first run's interval"


def _outside(bounds: words.Interval, value: float) -> bool:
    return not bounds[0] <= value <= bounds[1]


def text(comparison: Comparison) -> str:
    """Plain text: remarks, one table for each run after the first, and what else differs."""
    parts = [f"note: {remark}" for remark in comparison.remarks]
    for name, changes, inputs in _runs(comparison):
        parts.append(f"{name} against {comparison.names[0]}")
        parts.append(_aligned([headings(comparison), *(line(c, comparison.metric) for c in changes)]))
        parts.append(f"inputs that differ ({len(inputs)})" if inputs else f"inputs: {_NOTHING}")
        if inputs:
            parts.append(
                _aligned([[n, words.short(b, 40), words.short(a, 40)] for n, b, a in inputs[:MOST_DIFFERENCES]])
            )
    return "\n\n".join(parts) + "\n"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    cells = [[words.short(cell, 100) for cell in cells] for cells in lines]
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def markdown(comparison: Comparison) -> str:
    """Markdown with one table for each run after the first."""
    parts = ["\n".join(f"> {md.escape(remark)}" for remark in comparison.remarks)]
    for name, changes, inputs in _runs(comparison):
        parts.append(f"### {md.escape(name)} against {md.escape(comparison.names[0])}")
        parts.append(md.table(headings(comparison), [line(c, comparison.metric) for c in changes], numbers_from=9))
        if inputs:
            body = [[n, words.short(b, 60), words.short(a, 60)] for n, b, a in inputs[:MOST_DIFFERENCES]]
            found = md.table(["Input", "Before", "After"], body, numbers_from=9)
            parts.append(f"<details><summary>{_differ(inputs)}</summary>\n\n{found}\n\n</details>")
        else:
            parts.append(f"Inputs: {_NOTHING}.")
    return "\n\n".join(parts) + "\n"


def html(comparison: Comparison) -> str:
    """A page of its own, by the report's style and policy."""
    from edgekit.report.page import document

    names = comparison.names
    title = f"{names[1]} against {names[0]}" if len(names) == 2 else f"{len(names) - 1} runs against {names[0]}"
    body = group(
        el("header", el("p", "edgekit comparison", class_="over"), el("h1", title)),
        el(
            "main",
            el("ul", [el("li", remark) for remark in comparison.remarks]),
            [_section(comparison, *run) for run in _runs(comparison)],
        ),
        el("footer", "edgekit · opens offline, asks nothing of the network"),
    )
    return document(title, body)


def _section(
    comparison: Comparison, name: str, changes: tuple[Change, ...], inputs: tuple[tuple[str, str, str], ...]
) -> Html:
    caption = f"Every row of {name} against the same variant and target of {comparison.names[0]}"
    lines: list[list[Child]] = []
    for change in changes:
        *cells, remark = line(change, comparison.metric)
        kind = "loss" if "lost speed" in remark or "worse" in remark else "gain" if "gained" in remark else None
        lines.append([*cells, el("b", remark, class_=kind) if kind else remark])
    differing: list[list[Child]] = [list(entry) for entry in inputs[:MOST_DIFFERENCES]]
    what = table("Inputs that differ", ["Input", "Before", "After"], differing)
    differ = el("summary", _differ(inputs))
    return el(
        "section",
        el("h2", name),
        table(caption, headings(comparison), lines),
        el("details", differ, what, open=len(inputs) <= 12) if inputs else el("p", f"Inputs: {_NOTHING}."),
    )


def _differ(inputs: tuple[tuple[str, str, str], ...]) -> str:
    return f"{words.counted(len(inputs), 'input')} {'differs' if len(inputs) == 1 else 'differ'}"


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """JSON: the same numbers, unrounded."""
    return {
        "names": list(comparison.names),
        "metric": comparison.metric,
        "remarks": list(comparison.remarks),
        "runs": [
            {
                "name": name,
                "changes": [_numbers(change) for change in changes],
                "inputs": [{"name": n, "before": b, "after": a} for n, b, a in inputs],
            }
            for name, changes, inputs in _runs(comparison)
        ],
    }


def _numbers(change: Change) -> dict[str, Any]:
    return {
        "variant": change.variant,
        "target": change.target,
        "status": [row.status if row else None for row in (change.before, change.after)],
        "metric_delta": change.metric_delta,
        "size_ratio": change.size_ratio,
        "latency_ratio": change.latency_ratio,
        "latency_ratio_ci95": change.latency_ci,
        "speedup_ratio": change.speedup_ratio,
        "speedup_ratio_ci95": change.speedup_ci,
    }


def _runs(comparison: Comparison) -> list[tuple[str, tuple[Change, ...], tuple[tuple[str, str, str], ...]]]:
    return list(zip(comparison.names[1:], comparison.changes, comparison.inputs, strict=True))
