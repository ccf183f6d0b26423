"""Static int8: Q/DQ put in by the target's scheme, ranges found on calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.quantizers import _calibrate, _insert, _place, _prepare, _ranges
from edgekit.quantizers._job import Job

if TYPE_CHECKING:
    import onnx_ir as ir


def quantize(model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
    """Put Q/DQ into a float model."""
    scheme, settings = job.target.quantize, job.settings
    prepared = _prepare.prepare(model, scheme.prepare)
    plan = _place.plan(model.graph, scheme)
    method = "minmax" if settings.calibration == "auto" else settings.calibration
    collector = _calibrate.Collector(model, list(plan.activations), histogram=method not in ("minmax", "average"))
    limit = min(settings.samples, job.calibration.samples)
    _calibrate.calibrate(collector, job.calibration.feeds(), limit)
    ranges = _ranges.ranges(collector.statistics, plan.activations, method, scheme)
    report = {
        "method": "static",
        "calibration": method,
        "samples": limit,
        "prepared": prepared,
        "integer_nodes": len(plan.nodes),
        "float": [{"layer": layer, "reason": reason} for layer, reason in plan.floats.items()],
    }
    return _insert.insert(model, plan, ranges, scheme), report
