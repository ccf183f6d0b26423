"""The pruners. A file here is a way to rank channels: ``rank(group) -> scores``, low goes first.

The removal itself is shared: which channels go together is found on the exported graph,
parameters are sliced, sizes rewritten, and the result is proved against the original with
the removed channels held at zero.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit import rooms
from edgekit.errors import InputError, UnavailableError
from edgekit.target import Availability, Target, availability, load_target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.workload.spool import Spool


@dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Attributes:
        model: The smaller module, in evaluation mode; it trains, saves and exports.
        macs: Multiply-adds of one sample, before and after.
        parameters: Elements of all parameters, before and after.
        kept: Layers whose channels all stayed: ``{"layer", "reason"}``.
        table: One row for each layer: ``layer``, ``kind``; ``channels``, ``macs``, ``parameters`` as (before, after);
            0 after: it went with its branch.
        parity: The greatest relative difference from the original with the removed channels and branches held at zero.
        notes: What else is worth knowing.
        sensitivity: Where it was measured, ``{"layer", "lost"}`` for each group of channels and each residual branch:
            the share of the outputs, 0 to 1, that is lost where half of the channels, or the branch, goes alone.
        steps: What was decided in each iteration (for :meth:`origin`).
    """

    model: nn.Module
    macs: tuple[int, int]
    parameters: tuple[int, int]
    kept: tuple[dict[str, str], ...]
    table: tuple[dict[str, Any], ...]
    parity: float
    notes: tuple[str, ...] = ()
    sensitivity: tuple[dict[str, Any], ...] = ()
    steps: tuple[Any, ...] = field(default=(), repr=False)

    def origin(self) -> dict[str, Tensor]:
        """Where each parameter's elements stood in the original: int64 of its new shape, flat places."""
        from edgekit.pruners._run import origin

        return origin(self.steps)

    def save(self, path: str | Path) -> Path:
        """Write the model as a ``.pt2`` that :func:`edgekit.load` reads without the user's class."""
        from edgekit.exported import save

        return save(self.model, path)


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float = 0.3,
    round_to: int = 4,
    method: str = "magnitude",
    scope: str = "auto",
    ratios: Mapping[str, float] | None = None,
    protect: Iterable[str] = (),
    target_macs: float | None = None,
    target_parameters: float | None = None,
    target_speedup: float | None = None,
    target: str | Target = "x86-cpu",
    precision: Literal["fp32", "int8"] = "fp32",
    iterations: int = 1,
    calibration: Iterable[Any] | None = None,
) -> Pruned:
    """Remove channels from a trained model; the model that is passed in is not changed.

    Args:
        model: A ``torch.nn.Module``, or what an earlier ``prune`` or ``load`` gave.
        example_inputs: A tensor, tuple or dict, as the model is called with.
        ratio: Share of the channels of every free group to remove, in [0, 1).
        round_to: The widths that ``ratio`` leaves are rounded to a multiple of it, in groups of four times as many
            channels or more: kernels work on blocks of channels. 1: not at all.
        method: A member of ``edgekit/pruners`` (``magnitude``, ``l2``, ``bn_scale``, ``lamp``, ``taylor`` …), or the
            path of a ``.py`` file with ``rank(group) -> scores``.
        scope: ``local``: the same share of each group; ``global``: the weakest anywhere; ``sensitivity``: to the same
            size, from each group as much as the outputs bear, and whole residual branches, measured on ``calibration``
            (else on the example). ``auto``: the method's own; else by sensitivity towards a goal where there is
            ``calibration``, else local.
        ratios: Ratio by layer name (``fnmatch`` patterns).
        protect: Layers that stay whole (``fnmatch`` patterns).
        target_macs, target_parameters: A goal instead of a ratio: a share of the original's. Of several all are kept.
        target_speedup: A goal instead of a ratio: times as fast on ``target`` as the whole model is there at the same
            ``precision``, measured here, at the batch that the target names.
        target: A target's name, the path of its file, or a :class:`edgekit.Target`.
        precision: ``fp32``, or ``int8`` as ``edgekit.quantize`` makes it, which needs ``calibration``.
        iterations: Prune in that many steps, ranking anew in each.
        calibration: Batches ``(inputs, labels)`` or ``inputs``: to measure sensitivity on, and for methods that need
            gradients (labels too).

    Raises:
        InputError: A value out of range, a model that can't be exported, or a goal that can't be reached.
        UnavailableError: ``target_speedup`` for a target that this machine is not.
    """
    from edgekit.exported import capture
    from edgekit.pruners._run import pruned

    settings: dict[str, Any] = {"ratio": ratio, "round_to": round_to, "method": method, "scope": scope}
    protected = (protect,) if isinstance(protect, str) else tuple(protect)
    settings |= {"ratios": dict(ratios or {}), "protect": protected, "iterations": iterations}
    settings |= {"target_macs": target_macs, "target_parameters": target_parameters, "target_speedup": target_speedup}
    _in_range(settings)
    member = rooms.load("pruners", method)
    latency = _here(target, precision) if target_speedup else None
    captured = capture(model, example_inputs)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        return pruned(captured, settings, member, _spooled(captured, calibration, Path(folder)), latency)


