"""The door to TensorRT's Python binding: loading it, its log, its profiler."""

from __future__ import annotations

import logging
from typing import Any

from edgekit.errors import UnavailableError, missing_package

EXTRA = "tensorrt"
log = logging.getLogger("edgekit.tensorrt")


def runtime() -> Any:
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise missing_package("tensorrt", EXTRA, "to build and run TensorRT engines") from error
    except ImportError as error:
        raise UnavailableError(
            f"not available here, because TensorRT is installed but its library does not load: {error}",
            remedy="install tensorrt with its libraries (libnvinfer) for this machine's CUDA; on a Jetson JetPack's",
        ) from error
    return tensorrt


_errors: list[str] = []


def logger() -> Any:
    """TensorRT's log, led into ``logging``; errors are kept for messages."""
    trt = runtime()
    levels = {trt.Logger.INTERNAL_ERROR: logging.ERROR, trt.Logger.ERROR: logging.ERROR}
    levels |= {trt.Logger.WARNING: logging.INFO, trt.Logger.INFO: logging.DEBUG}

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.Logger.INTERNAL_ERROR, trt.Logger.ERROR):
                _errors.append(msg)
            log.log(levels.get(severity, logging.DEBUG), msg)

    _errors.clear()
    return Logger()


def last_error() -> str:
    return _errors[-1][:400] if _errors else "it gave no reason"


def profiler() -> Any:
    trt = runtime()

    class Profiler(trt.IProfiler):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.totals: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals[layer_name] = self.totals.get(layer_name, 0.0) + ms

    return Profiler()
