"""What each stage gave or took, where the time goes, which layers mind int8, and how latency spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.report import charts, words
from edgekit.report.charts import BLUE, GREEN, INK, ORANGE, PURPLE, SERIES, SKY, SOFT, VERMILLION
from edgekit.report.rows import Row

_DASHES = ([1, 0], [6, 3], [2, 3], [8, 3, 2, 3], [12, 4], [1, 4])
_SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")
_LINES = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY)


@dataclass(frozen=True)
class Step:
    """One bar of a waterfall: the metric before and after a stage (before is None: the first)."""

    stage: str
    before: float | None
    after: float

    @property
    def change(self) -> float:
        """After minus before; 0 for the first."""
        return 0.0 if self.before is None else self.after - self.before


def steps(row: Row) -> list[Step]:
    """The stages of a row that have a metric after them."""
    found: list[Step] = []
    for stage in row.stages:
        if stage.metric is not None:
            found.append(Step(stage.name, found[-1].after if found else None, stage.metric))
    return found


def waterfall(row: Row, span: words.Interval, label: str) -> str:
    """The metric after each stage of one row.

    Args:
        row: With at least one stage that has a metric.
        span: Least and greatest metric of all pictures that stand together, so that they compare.
        label: For screen readers.
    """
    width, room = 350, 140  # pixels: about the bars and their text, and the text alone
    low, high = span
    wide = (high - low) or abs(high) or 1.0
    scale = {"domain": [low - 0.02 * wide, low + 1.02 * wide * width / (width - room)], "nice": False, "zero": False}
    sign = 1 if row.higher_is_better else -1
    data = []
    for number, step in enumerate(steps(row), 1):
        value = words.metric_text(step.after, row.metric_name)
        change = f"  {words.delta_text(step.change, row.metric_name)}" if step.change else ""
        before = step.after if step.before is None else step.before
        data.append(
            {
                "stage": f"{number}. {words.short(step.stage, 24)}",
                "from": before,
                "to": step.after,
                "edge": max(before, step.after),
                "kind": "gain" if sign * step.change > 0 else "loss" if sign * step.change < 0 else "same",
                "label": value + change,
                "text": f"{words.short(row.variant)}\nafter {step.stage}: {value}{change}",
            }
        )
    kinds = {"domain": ["gain", "loss", "same"], "range": [BLUE, VERMILLION, SOFT]}
    told = {"color": charts.name("kind", scale=kinds, legend=None), "description": {"field": "text"}}
    y = charts.name("stage", axis=charts.row_names())

    def x(field: str) -> dict[str, Any]:
        return charts.number(field, scale=scale, axis=None)

    text = charts.mark("text", align="left", dx=8, fontSize=12, color=INK)
    layers = [
        charts.layer(charts.mark("bar", aria=True, height=12), x=x("from"), x2={"field": "to"}, y=y, **told),
        charts.layer(charts.mark("tick", aria=True, thickness=3, size=20), x=x("to"), y=y, **told),
        charts.layer(text, x=x("edge"), y=y, text={"field": "label"}),
    ]
    return charts.svg({"height": {"step": 25}, "data": charts.values(data), "layer": layers}, label)


def stacked(lines: Sequence[tuple[str, dict[str, float]]], label: str, *, most: int = 6) -> str:
    """Milliseconds by kind of operator, one bar for each ``(name, {operator: ms})``; small ones as "other"."""
    lines = [(name, {words.short(kind, 24): spent for kind, spent in parts.items()}) for name, parts in lines]
    greatest: dict[str, float] = {}
    for _, parts in lines:
        for kind, spent in parts.items():
            greatest[kind] = max(greatest.get(kind, 0.0), spent)
    shown = sorted(greatest, key=lambda kind: -greatest[kind])[:most]
    longest = max(sum(parts.values()) for _, parts in lines) or 1.0
    factor, unit = words.time_unit(longest)
    pixels = 350 / (longest * factor)
    data = [piece for name, parts in lines for piece in _pieces(name, parts, shown, factor, pixels)]
    colours = {"domain": [*shown, "other"], "range": [*SERIES[: len(shown)], SOFT]}
    axis = {"title": f"Time of one inference, {unit}", "tickCount": 5}
    x = charts.number("from", axis=axis, scale={"domain": [0, longest * factor], "nice": False})
    y = charts.name("name", axis=charts.row_names())
    layers = [
        charts.layer(
            charts.mark("bar", aria=True, fillOpacity=0.28, strokeWidth=1.5, height=24),
            x=x,
            x2={"field": "to"},
            y=y,
            color=charts.name("kind", scale=colours, legend=charts.key()),
            stroke=charts.name("kind", scale=colours, legend=None),
            description={"field": "text"},
        ),
        charts.layer(
            charts.mark("text", fontSize=11.5, color=INK), x={**x, "field": "middle"}, y=y, text={"field": "label"}
        ),
    ]
    return charts.svg({"height": {"step": 34}, "data": charts.values(data), "layer": layers}, label)


def _pieces(name: str, parts: dict[str, float], shown: list[str], factor: float, pixels: float) -> list[dict[str, Any]]:
    """The segments of one stacked bar; ``pixels`` is the length of one unit."""
    rest = sum(spent for kind, spent in parts.items() if kind not in shown)
    bar = [(kind, parts[kind]) for kind in shown if kind in parts] + ([("other", rest)] if rest else [])
    place, pieces = 0.0, []
    for kind, spent in bar:
        end = place + spent * factor
        fits = charts.LETTER * len(kind) < (end - place) * pixels - 8
        pieces.append(
            {
                "name": words.short(name, 30),
                "from": place,
                "to": end,
                "middle": (place + end) / 2,
                "kind": kind,
                "label": kind if fits else "",
                "text": f"{words.short(name)}\n{words.short(kind)}: {words.milliseconds(spent)}",
            }
        )
        place = end
    return pieces


def bars(items: Sequence[tuple[str, float, str]], title: str, label: str) -> str:
    """Horizontal bars of ``(name, value, text)``, in the given order."""
    width, room = 250, 64  # pixels: about the bars and their text, and the text alone
    data = [
        {"name": f"{number}. {words.short(name, 34)}", "value": value, "label": text, "text": f"{name}\n{text}"}
        for number, (name, value, text) in enumerate(items, 1)
    ]
    high = max(0.0, *(value for _, value, _ in items)) or 1.0
    low = min(0.0, *(value for _, value, _ in items))
    scale = {"domain": [low, high * width / (width - room)], "nice": False}
    x = charts.number("value", scale=scale, axis={"title": title, "tickCount": 4})
    y = charts.name("name", axis=charts.row_names())
    text = charts.mark("text", align="left", dx=6, fontSize=12, color=INK)
    layers = [
        charts.layer(charts.mark("bar", aria=True, height=14, color=BLUE), x=x, y=y, description={"field": "text"}),
        charts.layer(text, x=x, y=y, text={"field": "label"}),
    ]
    return charts.svg({"height": {"step": 22}, "data": charts.values(data), "layer": layers}, label)


def ranges(rows: Sequence[Row], label: str) -> str:
    """Latency of measured rows of one target: a point at the median, a bar to p90, a line to p99."""
    factor, unit = words.time_unit(max(row.p99 or row.p90 or row.latency or 0.0 for row in rows))
    data: list[dict[str, Any]] = []
    for row in rows:
        median = row.latency or 0.0
        p90 = row.p90 if row.p90 is not None else median
        p99 = row.p99 if row.p99 is not None else p90
        data.append(
            {
                "name": f"{row.number}. {words.short(row.variant, 30)}",
                "median": median * factor,
                "p90": p90 * factor,
                "p99": p99 * factor,
                "link": f"{charts.ROW_LINK}{row.number}",
                "text": f"{row.label}\nmedian {words.milliseconds_with(median, row.latency_ci)}\n"
                f"p90 {words.milliseconds(row.p90)}, p99 {words.milliseconds(row.p99)}",
            }
        )
    scale, ticks = _tail_scale(min(d["median"] for d in data), max(d["p99"] for d in data))
    axis = {"title": f"{unit}: point = median, bar to p90, line to p99", **ticks}
    at_median = charts.number("median", axis=axis, scale=scale)
    at_p99 = charts.number("p99", axis=axis, scale=scale)
    y = charts.name("name", axis=charts.row_names())
    point = charts.mark("point", aria=True, shape="circle", fill=BLUE, stroke=BLUE, opacity=1, size=90)
    layers = [
        charts.layer(charts.mark("rule", color=SOFT), x=at_median, x2={"field": "p99"}, y=y),
        charts.layer(charts.mark("tick", color=SOFT, thickness=2, size=14), x=at_p99, y=y),
        charts.layer(charts.mark("bar", color=BLUE, height=9, opacity=0.45), x=at_median, x2={"field": "p90"}, y=y),
        charts.layer(point, x=at_median, y=y, href={"field": "link"}, description={"field": "text"}),
    ]
    return charts.svg({"height": {"step": 28}, "data": charts.values(data), "layer": layers}, label)


def _tail_scale(least: float, most: float, *, zero: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """A time axis' scale and ticks: logarithmic where a long tail would press all else against the left."""
    if least > 0 and most > 8 * least:
        low, high = least / 1.3, most * 1.1
        return {"type": "log", "domain": [low, high], "nice": False}, {"values": charts.log_ticks(low, high)}
    return {"zero": zero, "nice": zero}, {"tickCount": 6}


