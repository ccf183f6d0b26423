"""Quantization-aware training of the graph that ships: static Q/DQ, then fine-tuned in place.

The Q/DQ graph that :mod:`edgekit.quantizers.static` makes is run in torch node by node, taught by
the float model (and by labels, where there are some and ``[quantize.train] distill`` is under 1),
and its weights go back into the same file.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import rooms, training
from edgekit.quantizers import _graph, _score
from edgekit.quantizers._job import Job, spool_of

if TYPE_CHECKING:
    import onnx_ir as ir


def quantize(model: ir.Model, job: Job) -> tuple[ir.Model, dict[str, Any]]:
    """Quantize, then train; see :class:`edgekit.quantizers._job.Quantizer`."""
    done, report = trained(model, job, "static")
    return done, {**report, "method": "qat"}


def trained(model: ir.Model, job: Job, member: str) -> tuple[ir.Model, dict[str, Any]]:
    """Quantize by any member whose graph can be trained, then train it on the calibration samples.

    The recipe's line trains on ``[data] train`` instead, as a stage of its own.
    """
    spool = spool_of(job)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
        folder = Path(name)
        before, student, after = (folder / f"{stem}.onnx" for stem in ("float", "student", "trained"))
        _graph.save(model, before)
        room = rooms.load("quantizers", member, base=job.base)
        quantized, report = room.quantize(model, replace(job, draft=True))
        _graph.save(quantized, student)
        data = {"train": str(spool.folder), "validation": str(job.validation.folder) if job.validation else None}
        result = training.train(
            training.TrainJob(
                kind=job.settings.training_kind,
                student=str(student),
                teacher=str(before),
                weights=str(before),
                out=str(after),
                scratch=str(folder / "scratch"),
                data={"spool": data},
                settings=job.settings.train,
                metric=job.metric if job.validation else None,
                base=str(job.base),
            )
        )
        done = _graph.load(after)
        return done, {**report, "training": result, **_score.judged(_graph.load(before), done, job)}
