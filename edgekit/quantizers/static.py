"""Static int8: Q/DQ put in by the target's scheme, ranges found on calibration data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.quantizers import (
    _correct,
    _equalize,
    _faster,
    _guard,
    _place,
    _prepare,
    _ranges,
    _round,
    _samples,
    _saturation,
    _trt_rules,
)
from edgekit.quantizers._calibrate import Collector, Statistics
from edgekit.quantizers._draft import Draft
from edgekit.quantizers._job import Job, spool_of
from edgekit.quantizers._samples import Part, Samples
from edgekit.quantizers._score import Judge, require_signal

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.quantizers._place import Plan
    from edgekit.scheme import Scheme

SMOOTH = {"smooth": _correct.smooth}
EVERY = {**SMOOTH, "equalize": _equalize.equalize}  # where nobody named a way to find ranges, more time may be spent
WORTH_DB = 0.2  # a correction that gains less is left out: on other samples it may lose as much
TRIED_ON = 64  # samples that ranges are found on while a correction is tried
Seen = Mapping[str, Statistics]
Change = Callable[[Any, Any, Seen], int]


def quantize(model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
    """Put Q/DQ into a float model; see :class:`edgekit.quantizers._job.Quantizer`."""
    settings, spool = job.settings, spool_of(job)
    data = Samples(spool, settings.samples)
    _samples.check(model, data)
    if job.validation is not None:
        _samples.compare(data, Samples(job.validation, _samples.COMPARED))
    target, outputs = _faster.behind_layers(model, data, job.target)
    target, silu = _faster.float_silu(model, data, target)
    floats, timed = _faster.first_layers(model, data, target)
    scheme = target.quantize
    prepared = _prepare.prepare(model, _faster.rules(target, floats))
    judge = Judge(model, replace(data, part="held"), job.validation, job.metric, job.base)
    plan = _place.plan(model.graph, scheme, dict.fromkeys(floats, _faster.REASON))
    draft, score, seen, found = _drafted(model, plan, data, judge, scheme, settings.calibration)
    draft = replace(draft, floats=dict.fromkeys(floats, _faster.REASON))
    report = {"method": "static", "samples": len(data), "prepared": prepared, **found}
    report |= {"timed_in_float": timed, "timed_outputs": outputs, "timed_silu": silu}
    if scheme.saturates:
        risks = _saturation.overflows(draft, data)
        draft = replace(draft, bits=_saturation.repair(draft, risks))
        report["saturation"] = {"layers": risks, "repaired_with_bits": _saturation.SAFE_BITS}
    if layers := _round.coarse(draft):
        plain = draft.uncorrected or draft.model  # its biases made up for weights that are now others
        weights = _round.rounded(draft, layers, data)
        other = _unbiased(replace(draft, model=plain, weights=weights), seen)
        score, better = judge.sqnr([draft.build(), other.build()])
        if better > score + WORTH_DB:
            report["corrections"].append({"round": round(better - score, 2)})
            draft, score = other, better
    if settings.max_drop is not None:
        draft, guarded = _guard.guard(draft, judge, settings.max_drop)
        report |= guarded
    quantized = draft.build()
    if job.target.backend == "tensorrt":
        report["tensorrt_warnings"] = _trt_rules.require(quantized)
    changed = scheme.saturates or settings.max_drop is not None
    report["sqnr_db"] = round(judge.sqnr([quantized])[0] if changed else score, 2)
    require_signal(report["sqnr_db"])
    if job.validation is not None:
        require_signal(judge.sqnr([quantized], Samples(job.validation, _samples.COMPARED))[0])
    report["integer_nodes"] = len(draft.plan.nodes)
    report["embeddings"] = list(draft.plan.tables)
    report["float"] = [{"layer": layer, "reason": reason} for layer, reason in draft.plan.floats.items()]
    return quantized, report


def _drafted(
    model: ir.Model, plan: Plan, data: Samples, judge: Judge, scheme: Scheme, method: str
) -> tuple[Draft, float, Seen, dict[str, Any]]:
    """The best draft, by signal-to-noise on the samples held out, with ranges from all samples, and what was seen."""
    started = time.perf_counter()
    parts: tuple[Part, ...] = ("rest", "held") if method == "auto" else ("all",)
    collected = [_collect(model, plan, replace(data, part=part), method) for part in parts]
    seconds = time.perf_counter() - started
    methods = list(_ranges.METHODS) if method == "auto" else [method]
    drafts = [_draft(model, plan, collected[0], name, scheme) for name in methods]
    scores = judge.sqnr([d.build() for d in drafts])
    best = max(range(len(methods)), key=scores.__getitem__)
    report: dict[str, Any] = {
        "calibration": methods[best],
        "calibration_s": round(seconds, 3),
        "candidates": {name: round(score, 2) for name, score in zip(methods, scores, strict=True)},
    }
    seen: Seen = _merged(*collected) if method == "auto" else collected[0]
    draft = drafts[best] if method != "auto" else _draft(model, plan, seen, methods[best], scheme)
    changes = EVERY if method == "auto" else SMOOTH
    mended = _mended(draft, seen, data, judge, methods[best], changes)
    draft, score, seen, report["corrections"] = mended
    return draft, score, seen, report


def _mended(
    draft: Draft, seen: Seen, data: Samples, judge: Judge, method: str, changes: Mapping[str, Change]
) -> tuple[Draft, float, Seen, list[dict[str, float]]]:
    """The draft with the corrections that gain signal, its decibels, what was seen, and what each correction gained."""
    plan, scheme, corrections = draft.plan, draft.scheme, []
    few = replace(data, limit=min(data.limit, TRIED_ON), part="all")
    unbiased, before, after = _with_bias(draft, seen, judge)
    for name, change in changes.items():
        model = draft.model.clone()
        if change(model, plan, seen):
            trial = _collect(model, plan, few, method)
            better = max(_with_bias(_draft(model, plan, trial, method, scheme), trial, judge)[1:])
            if better > max(before, after) + WORTH_DB:
                corrections.append({name: round(better - max(before, after), 2)})
                seen = _collect(model, plan, data, method)
                draft = _draft(model, plan, seen, method, scheme)
                unbiased, before, after = _with_bias(draft, seen, judge)
    if after > before:
        corrections.append({"bias": round(after - before, 2)})
    return (unbiased if after > before else draft), max(before, after), seen, corrections


def _with_bias(draft: Draft, seen: Seen, judge: Judge) -> tuple[Draft, float, float]:
    """The draft with corrected biases, and the decibels without and with that: every other change is judged by both."""
    unbiased = _unbiased(draft, seen)
    before, after = judge.sqnr([draft.build(), unbiased.build()])
    return unbiased, before, after


def _unbiased(draft: Draft, seen: Seen) -> Draft:
    model = draft.model.clone()
    _correct.correct_biases(model, draft, seen)
    return replace(draft, model=model, uncorrected=draft.model)


def _draft(model: ir.Model, plan: Plan, seen: Seen, method: str, scheme: Scheme) -> Draft:
    return Draft(model=model, plan=plan, ranges=_ranges.ranges(seen, plan.activations, method, scheme), scheme=scheme)


def _collect(model: ir.Model, plan: Plan, samples: Samples, method: str) -> dict[str, Statistics]:
    histogram = method not in ("minmax", "average")
    collector = Collector(
        model, list(plan.activations), histogram=histogram, channels=_correct.channel_axes(model, plan)
    )
    collector.run(samples)
    return collector.statistics


def _merged(rest: Seen, held: Seen) -> dict[str, Statistics]:
    return {name: seen.merge(held[name]) for name, seen in rest.items()}