def spread(curves: Sequence[tuple[str, list[tuple[float, float]]]], label: str) -> str:
    """Share of inferences that took at most so long, one line for each ``(name, [(ms, share)])``.

    At most as many curves as there are dashes: each has its own, beside its colour and its name.
    """
    shown = curves[: len(_DASHES)]
    factor, unit = words.time_unit(max(points[-1][0] for _, points in shown))
    names = [f"{number}. {words.short(name, 28)}" for number, (name, _) in enumerate(shown, 1)]
    data: list[dict[str, Any]] = [
        {"name": name, "ms": time * factor, "share": share * 100}
        for name, (_, points) in zip(names, shown, strict=True)
        for time, share in points
    ]
    scale, ticks = _tail_scale(min(d["ms"] for d in data), max(d["ms"] for d in data), zero=False)
    legend = charts.key(symbolType="stroke", symbolSize=400, symbolStrokeWidth=2)
    line = charts.layer(
        charts.mark("line", strokeWidth=2, interpolate="step-after"),
        x=charts.number("ms", scale=scale, axis={"title": f"Latency, {unit}", **ticks}),
        y=charts.number("share", scale={"domain": [0, 100]}, axis=charts.top_title("Inferences done, %")),
        color=charts.name("name", scale={"domain": names, "range": _LINES[: len(names)]}, legend=legend),
        strokeDash=charts.name("name", scale={"domain": names, "range": _DASHES[: len(names)]}, legend=legend),
    )
    return charts.svg({"height": 220, "data": charts.values(data), **line}, label)


