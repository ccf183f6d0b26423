"""The metric against latency or size, the front marked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgekit.report import charts, words
from edgekit.report.charts import BLUE, INK, PAPER, SOFT, VERMILLION
from edgekit.report.rows import Row, text

WIDTH, HEIGHT = 390, 250  # pixels between the axes, about; the picture is a little wider
CROWD = 24  # points above which only those on the front have names and intervals; the others tell theirs when touched


@dataclass(frozen=True)
class Axis:
    """What the x axis shows: a row's value and its interval, and the unit for the largest value."""

    name: str
    value: Callable[[Row], float | None]
    bounds: Callable[[Row], words.Interval | None]
    unit: Callable[[float], tuple[float, str]]


LATENCY = Axis("Latency, median", lambda r: r.latency, lambda r: r.latency_ci, words.time_unit)
SIZE = Axis("Size", lambda r: r.size_bytes, lambda r: None, words.size_unit)


@dataclass(frozen=True)
class Spot:
    """A row's place in the picture."""

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
    """The picture for the rows of one target, at least one of which has both values."""
    found = spots(rows, axis)
    factor, unit = axis.unit(max(spot.x for spot in found))
    percent = 100.0 if words.is_fraction(metric) else 1.0
    data = [_data(spot, axis, factor, percent) for spot in found]
    told = data if len(data) <= CROWD else [d for d in data if d["kind"] != "other"]
    x_frame = Frame.around([v for d in data for v in (d["x"], d["x_low"], d["x_high"])], WIDTH)
    y_frame = Frame.around([v for d in data for v in (d["y"], d["y_low"], d["y_high"])], HEIGHT)
    if percent > 1:
        y_frame = replace(y_frame, high=min(y_frame.high, 100.0), low=min(y_frame.low, 99.0))
    title = words.title(metric) + (", %" if percent > 1 else "")
    x_axis = {"title": f"{axis.name}, {unit}", "grid": False, **x_frame.ticks()}
    x = charts.number("x", scale=x_frame.scale(), axis=x_axis)
    y = charts.number("y", scale=y_frame.scale(), axis=charts.top_title(title, **y_frame.ticks()))
    x_low, y_low = {**x, "field": "x_low"}, {**y, "field": "y_low"}
    front = charts.values([d for d in sorted(data, key=lambda d: (d["x"], d["y"])) if d["front"]])
    names = charts.values(_names(found, data, x_frame, y_frame))
    # With a halo, which the style sheet draws under the letters: lines pass behind the names.
    halo: dict[str, Any] = {"stroke": PAPER, "strokeWidth": 4}
    names_mark = charts.mark("text", align="left", baseline="middle", fontSize=12, color=INK, fill=INK, **halo)
    line = charts.mark("line", color=BLUE, strokeDash=[5, 4], interpolate="step-after", opacity=0.7)
    bar = charts.mark("rule", color=SOFT, opacity=0.5)
    layers = [
        charts.layer(line, front, x=x, y=y),
        charts.layer(bar, charts.values(told), x=x_low, x2={"field": "x_high"}, y=y),
        charts.layer(bar, charts.values(told), x=x, y=y_low, y2={"field": "y_high"}),
        charts.layer(names_mark, names, x=x, y=y, text={"field": "text"}),
        *(_points(data, x, y, kind) for kind in ("other", "front", "original")),
    ]
    return charts.svg({"height": HEIGHT, "layer": layers}, label)


def _points(data: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], kind: str) -> dict[str, Any]:
    """One kind of point: hollow, filled, or the original's diamond."""
    looks = {
        "other": {"shape": "circle", "fill": PAPER, "stroke": BLUE, "size": 70},
        "front": {"shape": "circle", "fill": BLUE, "stroke": BLUE, "size": 110},
        "original": {"shape": "diamond", "fill": VERMILLION, "stroke": VERMILLION, "size": 150},
    }[kind]
    mine = charts.values([d for d in data if d["kind"] == kind])
    point = charts.mark("point", aria=True, opacity=1, strokeWidth=2, **looks)
    return charts.layer(point, mine, x=x, y=y, href={"field": "link"}, description={"field": "text"})


