"""What the numbers say, in sentences, the unwelcome ones included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from edgekit.report import words
from edgekit.report.operators import grown_most, kept_float, objects
from edgekit.report.rows import Row, metric_of, part, rows_of, targets_of, text

# As good as the original, where no limit says otherwise: MLPerf Inference's "99 % of the reference".
GOOD_SHARE = 0.99
MOST_ALIKE = 6  # sentences of one kind; more become one that counts them
_TRAINS = ("recover", "finetune")  # such a stage mends what the one before it took: they count as one


@dataclass(frozen=True)
class Finding:
    """One sentence about a row (None: about the run); ``kind`` says whether it is good news."""

    kind: Literal["bad", "note", "good"]
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
    found = verdict(tidied, rows_of(tidied))
    return f"{found.title}. {found.sentence}"


def bad_news(results: dict[str, Any]) -> list[str]:
    """What a reader must not miss, a sentence each: failures, losses, what is slower than it was.

    Args:
        results: A record (``edgekit.results/1``); it is made safe to show here.
    """
    tidied = words.tidy(results)
    return [found.sentence for found in findings(tidied, rows_of(tidied)) if found.kind == "bad"]


def verdict(results: dict[str, Any], rows: list[Row]) -> Verdict:
    """The gate's word and what the run gained, for a tidied record."""
    gate = part(results, "gate")
    checks = list(objects(gate.get("checks")))
    gained = _gained(results, rows)
    limits = words.counted(len(checks), "limit")
    over = sum(c.get("passed") is False for c in checks)
    unsure = sum(c.get("passed") is None for c in checks)
    if results.get("interrupted"):
        done = sum(row.status != "failed" for row in rows)
        return Verdict("fail", f"Interrupted: {done} of {words.counted(len(rows), 'row')} finished", gained)
    if gate.get("passed") is True and checks:
        return Verdict(
            "pass", f"Gate passed: {'the limit holds' if len(checks) == 1 else f'all {limits} hold'}", gained
        )
    if gate.get("passed") is False:
        why = f"{over} of {limits} broken" if over else "it had nothing to check"
        return Verdict("fail", f"Gate failed: {why}", gained)
    if checks:
        return Verdict("inconclusive", f"Gate inconclusive: this run can't prove {unsure} of {limits}", gained)
    return Verdict("none", "No limits were set", gained)


def broken(results: dict[str, Any]) -> list[str]:
    """A sentence for each limit that is broken or can't be told, the broken ones first."""
    checks = [c for c in objects(part(results, "gate").get("checks")) if c.get("passed") is not True]
    checks.sort(key=lambda c: c.get("passed") is None)
    return [text(c, "sentence") or f"{text(c, 'variant')}: {text(c, 'name')}" for c in checks]


def _gained(results: dict[str, Any], rows: list[Row]) -> str:
    """What the best measured variant gained, or why nothing can be said."""
    if best := headline(results, rows):
        return gain_sentence(best)
    measured = [row for row in rows if row.measured]
    if not measured:
        counts = {status: sum(r.status == status for r in rows) for status in dict.fromkeys(r.status for r in rows)}
        states = words.listing([f"{n} {status}" for status, n in counts.items()]) or "no variants"
        return f"Nothing was measured on this machine ({states})."
    if all(row.reference for row in measured):
        first = measured[0]
        value = words.metric_text(first.metric, first.metric_name)
        where = words.short(first.target, 40)
        return f"Only the original was measured: {value} and {words.milliseconds(first.latency)} on {where}."
    unsure = [row for row in measured if row.faster and kept(results, row) is None]
    if fastest := max(unsure, key=lambda row: row.speedup or 0.0, default=None):
        doubt = f"Whether its {words.plain(metric_of(rows))} holds the limit, these test samples can't tell."
        return f"{gain_sentence(fastest)} {doubt}"
    return f"No variant was measurably faster than the original and kept its {words.plain(metric_of(rows))}."


def gain_sentence(row: Row) -> str:
    """``int8 on x86-cpu is 2.03× as fast as the original [1.98, 2.08], at 0.31× its size; …``."""
    speed = f"{words.times(row.speedup)} as fast as the original {words.ratio_interval(row.speedup_ci)}".rstrip()
    size = f", at {words.times(row.size_ratio)} its size" if row.size_ratio is not None else ""
    metric = ""
    if row.delta is not None:
        value = words.metric_text(row.metric, row.metric_name)
        metric = f"; {words.plain(row.metric_name)} {value} ({_change(row)})"
    unproven = "" if row.faster else f" (seen, not proven{'' if row.speedup_ci else ': without an interval'})"
    return f"{row.label} is {speed}{unproven}{size}{metric}."


