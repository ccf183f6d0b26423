"""Recovery and quantization-aware training: one loop, in a program of its own.

:func:`train` starts ``torchrun … -m edgekit.training JOB.json`` in a child process, with as many
data-parallel processes as the settings say; each runs :func:`edgekit.training.fit.fit`. What is
trained is either an exported module (``.pt2``: recovery after pruning) or the very Q/DQ graph that
ships (``.onnx``, run in torch node by node: quantization-aware training).

The library for devices, distribution and gradients is **accelerate**: it finds the device, starts
the process group (gloo on CPU, nccl on GPUs) from ``torchrun``'s environment, wraps the module for
data-parallel training and moves objects between processes, and the loop stays a plain torch loop
that one can read. (Lightning Fabric does the same; accelerate is lighter to install and is what
exported graphs, whose ``forward`` must not be patched, go through unchanged.) Checkpoints are one
file of tensors and numbers, written atomically and opened with ``weights_only=True``; accelerate's
own are folders with pickles, which a killed run can leave half-written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgekit import child, errors
from edgekit.errors import InputError, StageError
from edgekit.recipe import MetricSection, TrainSection
from edgekit.store import write_json

TIMEOUT_S = 7 * 24 * 3600.0
RESULT = "result.json"
Kind = Literal["recover", "qat", "codebook"]
LAUNCHER = "EDGEKIT_LAUNCHER"  # the process that runs torchrun: the training processes end with it


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One training, as JSON: what a process of its own needs to do it.

    Attributes:
        kind: ``recover`` (fine-tune a pruned model), ``qat`` (a Q/DQ graph) or ``codebook`` (weights of few values).
        student: The model to train: a ``.pt2`` that :mod:`edgekit.exported` saved, or a Q/DQ ``.onnx``.
        out: Where the trained model goes, of the student's kind.
        scratch: A folder for checkpoints; a killed run that finds its own there goes on from it.
        data: ``{"entry": "file.py:function", "base": folder}``, called in the training process, or
            ``{"spool": {"train": folder, "validation": folder}}`` (:mod:`edgekit.workload.spool`).
        settings: How to train. seed: Of everything that is random.
        teacher: The original to distil from, ``.pt2`` or ``.onnx``; None where ``settings.distill`` is 0.
        weights: For ``qat``: the float ``.onnx`` that the student was quantized from; its weights are finer than
            the integers, which else are where training starts.
        metric: Picks the best epoch on ``validation``; without it, and where only the teacher is followed
            (``distill = 1``), the validation loss does.
        base: The recipe's folder: a user's loss or metric file starts there.
    """

    kind: Kind
    student: str
    out: str
    scratch: str
    data: dict[str, Any] = field(default_factory=dict)
    settings: TrainSection = field(default_factory=TrainSection)
    teacher: str | None = None
    weights: str | None = None
    metric: MetricSection | None = None
    seed: int = 0
    base: str = "."

    def to_json(self) -> dict[str, Any]:
        """The job as JSON values; :meth:`from_json` reads them back."""
        live = callable(self.settings.loss)  # has a name to tell it by, and no JSON
        settings = self.settings.model_copy(update={"loss": f"live {self.settings.loss!r}"}) if live else self.settings
        sections = {"settings": settings.model_dump(mode="json")}
        metric = self.metric.model_dump(mode="json") if self.metric else None
        plain = asdict(self)
        return {**plain, **sections, "metric": metric}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainJob:
        """Read what :meth:`to_json` gave."""
        metric = MetricSection.model_validate(values["metric"]) if values["metric"] else None
        return cls(**{**values, "settings": TrainSection.model_validate(values["settings"]), "metric": metric})


def train(
    job: TrainJob,
    *,
    data: Any = None,
    loss: Callable[..., Any] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Train ``job.student`` and write the best of it to ``job.out``.

    Runs in a process of its own, several of them under ``torchrun``; only with live objects, which no
    other process can reach, does it run in this one.

    Args:
        job: What to train, on what, and how.
        data: Live splits instead of ``job.data``: an object or mapping with ``train`` and ``validation``,
            each re-iterable over ``(inputs, labels)``.
        loss: A live loss ``(outputs, labels) -> scalar tensor`` instead of ``job.settings.loss``.
        timeout_s: Seconds after which the training processes are killed.

    Returns:
        ``{"epochs": run, "best_epoch": kept (0: the untrained), "metric": its value or None,
        "metric_name", "history": [{"epoch", "loss", "metric", "validation_loss", "learning_rate", "seconds"}]}``;
        epoch 0 is the untrained model, and what was not measured is None.

    Raises:
        InputError: Data, labels, loss or settings that do not fit the model.
        StageError: The loss became NaN or infinite (the last good checkpoint stays in ``job.scratch``),
            or a training process crashed.
    """
    Path(job.scratch).mkdir(parents=True, exist_ok=True)
    loss = loss or (job.settings.loss if callable(job.settings.loss) else None)
    if data is not None or loss is not None:
        if job.settings.processes > 1:
            raise InputError(
                "live objects can't be sent to other training processes",
                where="processes",
                remedy="name the data and the loss as entries ('file.py:function'), or set processes = 1",
            )
        from edgekit.training.work import work

        return work(job, data=data, loss=loss)
    threads = max(1, len(os.sched_getaffinity(0)) // job.settings.processes)
    alone = job.settings.processes == 1 and not job.settings.torchrun  # then torchrun would only add its own start
    start = "edgekit.training.work:work_job" if alone else "edgekit.training:launch"
    return child.call(start, job=job.to_json(), timeout_s=timeout_s, threads=threads)


def launch(job: dict[str, Any]) -> dict[str, Any]:
    """Run ``torchrun`` on a job (in a child process that :func:`train` started).

    Raises:
        EdgekitError: As the training raised it.
        StageError: A training process ended without saying why.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parsed = TrainJob.from_json(job)
    scratch = Path(parsed.scratch)
    for stale in (*scratch.glob("error-*.json"), scratch / RESULT):
        stale.unlink(missing_ok=True)
    write_json(scratch / "job.json", job)
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        torchrun.main(torchrun_arguments(parsed.settings, scratch / "job.json"))
    except ChildFailedError as failed:
        reports = sorted(scratch.glob("error-*.json"), key=lambda path: path.stat().st_mtime_ns)  # first: the cause
        if reports:
            raise errors.from_dict(json.loads(reports[0].read_text())) from failed
        code = failed.get_first_failure()[1].exitcode
        raise StageError(
            f"a training process ended with exit code {code}" + (" (killed: out of memory?)" if code == -9 else ""),
            remedy="run again: it goes on from the last epoch; with -v for the last lines it printed",
        ) from failed
    if not (scratch / RESULT).is_file():
        return {}  # another machine of the same run has the first rank, and the result
    result: dict[str, Any] = json.loads((scratch / RESULT).read_text())
    return result


def torchrun_arguments(settings: TrainSection, job: Path) -> list[str]:
    """The arguments of ``torchrun``: one machine on its own, unless the user's options say otherwise."""
    own = ["--nproc-per-node", str(settings.processes)]
    if not any(option.lstrip("-").startswith(("nnodes", "rdzv", "master")) for option in settings.torchrun):
        own.insert(0, "--standalone")
    return [*own, *settings.torchrun, "-m", "edgekit.training", str(job)]
