"""What lies beside a record: the raw times of every process, and what each row said of every test sample.

A file counts only where it lies in the record's folder and has the hash that the record names; else it is left out.
"""

from __future__ import annotations

import io
import json
import math
import statistics
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.report import words
from edgekit.report.rows import Row, part, text
from edgekit.store import sha256_file

if TYPE_CHECKING:
    import numpy as np

MOST_BYTES = 50_000_000
POINTS = 120  # of one curve: more than a picture can show
LEAST_ROUNDS = 3  # under which nothing can be seen to drift


@dataclass(frozen=True)
class Process:
    """One fresh process of a row: the round that it ran in, and every inference in milliseconds."""

    round: int
    times: list[float]


@dataclass(frozen=True)
class Flip:
    """A test sample of which a row says another class than the original.

    Attributes:
        sample: Its place in the test set, from 0.
        before, after: The class that the original and the row give.
        margin: By how much the original preferred its own over the row's, in its outputs' unit.
    """

    sample: int
    before: int
    after: int
    margin: float


@dataclass(frozen=True)
class Flips:
    """The samples that changed, the surest of the original first, and how many there were to change."""

    changed: list[Flip]
    total: int


def processes(row: Row, folder: Path) -> list[Process]:
    """The valid processes of a row, in the order of their rounds; empty where their file can't be had."""
    data = _named(row, "times", folder)
    try:
        document = json.loads(data) if data else None
    except (ValueError, RecursionError):
        return []
    runs = document.get("runs") if isinstance(document, dict) else None
    found = [_process(run) for run in (runs if isinstance(runs, list) else []) if isinstance(run, dict)]
    return sorted((process for process in found if process.times), key=lambda process: process.round)


def _process(run: dict[str, Any]) -> Process:
    samples, number = run.get("samples_ns"), run.get("round")
    usable = samples if run.get("valid") is not False and isinstance(samples, list) else []
    times = [t / 1e6 for t in usable if isinstance(t, int | float) and 0 < t < 1e15]
    return Process(number if isinstance(number, int) else 0, times)


def curve(found: list[Process]) -> list[tuple[float, float]]:
    """Milliseconds and the share of inferences that took at most so long, both rising."""
    return _thinned(sorted(time for process in found for time in process.times))


def drift(found: list[Process]) -> list[tuple[int, float]]:
    """Round and by how many per cent its median lies off the median of all; empty where the rounds are too few."""
    medians = [(process.round + 1, statistics.median(process.times)) for process in found]
    if len(medians) < LEAST_ROUNDS:
        return []
    middle = statistics.median(value for _, value in medians)
    return [(number, 100 * (value / middle - 1)) for number, value in medians]


def flips(row: Row, reference: Row, folder: Path) -> Flips | None:
    """The samples of which a row says another class than its reference; None where they are no classes, or not kept."""
    if not words.is_fraction(row.metric_name):
        return None
    one, other = (_scores(each, folder) for each in (reference, row))
    if one is None or other is None or one.shape != other.shape:
        return None
    before, after = one.argmax(1), other.argmax(1)
    found = [
        Flip(int(i), int(before[i]), int(after[i]), float(one[i, before[i]] - one[i, after[i]]))
        for i in (before != after).nonzero()[0]
    ]
    return Flips(sorted(found, key=lambda flip: -flip.margin), len(before))


def _scores(row: Row, folder: Path) -> np.ndarray[Any, Any] | None:
    """The first output of every test sample, (N, classes); None where there is none of that form."""
    import numpy as np

    data = _named(row, "outputs", folder)
    if not data:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            first = next((file[name] for name in file.files if name.startswith("0:")), None)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    good = first is not None and first.ndim == 2 and first.shape[1] > 1 and first.dtype.kind == "f"
    return first if good and first is not None and math.isfinite(float(first.sum())) else None


def _named(row: Row, kind: str, folder: Path) -> bytes:
    """The file of that kind that a row names; empty where it is not there, too large, or not that very file."""
    named = part(part(row.measurement, "files"), kind)
    try:
        path = (folder / text(named, "path")).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file() and path.stat().st_size < MOST_BYTES
        return path.read_bytes() if inside and sha256_file(path) == text(named, "sha256") else b""
    except (OSError, ValueError):
        return b""


def _thinned(times: list[float]) -> list[tuple[float, float]]:
    """At most :data:`POINTS` of a rising list and the share done at each, without the slowest 0.5 %."""
    count = len(times)
    if count < 20:
        return []
    last = max(1, int(count * 0.995))
    places = sorted({round(i * (last - 1) / (POINTS - 1)) for i in range(POINTS)})
    return [(times[place], (place + 1) / count) for place in places]
