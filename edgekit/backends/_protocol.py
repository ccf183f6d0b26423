"""What a runtime offers, and what it says of a model: the types that all backends share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from pydantic import BaseModel

    from edgekit.target import Target

Feeds = Mapping[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a compiled model; ``None`` in ``shape`` is a free size (the batch)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Time of one layer in one inference, from the runtime's own profiler.

    Attributes:
        name: The layer's name in the compiled graph.
        operator: Its kind: ``QLinearConv``, ``Convolution`` …
        milliseconds: Over the profiled inferences, as the runtime tells it.
        precision: What it computes in: ``int8``, ``fp32`` …
        bytes_moved: Activations and weights that it reads and writes, where the runtime tells; else 0.
    """

    name: str
    operator: str
    milliseconds: float
    precision: str
    bytes_moved: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerPrecision:
    """What one layer of a compiled graph computes in.

    Attributes:
        name: The layer's name. operator: Its kind.
        macs: Multiply-adds of one sample; 0 for all but convolutions and matrix products.
        precision: ``int8``, ``fp32`` …
        reason: Why it stayed float, in words; empty for int8.
    """

    name: str
    operator: str
    macs: int
    precision: str
    reason: str = ""


class Session(Protocol):
    """A loaded model. ``run`` is what is measured: nothing in it but the runtime's own call."""

    inputs: Sequence[Port]
    outputs: Sequence[Port]

    def run(self, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
        """One inference; arrays in the order of ``outputs``."""
        ...


class Backend(Protocol):
    """What a file in this folder offers."""

    EXTRA: str  # the extra of the distribution that installs the runtime
    PACKAGE: str  # its import name; "" where it needs none
    TESTED: tuple[str, str]  # the oldest and newest version that edgekit was tested with
    DEVICES: Mapping[str, dict[str, Any]]  # what ``doctor`` proves: a device's name → the options that choose it
    Options: type[BaseModel]  # what a target's ``[options]`` may say

    def probe(self) -> dict[str, str]:
        """Facts (``version``, ``devices`` …) where the runtime works here.

        Raises:
            UnavailableError: Not installed, does not load, no device, or a device too old; each with its remedy.
        """
        ...

    def version(self) -> str:
        """The runtime's version; "" where it can't be told."""
        ...

    def compile_model(self, model: Path, target: Target, out: Path) -> Path:
        """Compile an ONNX file into the folder ``out``; return the artifact's main file."""
        ...

    def open_model(self, artifact: Path, target: Target) -> Session:
        """Load an artifact that :meth:`compile_model` made, or any model file the runtime reads."""
        ...

    def profile(self, artifact: Path, target: Target, feeds: Feeds) -> list[LayerTime]:
        """Time by layer, in execution order."""
        ...

    def layers(self, artifact: Path, target: Target) -> list[LayerPrecision]:
        """What each layer of the compiled graph computes in, conversions included."""
        ...
