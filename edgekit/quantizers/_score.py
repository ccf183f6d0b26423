"""How good is a quantized model? By signal-to-noise against the float one, and by the metric if there is one."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import machine
from edgekit.errors import StageError
from edgekit.quantizers import _graph
from edgekit.quantizers._job import Job
from edgekit.quantizers._samples import Samples, check, fixed_batch
from edgekit.recipe import MetricSection
from edgekit.workload.spool import Spool

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, Array]

GROUP = 16
FAILED_DB = 3.0  # noise of half the signal's power; an output that is saturated throughout has less
KEPT_BYTES = 1 << 25  # of the float model's outputs, which are asked for again with every candidate
SILENCE_DB = 200.0  # stands for "no noise at all"


@dataclass(frozen=True)
class Judge:
    """Compares quantized models with the float one.

    Attributes:
        model: The float model.
        samples: On which signal and noise are measured.
        validation, metric: Labelled samples and the metric, or None.
        base: The recipe's folder.
    """

    model: ir.Model
    samples: Samples
    validation: Spool | None = None
    metric: MetricSection | None = None
    base: Path = Path()
    _kept: dict[Samples, list[list[Array]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def _float(self) -> Any:
        return _graph.session(self.model, optimized=True)

    def sqnr(self, models: Sequence[ir.Model], samples: Samples | None = None) -> list[float]:
        """Signal-to-noise of each model's outputs in decibels (the mean over outputs of noise / signal).

        Raises:
            StageError: A NaN, an infinity, or an output that no longer changes with the input.
        """
        import numpy as np

        sessions = [_graph.session(m, optimized=_exact_kernels()) for m in models]
        outputs = [v.name for v in self.model.graph.outputs]
        tallies = [[_Tally() for _ in outputs] for _ in models]
        for feeds, wanted in self._pairs(samples or self.samples):
            for session, row in zip(sessions, tallies, strict=True):
                for name, tally, a, b in zip(outputs, row, wanted, session.run(None, dict(feeds)), strict=True):
                    tally.add(name or "", np.asarray(a), np.asarray(b))
        for row in tallies:
            for name, tally in zip(outputs, row, strict=True):
                tally.check(name or "")
        return [_decibels(float(np.mean([t.ratio() for t in row if t.counted] or [0.0]))) for row in tallies]

    def _pairs(self, samples: Samples) -> Iterator[tuple[Feeds, list[Array]]]:
        """Each group's inputs and the float model's outputs, which are kept where they are small."""
        import numpy as np

        fixed = fixed_batch(self.model)
        groups = samples.groups(fixed or GROUP, full=fixed is not None)
        if samples in self._kept:
            yield from zip(groups, self._kept[samples], strict=True)
            return
        seen: list[list[Array]] = []
        size = 0
        for feeds in groups:
            wanted = self._float.run(None, dict(feeds))
            size += sum(np.asarray(output).nbytes for output in wanted)
            seen = [*seen, wanted] if size <= KEPT_BYTES else []
            yield feeds, wanted
        if seen:
            self._kept[samples] = seen

    def judged(self) -> bool:
        """Whether a metric and labelled samples were given."""
        return self.metric is not None and self.validation is not None and self.validation.labelled

    def agreement(self, model: ir.Model) -> float:
        """The share of samples whose greatest output is at the same place as the float model's."""
        session, same, count = _graph.session(model, optimized=_exact_kernels()), 0, 0
        fixed = fixed_batch(self.model)
        for feeds in self.samples.groups(fixed or GROUP, full=fixed is not None):
            wanted, got = (run.run(None, dict(feeds))[0].argmax(axis=1) for run in (self._float, session))
            same, count = same + int((wanted == got).sum()), count + len(got)
        return same / count

    def metric_of(self, model: ir.Model) -> float:
        """The metric on the validation samples, turned so that higher is better."""
        import numpy as np

        from edgekit import metrics

        assert self.metric is not None
        assert self.validation is not None
        session = self._float if model is self.model else _graph.session(model, optimized=_exact_kernels())
        parts: list[list[Array]] = []
        labels: list[Array] = []
        for feeds, label in self.validation:
            parts.append(_run_in_groups(session, feeds, fixed_batch(self.model)))
            labels.append(np.asarray(label))
        outputs = [np.concatenate(column) for column in zip(*parts, strict=True)]
        chosen = metrics.load(self.metric, self.base)
        value = chosen.score(outputs, np.concatenate(labels))
        return value if chosen.higher_is_better else -value


