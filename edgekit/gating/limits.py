"""The limits of ``[gate]`` and ``[[gate.rule]]`` on the rows of one record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from edgekit.gating.check import (
    BYTES,
    COUNT,
    FRACTION,
    MILLISECONDS,
    RATIO,
    SHARE,
    Check,
    Interval,
    at_least,
    at_most,
    broken,
    unknown,
)
from edgekit.recipe import GateSection, Limits

Row = dict[str, Any]
Judged = Check | str  # a check, or in words why this row has no such number

RULE_OF_THREE = 3.0  # events that may still come in N samples when none was seen, at 95 % (Hanley & Lippman-Hand 1983)


def asked(settings: GateSection | None) -> bool:
    """Whether any limit is set."""
    return settings is not None and any(_set(limits) for limits in (settings, *settings.rule))


@dataclass(frozen=True)
class _Limit:
    """A limit that applies to a row; ``named``: by a rule for that very target."""

    value: float
    named: bool


def check_rows(results: dict[str, Any], settings: GateSection) -> tuple[list[Check], list[str]]:
    """Every limit on every row that it applies to.

    Returns:
        The checks, and notes on what was not checked and why.
    """
    checks: list[Check] = []
    notes: list[str] = []
    references = reference_ids(results)
    away: dict[str, list[str]] = {}
    for row in results["variants"]:
        limits = _limits_for(row, settings, is_reference=row["id"] in references)
        if not limits:
            continue
        if row["status"] == "unavailable":
            reason = str(row.get("reason") or "no reason given").removeprefix("not available here, because ")
            away.setdefault(reason, []).append(row["id"])
        elif row["status"] == "failed":
            checks.append(failed(row))
        else:
            _check_row(row, limits, checks, notes)
    notes += [f"{', '.join(ids)}: not checked, can't run here: {reason}" for reason, ids in away.items()]
    for rule in settings.rule:
        _check_rule(rule.variant, rule.target, results, checks, notes)
    return checks, notes


def failed(row: Row) -> Check:
    """The check that a failed row breaks."""
    reason = row.get("reason") or "no reason given"
    return broken("status", row["id"], row["target"], "ok", "failed", f"{row['id']}: failed: {reason}")


def reference_ids(results: dict[str, Any]) -> set[str]:
    """The ids of the untouched rows, one for each target."""
    named = {against["id"] for row in results["variants"] if (against := row.get("vs_reference"))}
    return named | {results["reference"]}


def _limits_for(row: Row, settings: GateSection, *, is_reference: bool) -> dict[str, _Limit]:
    """The limits on a row: those for all, overridden by each rule that names it, in order."""
    found = {} if is_reference else {key: _Limit(value, named=False) for key, value in _set(settings).items()}
    for rule in settings.rule:
        if is_reference and rule.variant != row["variant"]:
            continue  # the reference is judged only where a rule names it
        if fnmatchcase(row["variant"], rule.variant) and fnmatchcase(row["target"], rule.target):
            found |= {key: _Limit(value, named=rule.target != "*") for key, value in _set(rule).items()}
    return found


def _set(limits: Limits) -> dict[str, float]:
    return {key: value for key in LIMITS if (value := getattr(limits, key)) is not None}


def _check_row(row: Row, limits: dict[str, _Limit], checks: list[Check], notes: list[str]) -> None:
    for name, limit in limits.items():
        judged = LIMITS[name](row, limit.value)
        built = row["status"] == "built"
        if isinstance(judged, str):
            if built:
                notes.append(f"{row['id']}: {name}: not checked, the device is not here")
            else:
                checks.append(unknown(name, row, limit.value, judged))
        elif built and judged.passed is not True and not limit.named:
            # A row for a device that is not here does not fail the gate, unless a rule names that device.
            notes.append(
                f"{judged.sentence} (only built here: noted, not judged; a rule for its target would judge it)"
            )
        else:
            checks.append(judged)


def _check_rule(variant: str, target: str, results: dict[str, Any], checks: list[Check], notes: list[str]) -> None:
    """A rule that matches nothing is a mistake, unless its row is in the recipe and this run left it out."""
    rows = results["variants"]
    if any(fnmatchcase(r["variant"], variant) and fnmatchcase(r["target"], target) for r in rows):
        return
    recipe = results.get("recipe") or {}
    variants = {r["variant"] for r in rows} | {v.get("name", "") for v in recipe.get("variant") or ()}
    targets = {r["target"] for r in rows} | {str(t) for t in recipe.get("targets") or ()}
    if any(fnmatchcase(v, variant) for v in variants) and any(fnmatchcase(t, target) for t in targets):
        notes.append(f"the rule for variant '{variant}' on target '{target}': not checked, no such row in this run")
        return
    says = f"the rule for variant '{variant}' on target '{target}' matches no row: check the names"
    checks.append(broken("rule", None, None, "matches a row", "matches none", says))


# ── one function for each limit: row, limit → check, or why there is nothing to check ─────────────


def _min_metric(row: Row, limit: float) -> Judged:
    metric = row.get("metric")
    if not metric:
        return "no metric was computed"
    # The limit is on the score of this test set, so its value decides; the interval says how far it carries.
    if metric["higher_is_better"]:
        return at_least("min_metric", row, metric["name"], metric["value"], limit, FRACTION)
    return at_most("min_metric", row, f"{metric['name']} (lower is better)", metric["value"], limit, FRACTION)


def _max_metric_drop(row: Row, limit: float) -> Judged:
    metric, against = row.get("metric"), row.get("vs_reference") or {}
    if not metric or against.get("metric_delta") is None:
        return "no metric was compared with the reference's"
    delta, ci = against["metric_delta"], against.get("metric_delta_ci95")
    if not ci:
        return "the metric's change has no confidence interval"
    drop, low, high = (-delta, -ci[1], -ci[0]) if metric["higher_is_better"] else (delta, ci[0], ci[1])
    return at_most(
        "max_metric_drop",
        row,
        f"the drop in {metric['name']} on {metric['samples']} samples",
        drop,
        limit,
        FRACTION,
        honest_interval(drop, (low, high), metric),
    )


def honest_interval(drop: float, ci: Interval, metric: dict[str, Any]) -> Interval:
    """The interval of a drop, never narrower than its samples can tell.

    Models that agree on all of 200 samples give a bootstrap interval of no width at all, and still may
    differ on 3 in 200: the rule of three. For metrics whose values are shares.
    """
    if not 0 <= metric["value"] <= 1:
        return ci
    return ci[0], max(ci[1], drop + RULE_OF_THREE / metric["samples"])


def _max_size_bytes(row: Row, limit: float) -> Judged:
    if row.get("size_bytes") is None:
        return "no size is recorded"
    return at_most("max_size_bytes", row, "the artifact's size", row["size_bytes"], limit, BYTES)


def _max_size_ratio(row: Row, limit: float) -> Judged:
    ratio = (row.get("vs_reference") or {}).get("size_ratio")
    if ratio is None:
        return "there is no reference to compare sizes with"
    return at_most("max_size_ratio", row, "the size over the reference's", ratio, limit, RATIO)


def _max_latency_ms(row: Row, limit: float) -> Judged:
    latency = row.get("latency_ms")
    if not latency:
        return "no latency was measured"
    if reason := distrust(row):
        return reason
    ci = latency.get("ci95")
    interval = (ci[0], ci[1]) if ci else None
    return at_most("max_latency_ms", row, "the median latency", latency["median"], limit, MILLISECONDS, interval)


def _min_speedup(row: Row, limit: float) -> Judged:
    speedup = (row.get("vs_reference") or {}).get("speedup")
    if speedup is None:
        return "no latency was compared with the reference's"
    if reason := distrust(row):
        return reason
    interval = speed_interval(row)
    if interval is None:
        return f"the speed-up {speedup:.3f}x has no exact interval: {_without_interval(row)}"
    return at_least("min_speedup", row, "the speed-up over the reference", speedup, limit, RATIO, interval)


def _max_memory_bytes(row: Row, limit: float) -> Judged:
    if row.get("peak_rss_bytes") is None:
        return "no peak memory was measured"
    return at_most("max_memory_bytes", row, "peak memory above the runtime's", row["peak_rss_bytes"], limit, BYTES)


def _max_macs(row: Row, limit: float) -> Judged:
    if row.get("macs") is None:
        return "no multiply-adds were counted"
    return at_most("max_macs", row, "multiply-adds for one sample", row["macs"], limit, COUNT)


def _min_int8_macs_share(row: Row, limit: float) -> Judged:
    if row.get("int8_macs_share") is None:
        return "the share of int8 is not known"
    return at_least("min_int8_macs_share", row, "the share of int8 multiply-adds", row["int8_macs_share"], limit, SHARE)


def distrust(row: Row) -> str:
    """Why the row's times are not to be judged, in words; empty: they are."""
    measured = row.get("measured") or {}
    return str(measured.get("verdict") or "times were not steady") if measured.get("trusted") is False else ""


