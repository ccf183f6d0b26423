# ruff: noqa: UP006, UP035  (a board may have Python 3.8)
"""ONNX Runtime on the device, as edgekit measures it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Dict, List

from edgekit_board import BundleError  # type: ignore[import-not-found]

Feeds = Dict[str, Any]
Run = Callable[[Feeds], List[Any]]


def open_model(path: Path, run: Dict[str, Any]) -> Run:
    """Load the model as it was measured: the same threads, provider and memory settings."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    settings = settings_of(ort, run)
    options = run["options"]
    wanted = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}.get(options["provider"])
    providers: List[Any] = ["CPUExecutionProvider"]
    if wanted:
        if wanted not in ort.get_available_providers():
            raise BundleError(4, f"this onnxruntime has no {wanted}", "install onnxruntime-gpu in place of onnxruntime")
        providers.insert(0, (wanted, {k: str(v) for k, v in options["provider_options"].items()}))
    session = ort.InferenceSession(str(path), settings, providers=providers)
    if wanted and session.get_providers()[0] != wanted:
        raise BundleError(
            4, f"{wanted} did not start", "check the driver, CUDA and cuDNN versions of this onnxruntime-gpu"
        )
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: session.run(names, feeds)


def settings_of(ort: Any, run: Dict[str, Any]) -> Any:
    """The session options of a target."""
    options = run["options"]
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = run["threads"]
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    settings.enable_cpu_mem_arena = options["arena"]
    settings.enable_mem_pattern = options["memory_pattern"]
    entries = {
        "session.intra_op.allow_spinning": str(int(options["spinning"])),
        "session.inter_op.allow_spinning": "0",
        "session.set_denormal_as_zero": str(int(options["flush_denormals"])),
    }
    entries.update(options["session"])
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    return settings
