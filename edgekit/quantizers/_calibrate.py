"""Streaming calibration: the range of every tensor, in memory that does not grow with the samples.

The model runs on one sample at a time, however the user batched them, so the result can't depend on
the batching; a moving average is over samples. Histograms have bins whose width is a power of two and
whose edges are multiples of it: where a greater value comes, neighbours are added up pairwise, exactly,
so the result depends on the order of samples no more than on their batching.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit import console
from edgekit.errors import InputError
from edgekit.quantizers import _graph

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, Array]

BINS = 2048  # on each side of zero
VALUES = 1 << 16  # of one tensor and sample that go into a histogram at most; the range is always of all


@dataclass
class Statistics:
    """What was seen of one tensor.

    Attributes:
        low, high: Least and greatest value of all.
        low_sum, high_sum: Sums over samples of each sample's least and greatest value.
        samples: How many samples.
        exponent: The bins are ``2**exponent`` wide; None before the first value that isn't zero.
        counts: int64 (2 * BINS,); bin ``i`` counts values in ``[(i - BINS) * width, (i - BINS + 1) * width)``.
    """

    low: float = float("inf")
    high: float = float("-inf")
    low_sum: float = 0.0
    high_sum: float = 0.0
    samples: int = 0
    exponent: int | None = None
    counts: Array | None = None

    def add(self, values: Array, *, histogram: bool) -> None:
        """Take in one sample's values (float, any shape; not empty).

        Raises:
            FloatingPointError: A NaN or an infinity among them.
        """
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise FloatingPointError("NaN" if math.isnan(low) else "infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.low_sum, self.high_sum = self.low_sum + low, self.high_sum + high
        self.samples += 1
        if histogram:
            self._count(values.reshape(-1), max(-low, high))

    def _count(self, values: Array, peak: float) -> None:
        import numpy as np

        if self.counts is None:
            self.counts = np.zeros(2 * BINS, np.int64)
        if peak > 0:
            self._widen(exponent_for(peak))
        step = -(-values.size // VALUES)
        scaled = values[::step] * np.float32(2.0 ** -(self.exponent or 0))
        bins = np.floor(scaled).astype(np.int32) + BINS
        self.counts += np.bincount(bins, minlength=2 * BINS)

    def _widen(self, exponent: int) -> None:
        """Make the bins at least ``2**exponent`` wide by adding neighbours up."""
        assert self.counts is not None
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            self.counts = _halved(self.counts)
            self.exponent += 1

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both together."""
        both = copy.deepcopy(self)
        both.low, both.high = min(self.low, other.low), max(self.high, other.high)
        both.low_sum, both.high_sum = self.low_sum + other.low_sum, self.high_sum + other.high_sum
        both.samples = self.samples + other.samples
        if both.counts is None or other.counts is None:
            both.counts = both.counts if other.counts is None else other.counts
            both.exponent = other.exponent if both.exponent is None else both.exponent
            return both
        guest = copy.deepcopy(other)
        for pair in ((both, guest), (guest, both)):
            if pair[1].exponent is not None:
                pair[0]._widen(pair[1].exponent)
        both.counts = both.counts + guest.counts
        return both


def exponent_for(peak: float) -> int:
    """The least exponent with which ``peak`` lies within the bins."""
    exponent = math.frexp(peak / BINS)[1]
    return max(exponent, -126)


def _halved(counts: Array) -> Array:
    """The same histogram with bins twice as wide: the outer half of the bins becomes free."""
    import numpy as np

    pairs = counts.reshape(-1, 2).sum(axis=1)
    return np.pad(pairs, (BINS - BINS // 2, BINS - BINS // 2))


@dataclass
class Collector:
    """Runs the float model sample by sample and keeps statistics of some of its values.

    Args:
        model: The float model; it is not changed.
        names: The values to look at.
        histogram: Whether histograms are needed, or ranges will do.
    """

    model: ir.Model
    names: Sequence[str]
    histogram: bool = True
    statistics: dict[str, Statistics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._session = observed(self.model, self.names)
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._wanted = [(i, n) for i, n in enumerate(self._outputs) if n in set(self.names)]
        inputs = {v.name for v in self.model.graph.inputs}
        self._inputs = [n for n in self.names if n in inputs]
        self.statistics = {n: Statistics() for n in self.names}
        self.seen = 0

    def run(self, feeds: Feeds) -> list[Array]:
        """Take in one sample; returns the model's own outputs.

        Raises:
            InputError: A NaN or an infinity, with the sample and the tensor.
        """
        results = self._session.run(None, dict(feeds))
        for name in self._inputs:
            self._take(name, feeds[name])
        for index, name in self._wanted:
            self._take(name, results[index])
        self.seen += 1
        return results[: len(self.model.graph.outputs)]

    def _take(self, name: str, values: Array) -> None:
        if not values.size:
            return
        try:
            self.statistics[name].add(values, histogram=self.histogram)
        except FloatingPointError as error:
            raise InputError(
                f"calibration sample {self.seen} holds {error} in {self._place(name)}",
                remedy="mend or leave out that sample; if only the tensor inside is affected, the model overflows on it",
            ) from error

    def _place(self, name: str) -> str:
        if name in self._inputs:
            return f"input '{name}'"
        makers = [n for n in self.model.graph for v in n.outputs if v.name == name]
        return f"tensor '{name}', made by node '{makers[0].name}' ({makers[0].op_type})"


def observed(model: ir.Model, names: Iterable[str]) -> Any:
    """A session whose outputs are the model's own, then ``names`` (those that are not inputs)."""
    twin = model.clone()
    known = {v.name: v for node in twin.graph for v in node.outputs}
    own = {v.name for v in twin.graph.outputs}
    twin.graph.outputs.extend(known[n] for n in names if n in known and n not in own)
    return _graph.session(twin)


def samples(batches: Iterable[Feeds], size: int = 1, limit: int | None = None) -> Iterator[Feeds]:
    """Cut batches anew into groups of ``size`` samples; a last group that is short repeats its samples."""
    import numpy as np

    held: list[Feeds] = []
    for number, sample in enumerate(_singles(batches)):
        if limit is not None and number >= limit:
            break
        if size == 1:
            yield sample
            continue
        held.append(sample)
        if len(held) == size:
            yield {name: np.concatenate([h[name] for h in held]) for name in sample}
            held = []
    if held:
        full = [held[i % len(held)] for i in range(size)]
        yield {name: np.concatenate([h[name] for h in full]) for name in full[0]}


def _singles(batches: Iterable[Feeds]) -> Iterator[Feeds]:
    for feeds in batches:
        for row in range(len(next(iter(feeds.values())))):
            yield {name: value[row : row + 1] for name, value in feeds.items()}


def fixed_batch(model: ir.Model) -> int:
    """The batch size that the model insists on; 1 where it is free."""
    sizes = [v.shape[0] for v in model.graph.inputs if v.shape is not None and len(v.shape)]
    known = [size for size in sizes if isinstance(size, int)]
    return known[0] if known else 1


def calibrate(collector: Collector, batches: Iterable[Feeds], limit: int) -> None:
    """Run every sample (``limit`` at most) through the collector, with progress."""
    size = fixed_batch(collector.model)
    total = -(-limit // size)
    for group in console.track(samples(batches, size, limit), "calibrating", total):
        collector.run(group)
