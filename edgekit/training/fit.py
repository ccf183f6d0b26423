"""The one training loop, for recovery and for quantization-aware training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import console
from edgekit.errors import EdgekitError, InputError, StageError
from edgekit.training import checkpoint, optimization, statistics
from edgekit.training.data import Split, seed_all, shares

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from edgekit.recipe import TrainSection
    from edgekit.training.losses import Distill, Loss

    Score = Callable[[list[Any], Any], float]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What :func:`fit` trains, on what, and what counts as better.

    Attributes:
        kind: ``recover``, ``qat`` or ``codebook``; chooses the default learning rate.
        student: ``forward(feeds) -> tuple of tensors``. It is trained in place and ends with the best weights.
        teacher: Likewise; None where nothing is distilled.
        train, validation: The data; without validation the last epoch is kept.
        loss: Against labels. distill: Against the teacher.
        score: The metric of ``(outputs, labels)`` as arrays; None: there is none, or there are no labels.
        higher_is_better: Of ``score``.
        scratch: Where checkpoints go; None: nowhere.
        digest: Of the job: a checkpoint of another one is left alone.
    """

    kind: str
    student: nn.Module
    teacher: nn.Module | None = None
    train: Split
    validation: Split | None = None
    loss: Loss
    distill: Distill
    score: Score | None = None
    higher_is_better: bool = True
    scratch: Path | None = None
    digest: str = ""


@dataclass
class _Progress:
    """What a checkpoint holds besides the weights."""

    epoch: int = 0
    best: int = 0
    best_value: float | None = None
    best_metric: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def fit(task: Task, settings: TrainSection, *, seed: int, accelerator: Accelerator | None = None) -> dict[str, Any]:
    """Train, keep the best epoch's weights, and say how it went.

    The untrained model takes part as epoch 0, so that on the validation data training makes nothing
    worse. With ``settings.epochs == 0`` only the running statistics are taken anew.

    Returns:
        As :func:`edgekit.training.train` documents.

    Raises:
        InputError: Data or labels that do not fit.
        StageError: The loss became NaN or infinite.
    """
    accelerator = accelerator or _accelerator()
    student = task.student.to(accelerator.device).eval()
    if task.teacher is not None:
        task.teacher.to(accelerator.device).eval()
    seed_all(seed, 0)
    steps = 0 if settings.epochs == 0 else _steps(task.train, accelerator)
    optimizer = optimization.optimizer(student.parameters(), settings, task.kind) if steps else None
    schedule = optimization.schedule(optimizer, settings, task.kind, steps * settings.epochs) if optimizer else None
    run = _Run(task, settings, seed, accelerator, student, optimizer, schedule, steps)
    if optimizer is None:
        return run.only_statistics()
    return run.epochs()


def _steps(train: Split, accelerator: Accelerator) -> int:
    """Steps in an epoch, as the first process counts them: the schedule must be one in all.

    Raises:
        InputError: There are none, or counting raised, in all processes.
    """
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [len(train)]
        except EdgekitError as error:
            found = [error]
    steps = broadcast_object_list(found)[0]
    if isinstance(steps, EdgekitError):
        raise steps
    if not steps:
        raise train.empty()
    return int(steps)


