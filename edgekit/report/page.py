"""The HTML page: one self-contained file that opens offline and runs under a strict policy."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from edgekit.report import charts, words
from edgekit.report.details import details, environment, repeat
from edgekit.report.findings import Finding, Verdict, broken, findings, headline, verdict
from edgekit.report.html import Child, Html, el, group, table
from edgekit.report.operators import objects
from edgekit.report.pictures import pareto, stages, times
from edgekit.report.rows import Column, Row, columns, metric_of, number_in, part, rows_of, targets_of, text
from edgekit.report.scenarios import scenarios

MOST_FINDINGS = 8
MOST_BROKEN = 5
_SIGNS = {"pass": "✓", "fail": "✕", "inconclusive": "?", "none": "•"}
_KINDS = {"good": ("▲", "Good"), "note": ("●", "Note"), "bad": ("▼", "Mind")}
_STATUS = {"ok": "✓ measured", "built": "◐ built only", "unavailable": "○ unavailable", "failed": "✕ failed"}


def page(results: dict[str, Any], folder: Path | None = None) -> str:
    """The whole page as text.

    Args:
        results: A tidied record (:func:`edgekit.report.words.tidy`).
        folder: Where the record lies, for files of raw samples; None: there are none.
    """
    rows = rows_of(results)
    found = verdict(results, rows)
    draw = charts.available()
    body = group(
        _header(results, rows, found),
        el(
            "main",
            None if draw else _no_charts(),
            pareto(rows, draw),
            _findings(findings(results, rows)),
            _variants(rows),
            stages(rows, draw),
            times(rows, draw, folder),
            scenarios(rows),
            details(rows, folder),
            _gate(results),
            environment(results, rows),
            repeat(results, headline(results, rows)),
            id="top",
        ),
        el("footer", f"edgekit · {text(results, 'schema')} · opens offline, asks nothing of the network"),
    )
    return document(f"{_title(results)}: {found.title}", body)


def document(title: str, body: Html) -> str:
    """A page around ``body``, with our style and script and a policy that allows nothing else."""
    style, script = (_resource(name) for name in ("page.css", "page.js"))
    allowed = f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        Html(f"<style>{style}</style>"),
    )
    shell = el("body", el("a", "To the table of variants", href="#variants", class_="skip"), body)
    return f"<!doctype html>\n{el('html', head, shell, Html(f'<script>{script}</script>'), lang='en')}\n"


def _resource(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _title(results: dict[str, Any]) -> str:
    model = part(part(results, "recipe"), "model")
    name = text(model, "path") or text(model, "entry")
    return words.short(f"edgekit report of {name}" if name else "edgekit report", 90)


# ── the top: verdict, four numbers, findings ──────────────────────────────────────────────


def _header(results: dict[str, Any], rows: list[Row], found: Verdict) -> Html:
    best = headline(results, rows)
    shown = best or next((r for r in rows if r.reference), None)
    return el(
        "header",
        el("p", _title(results), class_="over"),
        el(
            "div",
            el("span", _SIGNS[found.kind], class_="sign", aria_hidden="true"),
            el("div", el("h1", found.title), el("p", found.sentence, class_="lead"), _broken(broken(results))),
            class_=f"verdict {found.kind}",
        ),
        _numbers(shown) if shown else None,
    )


def _broken(lines: list[str]) -> Html | None:
    """The limits that did not hold, under the verdict."""
    if not lines:
        return None
    more = [f"and {len(lines) - MOST_BROKEN} more: see the gate's checks below"] if len(lines) > MOST_BROKEN else []
    return el("ul", [el("li", line) for line in [*lines[:MOST_BROKEN], *more]])


def _numbers(row: Row) -> Html:
    metric = words.plain(row.metric_name)
    change = words.joined(
        words.delta_text(row.delta, row.metric_name), words.delta_interval(row.delta_ci, row.metric_name)
    )
    speed = words.joined(words.times(row.speedup), words.ratio_interval(row.speedup_ci)) + " as fast"
    ratio = f"{words.times(row.size_ratio)} the original's"
    cards = [
        (metric, words.metric_text(row.metric, row.metric_name), "the original" if row.reference else change),
        ("latency", words.milliseconds(row.latency), "median" if row.reference else speed),
        ("size", words.size(row.size_bytes), "" if row.reference else ratio),
        (
            "peak memory",
            words.size(row.memory),
            "above the runtime's own" if row.memory is not None else "not measured",
        ),
    ]
    note = f"{row.label}{' (the original)' if row.reference else ''}:"
    return el(
        "section",
        el("p", note, class_="of"),
        el("dl", [el("div", el("dt", name), el("dd", value, el("small", extra))) for name, value, extra in cards]),
        class_="numbers",
        aria_label=f"The four numbers of {row.label}",
    )


def _findings(found: list[Finding]) -> Html | None:
    if not found:
        return None

    def line(finding: Finding) -> Html:
        sign, word = _KINDS[finding.kind]
        row = finding.row
        link = el("a", "more", href=f"#v-{row.number}", aria_label=f"more about {row.label}") if row else None
        mark = el("span", el("span", sign, aria_hidden="true"), f" {word}", class_="kind")
        return el("li", mark, el("span", finding.sentence, " ", link), class_=finding.kind)

    first, rest = found[:MOST_FINDINGS], found[MOST_FINDINGS:]
    more = el("details", el("summary", f"{len(rest)} more"), el("ul", [line(f) for f in rest], class_="findings"))
    return el(
        "section",
        el("h2", "What to know"),
        el("ul", [line(f) for f in first], class_="findings"),
        more if rest else None,
        id="findings",
    )


def _no_charts() -> Html:
    return el(
        "p",
        "The charts are left out, because vl-convert is not installed here; the extra "
        "edgekit-compiler[report] brings them. Every number is in the tables.",
        class_="hint",
    )


# ── the table of variants ─────────────────────────────────────────────────────────────────


def _variants(rows: list[Row]) -> Html:
    shown = columns(metric_of(rows))
    head = el("tr", [_heading(column) for column in shown])
    body = el("tbody", [_line(row, shown) for row in rows])
    return el(
        "section",
        el("h2", "Variants"),
        _controls(rows, shown),
        el(
            "div",
            el(
                "table",
                el("caption", "Every variant on every target; changes are against the original on the same target."),
                el("thead", head),
                body,
                class_="variants",
                id="variants-table",
            ),
            class_="scroll",
            tabindex="0",
            role="region",
            aria_label="Variants",
        ),
        el(
            "p",
            el("span", "★", class_="star"),
            " on the Pareto front: no other variant of that target beats it "
            "on metric, latency and size. Intervals are 95 %.",
            class_="hint",
        ),
        el(
            "p",
            "The same as files: ",
            el("a", "report.csv", href="report.csv"),
            ", ",
            el("a", "report.md", href="report.md"),
            ", ",
            el("a", "results.json", href="results.json"),
            class_="hint",
        ),
        id="variants",
    )


def _heading(column: Column) -> Html:
    button = el("button", column.title, type="button", data_best=column.best)
    return el("th", button, scope="col", aria_sort="none", class_="num" if column.number else None)


def _line(row: Row, shown: list[Column]) -> Html:
    cells = []
    for column in shown:
        value = column.value(row)
        kind = "num" if column.number else None
        sort = "" if value is None else value
        label = column.title
        if column.key == "variant":
            cells.append(el("th", _name(row), scope="row", data_sort=sort, data_label=label))
        elif column.key == "status":
            cells.append(el("td", _status(row), data_sort=sort, data_label=label))
        else:
            cells.append(el("td", _number(row, column), class_=kind, data_sort=sort, data_label=label))
    state = {"data_target": row.target, "data_status": row.status, "id": f"r-{row.number}"}
    return el("tr", cells, class_="reference" if row.reference else None, **state)


def _name(row: Row) -> Child:
    star = el("span", "★", class_="star", title="On the Pareto front", role="img", aria_label="on the Pareto front")
    original = el("small", "the original")
    link = el("a", row.variant or row.id, href=f"#v-{row.number}")
    return [link, " ", star if row.pareto else None, original if row.reference else None]


def _status(row: Row) -> Child:
    shown = el("span", _STATUS.get(row.status, row.status), class_=f"status {row.status}")
    return [shown, el("small", words.because(row.reason), title=row.reason) if row.reason else None]


def _number(row: Row, column: Column) -> Child:
    shown = column.show(row)
    if shown == words.MISSING:
        return el("span", shown, class_="missing", title="not measured", aria_label="not measured")
    value, bracket, bounds = shown.partition(" [")
    slower = column.key == "speedup" and row.faster is False and not row.reference
    worse = column.key == "metric_delta" and row.worse
    note = el("small", "slower" if slower else "worse", class_="loss") if slower or worse else None
    return [value, el("small", f"[{bounds}") if bracket else None, note]


def _controls(rows: list[Row], shown: list[Column]) -> Html:
    """Filter and sort; hidden until the script runs, since without it they would do nothing."""

    def chips(name: str, values: list[str], labels: list[str]) -> Html:
        every = [el("button", "all", type="button", aria_pressed="true", data_filter=name, data_value="")]
        for value, label in zip(values, labels, strict=True):
            every.append(el("button", label, type="button", aria_pressed="false", data_filter=name, data_value=value))
        return el(
            "div", el("span", name.capitalize()), every, class_="chips", role="group", aria_label=f"Filter by {name}"
        )

    targets = targets_of(rows)
    states = list(dict.fromkeys(row.status for row in rows))
    options = [el("option", column.title, value=str(index)) for index, column in enumerate(shown)]
    return el(
        "div",
        chips("target", targets, [words.short(t, 30) for t in targets]) if len(targets) > 1 else None,
        chips("status", states, [_STATUS.get(s, s) for s in states]) if len(states) > 1 else None,
        el("label", "Find ", el("input", type="search", placeholder="variant name", id="find")),
        el(
            "label",
            "Sort by ",
            el("select", el("option", "as recorded", value=""), options, id="sort"),
            class_="sorter",
        ),
        el("output", f"{len(rows)} shown", id="shown", aria_live="polite"),
        class_="controls",
        hidden=True,
    )


def _gate(results: dict[str, Any]) -> Html | None:
    checks = list(objects(part(results, "gate").get("checks")))
    if not checks:
        return None
    order = {False: 0, None: 1, True: 2}
    lines = [_check(c) for c in sorted(checks, key=lambda c: order.get(c.get("passed"), 1))]
    head = ["Variant", "Limit on", "Verdict", "Value", "Limit", "Of it used", "In words"]
    open_ = sum(c.get("passed") is not True for c in checks)
    summary = f"{words.counted(len(checks), 'check')}, {open_} not passed"
    all_ = table("The gate's checks", head, lines, numbers=range(3, 6))
    notes = part(results, "gate").get("notes")
    told = [el("li", str(note)) for note in notes] if isinstance(notes, list) else []
    return el(
        "section",
        el("h2", "Gate"),
        el("details", el("summary", summary), all_, open=open_ > 0),
        el("details", el("summary", words.counted(len(told), "note")), el("ul", told)) if told else None,
        id="gate",
    )


def _check(check: dict[str, Any]) -> list[Child]:
    """One check as the cells of its table."""
    says = {True: "✓ holds", False: "✕ broken", None: "? can't tell"}
    variant, name = text(check, "variant"), text(check, "name")
    return [
        variant,
        name.replace("_", " "),
        says.get(check.get("passed"), "?"),
        _plain(check.get("value")),
        _plain(check.get("limit")),
        _used(check),
        text(check, "sentence").removeprefix(f"{variant}: {name}: "),
    ]


def _used(check: dict[str, Any]) -> str:
    """How much of a limit is used up: over 100 % is broken."""
    value, limit = number_in(check, "value"), number_in(check, "limit")
    least = text(check, "name").startswith("min_")
    part_, whole = (limit, value) if least else (value, limit)
    if part_ is None or not whole or whole < 0:
        return ""
    return f"{max(0.0, part_ / whole) * 100:.0f} %"


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return words.MISSING if value is None else str(value)
    return f"{value + 0.0:.4g}" if isinstance(value, int | float) else str(value)
