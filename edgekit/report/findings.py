"""What the numbers say, in sentences, the unwelcome ones included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from edgekit.report import words
from edgekit.report.operators import grown_most
from edgekit.report.rows import Row, metric_of, part, rows_of, targets_of, text

# As good as the original, where no limit says otherwise: MLPerf Inference's "99 % of the reference".
GOOD_SHARE = 0.99


@dataclass(frozen=True)
class Finding:
    """One sentence about a row (None: about the run); ``kind`` says whether it is good news."""

    kind: Literal["good", "note", "bad"]
    sentence: str
    row: Row | None = None


@dataclass(frozen=True)
class Verdict:
    """The gate's word: ``pass``, ``fail``, ``inconclusive``, or ``none`` where nothing was asked."""

    kind: Literal["pass", "fail", "inconclusive", "none"]
    title: str
    sentence: str


def summary_sentence(results: dict[str, Any]) -> str:
    """The verdict and the best variant, in one or two sentences.

    Args:
        results: A record (``edgekit.results/1``); it is made safe to show here.
    """
    tidied = words.tidy(results)
    rows = rows_of(tidied)
    found = verdict(tidied, rows)
    return f"{found.title}. {found.sentence}"


def verdict(results: dict[str, Any], rows: list[Row]) -> Verdict:
    """The gate's word and what the run gained, for a tidied record."""
    gate = part(results, "gate")
    checks = [c for c in gate.get("checks") or [] if isinstance(c, dict)]
    gained = _gained(results, rows)
    if not checks:
        return Verdict("none", "No limits were set", gained)
    broken = [c for c in checks if c.get("passed") is False]
    unsure = [c for c in checks if c.get("passed") is None]
    if gate.get("passed") is True:
        return Verdict("pass", f"Gate passed: {_all(len(checks))}", gained)
    if gate.get("passed") is None:
        title = f"Gate inconclusive: this run can't prove {len(unsure)} of {_limits(len(checks))}"
        return Verdict("inconclusive", title, gained)
    return Verdict("fail", f"Gate failed: {len(broken)} of {_limits(len(checks))} broken", gained)


def _all(count: int) -> str:
    return "the one limit holds" if count == 1 else f"all {count} limits hold"


def _limits(count: int) -> str:
    return "1 limit" if count == 1 else f"{count} limits"


def _gained(results: dict[str, Any], rows: list[Row]) -> str:
    """What the best measured variant gained, or why nothing can be said."""
    if best := headline(results, rows):
        return gain_sentence(best)
    measured = [row for row in rows if row.measured]
    if not measured:
        return f"Nothing was measured on this machine ({_statuses(rows)})."
    if all(row.reference for row in measured):
        first = measured[0]
        value = words.metric_text(first.metric, first.metric_name)
        return f"Only the original was measured: {value} and {words.milliseconds(first.latency)} on {first.target}."
    return f"No variant was faster than the original and kept its {metric_of(rows).replace('_', ' ')}."


def _statuses(rows: list[Row]) -> str:
    counts = {status: sum(r.status == status for r in rows) for status in dict.fromkeys(r.status for r in rows)}
    return words.listing([f"{n} {status}" for status, n in counts.items()]) or "no variants"


def gain_sentence(row: Row) -> str:
    """``int8 on x86-cpu is 2.03× as fast as the original [1.98, 2.08], at 0.31× its size; …``."""
    speed = f"{words.times(row.speedup)} as fast as the original"
    if row.speedup_ci:
        speed += f" {words.ratio_interval(row.speedup_ci)}"
    size = f", at {words.times(row.size_ratio)} its size" if row.size_ratio is not None else ""
    metric = ""
    if row.delta is not None:
        change = f"{words.delta_text(row.delta, row.metric_name)} {words.delta_interval(row.delta_ci, row.metric_name)}"
        value = words.metric_text(row.metric, row.metric_name)
        metric = f"; {row.metric_name.replace('_', ' ')} {value} ({change.rstrip()})"
    return f"{row.label} is {speed}{size}{metric}."


def kept(results: dict[str, Any], row: Row) -> bool:
    """Whether a row kept the metric: by the recipe's own limits where it has some, else by MLPerf's 99 %."""
    checks = [c for c in part(results, "gate").get("checks") or [] if isinstance(c, dict)]
    mine = [c for c in checks if text(c, "variant") == row.id and "metric" in text(c, "name")]
    if mine:
        return all(c.get("passed") is True for c in mine)
    if row.metric is None or row.delta is None:
        return False
    original = row.metric - row.delta
    limit = GOOD_SHARE * original
    return not row.worse or (row.metric >= limit if row.higher_is_better else row.metric <= original / GOOD_SHARE)


def headline(results: dict[str, Any], rows: list[Row], target: str | None = None) -> Row | None:
    """The row with the greatest proven speed-up among those that kept the metric."""
    good = [r for r in rows if r.measured and not r.reference and r.faster and kept(results, r)]
    good = [r for r in good if target in (None, r.target)]
    return max(good, key=lambda r: r.speedup or 0.0, default=None)