def _data(spot: Spot, axis: Axis, factor: float, percent: float) -> dict[str, Any]:
    x_low, x_high = axis.bounds(spot.row) or (spot.x, spot.x)
    y_low, y_high = _metric_bounds(spot.row) or (spot.y, spot.y)
    return {
        "x": spot.x * factor,
        "x_low": x_low * factor,
        "x_high": x_high * factor,
        "y": spot.y * percent,
        "y_low": max(y_low, 0.0) * percent if percent > 1 else y_low,
        "y_high": min(y_high, 1.0) * percent if percent > 1 else y_high,
        "front": spot.front,
        "kind": "original" if spot.row.reference else "front" if spot.front else "other",
        "link": f"{charts.ROW_LINK}{spot.row.number}",
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
        change = words.joined(words.delta_text(row.delta, metric), words.delta_interval(row.delta_ci, metric))
        told = "" if row.reference or row.delta is None else f" ({change})"
        lines.append(f"{words.plain(metric)} {words.metric_text(row.metric, metric)}{told}")
    if row.latency is not None:
        tail = f", p99 {words.milliseconds(row.p99)}" if row.p99 is not None else ""
        lines.append(f"latency {words.milliseconds(row.latency)}{tail}")
    if row.speedup is not None and not row.reference:
        lines.append(f"speed-up {words.joined(words.times(row.speedup), words.ratio_interval(row.speedup_ci))}")
    if row.size_bytes is not None:
        ratio = "" if row.reference or row.size_ratio is None else f" ({words.times(row.size_ratio)} the original)"
        lines.append(f"size {words.size(row.size_bytes)}{ratio}")
    if row.memory is not None:
        lines.append(f"peak memory {words.size(row.memory)}")
    if row.status == "built":
        origin = text(row.raw, "metric_from") or "this machine's runtime"
        lines.append(f"built for a device that is not here: metric from {origin}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Frame:
    """An axis' range, with room around the data, and where a value falls in pixels."""

    low: float
    high: float
    log: bool
    pixels: int

    @classmethod
    def around(cls, every: list[float], pixels: int) -> Frame:
        """The frame of some values: logarithmic where they span more than a factor of eight."""
        low, high = min(every), max(every)
        if low > 0 and high / low > 8:
            return cls(low / 1.3, high * 1.6, True, pixels)
        room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        bottom = low - room
        return cls(0.0 if low >= 0 > bottom else bottom, high + room * 1.4, False, pixels)

    def scale(self) -> dict[str, Any]:
        """The axis' scale in a chart's specification."""
        return {"domain": [self.low, self.high], "type": "log" if self.log else "linear", "nice": False, "zero": False}

    def ticks(self) -> dict[str, Any]:
        """Where the axis' ticks stand."""
        return {"values": charts.log_ticks(self.low, self.high)} if self.log else {"tickCount": 6}

    def place(self, value: float) -> float:
        """Pixels from the axis' start."""
        if self.log:
            return self.pixels * math.log(value / self.low) / math.log(self.high / self.low)
        return self.pixels * (value - self.low) / (self.high - self.low)

    def value(self, place: float) -> float:
        """The value at so many pixels."""
        if self.log:
            return float(self.low * (self.high / self.low) ** (place / self.pixels))
        return self.low + (self.high - self.low) * place / self.pixels


def _names(found: list[Spot], data: list[dict[str, Any]], x: Frame, y: Frame) -> list[dict[str, Any]]:
    """Names beside their points, each where it covers nothing; one without room is left to the touch."""
    points = [(x.place(d["x"]), y.place(d["y"])) for d in data]
    taken = [(px - 7, py - 7, px + 7, py + 7) for px, py in points]
    placed = []
    named = [i for i, d in enumerate(data) if len(data) <= CROWD or d["kind"] != "other"]
    for index in sorted(named, key=lambda i: (not found[i].row.reference, not found[i].front)):
        text = words.short(found[index].row.variant, 30)
        long = charts.LETTER * len(text)
        px, py = points[index]
        ways = [(9, 12), (9, -12), (11, 0), (-long - 9, 12), (-long - 9, -12), (-long - 11, 0), (9, 27), (9, -27)]
        for dx, dy in ways:
            box = (px + dx, py + dy - 7, px + dx + long, py + dy + 7)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= x.pixels + 10 and box[3] <= y.pixels
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                placed.append({"x": x.value(px + dx), "y": y.value(py + dy), "text": text})
                break
    return placed


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
