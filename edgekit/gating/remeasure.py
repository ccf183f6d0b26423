"""Times measured again: each row's artifact of the baseline and of today, interleaved, on this machine, now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.console import note
from edgekit.gating.baseline import Slowdowns, same_artifact
from edgekit.gating.check import RATIO, Check, at_most, unknown
from edgekit.gating.keep import artifact_path
from edgekit.measure import Measured, Row, measure_rows, statistics
from edgekit.recipe import BaselineSection, MeasureSection
from edgekit.target import Target, lacks, load_target

NAME = "baseline.max_slowdown"
Pair = tuple[Measured, Measured]  # the baseline's artifact and today's


def measured_again(
    results: dict[str, Any], folder: Path, baseline: dict[str, Any], baseline_folder: Path, limits: BaselineSection
) -> Slowdowns:
    """Measure every row that both records have on a target that ran here.

    Args:
        results, baseline: Records. folder, baseline_folder: Where they lie, their artifacts beside them.

    Returns:
        Row → check of its time over the baseline's, by the exact interval; of all rows together at most one run in
        a hundred fails wrongly.

    Raises:
        InputError: An artifact is missing or changed, or a target is not to be found.
    """
    old = {row["id"]: row for row in baseline["variants"] if row["status"] == "ok"}
    both = [(row, old[row["id"]]) for row in results["variants"] if row["status"] == "ok" and row["id"] in old]
    files = {row["id"]: (artifact_path(then, baseline_folder), artifact_path(row, folder)) for row, then in both}
    changed = [row for row, then in both if not same_artifact(row, then)]
    away = {row["id"]: reason for row in changed if (reason := lacks(_target(row, folder)))}
    changed = [row for row in changed if row["id"] not in away]
    settings = MeasureSection.model_validate((results.get("recipe") or {}).get("measure") or {})
    pairs = max(settings.pairs, statistics.pairs_for(max(1, len(changed))))
    settings = settings.model_copy(update={"pairs": pairs, "max_pairs": max(pairs, settings.max_pairs)})
    measured = [_pair(row, *files[row["id"]], settings, folder) for row in changed]
    what = "the time over the baseline's (the same file)"
    same = [row for row, then in both if same_artifact(row, then)]
    found = {row["id"]: at_most(NAME, row, what, 1.0, limits.max_slowdown, RATIO) for row in same}
    for row in (row for row, _ in both if row["id"] in away):
        why = f"{away[row['id']]}: measure both on the device, in turns, with edgekit deploy"
        found[row["id"]] = unknown(NAME, row, limits.max_slowdown, why)
    return found | slowdowns(changed, measured, limits.max_slowdown, pairs)


def _pair(row: dict[str, Any], then: Path, now: Path, settings: MeasureSection, folder: Path) -> Pair:
    """A row's two artifacts, measured in turns."""
    note(f"measuring {row['id']} and its baseline again")
    before, after = measure_rows(
        [
            Row(id="the baseline", artifact=then, backend=row["backend"]),
            Row(id=row["id"], artifact=now, backend=row["backend"]),
        ],
        _target(row, folder),
        settings,
        base=folder,
    )
    return before, after


def _target(row: dict[str, Any], folder: Path) -> Target:
    """The row's target as it was built for: its own file may lie beside a recipe that is not here."""
    profile = row.get("profile")
    return Target.model_validate(profile) if profile else load_target(row["target"], base=folder)


def slowdowns(rows: list[dict[str, Any]], measured: list[Pair], limit: float, first_look: int) -> Slowdowns:
    """The checks of rows that were measured again, each broken one held against all that were judged with it.

    Args:
        rows, measured: One of each for a row. limit: Time over the baseline's.
        first_look: Pairs after which the measuring could stop first; runs that went on have looked twice.
    """
    found = {row["id"]: slowdown(row, *pair, limit) for row, pair in zip(rows, measured, strict=True)}
    chances = [
        min(1.0, (2 if after.pairs > first_look else 1) * statistics.sign_probability(after.ratios, limit))
        for _, after in measured
    ]
    for row, (_, after), proved in zip(rows, measured, statistics.holm(chances), strict=True):
        if found[row["id"]].passed is False and not proved:
            why = (
                f"{after.ratio:.3f}x, limit at most {limit:.3f}x: beyond it by itself, but one of {len(rows)} rows "
                "judged at once, and more pairs are needed to rule out chance in all of them"
            )
            found[row["id"]] = unknown(NAME, row, limit, why, after.ratio)
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
