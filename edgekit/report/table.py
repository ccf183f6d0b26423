"""The variants as CSV, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from edgekit.report.rows import Row

# What a spreadsheet takes for the start of a formula, and what it skips before looking.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "＝", "＋", "－", "＠")
_PADDING = " \u00a0\ufffd'"

# Raw values in the record's units (fractions, bytes, milliseconds), one column each.
_COLUMNS: dict[str, Callable[[Row], object]] = {
    "id": lambda r: r.id,
    "variant": lambda r: r.variant,
    "target": lambda r: r.target,
    "backend": lambda r: r.backend,
    "status": lambda r: r.status,
    "reason": lambda r: r.reason,
    "pareto": lambda r: str(r.pareto).lower(),
    "metric_name": lambda r: r.metric_name,
    "metric": lambda r: r.metric,
    "metric_low": lambda r: r.metric_ci and r.metric_ci[0],
    "metric_high": lambda r: r.metric_ci and r.metric_ci[1],
    "samples": lambda r: _whole(r.samples),
    "metric_delta": lambda r: r.delta,
    "metric_delta_low": lambda r: r.delta_ci and r.delta_ci[0],
    "metric_delta_high": lambda r: r.delta_ci and r.delta_ci[1],
    "latency_ms": lambda r: r.latency,
    "latency_low_ms": lambda r: r.latency_ci and r.latency_ci[0],
    "latency_high_ms": lambda r: r.latency_ci and r.latency_ci[1],
    "p90_ms": lambda r: r.p90,
    "p99_ms": lambda r: r.p99,
    "runs": lambda r: _whole(r.runs),
    "speedup": lambda r: r.speedup,
    "speedup_low": lambda r: r.speedup_ci and r.speedup_ci[0],
    "speedup_high": lambda r: r.speedup_ci and r.speedup_ci[1],
    "first_inference_ms": lambda r: r.first_ms,
    "peak_rss_bytes": lambda r: _whole(r.memory),
    "size_bytes": lambda r: _whole(r.size_bytes),
    "size_ratio": lambda r: r.size_ratio,
    "parameters": lambda r: _whole(r.parameters),
    "macs": lambda r: _whole(r.macs),
    "int8_macs_share": lambda r: r.int8_share,
}


def csv_text(rows: list[Row]) -> str:
    """CSV (RFC 4180) with one line for each row; a missing value is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    writer.writerows([cell(get(row)) for get in _COLUMNS.values()] for row in rows)
    return out.getvalue()


def cell(value: object) -> object:
    """A value that no spreadsheet runs: text that looks like a formula starts with an apostrophe (OWASP)."""
    if isinstance(value, str) and value.lstrip(_PADDING).startswith(_FORMULA):
        return "'" + value
    return value


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value
