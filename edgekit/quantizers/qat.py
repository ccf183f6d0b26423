"""Quantization-aware training of the graph that ships: static Q/DQ, then fine-tuned in place.

The Q/DQ graph that :mod:`edgekit.quantizers.static` makes is run in torch node by node, taught by
the float model (and by labels, where there are some and ``[quantize.train] distill`` is under 1),
and its weights go back into the same file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import rooms, training
from edgekit.quantizers import _graph
from edgekit.quantizers._job import Job, spool_of

if TYPE_CHECKING:
    import onnx_ir as ir


def quantize(model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
    """Quantize, then train on the calibration samples; see :class:`edgekit.quantizers._job.Quantizer`.

    The recipe's line trains on ``[data] train`` instead, as a stage of its own.
    """
    spool = spool_of(job)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
        folder = Path(name)
        before, student, trained = (folder / f"{stem}.onnx" for stem in ("float", "student", "trained"))
        _graph.save(model, before)
        quantized, report = rooms.load("quantizers", "static").quantize(model, job)
        _graph.save(quantized, student)
        data = {"train": str(spool.folder), "validation": str(job.validation.folder) if job.validation else None}
        result = training.train(
            training.TrainJob(
                kind="qat",
                student=str(student),
                teacher=str(before),
                weights=str(before),
                out=str(trained),
                scratch=str(folder / "scratch"),
                data={"spool": data},
                settings=job.settings.train,
                metric=job.metric if job.validation else None,
                base=str(job.base),
            )
        )
        return _graph.load(trained), {**report, "method": "qat", "training": result}
