"""Some samples of a spool, cut anew into groups, however the user batched them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit import console
from edgekit.errors import InputError
from edgekit.workload.spool import Spool

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, Array]

Part = Literal["all", "rest", "held"]
HELD_OUT = 4  # every fourth sample is held out where a choice is made
COMPARED = 64  # samples of the validation split that the calibration data are compared with
UNLIKE = 4.0  # times as wide a range
ENOUGH = 32  # samples under which a warning is said


@dataclass(frozen=True)
class Samples:
    """The first ``limit`` samples of a spool: all, those held out (every fourth), or the rest.

    Where there are fewer than two of a kind, every part is all of them.
    """

    spool: Spool
    limit: int
    part: Part = "all"

    def __len__(self) -> int:
        total = min(self.limit, self.spool.samples)
        if self._whole():
            return total
        held = total // HELD_OUT
        return held if self.part == "held" else total - held

    def index(self, position: int) -> int:
        """Where in the spool the sample at a position of this part stands."""
        if self._whole():
            return position
        if self.part == "held":
            return position * HELD_OUT + HELD_OUT - 1
        return position + position // (HELD_OUT - 1)

    def _whole(self) -> bool:
        return self.part == "all" or min(self.limit, self.spool.samples) // HELD_OUT < 2

    def singles(self) -> Iterator[Feeds]:
        """One sample at a time: input name → array (1, …)."""
        whole, number = self._whole(), 0
        for feeds in self.spool.feeds():
            for row in range(len(next(iter(feeds.values())))):
                if number >= self.limit:
                    return
                held = number % HELD_OUT == HELD_OUT - 1
                number += 1
                if whole or held == (self.part == "held"):
                    yield {name: value[row : row + 1] for name, value in feeds.items()}

    def groups(self, size: int, *, full: bool = False) -> Iterator[Feeds]:
        """Groups of ``size`` samples: input name → array (size, …); one ends early where the samples' shapes change.

        Args:
            size: Samples of a group; the last may be smaller.
            full: Fill a smaller group up by repeating its samples, for a model whose batch is fixed.
        """
        import numpy as np

        for _, alike in itertools.groupby(self.singles(), key=_shapes):
            while held := list(itertools.islice(alike, size)):
                chosen = [held[i % len(held)] for i in range(size)] if full else held
                yield {name: np.concatenate([sample[name] for sample in chosen]) for name in chosen[0]}


def _shapes(sample: Feeds) -> list[tuple[int, ...]]:
    return [value.shape for value in sample.values()]


def fixed_batch(model: ir.Model) -> int | None:
    """The batch size that the model insists on; None where it is free."""
    sizes = [v.shape[0] for v in model.graph.inputs if v.shape is not None and len(v.shape)]
    known = [size for size in sizes if isinstance(size, int)]
    return known[0] if known else None


def check(model: ir.Model, samples: Samples, where: str = "calibration") -> None:
    """Compare the samples with the model's inputs before anything runs, and warn of too little to learn from.

    Raises:
        InputError: A name, dtype or shape that the model does not take.
    """
    feeds = next(samples.singles())
    wanted = {v.name or "": v for v in model.graph.inputs}
    if missing := sorted(set(wanted) - set(feeds)):
        raise InputError(
            f"the samples lack {', '.join(missing)} (they have {', '.join(feeds)})",
            where=where,
            remedy="give an array for every input of the model",
        )
    for name, value in wanted.items():
        _check_one(name, value, feeds[name], where)
    if len(samples) < ENOUGH:
        console.warn(f"only {len(samples)} {where} samples: ranges are found better from {ENOUGH} or more")
    if len(samples) > 1 and len(samples.spool.sample_hashes()) == 1:
        console.warn(f"all {len(samples)} {where} samples are the same; the ranges will fit that one only")


def _check_one(name: str, value: ir.Value, array: Array, where: str) -> None:
    import numpy as np

    if value.dtype is not None and array.dtype != value.dtype.numpy():
        raise InputError(
            f"the input '{name}' is {array.dtype}; the model takes {np.dtype(value.dtype.numpy())}",
            where=where,
            remedy="convert it before calibration",
        )
    if value.shape is None:
        return
    sizes = list(value.shape)
    wrong = [i for i, (n, m) in enumerate(zip(sizes, array.shape, strict=False)) if i and isinstance(n, int) and n != m]
    if len(sizes) != array.ndim or wrong:
        shown = " × ".join(str(n) if isinstance(n, int) else "any" for n in sizes)
        raise InputError(
            f"the input '{name}' has shape {array.shape}; the model takes {shown}",
            where=where,
            remedy="give the samples the model's shape; the first axis is the batch",
        )


def compare(calibration: Samples, validation: Samples) -> None:
    """Warn where the calibration data's range is unlike the validation data's (forgotten normalization)."""
    import numpy as np

    peaks: list[dict[str, float]] = []
    for part in (calibration, validation):
        peak: dict[str, float] = {}
        few = Samples(part.spool, min(part.limit, COMPARED))
        for sample in few.singles():
            for name, value in sample.items():
                if value.dtype.kind == "f":
                    peak[name] = max(peak.get(name, 0.0), float(np.abs(value).max(initial=0.0)))
        peaks.append(peak)
    for name, mine in peaks[0].items():
        theirs = peaks[1].get(name, mine)
        if not max(mine, theirs) <= UNLIKE * min(mine, theirs):
            console.warn(
                f"the calibration data's range of '{name}' (±{mine:.3g}) is unlike the validation data's "
                f"(±{theirs:.3g}); is one of them not normalized?"
            )
