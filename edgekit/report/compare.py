"""What changed between runs, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.report import words
from edgekit.report.details import flat
from edgekit.report.rows import Row, metric_of, part, rows_of
from edgekit.report.words import Interval

MOST_DIFFERENCES = 40
# What decides speed: where one of these differs, milliseconds of the two runs do not compare.
_MACHINE = ("arch", "cpu", "board", "isa", "cores", "memory_bytes")
# Readings that differ at any two moments and tell nothing.
_MOVING = ("environment.temperature_c", "environment.frequency_mhz.now", "environment.load")


@dataclass(frozen=True)
class Change:
    """A row of one run against the same row (same variant, same target) of the first.

    Attributes:
        before, after: The rows; None where that run has none.
        metric_delta: After minus before, in the metric's units.
        size_ratio: After over before.
        latency_ratio: After over before, with an interval that holds both runs' own; None on another machine.
        speedup_ratio: Speed-up against its own original, after over before: compares across machines.
    """

    variant: str
    target: str
    before: Row | None
    after: Row | None
    metric_delta: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None
    latency_ci: Interval | None = None
    speedup_ratio: float | None = None
    speedup_ci: Interval | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs compared with the first of them.

    Attributes:
        names: What the runs are called.
        metric: The metric's name.
        remarks: What a reader must know before the numbers, run by run.
        changes: For each run after the first, its rows against the first's.
        inputs: For each run after the first, (name, before, after) of every input or setting that differs.
    """

    names: tuple[str, ...]
    metric: str
    remarks: tuple[str, ...]
    changes: tuple[tuple[Change, ...], ...]
    inputs: tuple[tuple[tuple[str, str, str], ...], ...]

    def text(self) -> str:
        """Plain text for a terminal."""
        from edgekit.report.compared import text

        return text(self)

    def markdown(self) -> str:
        """Markdown for a pull request."""
        from edgekit.report.compared import markdown

        return markdown(self)

    def html(self) -> str:
        """A self-contained page like the report's own."""
        from edgekit.report.compared import html

        return html(self)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        from edgekit.report.compared import to_dict

        return to_dict(self)


def compare(results: Sequence[dict[str, Any]], names: Sequence[str] | None = None) -> Comparison:
    """Compare two or more records with the first.

    Args:
        results: Records (``edgekit.results/1``), validated.
        names: What to call them (their paths); by default ``run 1``, ``run 2`` …

    Raises:
        ValueError: Fewer than two records, or not as many names.
    """
    if len(results) < 2:
        raise ValueError("comparing takes two records at least")
    if names is not None and len(names) != len(results):
        raise ValueError(f"{len(results)} records, but {len(names)} names")
    called = tuple(words.short(words.clean(n), 80) for n in names or [f"run {i}" for i in range(1, len(results) + 1)])
    tidied = [words.tidy(record) for record in results]
    first, *others = tidied
    remarks = [
        remark
        for name, other in zip(called[1:], others, strict=True)
        for remark in _remarks(called[0], first, name, other)
    ]
    return Comparison(
        names=called,
        metric=metric_of(rows_of(first)),
        remarks=tuple(remarks),
        changes=tuple(tuple(_changes(first, other)) for other in others),
        inputs=tuple(tuple(_inputs(first, other)) for other in others),
    )


def same_machine(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two tidied records were measured on the same kind of machine, so that milliseconds compare."""
    facts = [part(record, "environment") for record in (one, other)]
    known = [key for key in _MACHINE if facts[0].get(key) is not None and facts[1].get(key) is not None]
    return bool(known) and all(facts[0][key] == facts[1][key] for key in known)


def _remarks(first_name: str, first: dict[str, Any], name: str, other: dict[str, Any]) -> list[str]:
    said = []
    if not same_machine(first, other):
        machines = [part(r, "environment").get("cpu") or "an unnamed machine" for r in (first, other)]
        said.append(
            f"{name} was measured on another machine ({machines[1]}, not {machines[0]}): milliseconds do not compare,"
            " so only speed-ups against each run's own original are shown."
        )
    else:
        said.append(
            f"{first_name} and {name} were not measured interleaved: a latency ratio can hold a change of the machine's"
            " own state. Speed-ups were, each in its run. To be sure: edgekit gate --remeasure."
        )
    data = [part(part(r, "lock"), "data").get("test") for r in (first, other)]
    if None not in data and data[0] != data[1]:
        said.append(f"{name} was judged on other test data: its metric does not compare with that of {first_name}.")
    metrics = [metric_of(rows_of(r)) for r in (first, other)]
    if metrics[0] != metrics[1]:
        said.append(f"{name} was judged by {metrics[1]}, {first_name} by {metrics[0]}: they do not compare.")
    return said


def _changes(first: dict[str, Any], other: dict[str, Any]) -> list[Change]:
    before = {(row.variant, row.target): row for row in rows_of(first)}
    after = {(row.variant, row.target): row for row in rows_of(other)}
    here = same_machine(first, other)
    return [_change(key, before.get(key), after.get(key), here) for key in dict.fromkeys([*before, *after])]


def _change(key: tuple[str, str], before: Row | None, after: Row | None, here: bool) -> Change:
    if before is None or after is None:
        return Change(*key, before, after)
    comparable = before.metric_name == after.metric_name and None not in (before.metric, after.metric)
    latency, latency_ci = _ratio(before.latency, before.latency_ci, after.latency, after.latency_ci)
    speed, speed_ci = _ratio(before.speedup, before.speedup_ci, after.speedup, after.speedup_ci)
    return Change(
        *key,
        before,
        after,
        metric_delta=(after.metric or 0.0) - (before.metric or 0.0) if comparable else None,
        size_ratio=_ratio(before.size_bytes, None, after.size_bytes, None)[0],
        latency_ratio=latency if here else None,
        latency_ci=latency_ci if here else None,
        speedup_ratio=None if before.reference else speed,
        speedup_ci=None if before.reference else speed_ci,
    )


def _ratio(
    before: float | None, before_ci: Interval | None, after: float | None, after_ci: Interval | None
) -> tuple[float | None, Interval | None]:
    """After over before; the interval adds both half-widths in logarithms as independent errors do."""
    if not before or after is None or after <= 0 or before < 0:
        return None, None
    ratio = after / before
    if before_ci is None or after_ci is None or min(*before_ci, *after_ci) <= 0:
        return ratio, None
    down = math.hypot(math.log(after / after_ci[0]), math.log(before_ci[1] / before))
    up = math.hypot(math.log(after_ci[1] / after), math.log(before / before_ci[0]))
    return ratio, (ratio * math.exp(-down), ratio * math.exp(up))


def _inputs(first: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Recipe, lock, machine and versions: every leaf that differs."""
    sides = [
        {name: value for key in ("recipe", "lock", "environment", "seed") for name, value in flat(record.get(key), key)}
        for record in (first, other)
    ]
    return [
        (name, sides[0].get(name, "absent"), sides[1].get(name, "absent"))
        for name in dict.fromkeys([*sides[0], *sides[1]])
        if sides[0].get(name) != sides[1].get(name) and name not in _MOVING
    ]
