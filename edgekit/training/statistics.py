"""Running statistics of normalization layers: re-estimated, and made one over processes.

They are found by what they do, not by layer class: buffers that a pass in training mode changes
and that hold floats. So a graph module's batch norms are handled as a user's own are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn


def average(accelerator: Accelerator, module: nn.Module) -> None:
    """Give every process the mean of the running statistics that each took over its own share."""
    if accelerator.num_processes == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(accelerator.reduce(buffer, reduction="mean"))


def reestimate(module: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> int:
    """Take the running means and variances anew over ``batches``, weights untouched; no labels are needed.

    After each batch a statistic holds ``(1 - m) * old + m * batch``, whose momentum ``m`` is found by
    running the first batch from 0 and from 1. So the batch's own value is known, and the mean over all
    samples is exact, where the moving average that training keeps would forget all but the last batches.

    Args:
        module: Ends in evaluation mode.
        batches: Each with its size as ``len(...)`` of its first input.
        run: Runs the module on one of them.

    Returns:
        How many statistics were taken.
    """
    import torch

    module.train()
    momentum: dict[str, Tensor] | None = None
    sums: dict[str, Tensor] = {}
    count = 0
    with torch.no_grad():
        for feeds, _ in batches:
            size = len(next(iter(feeds.values())))
            if size < 2:
                continue  # one sample has no variance
            if momentum is None:
                momentum = _momentum(module, functools.partial(run, feeds))
                sums = {name: torch.zeros_like(buffer) for name, buffer in _floats(module) if name in momentum}
            _reset(module, momentum, 0.0)
            run(feeds)
            seen = {name: buffer / momentum[name] for name, buffer in _floats(module) if name in momentum}
            for name, value in seen.items():
                mean = seen.get(_mean_of(name))
                sums[name] += size * (value if mean is None else value + mean.square())
            count += size
        totals = {name: value / count for name, value in sums.items()}
        for name, buffer in _floats(module):
            if name in totals:
                mean = totals.get(_mean_of(name))
                buffer.copy_(totals[name] if mean is None else totals[name] - mean.square())
    module.eval()
    return len(sums)


def _mean_of(name: str) -> str:
    """The mean that belongs to a variance: batches differ in their means too. Empty for what is no variance."""
    return name.removesuffix("var") + "mean" if name.endswith("running_var") else ""


def _floats(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point()]


def _momentum(module: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """The momentum of every buffer that a pass changes, by name; each buffer is left at its old value."""
    import torch

    before = {name: buffer.clone() for name, buffer in _floats(module)}
    run()
    moved = {name: buffer for name, buffer in _floats(module) if not torch.equal(buffer, before[name])}
    ends = []
    state = torch.random.get_rng_state()
    for start in (0.0, 1.0):
        torch.random.set_rng_state(state)  # the same dropout both times
        _reset(module, moved, start)
        run()
        ends.append({name: buffer.clone() for name, buffer in _floats(module) if name in moved})
    for name, buffer in _floats(module):
        buffer.copy_(before[name])
    return {name: (1 - (ends[1][name] - ends[0][name])).clamp(1e-4, 1) for name in moved}


def _reset(module: nn.Module, names: Iterable[str], value: float) -> None:
    chosen = set(names)
    for name, buffer in _floats(module):
        if name in chosen:
            buffer.fill_(value)
