"""The record as rows: one frozen object per variant, every missing value a None.

The pages, tables and charts read these and never the raw record, so what may be absent or
null in a results file is dealt with here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgekit.report import words
from edgekit.report.words import Interval


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a variant: its time in seconds, and metric and bytes after it."""

    name: str
    seconds: float | None
    cached: bool
    metric: float | None
    size_bytes: float | None
    parity: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant on one target. Units are the record's: fractions, bytes, milliseconds.

    Attributes:
        number: Its place in the record, from 1; anchors and marks are named by it.
        reference: Whether the others of its target are compared with it.
        raw: The record's own object, for keys that only one place shows.
    """

    number: int
    id: str
    variant: str
    target: str
    backend: str
    status: str
    reason: str
    reference: bool
    pareto: bool
    metric_name: str
    metric: float | None
    metric_ci: Interval | None
    samples: float | None
    higher_is_better: bool
    delta: float | None
    delta_ci: Interval | None
    latency: float | None
    latency_ci: Interval | None
    p90: float | None
    p99: float | None
    runs: float | None
    speedup: float | None
    speedup_ci: Interval | None
    size_bytes: float | None
    size_ratio: float | None
    parameters: float | None
    macs: float | None
    int8_share: float | None
    first_ms: float | None
    memory: float | None
    stages: tuple[Stage, ...]
    explain: tuple[str, ...] = ()
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        """``variant on target``, as sentences name it."""
        return f"{words.short(self.variant, 40)} on {words.short(self.target, 40)}"

    @property
    def measurement(self) -> dict[str, Any]:
        """What else was measured of it."""
        return part(self.raw, "measured")

    @property
    def measured(self) -> bool:
        """Whether it ran here and has a latency."""
        return self.status == "ok" and self.latency is not None

    @property
    def worse(self) -> bool:
        """Whether the metric's loss is proven: the paired interval lies wholly on the bad side."""
        if self.delta_ci is None:
            return False
        low, high = self.delta_ci
        return high < 0 if self.higher_is_better else low > 0

    @property
    def faster(self) -> bool | None:
        """Against the reference: True, False (slower), or None where this run can't tell.

        The measurement's own decision rules where it made one (its exact 99 % interval); the shown
        95 % interval is for reading, and decides only where there is nothing else.
        """
        if self.speedup is not None and "different" in self.measurement:
            decided = self.measurement["different"] is True and self.measurement.get("trusted") is not False
            return self.speedup > 1 if decided else None
        return None if self.speedup_ci is None else self.seems_faster

    @property
    def seems_faster(self) -> bool | None:
        """The same by the shown 95 % interval, or by the bare ratio where there is none: seen, though not proven."""
        if self.speedup is None:
            return None
        low, high = self.speedup_ci or (self.speedup, self.speedup)
        return True if low > 1 else False if high < 1 else None


def rows_of(results: dict[str, Any]) -> list[Row]:
    """Every variant of a tidied record, in the record's order."""
    variants = [v for v in results.get("variants") or [] if isinstance(v, dict)]
    references = {str(results.get("reference"))} | {text(part(v, "vs_reference"), "id") for v in variants}
    return [_row(number, variant, references) for number, variant in enumerate(variants, 1)]


def _row(number: int, raw: dict[str, Any], references: set[str]) -> Row:
    metric, latency, versus = part(raw, "metric"), part(raw, "latency_ms"), part(raw, "vs_reference")
    explain = raw.get("explain")
    return Row(
        number=number,
        id=text(raw, "id"),
        variant=text(raw, "variant"),
        target=text(raw, "target"),
        backend=text(raw, "backend"),
        status=text(raw, "status"),
        reason=text(raw, "reason"),
        reference=text(raw, "id") in references,
        pareto=raw.get("pareto") is True,
        metric_name=text(metric, "name"),
        metric=number_in(metric, "value"),
        metric_ci=interval_in(metric, "ci95"),
        samples=number_in(metric, "samples"),
        higher_is_better=metric.get("higher_is_better") is not False,
        delta=number_in(versus, "metric_delta"),
        delta_ci=interval_in(versus, "metric_delta_ci95"),
        latency=number_in(latency, "median"),
        latency_ci=interval_in(latency, "ci95"),
        p90=number_in(latency, "p90"),
        p99=number_in(latency, "p99"),
        runs=number_in(latency, "runs"),
        speedup=number_in(versus, "speedup"),
        speedup_ci=interval_in(versus, "speedup_ci95"),
        size_bytes=number_in(raw, "size_bytes"),
        size_ratio=number_in(versus, "size_ratio"),
        parameters=number_in(raw, "parameters"),
        macs=number_in(raw, "macs"),
        int8_share=number_in(raw, "int8_macs_share"),
        first_ms=number_in(raw, "first_inference_ms"),
        memory=number_in(raw, "peak_rss_bytes"),
        stages=tuple(_stage(s) for s in raw.get("stages") or [] if isinstance(s, dict)),
        explain=tuple(str(line) for line in explain) if isinstance(explain, list) else (),
        raw=raw,
    )


