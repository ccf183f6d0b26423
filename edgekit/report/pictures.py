"""The page's pictures, each with the same numbers as a plain table beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekit.report import bars, scatter, words
from edgekit.report.html import Child, Html, el, table
from edgekit.report.operators import Sensitivity, by_operator, pruning_sensitivity, sensitivity
from edgekit.report.rows import Row, metric_of, stage_names, targets_of
from edgekit.report.samples import Process, curve, drift, processes

MOST_TARGETS = 4  # pictures for so many targets; every number of the others is in the tables
MOST_WATERFALLS = 6
MOST_ROWS = 12
MOST_BARS = 20
MOST_CURVES = 6  # of one picture: each has a dash and a shape of its own


def figure(drawing: str | None, caption: Child, beside: Html | None = None, *, target: str | None = None) -> Html:
    """A picture with its caption, and its table folded below it; the table alone where there is no picture."""
    folded = (
        el("details", el("summary", "The same as a table"), beside, class_="aside") if beside and drawing else beside
    )
    shown = el("div", Html(drawing), class_="chart") if drawing else None
    return el("figure", el("figcaption", caption), shown, folded, data_target=target)


def chosen(rows: list[Row]) -> list[Row]:
    """The rows that a picture shows one by one: all, or where they are many the original and the front."""
    if len(rows) <= MOST_ROWS:
        return rows
    return ([row for row in rows if row.reference or row.pareto] or rows)[:MOST_ROWS]


def of_many(rows: list[Row]) -> str:
    """What a caption adds where a picture leaves rows out."""
    return "" if len(rows) <= MOST_ROWS else f" (of {len(rows)}, the original and the front)"


# ── the metric against latency and size ───────────────────────────────────────────────────


def pareto(rows: list[Row], draw: bool) -> Html | None:
    """Metric against latency and against size, for each target; those that were only built are folded."""
    metric = metric_of(rows)
    parts = []
    for target in targets_of(rows)[:MOST_TARGETS]:
        mine = [row for row in rows if row.target == target]
        figures = list(_against_cost(mine, target, metric, draw))
        if figures and all(row.status != "ok" for row in mine):
            note = f"{words.short(target, 40)}: built, not measured; {words.plain(metric)} from this machine"
            parts.append(el("details", el("summary", note), el("div", figures, class_="figures")))
        elif figures:
            parts.append(el("div", figures, class_="figures"))
    if not parts:
        return None
    heading = f"{words.title(metric)} against latency and size"
    return el("section", el("h2", heading), _legend() if draw else None, parts, id="pareto")


def _against_cost(rows: list[Row], target: str, metric: str, draw: bool) -> Iterator[Html]:
    for axis, what in ((scatter.LATENCY, "latency"), (scatter.SIZE, "size")):
        found = scatter.spots(rows, axis)
        if not found:
            continue
        label = f"{words.title(metric)} against {what} on {words.short(target, 60)}"
        show = words.milliseconds if what == "latency" else words.size
        lines: list[list[Child]] = [
            [s.row.variant, show(s.x), words.metric_text(s.y, metric), "yes" if s.front else "no"]
            for s in sorted(found, key=lambda s: s.x)
        ]
        beside = table(
            label, ["Variant", what.capitalize(), words.title(metric), "On the front"], lines, numbers=range(1, 3)
        )
        drawing = scatter.scatter(rows, axis, metric, label) if draw else None
        yield figure(drawing, el("b", label), beside, target=target)


def _legend() -> Html:
    entries = [
        ("◆", "original", "the original"),
        ("●", "front", "on the front: none is better on both axes"),
        ("○", "other", "beaten by another"),
        ("┼", "bars", "95 % intervals; of the metric: of the change on the same samples"),
    ]
    keys = [
        el("span", el("span", sign, class_=f"key {kind}", aria_hidden="true"), f" {what}")
        for sign, kind, what in entries
    ]
    return el("p", keys, class_="legend")


# ── the metric by stage ───────────────────────────────────────────────────────────────────


def stages(rows: list[Row], draw: bool) -> Html | None:
    """The metric after every stage: a waterfall for each variant of the first target, a table of all."""
    metric = metric_of(rows)
    known = [row for row in rows if bars.steps(row)]
    if not known:
        return None
    name = words.title(metric)
    first = [row for row in known if row.target == known[0].target and len(bars.steps(row)) > 1]
    first = chosen(first)[:MOST_WATERFALLS]
    figures = []
    values = [step.after for row in first for step in bars.steps(row)]
    if draw and len(set(values)) > 1:
        for row in first:
            label = f"{name} after each stage of {row.variant}"
            figures.append(
                figure(bars.waterfall(row, (min(values), max(values)), label), el("b", words.short(row.variant, 60)))
            )
    names = stage_names(known)
    lines: list[list[Child]] = []
    for row in known:
        after = {stage.name: words.metric_text(stage.metric, metric) for stage in row.stages}
        lines.append([row.label, *(after.get(stage, "") for stage in names)])
    beside = table(f"{name} after each stage", ["Variant", *names], lines, numbers=range(1, 99))
    if not figures:
        return el("section", el("h2", f"{name} by stage"), beside, id="stages")
    hint = f"On {words.short(known[0].target, 40)}, all on one scale: what each stage took (−, red) or gave (+, blue)."
    return el(
        "section",
        el("h2", f"{name} by stage"),
        el("p", hint, class_="hint"),
        el("div", figures, class_="figures"),
        el("details", el("summary", "All targets, as a table"), beside),
        id="stages",
    )


# ── where the time goes ───────────────────────────────────────────────────────────────────


def times(rows: list[Row], draw: bool, folder: Path | None = None) -> Html | None:
    """Latency's spread, time by operator, and which layers mind int8, for each target."""
    parts = []
    for target in targets_of(rows)[:MOST_TARGETS]:
        mine = [row for row in rows if row.target == target]
        raw = _raw(mine, folder) if draw and folder else []
        drawn = (
            _ranges(mine, draw),
            _spread(target, raw),
            _drift(target, raw),
            _operators(mine, draw),
            _minding("int8", sensitivity, mine, draw),
            _minding("pruning", pruning_sensitivity, mine, draw),
        )
        if figures := [found for found in drawn if found]:
            parts += [el("h3", words.short(target, 60)), el("div", figures, class_="figures")]
    return el("section", el("h2", "Where the time goes"), parts, id="time") if parts else None


