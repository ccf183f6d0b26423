# ruff: noqa: UP006, UP035  (a board may have Python 3.8)
"""OpenVINO on the device, as edgekit measures it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Dict, List

Feeds = Dict[str, Any]
Run = Callable[[Feeds], List[Any]]


def open_model(path: Path, run: Dict[str, Any]) -> Run:
    """Load the model as it was measured: the same device, precision and threads."""
    os.environ["OPENVINO_TELEMETRY_DISABLE"] = "1"
    import openvino

    core = openvino.Core()
    device = run["options"]["device"]
    compiled = core.compile_model(str(path), device, properties_of(run))
    request = compiled.create_infer_request()
    ports = range(len(compiled.outputs))

    def call(feeds: Feeds) -> List[Any]:
        results = request.infer(feeds, share_inputs=True)
        return [results[port] for port in ports]

    return call


def properties_of(run: Dict[str, Any]) -> Dict[str, Any]:
    """The properties of a target."""
    options = run["options"]
    device = options["device"].split(":")[0].split(".")[0]
    precision = options["inference_precision"] or ("f32" if device in ("CPU", "AUTO") else "auto")
    properties: Dict[str, Any] = {}
    if device == "CPU":
        properties.update(INFERENCE_NUM_THREADS=run["threads"], NUM_STREAMS=1)
    if precision != "auto":
        properties["INFERENCE_PRECISION_HINT"] = precision
    if options["performance_hint"] != "none":
        properties["PERFORMANCE_HINT"] = options["performance_hint"].upper()
    properties.update(options["properties"])
    return properties