def drift(lines: Sequence[tuple[str, list[tuple[int, float]]]], label: str) -> str:
    """By how many per cent each process lies off its row's median, for each ``(name, [(round, per cent)])``.

    At most as many rows as there are shapes.
    """
    shown = lines[: len(_SHAPES)]
    names = [f"{number}. {words.short(name, 28)}" for number, (name, _) in enumerate(shown, 1)]
    data: list[dict[str, Any]] = [
        {"name": name, "round": number, "off": off, "text": f"{name}, round {number}: {off:+.1f} %"}
        for name, (_, points) in zip(names, shown, strict=True)
        for number, off in points
    ]
    low, high = min(-1.0, *(d["off"] for d in data)), max(1.0, *(d["off"] for d in data))
    x_axis = {"title": "Round", "tickMinStep": 1, "format": "d", "grid": False}
    x = charts.number("round", axis=x_axis, scale={"zero": False, "nice": False, "padding": 12})
    y_axis = charts.top_title("Median of a process, % off its variant's", tickCount=5, format="+.3~g")
    y = charts.number("off", axis=y_axis, scale={"domain": [1.1 * low, 1.1 * high], "nice": False})
    colour = charts.name("name", scale={"domain": names, "range": _LINES[: len(names)]}, legend=charts.key())
    shape = charts.name("name", scale={"domain": names, "range": _SHAPES[: len(names)]}, legend=charts.key())
    point = charts.mark("point", aria=True, filled=True, size=60, opacity=1)
    layers = [
        charts.layer(charts.mark("rule", color=SOFT), charts.values([{}]), y={"datum": 0}),
        charts.layer(charts.mark("line", strokeWidth=1), x=x, y=y, color=colour),
        charts.layer(point, x=x, y=y, color=colour, shape=shape, description={"field": "text"}),
    ]
    return charts.svg({"height": 200, "data": charts.values(data), "layer": layers}, label)
