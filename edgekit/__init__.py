"""edgekit: compress, compile and measure trained models for edge devices.

The public names are resolved lazily: ``import edgekit`` loads neither torch nor a runtime.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# Where each public name lives.
_HOMES = {
    "Recipe": "edgekit.recipe",
    "benchmark": "edgekit.measure",
    "compile": "edgekit.api",
    "export": "edgekit.api",
    "gate": "edgekit.gating",
    "load": "edgekit.exported",
    "load_recipe": "edgekit.recipe",
    "prune": "edgekit.pruners",
    "quantize": "edgekit.quantizers",
    "run": "edgekit.pipeline",
    "targets": "edgekit.target",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
