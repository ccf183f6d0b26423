"""The raw times beside a record, as points of a curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgekit.report.rows import Row, part, text
from edgekit.store import sha256_file

MOST_BYTES = 50_000_000
POINTS = 120  # of one curve: more than a picture can show


def curve(row: Row, folder: Path) -> list[tuple[float, float]]:
    """Milliseconds and the share of inferences that took at most so long, both rising.

    Empty where the record names no file of raw times, or the file is not in ``folder``, was
    changed since (its hash), or can't be read: the picture is then left out.
    """
    named = part(part(row.measurement, "files"), "times")
    try:
        path = (folder / text(named, "path")).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file() and path.stat().st_size < MOST_BYTES
        if not inside or sha256_file(path) != text(named, "sha256"):
            return []
        times = _times(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return []
    return _thinned(sorted(times))


def _times(document: Any) -> list[float]:
    """Milliseconds of every inference of the valid processes."""
    runs = document.get("runs") if isinstance(document, dict) else None
    found: list[float] = []
    for run in runs if isinstance(runs, list) else []:
        if isinstance(run, dict) and run.get("valid") is not False and isinstance(run.get("samples_ns"), list):
            found += [t / 1e6 for t in run["samples_ns"] if isinstance(t, int | float) and 0 < t < 1e15]
    return found


def _thinned(times: list[float]) -> list[tuple[float, float]]:
    """At most :data:`POINTS` of a rising list and the share done at each, without the slowest 0.5 %."""
    count = len(times)
    if count < 20:
        return []
    last = max(1, int(count * 0.995))
    places = sorted({round(i * (last - 1) / (POINTS - 1)) for i in range(POINTS)})
    return [(times[place], (place + 1) / count) for place in places]
