"""The short table that closes a run on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.report import words
from edgekit.report.rows import Row, columns, metric_of, rows_of

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = ("variant", "target", "metric", "metric_delta", "latency_ms", "speedup", "size_bytes", "size_ratio")
_STATUS = {"built": "built, not measured", "unavailable": "not available here", "failed": "FAILED"}


def terminal_table(results: dict[str, Any]) -> Table:
    """The variants as a ``rich`` table: metric, latency and size, each beside its change.

    Args:
        results: A record (``edgekit.results/1``).
    """
    from rich.table import Table
    from rich.text import Text

    rows = rows_of(words.tidy(results))
    shown = [column for column in columns(metric_of(rows)) if column.key in _SHOWN]
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for column in shown:
        table.add_column(column.title, justify="right" if column.number else "left", overflow="fold")
    table.add_column("", overflow="fold")
    for row in rows:
        cells = [words.short(column.show(row), 48) for column in shown]
        table.add_row(*(Text(cell) for cell in cells), Text(_remark(row), style=_style(row)))
    return table


def _remark(row: Row) -> str:
    if row.status in _STATUS:
        return _STATUS[row.status]
    if row.reference:
        return "the original"
    if row.faster is False:
        return "slower"
    return "Pareto front" if row.pareto else ""


def _style(row: Row) -> str:
    if row.status == "failed" or row.faster is False:
        return "red"
    return "green" if row.pareto else "dim"
