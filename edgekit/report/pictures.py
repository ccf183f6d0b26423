"""The page's pictures, each with the same numbers as a plain table beside it."""

from __future__ import annotations

from pathlib import Path

from edgekit.report import charts, words
from edgekit.report.html import Child, Html, el, table
from edgekit.report.operators import by_operator
from edgekit.report.rows import Row, metric_of, number_in, targets_of, text

MOST_TARGETS = 4  # pictures for so many targets; every number of the others is in the tables
MOST_WATERFALLS = 12
MOST_LAYERS = 20


def figure(drawing: str | None, caption: Child, beside: Html | None = None, *, target: str | None = None) -> Html:
    """A picture with its caption, and its table folded below it."""
    folded = el("details", el("summary", "The same as a table"), beside) if beside and drawing else beside
    shown = el("div", Html(drawing), class_="chart") if drawing else None
    return el("figure", shown, el("figcaption", caption), folded, data_target=target)


def pictures(rows: list[Row], draw: bool) -> Html | None:
    """Metric against latency and against size, for each target."""
    metric = metric_of(rows)
    name = metric.replace("_", " ")
    figures = []
    for target in targets_of(rows)[:MOST_TARGETS]:
        mine = [row for row in rows if row.target == target]
        for axis, what in ((charts.LATENCY, "latency"), (charts.SIZE, "size")):
            found = charts.spots(mine, axis)
            if len(found) < 2:
                continue
            label = f"{name.capitalize()} against {what} on {target}"
            drawing = charts.scatter(mine, axis, metric, label) if draw else None
            beside = table(
                label,
                ["Variant", what.capitalize(), name.capitalize(), "On the front"],
                [
                    [
                        s.row.variant,
                        words.milliseconds(s.x) if what == "latency" else words.size(s.row.size_bytes),
                        words.metric_text(s.y, metric),
                        "yes" if s.front else "no",
                    ]
                    for s in sorted(found, key=lambda s: s.x)
                ],
            )
            figures.append(figure(drawing, [el("b", label), _built_note(mine)], beside, target=target))
    if not figures:
        return None
    return el(
        "section",
        el("h2", f"{name.capitalize()} against cost"),
        _legend() if draw else None,
        el("div", figures, class_="figures"),
        id="pareto",
    )


def _built_note(rows: list[Row]) -> str:
    built = all(row.status != "ok" for row in rows)
    return ". Built here for a device that is not here: the metric is this machine's." if built else ""


def _legend() -> Html:
    entries = [
        ("◆", "original", "the original"),
        ("●", "front", "on the front: none is better on both axes"),
        ("○", "other", "beaten by another"),
        ("┄", "line", "the front"),
        ("┼", "bars", "95 % intervals"),
    ]
    return el(
        "p",
        [
            el("span", el("span", sign, class_=f"key {kind}", aria_hidden="true"), f" {words_}")
            for sign, kind, words_ in entries
        ],
        class_="legend",
    )


def stage_pictures(rows: list[Row], draw: bool) -> Html | None:
    """The metric after every stage: a waterfall for each variant of the first target, a table of all."""
    metric = metric_of(rows)
    known = [row for row in rows if sum(stage.metric is not None for stage in row.stages) >= 1]
    if not known:
        return None
    name = metric.replace("_", " ")
    first = [r for r in known if r.target == known[0].target and sum(s.metric is not None for s in r.stages) > 1]
    figures = []
    for row in first[:MOST_WATERFALLS] if draw else []:
        label = f"{name.capitalize()} after each stage of {row.variant}"
        figures.append(figure(charts.waterfall(row, label), el("b", words.short(row.variant, 60))))
    names = list(dict.fromkeys(stage.name for row in known for stage in row.stages))
    lines: list[list[Child]] = []
    for row in known:
        after = {stage.name: words.metric_text(stage.metric, metric) for stage in row.stages}
        lines.append([row.label, *(after.get(stage, "") for stage in names)])
    beside = table(f"{name.capitalize()} after each stage", ["Variant", *names], lines)
    hint = (
        f"The stages of every variant on {words.short(known[0].target, 40)}: what each gave (blue, +) or took (red, −)."
    )
    return el(
        "section",
        el("h2", f"{name.capitalize()} by stage"),
        el("p", hint, class_="hint") if figures else None,
        el("div", figures, class_="figures small") if figures else None,
        el("details", el("summary", "All of them as a table"), beside) if figures else beside,
        id="stages",
    )


