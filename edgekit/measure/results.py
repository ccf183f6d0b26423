"""What was measured of one row, ready for the record, and the sentence a person reads."""

from __future__ import annotations

import statistics as std
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edgekit.errors import UnavailableError
from edgekit.measure import noise, statistics
from edgekit.measure.rounds import Track
from edgekit.measure.statistics import Comparison

P99_LEAST = 662  # inferences without which a 99th percentile is a guess (MLPerf's early stopping)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row's measurement. Times in milliseconds, memory in bytes; None where it was not measured.

    Attributes:
        id: The row's.
        status: ``ok``, ``unavailable`` or ``failed``; ``reason`` says why not ok, with the error's ``exit_code``.
        latency_ms: ``median`` (of the processes' medians) with its 95 % interval ``ci95``, ``p90`` and ``p99`` over
            all inferences, ``runs`` (processes).
        first_inference_ms, load_ms: Medians over the processes.
        peak_rss_bytes: Above the runtime's own (``runtime_rss_bytes``), median over the processes.
        cpu_ms: CPU time of one inference, all threads.
        ratio: This over the reference, ``ratio_ci95`` to read, ``ratio_ci99`` (exact) to decide by.
        ratios: Of each pair, in the order in which they ran.
        speedup: The reference over this, with ``speedup_ci95`` and ``speedup_ci99``.
        different: Whether it is proved to differ from the reference; None: can't tell.
        mde: The smallest change that this run could have proved, a fraction.
        p99_bound_ms: MLPerf's early-stopping estimate of the 99th percentile; None under 662 inferences.
        trusted: False where heat or frequency moved while it was measured: no verdict on speed.
        verdict: One sentence.
        warnings: In plain words.
        noise: Worst of what disturbed the runs.
        samples: The file with every raw time, {``path``, ``sha256``}.
        size_bytes: The model's files on disk. shipped_bytes: As sent over the air (zstd).
        scenarios: Further scenarios, by name (see :mod:`edgekit.measure.scenarios`).
    """

    id: str
    status: str
    reason: str = ""
    exit_code: int = 0
    latency_ms: dict[str, Any] | None = None
    first_inference_ms: float | None = None
    load_ms: float | None = None
    peak_rss_bytes: int | None = None
    runtime_rss_bytes: int | None = None
    cpu_ms: float | None = None
    ratio: float | None = None
    ratio_ci95: tuple[float, float] | None = None
    ratio_ci99: tuple[float, float] | None = None
    ratios: tuple[float, ...] = ()
    speedup: float | None = None
    speedup_ci95: tuple[float, float] | None = None
    speedup_ci99: tuple[float, float] | None = None
    different: bool | None = None
    mde: float | None = None
    pairs: int = 0
    p99_bound_ms: float | None = None
    trusted: bool = True
    verdict: str = ""
    warnings: tuple[str, ...] = ()
    noise: dict[str, Any] = field(default_factory=dict)
    runtime: str = ""
    threads: int = 1
    cores: tuple[int, ...] = ()
    samples: dict[str, str] | None = None
    size_bytes: int | None = None
    shipped_bytes: int | None = None
    scenarios: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def summarize(
    name: str, track: Track, reference: str, *, is_reference: bool, seed: int, warned: Sequence[str] = ()
) -> Measured:
    """Turn a row's processes into a :class:`Measured`.

    Args:
        name: The row's id. reference: The reference's, for the sentence.
        warned: Warnings that hold for the whole run.
    """
    if track.error:
        status = "unavailable" if isinstance(track.error, UnavailableError) else "failed"
        reason = f"{track.error.problem}; fix: {track.error.remedy}"
        return Measured(id=name, status=status, reason=reason, exit_code=track.error.exit_code)
    answers = [track.answers[r] for r in sorted(track.answers)]
    medians = [float(a["median_ms"]) for a in answers]
    times = sorted(t / 1e6 for a in answers for t in a["samples_ns"])
    runs = [noise.Noise(**a["noise"]) for a in answers]
    distrust = noise.untrusted(runs)
    cores = tuple(answers[0].get("cores", ()))
    comparison = track.comparison
    return Measured(
        id=name,
        status="ok",
        latency_ms={
            "median": std.median(medians),
            "p90": statistics.quantile(times, 0.90),
            "p99": statistics.quantile(times, 0.99),
            "ci95": list(statistics.bootstrap_interval(medians, seed=seed)),
            "runs": len(answers),
        },
        first_inference_ms=std.median(a["first_ms"] for a in answers),
        load_ms=std.median(a["load_ms"] for a in answers),
        peak_rss_bytes=_middle(a["peak_bytes"] for a in answers),
        runtime_rss_bytes=_middle(a["runtime_bytes"] for a in answers),
        cpu_ms=std.median(a["cpu_ms"] for a in answers),
        **_compared(comparison, is_reference),
        p99_bound_ms=statistics.early_stopping(times, 0.99),
        trusted=not distrust,
        verdict=sentence(comparison, reference, distrust, is_reference=is_reference),
        warnings=(*warned, *_warnings(answers, len(times), comparison)),
        noise=_worst(runs),
        runtime=answers[0]["runtime"],
        threads=int(answers[0].get("threads", 1)),
        cores=cores,
    )


def sentence(comparison: Comparison | None, reference: str, distrust: str = "", *, is_reference: bool = False) -> str:
    """The verdict in one sentence."""
    if is_reference:
        return "the reference of this run"
    if comparison is None:
        return f"not compared: the reference '{reference}' could not be measured"
    ratio, (low, high) = comparison.ratio, comparison.ci95
    shown = (
        f"{ratio:.3f}x the time of {reference} [{low:.3f}, {high:.3f}], {comparison.pairs} pairs"
        if ratio > 1
        else f"{1 / ratio:.3f}x as fast as {reference} [{1 / high:.3f}, {1 / low:.3f}], {comparison.pairs} pairs"
    )
    if distrust:
        return f"can't tell, because {distrust} ({shown})"
    if comparison.different is None:
        return f"can't tell: {shown} are too few, 8 are the least"
    if comparison.different:
        return f"{'slower' if ratio > 1 else 'faster'}: {shown}"
    return f"no difference proved: {shown}; the smallest change this run could have proved is {comparison.mde:.1%}"


def _compared(comparison: Comparison | None, is_reference: bool) -> dict[str, Any]:
    if is_reference:
        return {"ratio": 1.0, "speedup": 1.0}
    if comparison is None:
        return {}
    return {
        "ratio": comparison.ratio,
        "ratio_ci95": comparison.ci95,
        "ratio_ci99": comparison.ci99,
        "ratios": comparison.ratios,
        "speedup": 1 / comparison.ratio,
        "speedup_ci95": _inverted(comparison.ci95),
        "speedup_ci99": _inverted(comparison.ci99) if comparison.ci99 else None,
        "different": comparison.different,
        "mde": comparison.mde,
        "pairs": comparison.pairs,
    }


def _inverted(interval: tuple[float, float]) -> tuple[float, float]:
    return 1 / interval[1], 1 / interval[0]


def _middle(values: Any) -> int | None:
    known = [v for v in values if v is not None]
    return int(std.median(known)) if known else None


def _worst(runs: Sequence[noise.Noise]) -> dict[str, Any]:
    """The greatest of each reading; None where the machine says none."""
    readings = [n.to_dict() for n in runs]
    return {key: max((r[key] for r in readings if r[key] is not None), default=None) for key in readings[0]}


def each_once(warnings: Mapping[str, Sequence[str]], common: str = "") -> list[str]:
    """Each warning of rows measured together, once: what all have under ``common``, else under its row's id."""
    lines = []
    for name, found in warnings.items():
        for text in found:
            place = common if all(text in other for other in warnings.values()) else name
            lines.append(f"{place}: {text}" if place else text)
    return list(dict.fromkeys(lines))


def _warnings(answers: Sequence[dict[str, Any]], inferences: int, comparison: Comparison | None) -> list[str]:
    found: list[str] = []
    if comparison is not None and comparison.different is None:
        found.append(f"too few runs: {comparison.pairs} pairs can prove nothing, 8 are the least; allow more time")
    if comparison is not None and comparison.drift:
        found.append(
            "neighbouring pairs resemble each other: the machine drifted, intervals are narrower than the truth"
        )
    if inferences < P99_LEAST:
        found.append(f"the 99th percentile is from fewer than {P99_LEAST} inferences, the least for one to hold")
    unsteady = sum(1 for a in answers if not a["warm_up"]["steady"])
    if unsteady * 2 > len(answers):
        found.append("the times had not settled when warm-up ended: this model, or this machine, is restless")
    if any(a["calls"] > 1 for a in answers):
        found.append(f"the clock is coarse: each sample is the mean of {max(a['calls'] for a in answers)} inferences")
    if not all(a["repeatable"] for a in answers):
        found.append(
            "the model gave different outputs for the same input: is there dropout or a random operator in it?"
        )
    if not all(a["finite"] for a in answers):
        found.append("the model's outputs hold NaN or infinity for the example input")
    return found