def _stage(raw: dict[str, Any]) -> Stage:
    metric = raw.get("metric")
    return Stage(
        name=text(raw, "name"),
        seconds=number_in(raw, "seconds"),
        cached=raw.get("cached") is True,
        metric=number_in(metric, "value") if isinstance(metric, dict) else number_in(raw, "metric"),
        size_bytes=number_in(raw, "size_bytes"),
        parity=_parity(raw.get("parity")),
    )


# What a stage is checked by, as people read it.
_PARITY = {
    "max_abs": "greatest difference",
    "max_rel": "relative",
    "agreement": "same answers",
    "metric_delta": "metric moved by",
    "tolerance": "allowed",
}


def _parity(parity: Any) -> str:
    """``greatest difference 1.1e-06, relative 3e-07``, from whatever the stage said."""
    if not isinstance(parity, dict):
        return "" if parity is None else str(parity)
    told = {key: value for key, value in parity.items() if not isinstance(value, dict | list)}
    return ", ".join(f"{_PARITY.get(key, key.replace('_', ' '))} {_value(value)}" for key, value in told.items())


def _value(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def part(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """A nested object; empty where it is absent or null."""
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def text(raw: dict[str, Any], key: str) -> str:
    """A string; empty where it is absent or null."""
    value = raw.get(key)
    return "" if value is None else str(value)


def number_in(raw: dict[str, Any], key: str) -> float | None:
    """A number; None where it is absent, null or no number."""
    value = raw.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def interval_in(raw: dict[str, Any], key: str) -> Interval | None:
    """A pair of numbers; None where either is missing."""
    value = raw.get(key)
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = (number_in({"v": bound}, "v") for bound in value)
    return None if low is None or high is None else (low, high)


def targets_of(rows: list[Row]) -> list[str]:
    """The targets, in the order in which they first stand in the record."""
    return list(dict.fromkeys(row.target for row in rows))


def metric_of(rows: list[Row]) -> str:
    """The metric's name; ``metric`` where no row has one."""
    return next((row.metric_name for row in rows if row.metric_name), "metric")


def stage_names(rows: list[Row]) -> list[str]:
    """Every stage that any row went through, in the line's order: the longest routes tell it."""
    routes = sorted((row.stages for row in rows), key=len, reverse=True)
    return list(dict.fromkeys(stage.name for stages in routes for stage in stages))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of every table of variants.

    Attributes:
        key: Its heading in the CSV file.
        title: Its heading for people.
        value: The raw value, for sorting and CSV.
        show: The text for people.
        number: Whether it is a number (right-aligned, sorted by value).
        best: ``high`` or ``low``: the direction in which it sorts first.
    """

    key: str
    title: str
    value: Callable[[Row], float | str | None]
    show: Callable[[Row], str]
    number: bool = True
    best: str = "low"


def _speedup(row: Row) -> str:
    bounds = words.ratio_interval(row.speedup_ci) or ("" if row.reference else words.NO_INTERVAL)
    return words.joined(words.times(row.speedup), bounds)


def columns(metric: str) -> list[Column]:
    """The columns that a person compares variants by, for a record whose metric has that name."""
    return [
        Column(key="variant", title="Variant", value=lambda r: r.variant, show=lambda r: r.variant, number=False),
        Column(key="target", title="Target", value=lambda r: r.target, show=lambda r: r.target, number=False),
        Column(key="status", title="Status", value=lambda r: r.status, show=lambda r: r.status, number=False),
        Column(
            key="metric",
            title=words.title(metric),
            value=lambda r: r.metric,
            show=lambda r: words.metric_text(r.metric, metric),
            best="high",
        ),
        Column(
            key="metric_delta",
            title="Change",
            value=lambda r: r.delta,
            show=lambda r: (
                ""
                if r.reference
                else words.joined(words.delta_text(r.delta, metric), words.delta_interval(r.delta_ci, metric))
            ),
            best="high",
        ),
        Column(
            key="latency_ms", title="Latency", value=lambda r: r.latency, show=lambda r: words.milliseconds(r.latency)
        ),
        Column(
            key="speedup",
            title="Speed-up",
            value=lambda r: r.speedup,
            show=_speedup,
            best="high",
        ),
        Column(key="size_bytes", title="Size", value=lambda r: r.size_bytes, show=lambda r: words.size(r.size_bytes)),
        Column(
            key="size_ratio",
            title="Size ratio",
            value=lambda r: r.size_ratio,
            show=lambda r: words.times(r.size_ratio),
        ),
        Column(key="peak_rss_bytes", title="Memory", value=lambda r: r.memory, show=lambda r: words.size(r.memory)),
    ]
