"""The runtimes. A file here is one: it satisfies the protocol :class:`Backend` as a module.

Everything here is native code that can abort, so callers go through :mod:`edgekit.child`
or a measuring worker, never through their own process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgekit import rooms

if TYPE_CHECKING:
    import numpy as np

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
        milliseconds: Mean over the profiled inferences.
        precision: What it computes in: ``int8``, ``fp32`` …
    """

    name: str
    operator: str
    milliseconds: float
    precision: str


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

    def probe(self) -> dict[str, str]:
        """Facts (``version``, ``devices`` …) where the runtime works here.

        Raises:
            UnavailableError: Not installed, does not load, no device, or a device too old; each with its remedy.
        """
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


def load(name: str, *, base: Path | None = None) -> Backend:
    """The backend of that name, or the user's own by path.

    Raises:
        InputError: No such backend.
    """
    return cast("Backend", rooms.load("backends", name, base=base))
