"""Static int8: Q/DQ put in by the target's scheme, ranges found on calibration data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.quantizers import _correct, _faster, _guard, _place, _prepare, _ranges, _samples, _saturation, _trt_rules
from edgekit.quantizers._calibrate import Collector, Statistics
from edgekit.quantizers._draft import Draft
from edgekit.quantizers._job import Job, spool_of
from edgekit.quantizers._samples import Samples
from edgekit.quantizers._score import Judge, require_signal

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.quantizers._place import Plan
    from edgekit.scheme import Scheme

WORTH_DB = 0.5  # a correction that gains less is left out: on other samples it may lose as much
Seen = Mapping[str, Statistics]


def quantize(model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
    """Put Q/DQ into a float model; see :class:`edgekit.quantizers._job.Quantizer`."""
    scheme, settings, spool = job.target.quantize, job.settings, spool_of(job)
    data = Samples(spool, settings.samples)
    _samples.check(model, data)
    if job.validation is not None:
        _samples.compare(data, Samples(job.validation, _samples.COMPARED))
    floats, timed = _faster.first_layers(model, data, job.target)
    prepared = _prepare.prepare(model, _faster.rules(job.target, floats))
    judge = Judge(model, replace(data, part="held"), job.validation, job.metric, job.base)
    plan = _place.plan(model.graph, scheme, dict.fromkeys(floats, _faster.REASON))
    draft, found = _drafted(model, plan, data, judge, scheme, settings.calibration)
    draft = replace(draft, floats=dict.fromkeys(floats, _faster.REASON))
    report = {"method": "static", "samples": len(data), "prepared": prepared, "timed_in_float": timed, **found}
    if scheme.saturates:
        risks = _saturation.overflows(draft, data)
        draft = replace(draft, bits=_saturation.repair(draft, risks))
        report["saturation"] = {"layers": risks, "repaired_with_bits": _saturation.SAFE_BITS}
    if settings.max_drop is not None:
        draft, guarded = _guard.guard(draft, judge, settings.max_drop)
        report |= guarded
    quantized = draft.build()
    if job.target.backend == "tensorrt":
        report["tensorrt_warnings"] = _trt_rules.require(quantized)
    report["sqnr_db"] = round(judge.sqnr([quantized])[0], 2)
    require_signal(report["sqnr_db"])
    if job.validation is not None:
        require_signal(judge.sqnr([quantized], Samples(job.validation, _samples.COMPARED))[0])
    report["integer_nodes"] = len(draft.plan.nodes)
    report["float"] = [{"layer": layer, "reason": reason} for layer, reason in draft.plan.floats.items()]
    return quantized, report


def _drafted(
    model: ir.Model, plan: Plan, data: Samples, judge: Judge, scheme: Scheme, method: str
) -> tuple[Draft, dict[str, Any]]:
    """The best draft, by signal-to-noise on the samples held out, with ranges from all samples."""
    started = time.perf_counter()
    rest, held = (_collect(model, plan, replace(data, part=part), method) for part in ("rest", "held"))
    seconds = time.perf_counter() - started
    methods = list(_ranges.METHODS) if method == "auto" else [method]
    drafts = [_draft(model, plan, rest, name, scheme) for name in methods]
    scores = judge.sqnr([d.build() for d in drafts])
    best = max(range(len(methods)), key=scores.__getitem__)
    report: dict[str, Any] = {
        "calibration": methods[best],
        "calibration_s": round(seconds, 3),
        "candidates": {name: round(score, 2) for name, score in zip(methods, scores, strict=True)},
        "corrections": [],
    }
    chosen, score, seen = drafts[best], scores[best], _merged(rest, held)
    smooth = model.clone()
    if _correct.smooth(smooth, plan, seen):
        again = _collect(smooth, plan, replace(data, part="rest"), methods[best])
        other = _draft(smooth, plan, again, methods[best], scheme)
        if (better := judge.sqnr([other.build()])[0]) > score + WORTH_DB:
            report["corrections"].append({"smooth": round(better - score, 2)})
            chosen, score, seen = other, better, _collect(smooth, plan, data, methods[best])
    corrected = chosen.model.clone()
    if _correct.correct_biases(corrected, plan, seen, scheme):
        other = replace(chosen, model=corrected)
        if (better := judge.sqnr([other.build()])[0]) > score + WORTH_DB:
            report["corrections"].append({"bias": round(better - score, 2)})
            chosen = other
    return _draft(chosen.model, plan, seen, methods[best], scheme), report


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
