"""One training process's work: open what the job names, train, write what came out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import metrics, workload
from edgekit.errors import InputError
from edgekit.store import sha256_json
from edgekit.training import losses
from edgekit.training.data import Split
from edgekit.training.fit import Task, fit
from edgekit.training.models import Trainee, open_trainee
from edgekit.workload import spool
from edgekit.workload.batches import Converter

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.training import TrainJob


def work(job: TrainJob, *, data: Any = None, loss: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Do a job in this process, which may be one of several that ``torchrun`` started.

    Args:
        job: What to do.
        data: Live splits instead of ``job.data``. loss: A live loss instead of ``job.settings.loss``.

    Returns:
        As :func:`edgekit.training.train`.
    """
    teacher = _teacher(job)
    student = open_trainee(
        Path(job.student), Path(job.weights) if job.weights else None, learn_scales=job.settings.learn_scales
    )
    if job.settings.features and teacher:
        student, teacher = (_watching(trainee, job) for trainee in (student, teacher))
    metric = metrics.load(job.metric, Path(job.base)) if job.metric else None
    train, validation = _splits(job, data)
    labelled = validation is not None and next(iter(validation))[1] is not None
    scored = metric if labelled else None
    name = metric.name if metric else None
    task = Task(
        kind=job.kind,
        student=student.module,
        teacher=teacher.module if teacher else None,
        train=train,
        validation=validation,
        loss=losses.task_loss(loss or job.settings.loss, metric=name, ending=student.ending, base=Path(job.base)),
        distill=_distillation(job, _task(name, train) if teacher else "unknown", student, teacher),
        score=scored.score if scored else None,
        higher_is_better=scored.higher_is_better if scored else False,
        scratch=Path(job.scratch),
        digest=digest(job),
    )
    result = fit(task, job.settings, seed=job.seed)
    if int(os.environ.get("RANK", "0")) == 0:
        student.save(Path(job.out))
    return {**result, "metric_name": scored.name if scored else None}


def digest(job: TrainJob) -> str:
    """What a checkpoint must have been made for: everything but where files lie, and how many processes work."""
    values = job.to_json()
    for place in ("out", "scratch", "student", "teacher", "weights", "base"):
        values.pop(place)
    for kind in ("processes", "torchrun"):
        values["settings"].pop(kind)
    return sha256_json(values)


def _teacher(job: TrainJob) -> Trainee | None:
    if job.settings.distill == 0 or job.settings.epochs == 0:
        return None
    if job.teacher is None:
        raise InputError(
            "distillation needs the original model, and none is given",
            where="distill",
            remedy="give a teacher, or set distill = 0 to learn from labels alone",
        )
    return open_trainee(Path(job.teacher))


def _task(metric: str | None, train: Split) -> str:
    """The task by the metric's name; without one, a whole number for each sample means classes."""
    task = losses.task_of(metric)
    if task == "unknown":
        labels = next(iter(train))[1]
        if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
            return "classes"
    return task


def _watching(trainee: Trainee, job: TrainJob) -> Trainee:
    if trainee.watching is None:
        raise InputError(
            "an ONNX graph knows no modules whose features could be followed",
            where="features",
            remedy="leave 'features' out, or use it in [recover], where the model is a torch model",
        )
    return replace(trainee, module=trainee.watching(job.settings.features))


def _distillation(job: TrainJob, task: str, student: Trainee, teacher: Trainee | None) -> losses.Distill:
    """The loss against the teacher: its outputs and, on request, its features."""
    outputs_alone = losses.distillation(task=task, ending=student.ending, temperature=job.settings.temperature)
    if teacher is None or not job.settings.features:
        return outputs_alone

    def with_features(outputs: losses.Outputs, targets: losses.Outputs) -> Tensor:
        mine, theirs = student.module.features, teacher.module.features
        shared = [name for name in mine if name in theirs]  # pruning may have taken whole modules out
        same = losses.similarity([mine[name] for name in shared], [theirs[name] for name in shared])
        return outputs_alone(outputs, targets) + same

    return with_features


def _splits(job: TrainJob, live: Any) -> tuple[Split, Split | None]:
    """The training and the validation data."""
    # An exported teacher knows the form of the user's own inputs; an ONNX student only their flat names.
    takes_users_form = job.teacher is not None and job.teacher.endswith(".pt2")
    convert = Converter(Path(job.teacher if takes_users_form and job.teacher else job.student))
    if "spool" in job.data:
        source: Any = {name: spool.read(folder) for name, folder in job.data["spool"].items() if folder}
        convert_one: Any = lambda batch, where: batch  # noqa: E731 - a spool holds what was converted
    else:
        entry = live if live is not None else job.data.get("entry")
        source = workload.obtain_data(entry, job.data.get("base", job.base), job.seed)
        convert_one = convert
    train = workload.split(source, "train")
    if train is None:
        raise InputError(
            "training needs a split 'train', and the data give none",
            where="[data] entry",
            remedy="return 'train': batches (inputs, labels) that can be read again and again",
        )
    validation = workload.split(source, "validation")
    return (
        Split("train", train, convert_one, shuffle=True),
        None if validation is None else Split("validation", validation, convert_one),
    )


def work_job(job: dict[str, Any]) -> dict[str, Any]:
    """:func:`work` on a job as JSON."""
    from edgekit.training import TrainJob

    return work(TrainJob.from_json(job))
