"""The short table that closes a run on a terminal; 80 columns hold it, the report has the intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.report import words
from edgekit.report.rows import Row, metric_of, rows_of, targets_of

if TYPE_CHECKING:
    from rich.table import Table

_REMARKS = {"built": "built", "unavailable": "n/a here", "failed": "FAILED"}


def terminal_table(results: dict[str, Any]) -> Table:
    """The variants as a ``rich`` table: metric, latency and size, each beside its change.

    A target of which nothing could run is one line.

    Args:
        results: A record (``edgekit.results/1``).
    """
    from rich.table import Table
    from rich.text import Text

    rows = rows_of(words.tidy(results))
    metric = metric_of(rows)
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for title in ("Variant", "Target"):
        table.add_column(title, overflow="fold")
    for title in (words.title(metric), "Change", "Latency", "Speed", "Size"):
        table.add_column(title, justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for target in targets_of(rows):
        mine = [row for row in rows if row.target == target]
        if len(mine) > 1 and all(row.status == "unavailable" for row in mine):
            table.add_row(f"all {len(mine)}", Text(words.short(target, 40)), *[words.MISSING] * 5, "n/a here")
            continue
        for row in mine:
            cells = (Text(cell) for cell in _cells(row, metric))
            table.add_row(*cells, Text(_remark(row), style=_style(row)))
    return table


def _cells(row: Row, metric: str) -> tuple[str, ...]:
    return (
        words.short(row.variant, 40),
        words.short(row.target, 40),
        words.metric_text(row.metric, metric),
        "" if row.reference else words.delta_text(row.delta, metric),
        words.milliseconds(row.latency),
        "" if row.reference else words.times(row.speedup),
        words.size(row.size_bytes),
    )


def _remark(row: Row) -> str:
    if row.status in _REMARKS:
        return _REMARKS[row.status]
    if row.reference:
        return "original"
    if row.faster is False:
        return "slower"
    return "★" if row.pareto else ""


def _style(row: Row) -> str:
    if row.status == "failed" or row.faster is False:
        return "red"
    return "green" if row.pareto else "dim"