def time_pictures(rows: list[Row], draw: bool, folder: Path | None = None) -> Html | None:
    """Where the time goes: latency's spread, time by operator, and which layers mind int8."""
    figures = [*_spreads(rows, draw), *_operators(rows, draw), *_sensitivity(rows, draw)]
    if not figures:
        return None
    return el("section", el("h2", "Where time and accuracy go"), el("div", figures, class_="figures"), id="time")


def _spreads(rows: list[Row], draw: bool) -> list[Html]:
    figures = []
    for target in targets_of(rows)[:MOST_TARGETS]:
        mine = [row for row in rows if row.target == target and row.measured][:MOST_LAYERS]
        if not mine:
            continue
        label = f"Latency of one inference on {target}"
        beside = table(
            label,
            ["Variant", "Median", "p90", "p99", "First inference", "Inferences"],
            [
                [
                    row.variant,
                    words.milliseconds(row.latency),
                    words.milliseconds(row.p90),
                    words.milliseconds(row.p99),
                    words.milliseconds(row.first_ms),
                    words.count(row.runs),
                ]
                for row in mine
            ],
        )
        figures.append(figure(charts.ranges(mine, label) if draw else None, el("b", label), beside, target=target))
    return figures


def _operators(rows: list[Row], draw: bool) -> list[Html]:
    figures = []
    for target in targets_of(rows)[:MOST_TARGETS]:
        lines = [(row.variant, by_operator(row.raw)) for row in rows if row.target == target]
        lines = [(name, parts) for name, parts in lines if parts][:MOST_LAYERS]
        if not lines:
            continue
        label = f"Time by operator on {target}"
        body: list[list[Child]] = [
            [name, kind, words.milliseconds(spent), words.share(spent / (sum(parts.values()) or 1.0))]
            for name, parts in lines
            for kind, spent in list(parts.items())[:MOST_LAYERS]
        ]
        beside = table(label, ["Variant", "Operator", "Time", "Share"], body, numbers_from=2)
        figures.append(figure(charts.stacked(lines, label) if draw else None, el("b", label), beside, target=target))
    return figures


def _sensitivity(rows: list[Row], draw: bool) -> list[Html]:
    """The layers that mind quantization most, of the first row that has the figures for each target."""
    figures = []
    for target in targets_of(rows)[:MOST_TARGETS]:
        row = next((r for r in rows if r.target == target and r.raw.get("sensitivity")), None)
        entries = row.raw["sensitivity"] if row else []
        layers = [
            (text(e, "layer") or text(e, "name"), value)
            for e in entries
            if isinstance(e, dict) and (value := number_in(e, "sqnr_db")) is not None
        ]
        if not row or not layers:
            continue
        worst = sorted(layers, key=lambda item: item[1])[:MOST_LAYERS]
        label = f"Layers of {row.variant} that mind int8 most, on {target}"
        caption: list[Child] = [
            el("b", label),
            ". Signal over quantization noise with only this layer in int8: lower is worse.",
        ]
        items = [(name, value, f"{words.digits(value)} dB") for name, value in worst]
        beside = table(label, ["Layer", "Signal to noise"], [[name, shown] for name, _, shown in items])
        drawing = charts.bars(items, "Signal to noise, dB", label) if draw else None
        figures.append(figure(drawing, caption, beside, target=target))
    return figures