@dataclass
class _Tally:
    """Signal, noise and spread of one output, summed as samples go by."""

    signal: float = 0.0
    noise: float = 0.0
    wanted_spread: float = 0.0
    spread: float = 0.0
    first: Any = None
    counted: bool = False

    def add(self, name: str, wanted: Array, got: Array) -> None:
        import numpy as np

        if wanted.dtype.kind != "f":
            return  # an index or a mask: the metric judges it
        self.counted = True
        if not np.isfinite(got).all() and np.isfinite(wanted).all():
            raise StageError(
                f"the quantized model's output '{name}' holds NaN or infinity where the float model's does not",
                remedy="leave the layer that overflows in float (max_drop), or use another method",
            )
        wanted, got = wanted.astype(np.float64), got.astype(np.float64)
        self.signal += float((wanted * wanted).sum())
        self.noise += float(((wanted - got) ** 2).sum())
        if self.first is None or self.first[0].shape[1:] != wanted.shape[1:]:
            self.first = (wanted[:1], got[:1])  # batches may be of several sizes
        self.wanted_spread = max(self.wanted_spread, float(np.abs(wanted - self.first[0]).max(initial=0.0)))
        self.spread = max(self.spread, float(np.abs(got - self.first[1]).max(initial=0.0)))

    def check(self, name: str) -> None:
        """Refuse an output that is constant where the float model's is not, or drowned in noise."""
        if self.wanted_spread > 0 and self.spread == 0:
            raise StageError(
                f"the quantized model's output '{name}' is constant: it no longer depends on the input",
                remedy="calibrate with real, normalized samples; their range is what the integers can hold",
            )

    def ratio(self) -> float:
        return self.noise / self.signal if self.signal else float(self.noise > 0)


def require_signal(decibels: float) -> None:
    """Refuse a model whose outputs are mostly noise, or saturated.

    Raises:
        StageError: It is.
    """
    if decibels < FAILED_DB:
        raise StageError(
            f"the quantized model's outputs are noise: signal-to-noise is {decibels:.1f} dB against the float model",
            remedy="check that the calibration samples are normalized like the model's inputs; "
            "set max_drop to let the worst layers stay float",
        )


def judged(reference: ir.Model, model: ir.Model, job: Job) -> dict[str, float]:
    """Signal-to-noise of a finished model, if there are samples: ``{"sqnr_db"}``, for a report.

    Raises:
        InputError: Samples that don't fit the model.
        StageError: Outputs that are constant, NaN or (but for a draft) noise.
    """
    if job.calibration is None:
        return {}
    data = Samples(job.calibration, job.settings.samples)
    check(reference, data)
    judge = Judge(reference, replace(data, part="held"), job.validation, job.metric, job.base)
    decibels = round(judge.sqnr([model])[0], 2)
    if not job.draft:
        require_signal(decibels)
    return {"sqnr_db": decibels}


def _exact_kernels() -> bool:
    """Whether this machine's integer kernels compute what Q/DQ says (with VNNI, or on ARM); else Q/DQ runs in float."""
    flags = machine.cpu_flags()
    return bool(flags & {"avx512_vnni", "avx_vnni", "asimddp"})


def _run_in_groups(session: Any, feeds: Any, fixed: int | None) -> list[Array]:
    """Outputs of a batch, through a model whose batch may be fixed."""
    import numpy as np

    count = len(next(iter(feeds.values())))
    size = fixed or count
    parts = []
    for start in range(0, count, size):
        rows = [min(start + i, count - 1) for i in range(size)]
        results = session.run(None, {name: value[rows] for name, value in feeds.items()})
        parts.append([r[: count - start] for r in results])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _decibels(ratio: float) -> float:
    return SILENCE_DB if ratio <= 0 else min(SILENCE_DB, -10 * math.log10(ratio))