def _doubt(row: Row) -> str:
    """Why this run can't tell whether a row is faster."""
    if row.speedup_ci is None:
        return "there is no interval, because the two were not measured in turns"
    if row.measurement.get("trusted") is False:
        said = text(row.measurement, "verdict").partition(" (")[0]
        return said.removeprefix("can't tell, because ") or "the machine's state moved while it was measured"
    pairs = row.measurement.get("pairs")
    if row.measurement.get("different") is None and isinstance(pairs, int):
        return f"{pairs} pairs of runs are too few for a 99 % interval"
    smallest = row.measurement.get("mde")
    return (
        f"the smallest change this run could have proved is {words.percent(smallest)}"
        if smallest
        else "the interval holds 1"
    )


def _change(row: Row) -> str:
    return words.joined(
        words.delta_text(row.delta, row.metric_name), words.delta_interval(row.delta_ci, row.metric_name)
    )


def kept(results: dict[str, Any], row: Row) -> bool | None:
    """Whether a row kept the metric: by the recipe's own limits where it has some, else by MLPerf's 99 %.

    None: no limit is broken, but the test samples can't prove one of them.
    """
    checks = objects(part(results, "gate").get("checks"))
    mine = [c.get("passed") for c in checks if text(c, "variant") == row.id and "metric" in text(c, "name")]
    if mine:
        return False if False in mine else None if None in mine else True
    if row.metric is None or row.delta is None:
        return False
    original = row.metric - row.delta
    good = row.metric >= GOOD_SHARE * original if row.higher_is_better else row.metric <= original / GOOD_SHARE
    return good or not row.worse


def headline(results: dict[str, Any], rows: list[Row], target: str | None = None) -> Row | None:
    """The fastest row of those that kept the metric; a proven gain comes before one that is only seen.

    Of rows that are as fast as it, as far as this run can tell, the one with the better metric, then the smaller.
    """
    mine = [r for r in rows if r.measured and not r.reference and target in (None, r.target)]
    good = [r for r in mine if (r.faster or (r.faster is None and r.seems_faster)) and kept(results, r)]
    good = [r for r in good if r.faster] or good
    fastest = max(good, key=lambda r: r.speedup or 0.0, default=None)
    return max((r for r in good if fastest and _as_fast(r, fastest)), key=_worth, default=None)


def _as_fast(row: Row, fastest: Row) -> bool:
    """Whether the intervals of two speed-ups overlap; one without an interval equals only itself."""
    if row.speedup_ci is None or fastest.speedup_ci is None:
        return row.speedup == fastest.speedup
    return row.speedup_ci[1] >= fastest.speedup_ci[0]


def _worth(row: Row) -> tuple[float, float, float]:
    """What decides between equally fast rows: the metric, the size, and last the speed-up as it was seen."""
    metric = row.metric or 0.0
    return metric if row.higher_is_better else -metric, -(row.size_bytes or math.inf), row.speedup or 0.0


# ── what a reader must not miss ───────────────────────────────────────────────────────────


def findings(results: dict[str, Any], rows: list[Row]) -> list[Finding]:
    """Everything a reader must not miss: bad news first, then notes, then what else was gained."""
    found = [*_failed(rows), *_worse(rows)]
    best = headline(results, rows)
    for target in targets_of(rows):
        mine = [row for row in rows if row.target == target]
        found += [*_speed(mine), *_against_unpruned(mine), *_size(mine), *_not_run(mine, target)]
        other = headline(results, rows, target)
        if other is not None and best is not None and other.target != best.target:
            found.append(Finding("good", gain_sentence(other), other))
    order = {"bad": 0, "note": 1, "good": 2}
    return sorted(found, key=lambda f: order[f.kind])


def _failed(rows: list[Row]) -> Iterator[Finding]:
    for row in rows:
        if row.status == "failed":
            yield Finding("bad", f"{row.label} failed: {row.reason or 'no reason was recorded'}", row)


