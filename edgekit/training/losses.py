"""What is minimized: the task's loss by name or chosen from labels and outputs, and distillation.

Every loss takes the model's outputs and returns the mean over the samples, a scalar tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import rooms
from edgekit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    Outputs = tuple[Tensor, ...]
    Loss = Callable[[Outputs, Tensor], Tensor]
    Distill = Callable[[Outputs, Outputs], Tensor]

CLASSIFYING = ("accuracy", "topk", "top_k", "precision", "recall", "f1", "auc")
REGRESSING = ("mse", "rmse", "mae", "r2")
NAMES = ("auto", "cross_entropy", "bce", "mse", "l1", "huber")
TINY = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm


def task_of(metric: str | None) -> str:
    """``classes``, ``values`` or ``unknown``: what the metric's name says of the task."""
    if metric in CLASSIFYING:
        return "classes"
    return "values" if metric in REGRESSING else "unknown"


def task_loss(chosen: Any, *, metric: str | None, ending: str, base: Path) -> Loss:
    """The loss against labels.

    Args:
        chosen: ``auto``, one of :data:`NAMES`, ``file.py:function``, or a live function ``(outputs, labels)``;
            a function of the user's gets the one output, or a tuple where there are several.
        metric: The metric's name, which tells classes from values where labels alone do not.
        ending: What the model ends in: ``logits``, ``sigmoid``, ``softmax`` or ``log_softmax``.
        base: The recipe's folder.

    Raises:
        InputError: No such loss.
    """
    if callable(chosen):
        return _users(chosen)
    if ":" in chosen:
        return _users(rooms.load_entry(chosen, base))
    if chosen not in NAMES:
        raise InputError(
            f"no loss named '{chosen}'{rooms.did_you_mean(chosen, NAMES)}",
            where="loss",
            remedy=f"choose one of {', '.join(NAMES)}, or give 'file.py:function'",
        )

    def loss(outputs: Outputs, labels: Tensor) -> Tensor:
        output = outputs[0]
        name = auto(output, labels, task_of(metric), ending) if chosen == "auto" else chosen
        return _named(name, output, labels, ending)

    return loss


def _users(function: Callable[..., Any]) -> Loss:
    def loss(outputs: Outputs, labels: Tensor) -> Tensor:
        value = function(outputs[0] if len(outputs) == 1 else outputs, labels)
        if getattr(value, "ndim", None) != 0:
            raise InputError(
                f"the loss function gave {type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))}",
                where=getattr(function, "__name__", "loss"),
                remedy="return one number for the batch, a scalar tensor: the mean over its samples",
            )
        return value

    return loss


def auto(output: Tensor, labels: Tensor, task: str, ending: str) -> str:
    """The name of the loss that fits the labels: ``cross_entropy``, ``bce`` or ``mse``.

    Args:
        output: The model's first output, float (N, …).
        labels: (N, …).
        task: ``classes``, ``values`` or ``unknown``.
        ending: What the model ends in.

    Raises:
        InputError: Labels that fit neither.
    """
    if task == "values":
        return "mse"
    if labels.is_floating_point():
        same = output.numel() == labels.numel()
        if same and (ending == "sigmoid" or (task == "classes" and _is_single(output))):
            return "bce"
        if same and output.shape == labels.shape and (task == "classes" or ending in ("softmax", "log_softmax")):
            one_of = bool((labels.sum(1) - 1).abs().max() < 1e-3)
            return "cross_entropy" if one_of else "bce"
        return "mse"
    if _is_single(output) or (labels.shape == output.shape and ending == "sigmoid"):
        return "bce"
    if labels.shape == output.shape:
        return "bce"  # a yes or no for each of many
    return "cross_entropy"


def _is_single(output: Tensor) -> bool:
    """Whether the model gives one number for a sample."""
    return output.ndim == 1 or output.shape[1:].numel() == 1


def _named(name: str, output: Tensor, labels: Tensor, ending: str) -> Tensor:
    import torch.nn.functional as F

    if name == "cross_entropy":
        return _cross_entropy(output, labels, ending)
    if output.numel() != labels.numel():
        raise InputError(
            f"labels of shape {tuple(labels.shape)} don't fit outputs of shape {tuple(output.shape)} (loss '{name}')",
            where="[data]",
            remedy="give one label for each output, or choose another loss",
        )
    target = labels.reshape(output.shape).to(output.dtype)
    if name == "bce":
        _check_range(target, 0, 1, "the loss 'bce' takes labels from 0 to 1")
        if ending == "sigmoid":
            return F.binary_cross_entropy(output.clamp(TINY, 1 - TINY), target)
        return F.binary_cross_entropy_with_logits(output, target)
    function = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}[name]
    return function(output, target)


