"""Other ways in which a device runs a model, each in fresh processes, interleaved over its points.

    batches         throughput at batch sizes
    threads         latency by thread count
    paced           one inference every 33 ms, as from a camera: caches and clocks cool down in between
    single-stream   the next inference when the last is done; the 90th percentile by MLPerf's early stopping
    offline         all samples at once, in batches
    energy          joules for one inference, where the machine has a counter

Single-stream and offline follow MLPerf Inference's published rules for queries and statistics; what
comes out is no MLPerf score: nobody audited it, and it runs for seconds where the rules ask for ten minutes.
"""

from __future__ import annotations

import statistics as std
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import machine
from edgekit.errors import EdgekitError, InputError
from edgekit.measure import statistics
from edgekit.measure.energy import NONE, Energy, Meter
from edgekit.measure.loop import Effort
from edgekit.rooms import did_you_mean

if TYPE_CHECKING:
    from edgekit.measure.engine import Row
    from edgekit.target import Target

Answer = dict[str, Any]
Launch = Callable[[int, int, dict[str, Any], Effort], Answer]  # threads, batch, scenario, effort → what a worker says

BATCHES = (1, 2, 4, 8, 16)
RUNS = 3  # fresh processes for each point
INTERVAL_MS = 33.0
FRAMES = 60
STREAM_S = 5.0
IDLE_S = 2.0  # at rest, before energy is measured
MLPERF_S = 600.0  # the least that MLPerf's rules ask for
OFFLINE_SAMPLES = 24_576


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the scenarios of one row share: how to launch it, and what it asks for."""

    launch: Launch
    threads: int
    batch: int


def setting(row: Row, target: Target, *, timeout_s: float, base: Path | None) -> Setting:
    """A row's setting on its target."""
    from edgekit.measure.engine import launched

    profile = row.target or target

    def launch(threads: int, batch: int, scenario: dict[str, Any], effort: Effort) -> Answer:
        cores = machine.pick_cores(threads)
        asked = {**scenario, "batch": batch}
        return launched(row, profile, threads, cores, effort, scenario=asked, timeout_s=timeout_s, base=base)

    return Setting(
        launch=launch, threads=min(profile.run.threads, machine.usable_threads()), batch=max(1, profile.run.batch)
    )


def explore(names: Sequence[str], here: Setting) -> dict[str, Any]:
    """Run the scenarios of those names.

    Returns:
        Name → what it found; where it can't be run, ``{"unavailable": reason}``.

    Raises:
        InputError: No scenario of that name.
    """
    for name in names:
        if name not in SCENARIOS:
            raise InputError(
                f"no scenario named '{name}'{did_you_mean(name, SCENARIOS)}",
                remedy=f"choose among {', '.join(SCENARIOS)}",
            )
    return {name: _tried(SCENARIOS[name], here) for name in names}


def _tried(scenario: Callable[[Setting], dict[str, Any]], here: Setting) -> dict[str, Any]:
    try:
        return scenario(here)
    except EdgekitError as error:
        return {"unavailable": error.problem}


def _points(
    here: Setting, points: Sequence[tuple[int, int]], scenario: dict[str, Any], effort: Effort
) -> list[list[Answer] | EdgekitError]:
    """:data:`RUNS` processes for each point (threads, batch), forth and back; a point that fails is its error."""
    found: list[list[Answer] | EdgekitError] = [[] for _ in points]
    for run in range(RUNS):
        order = range(len(points)) if run % 2 == 0 else range(len(points) - 1, -1, -1)
        for i in order:
            answers = found[i]
            if isinstance(answers, list):
                try:
                    answers.append(here.launch(*points[i], scenario, effort))
                except EdgekitError as error:
                    found[i] = error
    return found


def _batches(here: Setting) -> dict[str, Any]:
    points = [(here.threads, batch) for batch in BATCHES]
    rows: list[dict[str, Any]] = []
    for (_, batch), answers in zip(points, _points(here, points, {"kind": "block"}, Effort()), strict=True):
        if isinstance(answers, EdgekitError):
            rows.append({"batch": batch, "unavailable": answers.problem})
            continue
        median = std.median(a["median_ms"] for a in answers)
        rows.append({"batch": batch, "latency_ms": median, "samples_per_s": 1000 * batch / median})
    best = max((row for row in rows if "samples_per_s" in row), key=lambda row: row["samples_per_s"], default=None)
    return {"points": rows, "best_batch": best["batch"] if best else None}