def _accelerator() -> Accelerator:
    """Device and process group, from torchrun's environment where there is one.

    Buffers are not copied from the first process at each step (they are averaged once an epoch), and a
    parameter that the graph does not use is no error.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    return Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)]
    )


@dataclass
class _Run:
    """One call of :func:`fit`."""

    task: Task
    settings: TrainSection
    seed: int
    accelerator: Accelerator
    student: nn.Module
    optimizer: Any
    schedule: Any
    steps: int
    progress: _Progress = field(default_factory=_Progress)
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def epochs(self) -> dict[str, Any]:
        """Train epoch by epoch, from the checkpoint if there is one."""
        wrapped = self.accelerator.prepare(self.student)
        if not self.resume():
            self.judge(None, 0.0)
        while self.progress.epoch < self.settings.epochs and not self.is_stalled():
            self.progress.epoch += 1
            start = time.monotonic()
            mean = self.one_epoch(wrapped)
            statistics.average(self.accelerator, self.student)
            self.judge(mean, time.monotonic() - start)
            self.save()
        self.student.load_state_dict(self.best_state)
        self.student.eval()
        return self.result()

    def one_epoch(self, wrapped: nn.Module) -> float:
        """One pass over the training data; the mean loss of its samples."""
        epoch = self.progress.epoch
        seed_all(self.seed, epoch, self.accelerator.process_index)
        if callable(set_epoch := getattr(self.task.train.source, "set_epoch", None)):
            set_epoch(epoch)
        total, count = 0.0, 0
        label = f"{self.task.kind}: epoch {epoch} of {self.settings.epochs}"
        with console.progress(label if self.accelerator.is_main_process else "", self.steps) as advance:
            for step, (batch, weight) in enumerate(shares(self.accelerator, self.task.train)):
                value = self.one_step(wrapped, batch, weight, step)
                size = len(next(iter(batch[0].values())))
                total, count = total + value * size, count + size
                if self.accelerator.is_main_process:
                    advance(1)
        if self.settings.schedule == "plateau" and self.task.validation is None:
            self.schedule.step(total / count)
        return total / count

    def one_step(self, wrapped: nn.Module, batch: Any, weight: float, step: int) -> float:
        """One step of the optimizer; the loss over all processes."""
        feeds, labels = self.to_device(batch)
        several = len(next(iter(feeds.values()))) > 1
        if self.student.training is not several:  # one sample has no batch statistics: the running ones serve
            self.student.train(several)
        precision = self.settings.precision
        loss = self.loss(self.forward(wrapped, feeds, precision), feeds, labels, precision)
        self.accelerator.backward(loss * weight)
        value = float(self.accelerator.reduce(loss.detach() * weight, reduction="mean"))
        if not math.isfinite(value):
            raise self.diverged(value, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.settings.schedule != "plateau" and self.schedule.last_epoch < self.steps * self.settings.epochs:
            self.schedule.step()  # a split that grew has more steps than the schedule was made for
        return value

    def forward(self, model: nn.Module, feeds: dict[str, Tensor], precision: str) -> tuple[Tensor, ...]:
        """The model's outputs as fp32, whatever its products are taken in."""
        import torch

        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = model(feeds)
        return tuple(output.float() if output.dtype == torch.bfloat16 else output for output in outputs)

    def loss(
        self, outputs: tuple[Tensor, ...], feeds: dict[str, Tensor], labels: Tensor | None, precision: str = "fp32"
    ) -> Tensor:
        """The weighted sum of the loss against labels and the distillation."""
        import torch

        share = self.settings.distill if self.task.teacher is not None else 0.0
        if share < 1 and labels is None:
            raise InputError(
                "the training data have no labels, and the loss needs them",
                where="[data] train",
                remedy="give (inputs, labels), or set distill = 1 to learn from the original model alone",
            )
        loss = outputs[0].new_zeros(())
        if share > 0:
            assert self.task.teacher is not None
            with torch.no_grad():
                targets = self.forward(self.task.teacher, feeds, precision)
            loss = loss + share * self.task.distill(outputs, targets)
        if share < 1:
            assert labels is not None
            loss = loss + (1 - share) * self.task.loss(outputs, labels)
        return loss

    def judge(self, loss: float | None, seconds: float) -> None:
        """Measure this epoch on the validation data; keep its weights if they are the best."""
        metric, validation_loss = self.validate() if self.task.validation is not None else (None, None)
        value, progress = (validation_loss if self.by_loss() else metric), self.progress
        progress.history.append(
            {
                "epoch": progress.epoch,
                "loss": loss,
                "metric": metric,
                "validation_loss": validation_loss,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "seconds": round(seconds, 3),
            }
        )
        if self.settings.schedule == "plateau" and value is not None and loss is not None:
            self.schedule.step(-value if self.higher() else value)
        if value is None or progress.best_value is None or self.is_better(value, progress.best_value):
            progress.best, progress.best_value, progress.best_metric = progress.epoch, value, metric
            self.best_state = {name: tensor.detach().clone() for name, tensor in self.student.state_dict().items()}

    def validate(self) -> tuple[float | None, float | None]:
        """The metric and, where epochs are judged by it, the loss; the batches are dealt out to the processes."""
        import torch
        from accelerate.utils import gather_object

        assert self.task.validation is not None
        self.student.eval()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        with torch.no_grad():
            seen = [
                (number, *self.validate_one(self.to_device(batch)))
                for number, batch in enumerate(self.task.validation)
                if number % world == rank
            ]
        everything = sorted(gather_object(seen), key=lambda item: item[0])
        samples = sum(item[1] for item in everything)
        loss = sum(item[1] * item[2] for item in everything) / samples if self.by_loss() else None
        if self.task.score is None:
            return None, loss
        return self.scored([item[3] for item in everything], [item[4] for item in everything]), loss

    def validate_one(self, batch: Any) -> tuple[int, float | None, Any, Any]:
        """How many samples a batch has, the loss if it is asked for, and for the metric outputs and labels."""
        feeds, labels = batch
        outputs = self.student(feeds)
        size = len(next(iter(feeds.values())))
        loss = float(self.loss(outputs, feeds, labels)) if self.by_loss() else None
        if self.task.score is None:
            return size, loss, None, None
        if labels is None:
            raise InputError("the validation data have no labels", where="[data]", remedy="give them labels")
        return size, loss, [output.float().cpu().numpy() for output in outputs], labels.cpu().numpy()

    def scored(self, outputs: list[Any], labels: list[Any]) -> float:
        """The metric of all batches together."""
        import numpy as np

        assert self.task.score is not None
        whole = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
        return float(self.task.score(whole, np.concatenate(labels)))

    def by_loss(self) -> bool:
        """Whether epochs are judged by the validation loss: without a metric, and where only the teacher is followed.

        How far a student is from its teacher is known far more finely than a metric on as many samples: between
        two accuracies of a quantized model there lie a few samples, which is chance.
        """
        return self.task.score is None or (self.task.teacher is not None and self.settings.distill == 1)

    def only_statistics(self) -> dict[str, Any]:
        """Take the running statistics anew, on the first process's reading of the data."""
        with console.progress("re-estimating batch statistics") as advance:

            def batches() -> Any:
                for batch in self.task.train:
                    advance(1)
                    yield self.to_device(batch)

            statistics.reestimate(self.student, batches(), self.student)
        metric = self.validate()[0] if self.task.validation is not None and self.task.score is not None else None
        return {"epochs": 0, "best_epoch": 0, "metric": metric, "history": []}

    def resume(self) -> bool:
        """Go on from this job's checkpoint; False where there is none."""
        from accelerate.utils import broadcast_object_list

        state = None
        if self.task.scratch is not None and self.accelerator.is_main_process:
            state = checkpoint.load(self.task.scratch, self.task.digest)
        state = broadcast_object_list([state])[0]
        if state is None:
            return False
        self.student.load_state_dict(state["model"])
        self.best_state = state["best_model"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.progress = _Progress(**state["progress"])
        console.note(f"{self.task.kind}: going on after epoch {self.progress.epoch}")
        return True

    def save(self) -> None:
        """Write the checkpoint; the other processes wait until it is there."""
        if self.task.scratch is not None and self.accelerator.is_main_process:
            state = {
                "model": self.student.state_dict(),
                "best_model": self.best_state,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "progress": vars(self.progress),
            }
            checkpoint.save(self.task.scratch, self.task.digest, state)
        self.accelerator.wait_for_everyone()

    def diverged(self, value: float, step: int) -> StageError:
        """The error for a loss that is no number; the last good epoch's checkpoint stays."""
        kept = ""
        if self.task.scratch is not None and self.progress.epoch > 1:
            kept = f"; the checkpoint after epoch {self.progress.epoch - 1} is kept in {self.task.scratch}"
        rate = self.optimizer.param_groups[0]["lr"]
        return StageError(
            f"the loss became {value} in epoch {self.progress.epoch}, step {step + 1} (learning rate {rate:.3g}){kept}",
            where=self.task.kind,
            remedy="set a lower learning_rate, and check the labels and your own loss for division by zero",
        )

    def is_stalled(self) -> bool:
        """Whether the metric has not improved for as long as the user's patience."""
        patience = self.settings.patience
        return 0 < patience <= self.progress.epoch - self.progress.best and self.task.validation is not None

    def is_better(self, value: float, than: float) -> bool:
        """Whether a metric's value beats another; NaN beats nothing, and loses to anything."""
        if math.isnan(than):
            return True
        return value > than if self.higher() else value < than

    def higher(self) -> bool:
        """Whether a higher value is the better one."""
        return not self.by_loss() and self.task.higher_is_better

    def to_device(self, batch: Any) -> Any:
        """A batch on the device that trains."""
        from accelerate.utils import send_to_device

        return send_to_device(batch, self.accelerator.device)

    def result(self) -> dict[str, Any]:
        """What :func:`fit` returns."""
        progress = self.progress
        return {
            "epochs": progress.epoch,
            "best_epoch": progress.best,
            "metric": progress.best_metric,
            "history": progress.history,
        }