def _cross_entropy(output: Tensor, labels: Tensor, ending: str) -> Tensor:
    import torch.nn.functional as F

    log_p = log_probabilities(output, ending, dim=-1 if labels.shape == output.shape[:-1] else 1)
    if labels.is_floating_point():
        if labels.shape != output.shape:
            raise _misfit(output, labels)
        return -(labels * log_p).sum(1).mean()
    if labels.shape == output.shape[:-1]:  # classes in the last axis, as in (N, words, classes)
        log_p = log_p.reshape(-1, output.shape[-1])
    elif labels.reshape(len(labels), -1).shape == (len(output), output.shape[2:].numel()):
        log_p = log_p.movedim(1, -1).reshape(-1, output.shape[1])
    else:
        raise _misfit(output, labels)
    flat = labels.reshape(-1).long()
    _check_range(flat[flat != -100], 0, log_p.shape[1] - 1, f"the model has {log_p.shape[1]} classes")
    return F.nll_loss(log_p, flat, ignore_index=-100)


def _misfit(output: Tensor, labels: Tensor) -> InputError:
    return InputError(
        f"labels of shape {tuple(labels.shape)} ({labels.dtype}) don't fit outputs of shape {tuple(output.shape)}",
        where="[data]",
        remedy="give class numbers (N,) for outputs (N, classes), or name your own loss with loss = 'file.py:function'",
    )


def _check_range(labels: Tensor, low: int, high: int, why: str) -> None:
    if labels.numel() and not (low <= labels.min() and labels.max() <= high):
        raise InputError(
            f"a label is out of range: found {labels.min().item():g} to {labels.max().item():g}, but {why}",
            where="[data]",
            remedy=f"give labels from {low} to {high}",
        )


def log_probabilities(output: Tensor, ending: str, *, dim: int = 1, temperature: float = 1.0) -> Tensor:
    """Logarithms of class probabilities along ``dim``, softened by ``temperature``, from whatever the model ends in."""
    if ending == "softmax":
        output = output.clamp_min(TINY).log()
    return (output / temperature).log_softmax(dim)


def distillation(*, task: str, ending: str, temperature: float) -> Distill:
    """The loss against a teacher's outputs.

    Classes: the divergence of the softened distributions, times the temperature squared (Hinton et
    al. 2015, "Distilling the Knowledge in a Neural Network"); yes-or-no outputs likewise. All else:
    the squared difference over the variance of the teacher's output, so that each output weighs the same.
    """

    def loss(outputs: Outputs, targets: Outputs) -> Tensor:
        total = outputs[0].new_zeros(())
        for number, (output, target) in enumerate(zip(outputs, targets, strict=True)):
            if not output.is_floating_point():
                continue
            if number == 0 and task == "classes":
                total = total + _divergence(output, target, ending, temperature)
            else:
                total = total + (output - target).square().mean() / (target.var() + 1e-6)
        return total

    return loss


def similarity(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """How differently student and teacher tell the samples of a batch apart, inside: 0 where they do alike, to 4.

    Similarity-preserving distillation (Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation"): the
    products of each sample's features with each other's are compared, so widths may differ.

    Args:
        features: The student's, (N, …) each. targets: The teacher's.
    """
    import torch
    import torch.nn.functional as F

    def products(values: Tensor) -> Tensor:
        flat = values.flatten(1)
        return F.normalize(flat @ flat.T)

    pairs = zip(features, targets, strict=True)
    return torch.stack([(products(mine) - products(theirs)).square().sum(1).mean() for mine, theirs in pairs]).mean()


def _divergence(output: Tensor, target: Tensor, ending: str, temperature: float) -> Tensor:
    import torch
    import torch.nn.functional as F

    if _is_single(output) or ending == "sigmoid":
        if ending == "sigmoid":
            output, target = torch.logit(output, TINY), torch.logit(target, TINY)
        output, target = output / temperature, torch.sigmoid(target / temperature)
        rest = F.binary_cross_entropy(target, target)  # the teacher's own entropy: at best the loss is 0
        return (F.binary_cross_entropy_with_logits(output, target) - rest) * temperature**2
    log_p = log_probabilities(output, ending, temperature=temperature)
    log_q = log_probabilities(target, ending, temperature=temperature)
    return (log_q.exp() * (log_q - log_p)).sum(1).mean() * temperature**2
