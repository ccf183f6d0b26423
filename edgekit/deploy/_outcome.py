"""What came of a device: one outcome for each bundle, and the comparison of those that were measured in turns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgekit import console
from edgekit.deploy._job import Finished
from edgekit.deploy._preflight import Check
from edgekit.measure import statistics as rules


@dataclass(frozen=True)
class Deployed:
    """What came of one bundle on one device.

    Attributes:
        host: As it was named. status: ``ok``, ``failed`` (it ran, and is wrong) or ``unavailable``.
        id: The bundle's row in its record; with the bundle's name where several have that row.
        reason, remedy: Why it is not ``ok``. exit_code: 0, 3 or 4 accordingly.
        preflight: What was looked at before anything was sent, as a table.
        check, bench: What the runner said there; None where it did not come so far. Of several rounds the medians.
        compared: With the first bundle, measured in turns: ``id`` of that, ``speedup`` (its time over this one's) with
            ``speedup_ci95`` and the exact ``speedup_ci99``, ``different``, ``mde``, ``pairs``, ``trusted``; None for
            the first, and where there is no such comparison.
        resumed: Whether these are the results of an earlier call whose connection broke.
    """

    host: str
    status: str
    reason: str = ""
    remedy: str = ""
    exit_code: int = 0
    preflight: tuple[Check, ...] = ()
    check: dict[str, Any] | None = None
    bench: dict[str, Any] | None = None
    resumed: bool = False
    id: str = ""
    compared: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def judged(host: str, ids: Sequence[str], finished: Sequence[Finished], **facts: Any) -> list[Deployed]:
    """The outcome of each bundle by the runner's own exit codes; each but the first compared with the first.

    Args:
        host: The device. ids: The bundles' rows. finished: What the job left of each.
        facts: Of :class:`Deployed`, the same for all.
    """
    outcomes = [replace(_outcome(host, one), id=name, **facts) for name, one in zip(ids, finished, strict=True)]
    first = outcomes[0]
    told = [outcome.bench for outcome in outcomes if outcome.bench]
    slowed_down = next((words for bench in told if (words := slowed(bench))), "")
    if slowed_down:
        console.warn(f"{host}: {slowed_down} while it measured: let it cool, and deploy again")
    for place, (outcome, one) in enumerate(zip(outcomes, finished, strict=True)):
        if place and first.bench and outcome.bench and (found := _compared(finished[0], one)):
            outcomes[place] = replace(outcome, compared={"id": first.id, **found, "trusted": not slowed_down})
    return outcomes


def _outcome(host: str, finished: Finished) -> Deployed:
    for step in finished.steps():
        if step.code == 0 and step.report is not None:
            continue
        reason, remedy = _told(step.report, step.errors)
        believable = step.report is not None or step.code != 0
        status, own = ("failed", 3) if believable and step.code != 4 else ("unavailable", 4)
        check = finished.check.report
        return Deployed(host, status, reason, remedy, own, check=check)
    reports = [step.report for step in finished.benches if step.report]
    return Deployed(host, "ok", check=finished.check.report, bench=summed(reports))


def summed(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several processes' reports as one: medians of their medians, the state before the first and after the last."""
    first, last = reports[0], reports[-1]
    times = [report["latency_ms"] for report in reports]
    if len(reports) == 1 or not all(times):
        return first
    medians = [one["median"] for one in times]
    tail = [one["p99"] for one in times]
    latency = {
        "median": statistics.median(medians),
        "p90": statistics.median(one["p90"] for one in times),
        "p99": statistics.median(tail) if all(value is not None for value in tail) else None,
        "ci95": list(rules.bootstrap_interval(medians)),
        "runs": len(medians),
    }
    middle = {key: _middle([report[key] for report in reports]) for key in ("first_inference_ms", "peak_rss_bytes")}
    return {**first, "latency_ms": latency, **middle, "after": last["after"]}


def _middle(values: Sequence[float | None]) -> float | int | None:
    known = [value for value in values if value is not None]
    return type(known[0])(statistics.median(known)) if known else None


def _compared(first: Finished, other: Finished) -> dict[str, Any] | None:
    """The exact comparison of two bundles' rounds; None where a device gave no times, or there was one round only."""
    both = [
        (a.report["latency_ms"]["median"], b.report["latency_ms"]["median"])
        for a, b in zip(first.benches, other.benches, strict=True)
        if a.report and b.report and a.report["latency_ms"] and b.report["latency_ms"]
    ]
    if len(both) < 2:
        return None
    found = rules.compare([before for before, _ in both], [after for _, after in both])
    exact = found.ci99
    return {
        "speedup": 1 / found.ratio,
        "speedup_ci95": [1 / found.ci95[1], 1 / found.ci95[0]],
        "speedup_ci99": [1 / exact[1], 1 / exact[0]] if exact else None,
        "different": found.different,
        "mde": found.mde,
        "pairs": found.pairs,
    }


def slowed(bench: dict[str, Any]) -> str:
    """What slowed the device down while it measured, in words; empty: nothing that it tells of."""
    before, after = bench["before"], bench["after"]
    if before["throttled"] != after["throttled"]:
        return f"the device throttled ({before['throttled']} → {after['throttled']})"
    first, last = before["frequency_mhz"], after["frequency_mhz"]
    if first and last and last < 0.9 * first:
        return f"its clock fell from {first:.0f} to {last:.0f} MHz"
    return ""


def _told(report: dict[str, Any] | None, errors: str) -> tuple[str, str]:
    if report and report.get("error"):
        return str(report["error"])[:500], str(report.get("remedy") or "")[:500]
    last = [line for line in errors.strip().split("\n") if line]
    reason = last[-1][:300] if last else "what the device reports is no report of the runner"
    return reason, "log in and run, in the bundle's folder under ~/.cache/edgekit: python3 edgekit_runner.py check"
