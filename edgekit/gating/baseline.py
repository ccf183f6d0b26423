"""A record against an earlier one: the same rows, on the same model and data, then and now."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from edgekit.errors import InputError
from edgekit.gating.check import (
    BYTES,
    COUNT,
    FRACTION,
    RATIO,
    SHARE,
    Check,
    Interval,
    Unit,
    at_most,
    broken,
    unknown,
)
from edgekit.gating.limits import Row, distrust, failed, honest_interval, reference_ids, speed_interval
from edgekit.recipe import BaselineSection

CONTRADICTION = 0.1  # on the log scale: by how much two ways to the same ratio may differ in an honest record
Slowdowns = dict[str, Check]  # row's id → a check of times measured again just now


def refuse_strangers(results: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Refuse a baseline of another model, metric or test set.

    Raises:
        InputError: Says what differs.
    """
    now, then = results.get("lock") or {}, baseline.get("lock") or {}
    differs = []
    if _known_and_different(now.get("model"), then.get("model")):
        differs.append("model")
    if _known_and_different(_test_data(now), _test_data(then)):
        differs.append("test data")
    metrics = [{row["metric"]["name"] for row in r["variants"] if row.get("metric")} for r in (results, baseline)]
    if metrics[0] and metrics[1] and metrics[0] != metrics[1]:
        differs.append("metric")
    if differs:
        raise InputError(
            f"the baseline is of another {' and '.join(differs)}: its numbers can't be compared with these",
            remedy="give a baseline of the same model and data, or accept these results with --update-baseline",
        )


def _known_and_different(now: Any, then: Any) -> bool:
    return now is not None and then is not None and now != then


def _test_data(lock: dict[str, Any]) -> Any:
    data = lock.get("data")
    return data.get("test") if isinstance(data, dict) else data


def check_baseline(
    results: dict[str, Any],
    baseline: dict[str, Any],
    limits: BaselineSection,
    slowdowns: Slowdowns | None = None,
) -> tuple[list[Check], list[str]]:
    """Each row of the baseline against the same row now.

    Args:
        slowdowns: Times that were measured again; they replace the recorded ones.

    Raises:
        InputError: The baseline is of another model, metric or test set.
    """
    refuse_strangers(results, baseline)
    checks: list[Check] = []
    notes = _about_machines(results, baseline, again=slowdowns is not None)
    now = {row["id"]: row for row in results["variants"]}
    references = reference_ids(results)
    for then in baseline["variants"]:
        if then["status"] not in ("ok", "built"):
            continue
        row = now.pop(then["id"], None)
        if row is None:
            says = f"{then['id']}: is in the baseline, but not in these results"
            checks.append(broken("missing", then["id"], then["target"], "measured", "missing", says))
        elif row["status"] == "failed":
            checks.append(failed(row))
        elif row["status"] == "unavailable":
            notes.append(f"{row['id']}: not compared with the baseline, it can't run here: {row.get('reason') or ''}")
        else:
            pair = _reference_of(row, results), _reference_of(then, baseline)
            checks += _compared(row, then, limits, slowdowns, notes, pair, is_reference=row["id"] in references)
    fresh = [row for row in now.values() if row["status"] in ("ok", "built")]
    notes += [f"{row['id']}: not in the baseline: a new row" for row in fresh]
    return checks, notes


def _about_machines(results: dict[str, Any], baseline: dict[str, Any], *, again: bool) -> list[str]:
    if again:
        return ["the baseline's artifacts and these were measured again, interleaved, on this machine"]
    now, then = (str((r.get("environment") or {}).get("cpu") or "unknown") for r in (results, baseline))
    if now != then:
        return [f"the baseline is from another CPU ({then}; here {now}): ratios are compared, not milliseconds"]
    return ["times are compared as ratios to each run's own reference, for two runs are two moments of a machine"]


def _compared(
    row: Row,
    then: Row,
    limits: BaselineSection,
    slowdowns: Slowdowns | None,
    notes: list[str],
    reference_pair: tuple[Row | None, Row | None],
    *,
    is_reference: bool,
) -> Iterator[Check]:
    yield from _metric(row, then, limits.max_metric_drop)
    pairs: tuple[tuple[str, str, str, float, Unit], ...] = (
        ("size_bytes", "max_size_ratio", "size", limits.max_size_ratio, BYTES),
        ("peak_rss_bytes", "max_memory_ratio", "peak memory", limits.max_memory_ratio, BYTES),
        ("macs", "max_macs_ratio", "multiply-adds", limits.max_macs_ratio, COUNT),
    )
    for key, name, what, limit, unit in pairs:
        yield from _ratio(row, then, key, name, what, limit, unit)
    yield from _int8(row, then, limits.max_int8_share_drop)
    if row["status"] == "built" or then["status"] == "built":
        return
    if slowdowns is not None:
        if row["id"] in slowdowns:
            yield slowdowns[row["id"]]
    elif is_reference:
        notes.extend(_moved(row, then))
    else:
        yield _slowdown(row, then, limits.max_slowdown, reference_pair)


def _metric(row: Row, then: Row, limit: float) -> Iterator[Check]:
    if not then.get("metric"):
        return
    name = "baseline.max_metric_drop"
    if not row.get("metric"):
        yield unknown(name, row, limit, "the baseline has a metric for this row, these results have none")
        return
    sign = 1 if row["metric"]["higher_is_better"] else -1
    drop = sign * (then["metric"]["value"] - row["metric"]["value"])
    what = f"the drop in {row['metric']['name']} against the baseline"
    if same_artifact(row, then):
        yield at_most(name, row, f"{what} (the same file)", drop, limit, FRACTION)
        return
    half = _half_width(row, then)
    if half is None:
        yield unknown(name, row, limit, f"{what}, {drop:.4f}, has no confidence interval", drop)
        return
    ci = honest_interval(drop, (drop - half, drop + half), row["metric"])
    yield at_most(name, row, what, drop, limit, FRACTION, ci)


