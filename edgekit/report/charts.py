"""The pictures: Vega-Lite by Altair, drawn by vl-convert to SVG without a browser or network.

Each function returns the text of one ``<svg>`` that stands in the page itself: it needs no
script, prints, carries a label for screen readers on every mark, and takes its colours from
the page's style sheet (which overrides the few below), so that it follows light and dark.
Colours are Okabe and Ito's; shape, sign or a written label always says the same.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgekit.errors import UnavailableError, missing_package
from edgekit.report import words
from edgekit.report.rows import Row

INK, SOFT, GRID, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#ffffff"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
WIDTH, HEIGHT = 440, 280
_LETTER = 6.7  # pixels of one letter at the labels' 12 px, on the wide side
_ROW_LINK = "https://row.invalid/"  # Vega insists on absolute links; taken off again afterwards


def require() -> None:
    """Check that pictures can be drawn.

    Raises:
        UnavailableError: Altair or vl-convert is not installed.
    """
    for package in ("altair", "vl_convert"):
        try:
            __import__(package)
        except ImportError as error:
            raise missing_package(package, "report", "to draw the report's charts") from error


def available() -> bool:
    """Whether pictures can be drawn here."""
    try:
        require()
    except UnavailableError:
        return False
    return True


def svg(chart: Any, label: str) -> str:
    """Draw an Altair chart; ``label`` is what a screen reader says of the whole."""
    import altair as alt
    import vl_convert

    axis = {"labelColor": SOFT, "titleColor": INK, "gridColor": GRID, "tickColor": GRID, "domainColor": SOFT}
    styled = (
        chart.properties(background="transparent")
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight=600, labelLimit=170, **axis)
    )
    text: str = vl_convert.vegalite_to_svg(
        styled.to_dict(validate=False), vl_version=".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    )
    text = text.replace(f' xlink:href="{_ROW_LINK}', ' href="')
    opening = f'<svg role="graphics-document" aria-label="{html.escape(label)}" '
    return opening + text.removeprefix("<svg ")


def _data(values: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=values)


# ── accuracy against latency or size ──────────────────────────────────────────────────────


@dataclass(frozen=True)
class Axis:
    """What a scatter's x axis shows: a title, a row's value, its interval and its text."""

    title: str
    value: Callable[[Row], float | None]
    bounds: Callable[[Row], words.Interval | None]


LATENCY = Axis("Latency, median, ms", lambda r: r.latency, lambda r: r.latency_ci)
SIZE = Axis("Size, kB", lambda r: r.size_bytes and r.size_bytes / 1000, lambda r: None)


@dataclass(frozen=True)
class Spot:
    """A row's place in a scatter."""

    row: Row
    x: float
    y: float
    front: bool = False


def spots(rows: list[Row], axis: Axis) -> list[Spot]:
    """The rows that have both values, the front marked: no other is as good on both axes and better on one."""
    found = [Spot(r, x, r.metric) for r in rows if (x := axis.value(r)) is not None and r.metric is not None]
    return [replace(spot, front=not any(_beats(other, spot) for other in found)) for spot in found]


def _beats(one: Spot, other: Spot) -> bool:
    sign = 1 if one.row.higher_is_better else -1
    no_worse = one.x <= other.x and sign * one.y >= sign * other.y
    return no_worse and (one.x < other.x or one.y != other.y)


def scatter(rows: list[Row], axis: Axis, metric: str, label: str) -> str:
    """Metric against latency or size, for the rows of one target."""
    import altair as alt

    found = spots(rows, axis)
    percent = words.is_fraction(metric)
    scale = 100.0 if percent else 1.0
    bars = {spot.row.number: _metric_bounds(spot.row) for spot in found}
    x_frame = _Frame.of([spot.x for spot in found], [axis.bounds(s.row) for s in found], WIDTH)
    y_frame = _Frame.of(
        [s.y * scale for s in found], [b and (b[0] * scale, b[1] * scale) for b in bars.values()], HEIGHT
    )
    x_scale = alt.Scale(domain=[x_frame.low, x_frame.high], type="log" if x_frame.log else "linear", nice=False)
    y_scale = alt.Scale(domain=[y_frame.low, y_frame.high], nice=False)
    y_title = metric.replace("_", " ").capitalize() + (", %" if percent else "")
    x = alt.X("x:Q", title=axis.title, scale=x_scale, axis=alt.Axis(grid=False, tickCount=6))
    y = alt.Y("y:Q", title=y_title, scale=y_scale, axis=alt.Axis(tickCount=6))
    values = [_spot_data(spot, axis, bars[spot.row.number], scale) for spot in found]
    base = alt.Chart(_data(values))
    quiet = {"aria": False}
    layers = [
        alt.Chart(_data([v for v in sorted(values, key=lambda v: v["x"]) if v["front"]]))
        .mark_line(color=BLUE, strokeDash=[5, 4], interpolate="step-after", opacity=0.7, **quiet)
        .encode(x, y),
        base.mark_rule(color=SOFT, opacity=0.55, **quiet).encode(x=alt.X("x_low:Q", scale=x_scale), x2="x_high:Q", y=y),
        base.mark_rule(color=SOFT, opacity=0.55, **quiet).encode(x=x, y=alt.Y("y_low:Q", scale=y_scale), y2="y_high:Q"),
        *(_points(base, x, y, kind) for kind in ("other", "front", "original")),
        alt.Chart(_data(_labels(found, x_frame, y_frame, scale)))
        .mark_text(align="left", baseline="middle", fontSize=12, color=INK, **quiet)
        .encode(x=x, y=y, text="text:N"),
    ]
    return svg(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), label)