def _worse(rows: list[Row]) -> Iterator[Finding]:
    """Variants whose loss is proven; one sentence for all targets of a variant, with the greatest loss."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.worse and not row.reference:
            groups.setdefault(row.variant, []).append(row)
    if len(groups) > MOST_ALIKE:
        names = words.listing([words.short(variant, 30) for variant in groups])
        yield Finding("bad", f"{len(groups)} variants are worse than the original by more than chance: {names}.")
        return
    for variant, mine in groups.items():
        worst = max(mine, key=lambda row: abs(row.delta or 0.0))
        where = words.listing([words.short(row.target, 40) for row in mine])
        most = "" if len({_change(row) for row in mine}) == 1 else f" on {words.short(worst.target, 40)}"
        lost = f"{words.plain(worst.metric_name)} {_change(worst)}{most}{_lost_at(worst)}"
        yield Finding("bad", f"{words.short(variant, 40)} on {where} is worse than the original: {lost}.", worst)


def _lost_at(row: Row) -> str:
    """The stage at which most of the metric went, where the stages tell; training counts to what it mends."""
    known = [stage for stage in row.stages if stage.metric is not None]
    lost: dict[str, float] = {}
    for before, after in pairwise(known):
        name = f"{before.name} and {after.name}" if after.name in _TRAINS else after.name
        change = (after.metric or 0.0) - (before.metric or 0.0)
        lost[name] = change + (lost.pop(before.name, 0.0) if after.name in _TRAINS else 0.0)
    sign = 1 if row.higher_is_better else -1
    name, change = min(lost.items(), key=lambda item: sign * item[1], default=("", 0.0))
    if sign * change >= 0:
        return ""
    at = "stages" if " and " in name else "stage"
    return f", most of it at the {at} {name} ({words.delta_text(change, row.metric_name)})"


def _speed(rows: list[Row]) -> Iterator[Finding]:
    """Rows that are not faster than the original, and why; those whose gain is seen but not proven, together."""
    reference = next((row for row in rows if row.reference), None)
    doubted: dict[str, list[Row]] = {}
    for row in rows:
        if not row.measured or row.reference or row.speedup is None or row.faster is True:
            continue
        if row.faster is None and row.seems_faster:
            doubted.setdefault(_doubt(row), []).append(row)
            continue
        reasons = [words.sentence(reason) for reason in row.explain[:2]] or _why(row, reference)
        sentence = f"{_not_faster(row)}. {' '.join(reasons)}".rstrip()
        yield Finding("bad" if row.faster is False else "note", sentence, row)
    for doubt, mine in doubted.items():
        who = words.listing([words.short(row.variant, 40) for row in mine])
        verb = "speed-up is" if len(mine) == 1 else "speed-ups are"
        yield Finding("note", f"On {words.short(mine[0].target, 40)}, {who}: the {verb} seen but not proven; {doubt}.")


def _not_faster(row: Row) -> str:
    speed = words.joined(words.times(row.speedup), words.ratio_interval(row.speedup_ci))
    if row.faster is False:
        return f"{row.label} is slower than the original: {speed} as fast"
    if row.seems_faster is False:
        return f"{row.label} seems slower than the original ({speed} as fast), which is not proven: {_doubt(row)}"
    return f"{row.label} is not measurably faster than the original: {speed} as fast; {_doubt(row)}"


def _why(row: Row, reference: Row | None) -> Iterator[str]:
    """Causes that the record itself shows, where the measuring stage gave none."""
    if reference is not None and (grown := grown_most(row.raw, reference.raw)):
        yield f"Its profile shows where the time went: {grown}."
    floating = [layer for layer in kept_float(row.raw) if text(layer, "reason")]
    if row.int8_share is not None and 0 < row.int8_share < 0.9:
        cause = (
            f", {words.short(text(floating[0], 'name'))} for one ({text(floating[0], 'reason')})" if floating else ""
        )
        yield f"Only {words.share(row.int8_share)} of its multiply-adds run in int8; the rest stays float{cause}."
    if reference is not None and row.macs and reference.macs and row.macs < 0.95 * reference.macs:
        ratio = words.times(row.macs / reference.macs)
        yield (
            f"It does {ratio} the multiply-adds, but time does not follow them: kernels work on blocks of channels,"
            " and widths that do not fill a block leave lanes idle."
        )
    if reference is not None and reference.latency is not None and reference.latency < 0.05:
        yield "At under 50 µs, the fixed cost of a call is much of the time, and no compression takes that away."


def _against_unpruned(rows: list[Row]) -> Iterator[Finding]:
    """Rows that pruning made slower: the same route without it is proven faster."""
    for row in rows:
        route = {stage.name for stage in row.stages}
        if "prune" not in route or row.speedup_ci is None:
            continue
        rest = route - {"prune", "recover"}
        others = [r for r in rows if r.speedup_ci and not r.reference and {stage.name for stage in r.stages} == rest]
        other = max(others, key=lambda r: r.speedup or 0.0, default=None)
        if other is not None and other.speedup_ci and other.speedup_ci[0] > row.speedup_ci[1]:
            speeds = f"{words.times(row.speedup)} against {words.times(other.speedup)}"
            sentence = (
                f"{row.label} is slower than {words.short(other.variant, 40)}, which is not pruned ({speeds})."
                " Kernels work on blocks of channels: the counts that pruning left fit them worse;"
                " target_speedup chooses counts by their measured time."
            )
            yield Finding("bad", sentence, row)


def _size(rows: list[Row]) -> Iterator[Finding]:
    for row in rows:
        if not row.reference and row.size_ratio is not None and row.size_ratio >= 1:
            yield Finding("note", f"{row.label} is no smaller than the original ({words.times(row.size_ratio)}).", row)


def _not_run(rows: list[Row], target: str) -> Iterator[Finding]:
    """One sentence for all rows of a target that were only built, or could not run at all."""
    for status, what in (("built", "built here but not measured"), ("unavailable", "not available here")):
        mine = [row for row in rows if row.status == status]
        for reason in dict.fromkeys(row.reason for row in mine):
            who = words.listing([words.short(r.variant, 40) for r in mine if r.reason == reason], 6)
            because = words.because(reason) or (
                "the device is not here" if status == "built" else "no reason was recorded"
            )
            yield Finding("note", f"{words.short(target, 40)}: {who} {what}: {because}")