def _ranges(rows: list[Row], draw: bool) -> Html | None:
    measured = [row for row in rows if row.measured]
    if not measured:
        return None
    target = measured[0].target
    label = f"Latency of one inference on {words.short(target, 60)}"
    lines: list[list[Child]] = [
        [row.variant, *(words.milliseconds(v) for v in (row.latency, row.p90, row.p99, row.first_ms))]
        for row in measured
    ]
    beside = table(label, ["Variant", "Median", "p90", "p99", "First inference"], lines, numbers=range(1, 5))
    drawing = bars.ranges(chosen(measured), label) if draw else None
    return figure(drawing, [el("b", label), of_many(measured)], beside, target=target)


def _raw(rows: list[Row], folder: Path) -> list[tuple[str, list[Process]]]:
    """The raw times of a few rows: the original, then the front."""
    measured = sorted((row for row in rows if row.measured), key=lambda row: (not row.reference, not row.pareto))
    found = [(row.variant, processes(row, folder)) for row in measured[:MOST_CURVES]]
    return [(name, runs) for name, runs in found if runs]


def _spread(target: str, raw: list[tuple[str, list[Process]]]) -> Html | None:
    """How the single inferences spread; only a picture, its table is the one of the medians."""
    curves = [(name, points) for name, runs in raw if (points := curve(runs))]
    if not curves:
        return None
    label = f"Latency of every inference on {words.short(target, 60)}"
    caption: list[Child] = [el("b", label), ": how many took at most so long, without the slowest 0.5 %."]
    return figure(bars.spread(curves, label), caption, target=target)


def _drift(target: str, raw: list[tuple[str, list[Process]]]) -> Html | None:
    """How the machine moved while it measured: each process against its own row."""
    lines = [(name, points) for name, runs in raw if (points := drift(runs))]
    if not lines:
        return None
    label = f"Drift while it was measured on {words.short(target, 60)}"
    body: list[list[Child]] = [
        [name, str(len(points)), *(f"{words.signed(x, f'{abs(x):.1f}')} %" for x in (min(off), max(off)))]
        for name, points in lines
        for off in [[value for _, value in points]]
    ]
    beside = table(label, ["Variant", "Rounds", "Lowest", "Highest"], body, numbers=range(1, 4))
    caption: list[Child] = [
        el("b", label),
        ": each process against its own variant's median. What moves a whole round is the machine, and cancels out.",
    ]
    return figure(bars.drift(lines, label), caption, beside, target=target)


def _operators(rows: list[Row], draw: bool) -> Html | None:
    profiled = [row for row in rows if by_operator(row.raw)]
    lines = [(row.variant, by_operator(row.raw)) for row in chosen(profiled)]
    if not lines:
        return None
    label = f"Time by operator on {words.short(rows[0].target, 60)}"
    body: list[list[Child]] = [
        [name, kind, words.milliseconds(spent), words.share(spent / (sum(parts.values()) or 1.0))]
        for name, parts in lines
        for kind, spent in list(parts.items())[:MOST_BARS]
    ]
    beside = table(label, ["Variant", "Operator", "Time", "Share"], body, numbers=range(2, 4))
    caption: list[Child] = [
        el("b", label),
        of_many(profiled),
        ", by the runtime's own profiler, which slows it down: the shares count.",
    ]
    return figure(bars.stacked(lines, label) if draw else None, caption, beside, target=rows[0].target)


def _minding(
    what: str, read: Callable[[dict[str, Any]], Sensitivity | None], rows: list[Row], draw: bool
) -> Html | None:
    """The layers that mind quantization or pruning most, of the first row that has the figures."""
    row, found = next(((row, found) for row in rows if (found := read(row.raw))), (None, None))
    if row is None or found is None:
        return None
    label = f"Layers of {words.short(row.variant, 40)} that mind {what} most, on {words.short(row.target, 40)}"
    items = [(layer.name, layer.value, layer.shown) for layer in found.layers[:MOST_BARS]]
    beside = table(label, ["Layer", found.title], [[name, shown] for name, _, shown in items], numbers=range(1, 2))
    drawing = bars.bars(items, found.title, label) if draw else None
    return figure(drawing, [el("b", label), f". {found.meaning}"], beside, target=row.target)