def _points(base: Any, x: Any, y: Any, kind: str) -> Any:
    """One kind of point: hollow, filled, or the original's diamond."""
    looks = {
        "other": {"shape": "circle", "fill": PAPER, "stroke": BLUE, "size": 70},
        "front": {"shape": "circle", "fill": BLUE, "stroke": BLUE, "size": 110},
        "original": {"shape": "diamond", "fill": VERMILLION, "stroke": VERMILLION, "size": 150},
    }[kind]
    return (
        base.transform_filter(f"datum.kind === '{kind}'")
        .mark_point(opacity=1, strokeWidth=2, **looks)
        .encode(x=x, y=y, href="link:N", description="text:N")
    )


def _spot_data(spot: Spot, axis: Axis, bar: words.Interval | None, scale: float) -> dict[str, Any]:
    x_low, x_high = axis.bounds(spot.row) or (spot.x, spot.x)
    y_low, y_high = bar or (spot.y, spot.y)
    return {
        "x": spot.x,
        "y": spot.y * scale,
        "x_low": x_low,
        "x_high": x_high,
        "y_low": y_low * scale,
        "y_high": y_high * scale,
        "front": spot.front,
        "kind": "original" if spot.row.reference else "front" if spot.front else "other",
        "link": f"{_ROW_LINK}#v-{spot.row.number}",
        "text": describe(spot.row) + ("\non the front of this picture" if spot.front else ""),
    }


def _metric_bounds(row: Row) -> words.Interval | None:
    """The paired interval of the change, laid around the original's value; the metric's own where there is none."""
    if row.reference or row.metric is None:
        return None
    if row.delta is not None and row.delta_ci is not None:
        original = row.metric - row.delta
        return original + row.delta_ci[0], original + row.delta_ci[1]
    return row.metric_ci


def describe(row: Row) -> str:
    """All that is known of a row, line by line, for a touched point."""
    metric = row.metric_name
    lines = [row.label + (" (the original)" if row.reference else "")]
    if row.metric is not None:
        change = "" if row.reference else f" ({words.delta_text(row.delta, metric)}"
        change += f" {words.delta_interval(row.delta_ci, metric)}".rstrip() + ")" if change else ""
        lines.append(f"{metric.replace('_', ' ')} {words.metric_text(row.metric, metric)}{change}")
    if row.latency is not None:
        tail = f", p99 {words.milliseconds(row.p99)}" if row.p99 is not None else ""
        lines.append(f"latency {words.milliseconds(row.latency)}{tail}")
    if row.speedup is not None and not row.reference:
        lines.append(f"speed-up {words.times(row.speedup)} {words.ratio_interval(row.speedup_ci)}".rstrip())
    if row.size_bytes is not None:
        ratio = "" if row.reference or row.size_ratio is None else f" ({words.times(row.size_ratio)} the original)"
        lines.append(f"size {words.size(row.size_bytes)}{ratio}")
    if row.memory is not None:
        lines.append(f"peak memory {words.size(row.memory)}")
    if row.status == "built":
        lines.append("built for a device that is not here: metric from this machine's runtime")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Frame:
    """An axis' range, with room around the data, and where a value falls in pixels."""

    low: float
    high: float
    log: bool
    pixels: int

    @classmethod
    def of(cls, values: list[float], bounds: list[words.Interval | None], pixels: int) -> _Frame:
        every = values + [edge for pair in bounds if pair for edge in pair]
        low, high = min(every), max(every)
        if low > 0 and high / low > 8:
            return cls(low / 1.25, high * 1.6, True, pixels)
        room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        bottom = low - room
        return cls(0.0 if low >= 0 > bottom else bottom, high + room * 1.4, False, pixels)

    def place(self, value: float) -> float:
        if self.log:
            return self.pixels * math.log(value / self.low) / math.log(self.high / self.low)
        return self.pixels * (value - self.low) / (self.high - self.low)

    def value(self, place: float) -> float:
        if self.log:
            return self.low * (self.high / self.low) ** (place / self.pixels)
        return self.low + (self.high - self.low) * place / self.pixels