def _threads(here: Setting) -> dict[str, Any]:
    most = machine.usable_threads()
    counts = sorted({n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if n < most} | {most})
    points = [(count, here.batch) for count in counts]
    rows: list[dict[str, Any]] = []
    for (count, _), answers in zip(points, _points(here, points, {"kind": "block"}, Effort()), strict=True):
        if isinstance(answers, EdgekitError):
            rows.append({"threads": count, "unavailable": answers.problem})
            continue
        median, cpu = std.median(a["median_ms"] for a in answers), std.median(a["cpu_ms"] for a in answers)
        rows.append({"threads": count, "latency_ms": median, "cpu_ms": cpu})
    one = next((row["latency_ms"] for row in rows if row["threads"] == 1 and "latency_ms" in row), None)
    for row in rows:
        if one and "latency_ms" in row:
            row["speedup"] = one / row["latency_ms"]
    return {"points": rows}


def _paced(here: Setting) -> dict[str, Any]:
    asked = {"kind": "paced", "interval_ms": INTERVAL_MS, "count": FRAMES}
    answers = [here.launch(here.threads, here.batch, asked, Effort()) for _ in range(RUNS)]
    times = sorted(t / 1e6 for a in answers for t in a["samples_ns"])
    return {
        "interval_ms": INTERVAL_MS,
        "inferences": len(times),
        "median_ms": std.median(times),
        "p90_ms": statistics.quantile(times, 0.90),
        "p99_bound_ms": statistics.early_stopping(times, 0.99),
        "late": sum(a["late"] for a in answers),
        "cpu_ms": std.median(a["cpu_ms"] for a in answers),
        "core_share": std.median(a["cpu_ms"] for a in answers) / INTERVAL_MS,
    }


def _single_stream(here: Setting) -> dict[str, Any]:
    answer = here.launch(here.threads, 1, {"kind": "stream"}, _stream(STREAM_S))
    times = [t / 1e6 for t in answer["samples_ns"]]
    seconds = sum(times) / 1000
    bound = statistics.early_stopping(times, 0.90)
    reasons = []
    if seconds < MLPERF_S:
        reasons.append(f"ran {seconds:.1f} s of the {MLPERF_S:.0f} s that the rules ask for")
    if bound is None:
        reasons.append(f"{len(times)} queries are too few for the 90th percentile, 64 are the least")
    return {
        "queries": len(times),
        "p90_bound_ms": bound,
        "median_ms": std.median(times),
        "seconds": seconds,
        "rules_met": not reasons,
        "note": "; ".join(["no MLPerf score", *reasons]),
    }


def _offline(here: Setting) -> dict[str, Any]:
    found = _batches(here)
    batch = found["best_batch"] or here.batch
    answer = here.launch(here.threads, batch, {"kind": "stream"}, _stream(STREAM_S))
    seconds = sum(answer["samples_ns"]) / 1e9
    samples = len(answer["samples_ns"]) * answer["calls"] * batch
    met = samples >= OFFLINE_SAMPLES and seconds >= MLPERF_S
    return {
        "samples": samples,
        "batch": batch,
        "samples_per_s": samples / (seconds * answer["calls"]),
        "seconds": seconds * answer["calls"],
        "rules_met": met,
        "note": "no MLPerf score"
        + ("" if met else f"; the rules ask for {OFFLINE_SAMPLES} samples and {MLPERF_S:.0f} s"),
    }


def _stream(seconds: float) -> Effort:
    return Effort(inferences=64, block_ms=1000 * seconds, limit_ms=4000 * seconds)


def _energy(here: Setting) -> dict[str, Any]:
    """Joules for one inference: what the sensor read while it ran, less what the machine draws at rest."""
    meter = Meter()
    time.sleep(IDLE_S)
    idle = meter.stop()
    if idle is None:
        return {"unavailable": NONE}
    answer = here.launch(here.threads, here.batch, {"kind": "stream", "energy": True}, _stream(2 * STREAM_S))
    spent, inferences = Energy(**answer["energy"]), len(answer["samples_ns"]) * answer["calls"]
    return {
        "joules": max(0.0, spent.joules - idle.watts * spent.seconds) / inferences,
        "joules_with_idle": spent.joules / inferences,
        "idle_watts": idle.watts,
        "seconds": spent.seconds,
        "inferences": inferences,
        "sensor": spent.sensor,
    }


SCENARIOS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "batches": _batches,
    "threads": _threads,
    "paced": _paced,
    "single-stream": _single_stream,
    "offline": _offline,
    "energy": _energy,
}
