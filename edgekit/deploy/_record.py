"""A device's numbers in the record that its bundle was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import console, result
from edgekit.deploy._outcome import Deployed
from edgekit.errors import InputError


def record_of(results: Path | str, manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record, if every bundle's artifact is one of its rows'.

    Raises:
        InputError: No such row, or another artifact.
    """
    path = file_of(results)
    record = result.load_results(path)
    for manifest in manifests:
        row = next((row for row in record["variants"] if row["id"] == manifest["id"]), None)
        model = manifest["files"].get(manifest["model"], {}).get("sha256")
        if row is None or not row["artifact"] or row["artifact"]["sha256"] != model:
            raise InputError(
                f"the bundle's artifact ('{manifest['id']}') is not in this record",
                where=str(path),
                remedy="give the record that the bundle was made from, or make the bundle again",
            )
    return record


def file_of(results: Path | str) -> Path:
    """The record's file, also where its folder is named."""
    path = Path(results)
    return path / result.RESULTS if path.is_dir() else path


def merge(results: dict[str, Any], outcomes: Sequence[Deployed]) -> dict[str, Any]:
    """The record with the devices' numbers in the bundles' rows; the first device that fits gives a row's own.

    A device of another family, or an emulated one, proves numerics and gives no number.
    """
    rows = [dict(row) for row in results["variants"]]
    for name in dict.fromkeys(outcome.id for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.id == name]
        row = next(row for row in rows if row["id"] == name)
        row["devices"] = [_facts(outcome) for outcome in mine]
        if fitting := next((outcome for outcome in mine if _fits(outcome)), None):
            _measured(row, fitting)
    for target in {row["target"] for row in rows}:
        _ratios(rows, target)
    for each, front in zip(rows, result.pareto(rows), strict=True):
        each["pareto"] = front
    return {**results, "variants": rows}


def _fits(outcome: Deployed) -> bool:
    """Whether a device gave numbers that are the target's own."""
    if outcome.status != "ok" or not outcome.bench:
        return False
    if outcome.bench["numerics_only"] or not outcome.bench["latency_ms"]:
        console.warn(f"{outcome.host}: its numbers are not recorded: {outcome.bench['numerics_only']}")
        return False
    return True


def _measured(row: dict[str, Any], outcome: Deployed) -> None:
    """Put a device's numbers into a row. What this machine measured of it, verdicts included, goes with its times."""
    assert outcome.bench is not None
    row.update({key: outcome.bench[key] for key in ("latency_ms", "first_inference_ms", "peak_rss_bytes")})
    row |= {"status": "ok", "reason": "", "measured": outcome.compared, "measured_on": _facts(outcome)}


def _facts(outcome: Deployed) -> dict[str, Any]:
    bench, check = outcome.bench or {}, outcome.check or {}
    facts: dict[str, Any] = {"host": outcome.host, "status": outcome.status, "reason": outcome.reason}
    facts |= {key: bench.get(key) for key in ("device", "before", "after", "latency_ms", "numerics_only")}
    return {**facts, "difference": check.get("difference"), "tolerance": check.get("tolerance")}


def _ratios(rows: list[dict[str, Any]], target: str) -> None:
    """Speed-ups of rows that a device measured: with their interval where they ran in turns with their reference.

    Else without one, from both latencies on one device; a row whose reference was measured elsewhere has none.
    """
    here = {row["id"]: row for row in rows if row["target"] == target and row.get("measured_on")}
    for row in here.values():
        if not (against := row["vs_reference"]):
            continue
        reference, paired = here.get(against["id"]), row.get("measured") or {}
        if paired.get("id") == against["id"]:
            told = {key: paired[key] for key in ("speedup", "speedup_ci95")}
        else:
            same = reference and reference["measured_on"]["host"] == row["measured_on"]["host"]
            speedup = reference["latency_ms"]["median"] / row["latency_ms"]["median"] if reference and same else None
            told = {"speedup": speedup, "speedup_ci95": None}
        row["vs_reference"] = {**against, **told}