def _labels(found: list[Spot], x: _Frame, y: _Frame, scale: float) -> list[dict[str, Any]]:
    """Names beside their points, each where it covers nothing; one without room is left to the touch."""
    points = [(x.place(s.x), y.place(s.y * scale)) for s in found]
    taken = [(px - 7, py - 7, px + 7, py + 7) for px, py in points]
    placed = []
    order = sorted(range(len(found)), key=lambda i: (not found[i].row.reference, not found[i].front))
    for index in order:
        text = words.short(found[index].row.variant, 30)
        long = _LETTER * len(text)
        px, py = points[index]
        for dx, dy in (
            (11, 0),
            (-long - 9, 0),
            (-long / 2, 16),
            (-long / 2, -16),
            (9, 13),
            (9, -13),
            (9, 27),
            (9, -27),
        ):
            box = (px + dx, py + dy - 7, px + dx + long, py + dy + 7)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= x.pixels + 10 and box[3] <= y.pixels
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                placed.append({"x": x.value(px + dx), "y": y.value(py + dy), "text": text})
                break
    return placed


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ── stages, operators, layers, latencies ──────────────────────────────────────────────────


def waterfall(row: Row, label: str) -> str:
    """The metric after each stage of one row: what each gave or took."""
    import altair as alt

    percent = words.is_fraction(row.metric_name)
    scale = 100.0 if percent else 1.0
    known = [stage for stage in row.stages if stage.metric is not None]
    values: list[dict[str, Any]] = []
    before: float | None = None
    for number, stage in enumerate(known):
        after = stage.metric or 0.0
        change = None if before is None else after - before
        text = words.metric_text(after, row.metric_name)
        if change is not None:
            text += f"  ({words.delta_text(change, row.metric_name)})"
        better = (change or 0.0) * (1 if row.higher_is_better else -1)
        kind = "start" if change is None else "gain" if better > 0 else "loss" if better < 0 else "same"
        values.append(
            {
                "stage": f"{number + 1}. {stage.name}",
                "from": (after if before is None else before) * scale,
                "to": after * scale,
                "kind": kind,
                "label": text,
                "edge": max(after, after if before is None else before) * scale,
                "text": f"{words.short(row.variant)}\nafter {stage.name}: {text}",
            }
        )
        before = after
    edges = [v[k] for v in values for k in ("from", "to")]
    room = 0.08 * (max(edges) - min(edges)) or 0.5 * (1 if percent else abs(max(edges)) or 1)
    domain = alt.Scale(domain=[min(edges) - room, max(edges) + 6.5 * room], nice=False)
    title = row.metric_name.replace("_", " ").capitalize() + (", %" if percent else "")
    y = alt.Y("stage:N", sort=None, title=None, axis=alt.Axis(domain=False, ticks=False))
    base = alt.Chart(_data(values))
    x = alt.X("from:Q", title=title, scale=domain, axis=alt.Axis(tickCount=4))
    colour = alt.Color(
        "kind:N",
        legend=None,
        scale=alt.Scale(domain=["start", "gain", "loss", "same"], range=[SOFT, BLUE, VERMILLION, SOFT]),
    )
    chart = alt.layer(
        base.mark_bar(height=13).encode(x=x, x2="to:Q", y=y, color=colour, description="text:N"),
        base.mark_tick(thickness=3, size=19).encode(
            x=alt.X("to:Q", scale=domain), y=y, color=colour, description="text:N"
        ),
        base.mark_text(align="left", dx=8, fontSize=12, color=INK, aria=False).encode(
            x=alt.X("edge:Q", scale=domain), y=y, text="label:N"
        ),
    )
    return svg(chart.properties(width=330, height=alt.Step(27)), label)


