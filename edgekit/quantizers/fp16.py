"""Float16 by casts in the graph, for targets that compute it fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.quantizers import _cast
from edgekit.quantizers._job import Job

if TYPE_CHECKING:
    import onnx_ir as ir


def quantize(model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
    """Compute in float16; see :func:`edgekit.quantizers._cast.halve`."""
    return _cast.halve(model, job, "float16")