def speed_interval(row: Row) -> Interval | None:
    """The speed-up's exact 99 % interval where the record has one, else the 95 % interval that is shown."""
    measured, against = row.get("measured") or {}, row.get("vs_reference") or {}
    if "speedup_ci99" in measured:
        exact = measured["speedup_ci99"]
        return (exact[0], exact[1]) if exact else None
    shown = against.get("speedup_ci95")
    return (shown[0], shown[1]) if shown and all(map(math.isfinite, shown)) else None


def _without_interval(row: Row) -> str:
    """Why a speed-up has no interval."""
    if row.get("measured_on"):
        return "its times and the reference's were brought from a device, and not measured in turns"
    return "too few pairs of runs (8 are the least)"


LIMITS: dict[str, Callable[[Row, float], Judged]] = {
    "min_metric": _min_metric,
    "max_metric_drop": _max_metric_drop,
    "max_size_bytes": _max_size_bytes,
    "max_size_ratio": _max_size_ratio,
    "max_latency_ms": _max_latency_ms,
    "min_speedup": _min_speedup,
    "max_memory_bytes": _max_memory_bytes,
    "max_macs": _max_macs,
    "min_int8_macs_share": _min_int8_macs_share,
}


def ordered(checks: list[Check]) -> Iterator[Check]:
    """Broken ones first (worst by share of the limit), then those that can't be told, then the rest."""

    def key(check: Check) -> tuple[int, float]:
        rank = {False: 0, None: 1, True: 2}[check.passed]
        over = (
            check.excess / abs(check.limit)
            if check.excess and isinstance(check.limit, int | float) and check.limit
            else 0
        )
        return rank, -over

    return iter(sorted(checks, key=key))