def findings(results: dict[str, Any], rows: list[Row]) -> list[Finding]:
    """Everything a reader must not miss, worst first within each target."""
    order = {"bad": 0, "note": 1, "good": 2}
    found: list[Finding] = []
    for target in targets_of(rows):
        mine = [row for row in rows if row.target == target]
        found += sorted(_about_target(results, mine, target), key=lambda f: order[f.kind])
    return found


def _about_target(results: dict[str, Any], rows: list[Row], target: str) -> Iterator[Finding]:
    reference = next((r for r in rows if r.reference), None)
    if best := headline(results, rows, target):
        yield Finding("good", gain_sentence(best), best)
    for row in rows:
        if row.status == "failed":
            yield Finding("bad", f"{row.label} failed: {row.reason or 'no reason was recorded'}", row)
        elif row.status == "ok" and not row.reference:
            yield from _about_row(row, reference)
            yield from _against_unpruned(row, rows)
    yield from _not_run(rows, target)


def _not_run(rows: list[Row], target: str) -> Iterator[Finding]:
    """One sentence for all rows of a target that were only built, or could not run at all."""
    for status, what in (("built", "built here but not measured"), ("unavailable", "not available here")):
        mine = [row for row in rows if row.status == status]
        for reason in dict.fromkeys(row.reason for row in mine):
            who = words.listing([words.short(r.variant, 40) for r in mine if r.reason == reason], 6)
            because = reason.removeprefix("not available here, because ")
            yield Finding(
                "note", f"{words.short(target, 40)}: {who} {what}, because {because or 'of no stated reason'}"
            )


def _about_row(row: Row, reference: Row | None) -> Iterator[Finding]:
    metric = row.metric_name.replace("_", " ")
    if row.worse:
        change = words.delta_text(row.delta, row.metric_name)
        bounds = words.delta_interval(row.delta_ci, row.metric_name)
        lost = "" if row.reference else f"{row.label} is worse than the original: {metric} {change} {bounds}"
        yield Finding("bad", f"{lost}{_lost_at(row)}.", row)
    if row.speedup is not None and row.faster is not True:
        yield Finding("bad" if row.faster is False else "note", _not_faster(row, reference), row)
    if row.size_ratio is not None and row.size_ratio >= 1:
        yield Finding("note", f"{row.label} is no smaller than the original ({words.times(row.size_ratio)}).", row)


def _lost_at(row: Row) -> str:
    """The stage at which most of the metric went, where the stages tell."""
    sign = 1 if row.higher_is_better else -1
    known = [s for s in row.stages if s.metric is not None]
    steps = [(after.name, (after.metric or 0.0) - (before.metric or 0.0)) for before, after in pairwise(known)]
    if not steps:
        return ""
    name, change = min(steps, key=lambda step: sign * step[1])
    if sign * change >= 0:
        return ""
    return f"; most of it went at the stage '{name}' ({words.delta_text(change, row.metric_name)})"


def _not_faster(row: Row, reference: Row | None) -> str:
    bounds = words.ratio_interval(row.speedup_ci)
    if row.faster is False:
        fact = f"{row.label} is slower than the original: {words.times(row.speedup)} {bounds}".rstrip()
    elif row.speedup_ci:
        fact = f"{row.label} is not measurably faster than the original: {words.times(row.speedup)} {bounds} includes 1"
    else:
        fact = f"{row.label} ran at {words.times(row.speedup)} the original's speed, with no interval to tell whether"
        fact += " that is a difference"
    reasons = row.explain or tuple(_why(row, reference))
    return f"{fact}. {' '.join(reasons)}".rstrip() if reasons else f"{fact}."


def _why(row: Row, reference: Row | None) -> Iterator[str]:
    """Causes that the record itself shows, said as likely, where the measuring stage gave none."""
    if reference is not None and (grown := grown_most(row.raw, reference.raw)):
        yield f"Its profile shows where the time went: {grown}."
    if row.int8_share is not None and 0 < row.int8_share < 0.9:
        yield f"Only {words.share(row.int8_share)} of its multiply-adds run in int8; the rest converts back and forth."
    if reference is not None and row.macs and reference.macs and row.macs < 0.95 * reference.macs:
        ratio = words.times(row.macs / reference.macs)
        yield (
            f"It does {ratio} of the multiply-adds, but time does not follow them: kernels work on blocks of channels,"
            " and widths that do not fill a block leave lanes idle."
        )


def _against_unpruned(row: Row, rows: list[Row]) -> Iterator[Finding]:
    """Whether pruning cost speed: the same route without it is proven faster."""
    if "prune" not in _route(row) or row.speedup_ci is None:
        return
    rest = _route(row) - {"prune", "recover"}
    for other in rows:
        if (
            other.speedup_ci
            and not other.reference
            and _route(other) == rest
            and other.speedup_ci[0] > row.speedup_ci[1]
        ):
            yield Finding(
                "bad",
                f"{row.label} is slower than {words.short(other.variant, 40)}, the same route unpruned"
                f" ({words.times(row.speedup)} against {words.times(other.speedup)}): the channel counts that pruning"
                " left do not fit this target's kernels.",
                row,
            )


def _route(row: Row) -> set[str]:
    return {stage.name for stage in row.stages}