def _spooled(module: nn.Module, calibration: Iterable[Any] | None, folder: Path) -> Spool | None:
    """The user's batches, checked, on disk: an iterator may be read once only."""
    from edgekit.exported import save
    from edgekit.workload.batches import Converter, spooled

    if calibration is None:
        return None
    if not isinstance(calibration, Iterable) or isinstance(calibration, str):
        raise InputError(f"calibration is {calibration!r}", remedy="give an iterable of batches (inputs, labels)")
    return spooled(calibration, Converter(save(module, folder / "model.pt2")), folder / "calibration")


def _here(target: str | Target, precision: str) -> dict[str, Any]:
    profile = target if isinstance(target, Target) else load_target(target)
    return measured_on(profile, availability(profile), precision)


def measured_on(target: Target, can: Availability, precision: str) -> dict[str, Any]:
    """Where and how ``target_speedup`` is measured, as :func:`prune_job` takes it.

    Args:
        can: Whether the target runs here.

    Raises:
        InputError: Another precision than ``fp32`` and ``int8``.
        UnavailableError: This machine is not such a target.
    """
    if precision not in ("fp32", "int8"):
        raise InputError(f"precision is {precision!r}", remedy='use "fp32" or "int8"')
    if can.status != "runs":
        raise UnavailableError(
            f"target_speedup is measured on the device, and {can.reason}",
            where=target.name,
            remedy="use ratio or target_macs for this target, or prune on the device",
        )
    return {"target": target.model_dump(mode="json"), "precision": precision}


def prune_job(
    model: str,
    settings: dict[str, Any],
    out: str,
    calibration: str | None = None,
    latency: dict[str, Any] | None = None,
    base: str = "",
) -> dict[str, Any]:
    """Prune the ``.pt2`` at ``model`` into ``out``; runs in a child process.

    Args:
        model: The exported model.
        settings: The recipe's ``[prune]`` section as JSON.
        out: Where the pruned ``.pt2`` goes.
        calibration: A spool of batches, for methods that need gradients.
        latency: For ``target_speedup``: ``{"target": …, "precision": "fp32" or "int8"}``.
        base: The recipe's folder, for a method by path.
    """
    from edgekit.exported import load
    from edgekit.pruners._run import pruned, report
    from edgekit.workload import spool

    _in_range(settings)
    member = rooms.load("pruners", settings.get("method", "magnitude"), base=Path(base) if base else None)
    batches = spool.read(calibration) if calibration else None
    result = pruned(load(model), settings, member, batches, latency)
    result.save(out)
    return report(result)


def preview(model: nn.Module, example_inputs: Any, ratio: float = 0.3, **settings: Any) -> Pruned:
    """What would go and what would stay, and why, without training (``edgekit inspect --prune``)."""
    return prune(model, example_inputs, ratio=ratio, **settings)


def _in_range(settings: Mapping[str, Any]) -> None:
    """Refuse values out of range.

    Raises:
        InputError: With the value and its range.
    """
    for name in ("ratio", *settings.get("ratios", {})):
        value = settings["ratios"][name] if name in settings.get("ratios", {}) else settings.get(name, 0.0)
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            key = name if name == "ratio" else f"ratios['{name}']"
            raise InputError(f"{key} is {value!r}; it must be in [0, 1)", remedy="0.3 removes 30 % of the channels")
    for name in ("target_macs", "target_parameters"):
        value = settings.get(name)
        if value is not None and not 0 < value <= 1:
            raise InputError(
                f"{name} is {value!r}; it is a share of the original's, in (0, 1]",
                remedy="0.5 asks for half of the original's",
            )
    speedup = settings.get("target_speedup")
    if speedup is not None and not (isinstance(speedup, (int, float)) and 1 < speedup < 1000):
        raise InputError(
            f"target_speedup is {speedup!r}; it must be above 1", remedy="1.5: one and a half times as fast"
        )
    if settings.get("scope", "auto") not in ("auto", "local", "global", "sensitivity"):
        raise InputError(f"scope is {settings['scope']!r}", remedy='use "auto", "local", "global" or "sensitivity"')
    for name in ("iterations", "round_to"):
        if settings.get(name, 1) < 1:
            raise InputError(f"{name} is {settings[name]!r}", remedy="use 1 or more")