def stacked(lines: list[tuple[str, dict[str, float]]], label: str, *, most: int = 6) -> str:
    """Milliseconds by kind of operator, one bar for each ``(name, {operator: ms})``; small ones as "other"."""
    import altair as alt

    total: dict[str, float] = {}
    for _, parts in lines:
        for kind, spent in parts.items():
            total[kind] = max(total.get(kind, 0.0), spent)
    shown = sorted(total, key=lambda kind: -total[kind])[:most]
    longest = max(sum(parts.values()) for _, parts in lines) or 1.0
    values = []
    for name, parts in lines:
        bar = {kind: parts[kind] for kind in shown if kind in parts}
        rest = sum(spent for kind, spent in parts.items() if kind not in shown)
        place = 0.0
        for kind, spent in [*bar.items(), *([("other", rest)] if rest else [])]:
            fits = _LETTER * len(kind) < 380 * spent / longest - 8
            values.append(
                {
                    "name": words.short(name, 26),
                    "from": place,
                    "to": place + spent,
                    "middle": place + spent / 2,
                    "kind": kind,
                    "label": words.short(kind, 30) if fits else "",
                    "text": f"{name}\n{kind}: {words.milliseconds(spent)}",
                }
            )
            place += spent
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(domain=False, ticks=False))
    colours = alt.Scale(domain=[*shown, "other"], range=[*SERIES[: len(shown)], SOFT])
    base = alt.Chart(_data(values))
    bars = base.mark_bar(fillOpacity=0.28, strokeWidth=1.5, height=24).encode(
        x=alt.X("from:Q", title="Milliseconds of one inference", axis=alt.Axis(tickCount=5)),
        x2="to:Q",
        y=y,
        color=alt.Color("kind:N", scale=colours, legend=None),
        stroke=alt.Stroke("kind:N", scale=colours, legend=None),
        description="text:N",
    )
    names = base.mark_text(fontSize=11.5, color=INK, aria=False).encode(x="middle:Q", y=y, text="label:N")
    return svg(alt.layer(bars, names).properties(width=380, height=alt.Step(34)), label)


def bars(items: list[tuple[str, float, str]], title: str, label: str, *, width: int = 300) -> str:
    """Horizontal bars of ``(name, value, text)``, in the given order."""
    import altair as alt

    values = [
        {"name": f"{number}. {words.short(name, 30)}", "value": value, "label": text, "text": f"{name}\n{text}"}
        for number, (name, value, text) in enumerate(items, 1)
    ]
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=240))
    base = alt.Chart(_data(values))
    high = max(0.0, *(value for _, value, _ in items)) or 1.0
    x = alt.X("value:Q", title=title, scale=alt.Scale(domainMax=high * 1.3), axis=alt.Axis(tickCount=4))
    chart = alt.layer(
        base.mark_bar(height=14, color=BLUE).encode(x=x, y=y, description="text:N"),
        base.mark_text(align="left", dx=6, fontSize=12, color=INK, aria=False).encode(x=x, y=y, text="label:N"),
    )
    return svg(chart.properties(width=width, height=alt.Step(22)), label)


def ranges(rows: list[Row], label: str) -> str:
    """Latency of the rows of one target: a point at the median, a bar to p90, a line to p99."""
    import altair as alt

    values = [
        {
            "name": words.short(row.variant, 26),
            "median": row.latency,
            "p90": row.p90 if row.p90 is not None else row.latency,
            "p99": row.p99 if row.p99 is not None else row.p90 if row.p90 is not None else row.latency,
            "link": f"{_ROW_LINK}#v-{row.number}",
            "text": f"{row.label}\nmedian {words.milliseconds(row.latency)} {words.interval(row.latency_ci)}\n"
            f"p90 {words.milliseconds(row.p90)}, p99 {words.milliseconds(row.p99)}",
        }
        for row in rows
    ]
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(domain=False, ticks=False))
    base = alt.Chart(_data(values))
    title = "Milliseconds: median ●, p90 ▬, p99 |"
    chart = alt.layer(
        base.mark_rule(color=SOFT, aria=False).encode(x=alt.X("median:Q", title=title), x2="p99:Q", y=y),
        base.mark_tick(color=SOFT, thickness=2, size=14, aria=False).encode(x="p99:Q", y=y),
        base.mark_bar(color=BLUE, height=9, opacity=0.45, aria=False).encode(x="median:Q", x2="p90:Q", y=y),
        base.mark_point(shape="circle", fill=BLUE, stroke=BLUE, opacity=1, size=90).encode(
            x="median:Q", y=y, href="link:N", description="text:N"
        ),
    )
    return svg(chart.properties(width=360, height=alt.Step(28)), label)
