"""Other ways in which a device runs a model: batches, threads, paced, energy … as tables, where they were measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.report import words
from edgekit.report.html import Child, Html, el, table
from edgekit.report.operators import objects
from edgekit.report.rows import Row, number_in, part, text

_TITLES = {
    "batches": "Throughput by batch",
    "threads": "Latency by threads",
    "paced": "Paced: one inference at a time, at rest in between",
    "single-stream": "Single stream: the next inference when the last is done",
    "offline": "Offline: all samples at once",
    "energy": "Energy of one inference",
}
_LABELS = {
    "p90_bound_ms": "p90, early-stopping bound",
    "p99_bound_ms": "p99, early-stopping bound",
    "samples_per_s": "Samples a second",
    "core_share": "Share of a core",
    "joules_with_idle": "With what the machine draws at rest",
    "joules": "Energy",
}


def scenarios(rows: list[Row]) -> Html | None:
    """One table for each scenario that any row was measured in; None where there is none."""
    names = dict.fromkeys(name for row in rows for name in part(row.measurement, "scenarios"))
    tables = [found for name in names if (found := _table(name, rows))]
    if not tables:
        return None
    return el("section", el("h2", "Other ways of running it"), tables, id="scenarios")


def lines(name: str, told: dict[str, Any]) -> list[str]:
    """A scenario of one model in words, a line for each of its points: ``paced: median 0.376 ms, …``."""
    tidied = words.tidy(told)
    points = list(objects(tidied.get("points"))) or [tidied]
    keys = [key for key in tidied if key not in ("points", "best_batch")] if "points" not in tidied else []
    return [
        f"{name}: {', '.join(f'{_heading(key)} {_shown(key, point)}'.strip() for key in keys or point)}"
        for point in points
    ]


def _table(name: str, rows: list[Row]) -> Html | None:
    lines: list[tuple[Row, dict[str, Any]]] = []
    for row in rows:
        told = part(part(row.measurement, "scenarios"), name)
        points = list(objects(told.get("points"))) or ([told] if told else [])
        lines += [(row, point) for point in points]
    keys = list(dict.fromkeys(key for _, point in lines for key in point if key not in ("points", "best_batch")))
    if not keys:
        return None
    body: list[list[Child]] = [[row.label, *(_shown(key, point) for key in keys)] for row, point in lines]
    return table(_TITLES.get(name, name), ["Variant", *(_heading(key) for key in keys)], body, numbers=range(1, 99))


def _heading(key: str) -> str:
    plain = key.removesuffix("_ms").replace("_", " ")
    return _LABELS.get(key, plain[:1].upper() + plain[1:])


def _shown(key: str, point: dict[str, Any]) -> str:
    value = number_in(point, key)
    if value is None:
        return "yes" if point.get(key) is True else "no" if point.get(key) is False else text(point, key)
    return _form(key)(value)


def _form(key: str) -> Callable[[float], str]:
    """How a number is shown, by the unit that its key names."""
    if key.endswith("_ms"):
        return words.milliseconds
    if key.startswith("joules"):
        return words.joules
    if key.endswith("_share"):
        return words.share
    return words.times if key == "speedup" else words.seconds if key == "seconds" else words.count


def unmeasured(rows: list[Row]) -> list[str]:
    """Scenarios that could not be run, each with its reason, once."""
    found: dict[str, None] = {}
    for row in rows:
        for name, told in part(row.measurement, "scenarios").items():
            if isinstance(told, dict) and told.get("unavailable"):
                found[f"{name}: {told['unavailable']}"] = None
    return list(found)