def same_artifact(row: Row, then: Row) -> bool:
    """Whether both rows are the very same files."""
    now_files, then_files = (
        sorted(f["sha256"] for f in (r.get("artifact") or {}).get("files") or ()) for r in (row, then)
    )
    return bool(now_files) and now_files == then_files


def _half_width(row: Row, then: Row) -> float | None:
    """Half the drop's 95 % interval: both runs' intervals in quadrature.

    Those of the paired changes where they are there: both are against the untouched model on the
    same samples, whose value is the same in both runs.
    """
    for section, key in (("vs_reference", "metric_delta_ci95"), ("metric", "ci95")):
        now, before = ((r.get(section) or {}).get(key) for r in (row, then))
        if now and before:
            return math.hypot((now[1] - now[0]) / 2, (before[1] - before[0]) / 2)
    return None


def _ratio(row: Row, then: Row, key: str, name: str, what: str, limit: float, unit: Unit) -> Iterator[Check]:
    before, now = then.get(key), row.get(key)
    if not before or (row["status"] == "built" and now is None):
        return
    full = f"baseline.{name}"
    if now is None:
        yield unknown(full, row, limit, f"the baseline has its {what}, these results don't")
        return
    yield at_most(
        full, row, f"{what} {unit.show(now)} over the baseline's {unit.show(before)}", now / before, limit, RATIO
    )


def _int8(row: Row, then: Row, limit: float) -> Iterator[Check]:
    before, now = then.get("int8_macs_share"), row.get("int8_macs_share")
    if before is None:
        return
    name = "baseline.max_int8_share_drop"
    if now is None:
        if row["status"] != "built":
            yield unknown(name, row, limit, "the baseline has the share of int8, these results don't")
        return
    yield at_most(
        name, row, f"the share of int8 {now:.1%}, the baseline's {before:.1%}; the drop", before - now, limit, SHARE
    )


def _reference_of(row: Row, results: dict[str, Any]) -> Row | None:
    name = (row.get("vs_reference") or {}).get("id")
    return next((r for r in results["variants"] if r["id"] == name), None)


def _slowdown(row: Row, then: Row, limit: float, references: tuple[Row | None, Row | None]) -> Check:
    """Speed-up then over speed-up now: each run's own reference cancels the machine and the moment."""
    name = "baseline.max_slowdown"
    before, now = ((r.get("vs_reference") or {}).get("speedup") for r in (then, row))
    if not before or not now:
        return unknown(name, row, limit, "no speed-up over the reference in both runs")
    if reason := distrust(row) or distrust(then):
        return unknown(name, row, limit, reason)
    what, ratio = "the slow-down against the baseline (by speed-ups)", before / now
    intervals = [i for i in (speed_interval(then), speed_interval(row)) if i]
    if len(intervals) == 2:
        check = at_most(name, row, what, ratio, limit, RATIO, _quotient(before, now, intervals))
    else:
        few = "a speed-up has no exact interval: too few pairs of runs (8 are the least)"
        check = unknown(name, row, limit, few, ratio)
    if check.passed is False:
        return check
    if contradiction := _contradiction(row, then, references, ratio, limit):
        return contradiction
    if check.passed is None and same_artifact(row, then) and _runtime(row) == _runtime(then):
        # Two noisy measurements of one file by one runtime: what they can't tell, its hash does.
        return at_most(name, row, f"{what}, of the same file in the same runtime,", 1.0, limit, RATIO)
    return check


def _contradiction(
    row: Row, then: Row, references: tuple[Row | None, Row | None], by_speedups: float, limit: float
) -> Check | None:
    """In an honest record the milliseconds over the reference's say what the speed-ups say; else neither passes."""
    times = [((r or {}).get("latency_ms") or {}).get("median") for r in (row, then, *references)]
    if not all(times):
        return None
    now, before, reference_now, reference_before = (float(t) for t in times if t)
    by_times = (now / reference_now) / (before / reference_before)
    if abs(math.log(by_times / by_speedups)) <= CONTRADICTION:
        return None
    name = "baseline.max_slowdown"
    if by_times > limit:
        what = "the slow-down against the baseline (by milliseconds over the reference's)"
        return at_most(name, row, what, by_times, limit, RATIO)
    says = f"milliseconds say {by_times:.3f}x, speed-ups {by_speedups:.3f}x: one of the records was changed by hand"
    return unknown(name, row, limit, says, by_times)


def _runtime(row: Row) -> tuple[Any, Any]:
    return row.get("backend"), (row.get("measured") or {}).get("runtime")


def _quotient(before: float, now: float, intervals: list[Interval]) -> Interval:
    """The interval of before / now: on the log scale each side's distances add up in quadrature."""
    (low_b, high_b), (low_n, high_n) = intervals
    up = math.hypot(math.log(high_b / before), math.log(now / low_n))
    down = math.hypot(math.log(before / low_b), math.log(high_n / now))
    ratio = before / now
    return ratio * math.exp(-down), ratio * math.exp(up)


def _moved(row: Row, then: Row) -> list[str]:
    """A word on the reference's own milliseconds: no verdict, for the machine's moment is in them."""
    before, now = ((r.get("latency_ms") or {}).get("median") for r in (then, row))
    if not before or not now or abs(now / before - 1) < 0.05:
        return []
    return [
        f"{row['id']}: the untouched model took {now:.4g} ms, in the baseline {before:.4g} ms: "
        "another moment, runtime or machine; --remeasure tells them apart"
    ]
