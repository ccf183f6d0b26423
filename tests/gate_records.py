"""Records for the gate's tests, made by hand so that every number in them is known."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

from edgekit import result

Record = dict[str, Any]


def row(variant: str, target: str = "x86-cpu", **changes: Any) -> Record:
    """A finished row; ``changes`` replace its keys, dotted ones nested keys (``metric__value``)."""
    name = f"{variant}@{target}"
    speedup = 1.0 if variant == "fp32" else 2.0
    digest = hashlib.sha256(name.encode()).hexdigest()
    made: Record = {
        "id": name,
        "variant": variant,
        "target": target,
        "backend": "onnxruntime",
        "status": "ok",
        "reason": "",
        "stages": [],
        "artifact": {
            "path": f"artifacts/{name}/model.onnx",
            "sha256": digest,
            "files": [{"path": f"artifacts/{name}/model.onnx", "sha256": digest, "size_bytes": 1000}],
        },
        "size_bytes": 1000 if variant == "fp32" else 300,
        "parameters": 250,
        "macs": 10_000,
        "int8_macs_share": 0.0 if variant == "fp32" else 0.95,
        "metric": {
            "name": "accuracy",
            "value": 0.90,
            "ci95": [0.894, 0.906],
            "samples": 10_000,
            "higher_is_better": True,
        },
        "latency_ms": {
            "median": 2.0 / speedup,
            "p90": 2.2,
            "p99": 3.0,
            "ci95": [1.98 / speedup, 2.02 / speedup],
            "runs": 10,
        },
        "first_inference_ms": 3.0,
        "peak_rss_bytes": 5_000_000,
        "measured": {"trusted": True, "verdict": "", "speedup_ci99": [speedup * 0.98, speedup * 1.02]},
        "vs_reference": {
            "id": f"fp32@{target}",
            "metric_delta": 0.0 if variant == "fp32" else -0.002,
            "metric_delta_ci95": [0.0, 0.0] if variant == "fp32" else [-0.004, 0.0],
            "size_ratio": 1.0 if variant == "fp32" else 0.3,
            "speedup": speedup,
            "speedup_ci95": [speedup * 0.99, speedup * 1.01],
        },
        "pareto": True,
    }
    for key, value in changes.items():
        place = made
        *parents, last = key.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    return made


def built(variant: str, target: str = "raspberry-pi-5", **changes: Any) -> Record:
    """A row for a device that is not here."""
    absent = {"status": "built", "latency_ms": None, "first_inference_ms": None, "peak_rss_bytes": None}
    made = row(variant, target, **absent)
    made["measured"] = None
    made["vs_reference"] |= {"speedup": None, "speedup_ci95": None}
    for key, value in changes.items():
        made[key] = value
    return made


def absent(variant: str, status: str, target: str = "x86-cpu") -> Record:
    """A row without numbers."""
    none = dict.fromkeys(
        ("artifact", "size_bytes", "parameters", "macs", "int8_macs_share", "metric", "latency_ms", "vs_reference")
    )
    made = {**row(variant, target), **none, "first_inference_ms": None, "peak_rss_bytes": None, "measured": None}
    return {**made, "status": status, "reason": "the runtime is not installed", "pareto": False}


def record(*rows: Record, gate: Record | None = None, **changes: Any) -> Record:
    """A valid record of these rows, the untouched model's first."""
    made: Record = {
        "schema": "edgekit.results/1",
        "recipe": {"gate": gate or {}, "targets": sorted({r["target"] for r in rows}) or ["x86-cpu"]},
        "environment": {"cpu": "Test CPU 9000", "isa": ["avx2"]},
        "seed": 0,
        "lock": {"model": "m" * 64, "weights": "w" * 64, "data": {"test": "d" * 64}},
        "reference": "fp32@x86-cpu",
        "variants": copy.deepcopy(list(rows)) or [row("fp32"), row("int8")],
        "gate": {"passed": None, "checks": []},
    }
    made |= changes
    result.validate(made)
    return made
