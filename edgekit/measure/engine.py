"""Measure several models against the first, each in fresh processes, interleaved in one run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics as std
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import child, console, machine, store
from edgekit.measure import noise
from edgekit.measure.lock import machine_lock
from edgekit.measure.loop import Effort
from edgekit.measure.results import Measured, summarize
from edgekit.measure.rounds import Answer, Track, run_rounds
from edgekit.recipe import MeasureSection

if TYPE_CHECKING:
    from edgekit.target import Target

WORKER = "edgekit.measure.worker:work"
TIMEOUT_S = 900.0  # for one process: a compiler inside a runtime may take minutes, a hung one must not take the run


@dataclass(frozen=True)
class Row:
    """A model to measure.

    Attributes:
        id: Its name in the record.
        artifact: The model file, as the backend opens it.
        backend: A member of ``edgekit/backends``.
        feeds: An ``.npz`` with one array for each input; None: random ones by the model's shapes.
        target: Its own device profile, where it is not the run's (rows of different runtimes side by side).
    """

    id: str
    artifact: Path
    backend: str
    feeds: Path | None = None
    target: Target | None = None


def measure_rows(
    rows: Sequence[Row],
    target: Target,
    settings: MeasureSection | None = None,
    *,
    samples: Path | None = None,
    seed: int = 0,
    timeout_s: float = TIMEOUT_S,
    base: Path | None = None,
) -> list[Measured]:
    """Measure every row, the first being the reference, interleaved (see :mod:`edgekit.measure.rounds`).

    Args:
        rows: At least one. A row that crashes, hangs or can't run costs itself only.
        target: Threads, and the backend's options.
        settings: How long and how precisely.
        samples: A folder for the raw times, one JSON file a row.
        seed: Of the order of processes and of the bootstrap.
        timeout_s: For one process.
        base: The folder that a relative backend path starts from.

    Returns:
        One :class:`Measured` for each row, in order.
    """
    plan = settings or MeasureSection()
    threads = min(target.run.threads, machine.usable_threads())
    cores = machine.pick_cores(threads)
    effort = _effort(plan, len(rows))

    def launch(index: int) -> Answer:
        row = rows[index]
        return launched(row, row.target or target, threads, cores, effort, timeout_s=timeout_s, base=base)

    with machine_lock():
        warned = [*_clamped(target.run.threads, threads), *noise.machine_warnings(threads)]
        with console.progress(f"measuring {target.name}", len(rows) * plan.pairs) as advance:
            tracks = run_rounds(len(rows), launch, plan, time.monotonic, seed=seed, advance=advance)
    runs = [noise.Noise(**answer["noise"]) for track in tracks for answer in track.answers.values()]
    warned += noise.warnings(runs, max(1, len(cores)))  # the rows took turns: what disturbed one disturbed all
    return [
        _finished(row, track, rows[0].id, i == 0, seed, warned, samples)
        for i, (row, track) in enumerate(zip(rows, tracks, strict=True))
    ]


def launched(
    row: Row,
    target: Target,
    threads: int,
    cores: Sequence[int],
    effort: Effort,
    *,
    scenario: dict[str, Any] | None = None,
    timeout_s: float = TIMEOUT_S,
    base: Path | None = None,
) -> Answer:
    """One fresh process for one row; its answer, with the median of its times.

    Raises:
        EdgekitError: The model can't be loaded or run here, or the process died.
    """
    profile = target.model_copy(update={"run": target.run.model_copy(update={"threads": threads})})
    answer: Answer = child.call(
        WORKER,
        timeout_s=timeout_s,
        threads=threads,
        backend=row.backend,
        artifact=str(row.artifact),
        target=profile.model_dump(mode="json"),
        feeds=str(row.feeds) if row.feeds else None,
        cores=list(cores),
        effort=asdict(effort),
        scenario=scenario,
        base=str(base) if base else None,
    )
    median = std.median(answer["samples_ns"]) / 1e6
    return {**answer, "median_ms": median, "cores": list(cores), "threads": threads}


def _effort(settings: MeasureSection, rows: int) -> Effort:
    """A slow model's process stops early enough for the least number of pairs to fit into the budget."""
    share_ms = 1000 * settings.budget_s / (rows * settings.pairs)
    return Effort(limit_ms=max(300.0, share_ms / 2.5))


def _clamped(wanted: int, threads: int) -> list[str]:
    if threads == wanted:
        return []
    return [f"the target asks for {wanted} threads, this machine or container lets {threads} run: measured with those"]


def _finished(
    row: Row, track: Track, reference: str, first: bool, seed: int, warned: Sequence[str], samples: Path | None
) -> Measured:
    measured = summarize(row.id, track, reference, is_reference=first, seed=seed, warned=warned)
    if measured.status == "ok":
        size, shipped = sizes(row.artifact)
        measured = dataclasses.replace(measured, size_bytes=size, shipped_bytes=shipped)
    if samples is None or not track.answers:
        return measured
    path = samples / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', row.id)}.json"
    store.write_text(path, json.dumps(_raw(row, track)) + "\n")
    return dataclasses.replace(measured, samples={"path": path.name, "sha256": store.sha256_file(path)})


def sizes(artifact: Path) -> tuple[int, int]:
    """Bytes of a model's files on disk, and as zstd sends them over the air."""
    import zstandard

    beside = (artifact.with_suffix(".bin"), artifact.with_name(artifact.name + ".data"), artifact.with_suffix(".data"))
    files = [artifact, *(p for p in dict.fromkeys(beside) if p != artifact and p.is_file())]
    packer, shipped = zstandard.ZstdCompressor(level=9), 0
    for file in files:
        with file.open("rb") as source, Path(os.devnull).open("wb") as sink:
            shipped += packer.copy_stream(source, sink)[1]
    return sum(file.stat().st_size for file in files), shipped


def _raw(row: Row, track: Track) -> dict[str, Any]:
    """Every time of a row, by process; those of a row that failed are marked as invalid."""
    runs = [
        {
            "round": number,
            "valid": track.error is None,
            "samples_ns": answer["samples_ns"],
            **{key: answer[key] for key in ("first_ms", "load_ms", "cpu_ms", "peak_bytes", "noise", "warm_up")},
        }
        for number, answer in sorted(track.answers.items())
    ]
    return {"id": row.id, "unit": "ns", "runs": runs}
