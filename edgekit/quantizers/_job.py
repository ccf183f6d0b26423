"""What a quantizer is asked to do, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.errors import InputError
from edgekit.recipe import MetricSection, QuantizeSection
from edgekit.target import Target
from edgekit.workload.spool import Spool

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, kw_only=True)
class Job:
    """One quantization.

    Attributes:
        calibration: The calibration samples, on disk; None for methods that need none.
        target: Whose scheme rules.
        settings: The recipe's ``[quantize]``.
        metric, validation: What "as good" means, and on which labelled samples; None: signal-to-noise decides.
        base: The recipe's folder, for the user's own files.
        draft: Training follows: what is noise so far is not refused.
    """

    calibration: Spool | None
    target: Target
    settings: QuantizeSection = field(default_factory=QuantizeSection)
    metric: MetricSection | None = None
    validation: Spool | None = None
    base: Path = Path()
    draft: bool = False


class Quantizer(Protocol):
    """What a file in this folder offers."""

    def quantize(self, model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
        """Quantize a float model (which may be changed in place).

        Returns:
            The quantized model, and what is to be told of it (JSON).
        """
        ...


def spool_of(job: Job) -> Spool:
    """The calibration samples.

    Raises:
        InputError: There are none.
    """
    if job.calibration is None:
        raise InputError(
            f"the method '{job.settings.method}' needs calibration data",
            remedy="give a 'calibration' split: a few hundred samples of real inputs",
        )
    return job.calibration
