"""Streaming calibration: the range of every tensor, in memory that does not grow with the samples.

The samples are cut anew into groups of a size that the model alone decides, and statistics are of each
sample, so the result can't depend on how the user batched them; a moving average is over samples.
Histograms have bins whose width is a power of two and whose edges are multiples of it: where a greater
value comes, neighbours are added up pairwise, exactly, so a histogram depends on the order of the samples
no more than on their batching.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit import console
from edgekit.errors import InputError
from edgekit.quantizers import _graph
from edgekit.quantizers._samples import Samples, fixed_batch

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, Array]

BINS = 2048  # on each side of zero
VALUES = 1 << 12  # of one tensor and sample that go into a histogram at most; the range is always of all
GROUP_BYTES = 1 << 26  # of observed tensors at a time: a group of samples is as large as that allows
GROUP = 16  # more at once is no faster, and leaves the caches


@dataclass
class Statistics:
    """What was seen of one tensor.

    Attributes:
        low, high: Least and greatest value of all.
        low_sum, high_sum: Sums over samples of each sample's least and greatest value.
        samples: How many samples.
        exponent: The bins are ``2**exponent`` wide; None before the first value that isn't zero.
        axis: The channels' axis, where statistics of each channel are wanted.
        channel_peak, channel_mean: float (channels,): greatest magnitude, and mean, of each channel.
        counts: int64 (2 * BINS,); bin ``i`` counts values in ``[(i - BINS) * width, (i - BINS + 1) * width)``.
    """

    low: float = float("inf")
    high: float = float("-inf")
    low_sum: float = 0.0
    high_sum: float = 0.0
    samples: int = 0
    axis: int | None = None
    channel_peak: Array | None = None
    channel_mean: Array | None = None
    exponent: int | None = None
    counts: Array | None = None

    def add(self, values: Array, *, histogram: bool) -> None:
        """Take in some samples' values, float (samples, …), not empty.

        Raises:
            FloatingPointError: A NaN or an infinity among them; its argument is the sample.
        """
        import numpy as np

        rows = values.reshape(len(values), -1)
        low, high = rows.min(axis=1), rows.max(axis=1)
        if not (np.isfinite(low) & np.isfinite(high)).all():
            raise FloatingPointError(int(np.argmin(np.isfinite(low) & np.isfinite(high))))
        self.low, self.high = min(self.low, float(low.min())), max(self.high, float(high.max()))
        self.low_sum += float(low.sum(dtype=np.float64))
        self.high_sum += float(high.sum(dtype=np.float64))
        self.samples += len(rows)
        if histogram:
            self._count(rows[:, :: stride(rows.shape[1])])

    def add_channels(self, values: Array, share: float) -> None:
        """Take in values, float (…, channels, …); ``share`` is what they are of all samples, in means."""
        import numpy as np

        assert self.axis is not None
        axis = self.axis % values.ndim
        # Inner axes first: along contiguous memory numpy reduces many times faster.
        sizes = math.prod(values.shape[:axis]), values.shape[axis], math.prod(values.shape[axis + 1 :])
        flat = values.reshape(sizes)
        high, low = flat.max(axis=2).max(axis=0), flat.min(axis=2).min(axis=0)
        means = flat.mean(axis=2).mean(axis=0, dtype=np.float64) * share
        peaks = np.maximum(high, -low)
        if self.channel_peak is None or self.channel_mean is None:
            self.channel_peak, self.channel_mean = peaks, means
        else:
            self.channel_peak, self.channel_mean = np.maximum(self.channel_peak, peaks), self.channel_mean + means

    def _count(self, rows: Array) -> None:
        import numpy as np

        if self.counts is None:
            self.counts = np.zeros(2 * BINS, np.int64)
        peak = max(-self.low, self.high)
        if peak > 0:
            self._widen(exponent_for(peak))
        scaled = rows * np.float32(2.0 ** -(self.exponent or 0))
        scaled += BINS
        self.counts += np.bincount(np.floor(scaled, out=scaled).astype(np.intp).reshape(-1), minlength=2 * BINS)

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
        import numpy as np

        both = copy.deepcopy(self)
        both.low, both.high = min(self.low, other.low), max(self.high, other.high)
        both.low_sum, both.high_sum = self.low_sum + other.low_sum, self.high_sum + other.high_sum
        both.samples = self.samples + other.samples
        if self.channel_peak is not None and other.channel_peak is not None:
            both.channel_peak = np.maximum(self.channel_peak, other.channel_peak)
        if self.channel_mean is not None and other.channel_mean is not None:
            both.channel_mean = (self.channel_mean * self.samples + other.channel_mean * other.samples) / both.samples
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


def stride(size: int) -> int:
    """The step with which a tensor of ``size`` values is sampled; coprime to usual widths: no column is preferred."""
    step = -(-size // VALUES)
    while step > 1 and math.gcd(step, 2 * 3 * 5 * 7) > 1:
        step += 1
    return step


def _halved(counts: Array) -> Array:
    """The same histogram with bins twice as wide: the outer half of the bins becomes free."""
    import numpy as np

    pairs = counts.reshape(-1, 2).sum(axis=1)
    return np.pad(pairs, (BINS - BINS // 2, BINS - BINS // 2))


class Collector:
    """Runs the float model and keeps statistics of some of its values.

    Args:
        model: The float model; it is not changed.
        names: The values to look at.
        histogram: Whether histograms are needed, or ranges will do.
        channels: Value → its channels' axis, where statistics of each channel are needed.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Sequence[str],
        *,
        histogram: bool = True,
        channels: Mapping[str, int] | None = None,
    ) -> None:
        self._model, self._histogram = model, histogram
        self._session = observed(model, names)
        outputs = [o.name for o in self._session.get_outputs()]
        self._outputs = [(i, name) for i, name in enumerate(outputs) if name in set(names)]
        self._inputs = [v.name or "" for v in model.graph.inputs if v.name in set(names)]
        self.statistics = {name: Statistics(axis=(channels or {}).get(name)) for name in names}

    def run(self, samples: Samples) -> None:
        """Take in every sample, with progress.

        Raises:
            InputError: A NaN or an infinity, with the sample and the tensor.
        """
        fixed = fixed_batch(self._model)
        size = fixed or self._group_size(samples)
        seen, total = 0, -(-len(samples) // size)
        for feeds in console.track(samples.groups(size, full=fixed is not None), "calibrating", total):
            count = len(next(iter(feeds.values())))
            try:
                self._take(feeds, count, count / len(samples))
            except _NotFiniteError as error:
                raise InputError(
                    f"calibration sample {samples.index(seen + error.row)} gives NaN or infinity in {error.place}",
                    remedy="mend or leave out that sample; if its inputs are sound, the float model overflows on it",
                ) from error
            seen += count

    def _take(self, feeds: Feeds, count: int, share: float) -> None:
        import numpy as np

        for name, value in feeds.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                rows = np.isfinite(value.reshape(count, -1)).all(axis=1)
                raise _NotFiniteError(int(np.argmin(rows)), f"input '{name}'")
        results = self._session.run(None, dict(feeds))
        values = [(name, feeds[name]) for name in self._inputs] + [(name, results[i]) for i, name in self._outputs]
        for name, value in values:
            if not value.size:
                continue
            rows, seen = value.reshape(count if len(value) % count == 0 else 1, -1), self.statistics[name]
            try:
                seen.add(rows, histogram=self._histogram)
            except FloatingPointError as error:
                raise _NotFiniteError(error.args[0], self._place(name)) from error
            if seen.axis is not None:
                seen.add_channels(value, share)

    def _group_size(self, samples: Samples) -> int:
        """How many samples may run at once: one, if some tensor does not keep samples apart along its first axis."""
        import numpy as np

        pair = list(itertools.islice(samples.singles(), 2))
        if len(pair) < 2:
            return 1
        together = {name: np.concatenate([pair[0][name], pair[1][name]]) for name in pair[0]}
        try:
            first, second, both = (self._session.run(None, dict(feeds)) for feeds in (*pair, together))
        except Exception:
            return 1  # the model takes no batch, whatever its shapes say
        for a, b, ab in zip(first, second, both, strict=True):
            apart = np.concatenate([a, b]) if a.ndim and b.ndim and a.shape[1:] == b.shape[1:] else None
            if apart is None or apart.shape != ab.shape:
                return 1
            top = peak(ab)
            if not math.isfinite(top) or not np.allclose(apart, ab, rtol=1e-3, atol=1e-3 * top):
                return 1
        return max(1, min(GROUP, GROUP_BYTES // max(1, sum(value.nbytes for value in first))))

    def _place(self, name: str) -> str:
        maker = next(n for n in self._model.graph for v in n.outputs if v.name == name)
        return f"tensor '{name}', made by node '{maker.name}' ({maker.op_type})"


class _NotFiniteError(ArithmeticError):
    """A NaN or an infinity, in which sample of the group and where."""

    def __init__(self, row: int, place: str) -> None:
        super().__init__(row, place)
        self.row, self.place = row, place


def observed(model: ir.Model, names: Iterable[str]) -> Any:
    """A session whose outputs are the model's own, then ``names`` (those that are not inputs)."""
    twin = model.clone()
    known = {v.name: v for node in twin.graph for v in node.outputs}
    own = {v.name for v in twin.graph.outputs}
    twin.graph.outputs.extend(known[n] for n in names if n in known and n not in own)
    return _graph.session(twin, optimized=True)


def peak(values: Array) -> float:
    """The greatest magnitude; 0 of nothing."""
    import numpy as np

    return float(np.abs(values).max()) if values.size else 0.0
