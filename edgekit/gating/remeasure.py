"""Times measured again: each row's artifact of the baseline and of today, interleaved, on this machine, now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.console import note
from edgekit.gating.baseline import Slowdowns, same_artifact
from edgekit.gating.check import RATIO, Check, at_most, unknown
from edgekit.gating.keep import artifact_path
from edgekit.measure import Measured, Row, measure_rows
from edgekit.recipe import BaselineSection, MeasureSection
from edgekit.target import load_target

NAME = "baseline.max_slowdown"


def measured_again(
    results: dict[str, Any], folder: Path, baseline: dict[str, Any], baseline_folder: Path, limits: BaselineSection
) -> Slowdowns:
    """Measure every row that both records have on a target that ran here.

    Args:
        results, baseline: Records. folder, baseline_folder: Where they lie, their artifacts beside them.

    Returns:
        Row → check of its time over the baseline's, by the exact interval.

    Raises:
        InputError: An artifact is missing or changed, or a target is not to be found.
    """
    settings = MeasureSection.model_validate((results.get("recipe") or {}).get("measure") or {})
    old = {row["id"]: row for row in baseline["variants"] if row["status"] == "ok"}
    found: Slowdowns = {}
    for row in results["variants"]:
        if row["status"] != "ok" or row["id"] not in old:
            continue
        then, now = artifact_path(old[row["id"]], baseline_folder), artifact_path(row, folder)
        if same_artifact(row, old[row["id"]]):
            what = "the time over the baseline's (the same file)"
            found[row["id"]] = at_most(NAME, row, what, 1.0, limits.max_slowdown, RATIO)
            continue
        note(f"measuring {row['id']} and its baseline again")
        target = load_target(row["target"], base=folder)
        rows = [
            Row(id="the baseline", artifact=then, backend=row["backend"]),
            Row(id=row["id"], artifact=now, backend=row["backend"]),
        ]
        before, after = measure_rows(rows, target, settings, base=folder)
        found[row["id"]] = slowdown(row, before, after, limits.max_slowdown)
    return found


def slowdown(row: dict[str, Any], before: Measured, after: Measured, limit: float) -> Check:
    """The check of one row's two measurements."""
    for measured in (before, after):
        if measured.status != "ok":
            return unknown(NAME, row, limit, f"{measured.id} could not be measured: {measured.reason}")
    if not after.trusted or not before.trusted:
        return unknown(NAME, row, limit, after.verdict if not after.trusted else "the machine was not steady")
    if after.ratio is None or after.ratio_ci99 is None:
        return unknown(NAME, row, limit, after.verdict)
    what = f"the time over the baseline's ({after.pairs} interleaved pairs)"
    return at_most(NAME, row, what, after.ratio, limit, RATIO, after.ratio_ci99)
