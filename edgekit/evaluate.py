"""Run an artifact over a data split, and judge what came out by the task metric.

Two steps, because outputs are costly and judging is cheap: :func:`outputs_job` runs a model
in a child process and keeps its outputs; :func:`judge` scores them, with intervals, and
against another model's outputs on the same samples.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekit
from edgekit import machine, metrics, store
from edgekit.console import track
from edgekit.errors import EdgekitError, InputError, StageError, missing_package
from edgekit.metrics import _classes, _intervals
from edgekit.workload.spool import Spool
from edgekit.workload.spool import read as read_spool

if TYPE_CHECKING:
    import numpy as np

    from edgekit.backends import Session
    from edgekit.target import Target

    Array = np.ndarray[Any, Any]
    Runner = Callable[[Mapping[str, Array]], Sequence[Array]]

DIGEST = "digest"
SEED = 0
RESAMPLES = 1000
_CHEAP, _COSTLY = 2 * 10**8, 10**7  # elements to look at in all resamples: of a mean, of any other score
_PATIENCE_S = 5.0  # for the resamples of a user's metric that has no per_sample


def outputs_job(artifact: str, backend: str, target: dict[str, Any] | None, data: str, out: str) -> dict[str, Any]:
    """Run an artifact over a spooled split and keep its outputs.

    Args:
        artifact: The model's file.
        backend: ``torch`` (a ``.pt2``), ``onnx`` (as :func:`open_onnx` does), or a member of ``edgekit/backends``.
        target: The target's dump; a backend needs it.
        data: The spool's folder.
        out: The ``.npz`` to write; read it with :func:`load_outputs`.

    Returns:
        ``samples``, ``outputs`` (their names), ``seconds``.

    Raises:
        InputError: The data don't fit the model.
        StageError: Its outputs don't grow with the batch, or can't be written.
    """
    spool = read_spool(data)
    names, run = _runner(Path(artifact), backend, target)
    whole: list[Array] = []
    done, start = 0, time.monotonic()
    for number, feeds in enumerate(track(spool.feeds(), "evaluate", spool.batches)):
        outputs = _checked(run(feeds), feeds, number)
        whole = whole or _room(outputs, spool.samples)
        _keep(outputs, whole, done)
        done += len(outputs[0])
    seconds = time.monotonic() - start
    _write(Path(out), names, whole, spool.digest)
    return {"samples": spool.samples, "outputs": names, "seconds": round(seconds, 3)}


def load_outputs(path: Path | str) -> list[Array]:
    """The outputs that :func:`outputs_job` wrote: arrays (N, …) in the model's order.

    Raises:
        InputError: Missing or damaged.
    """
    return _read(Path(path))[0]


def judge(
    outputs: Path | str,
    spool: Spool | Path | str,
    metric: dict[str, Any],
    base: Path | str,
    reference: Path | str | None = None,
) -> dict[str, Any]:
    """Score a model's outputs, and compare them with a reference's on the same samples.

    Args:
        outputs: What :func:`outputs_job` wrote. spool: The split that it ran on.
        metric: The dump of the recipe's ``[metric]``. base: The recipe's folder.
        reference: The outputs to compare with.

    Returns:
        ``name``, ``value``, ``ci95`` ([low, high], or None where a resample has no value), ``ci_method``,
        ``samples``, ``higher_is_better``. With a reference also ``delta`` (this minus the reference),
        ``delta_ci95`` (paired), ``delta_method``, ``p_value`` (exact McNemar; for accuracies), ``agreement``
        (share of equal top classes; None where the outputs are no classes).

    Raises:
        InputError: No labels, labels that don't fit, or outputs of other samples.
        StageError: NaN in the outputs.
    """
    split = spool if isinstance(spool, Spool) else read_spool(spool)
    chosen = metrics.load(metric, Path(base))
    files = [Path(outputs)] + ([Path(reference)] if reference else [])
    if chosen.is_mean:
        return _judged(chosen, files, split)
    # A bootstrap takes seconds, and a run judges many stages: remember, by all that it depends on.
    inputs = {
        "stage": "judge",
        "outputs": [store.sha256_file(file) if file.is_file() else None for file in files],
        "data": split.digest,
        "metric": metric,
        "source": chosen.source(),
        "edgekit": edgekit.__version__,
        "versions": {name: machine.versions().get(name) for name in ("numpy", "scikit-learn")},
    }
    return store.Store().build(inputs, lambda folder, scratch: _judged(chosen, files, split)).meta


def _judged(metric: metrics.Metric, files: list[Path], split: Spool) -> dict[str, Any]:
    """What :func:`judge` returns, computed: of the outputs in the first file, and against those in the second."""
    labels = _labels(split)
    models = [_outputs_of(file, split) for file in files]
    found = {"name": metric.name, "samples": split.samples, "higher_is_better": metric.higher_is_better}
    found |= _scored(metric, models, labels)
    return {**found, "agreement": agreement(models[0], models[1], labels)} if len(models) > 1 else found


def agreement(mine: Sequence[Array], theirs: Sequence[Array], labels: Array) -> float | None:
    """Share of the positions where both models decide for the same class; None where outputs are no classes.

    Args:
        mine, theirs: Two models' outputs, arrays (N, …); the first output counts. labels: Array (N, …).
    """
    try:
        one, other = _classes.positions(mine, labels), _classes.positions(theirs, labels)
    except EdgekitError:
        return None
    if one.scores.shape != other.scores.shape:
        return None
    return float((_classes.decisions(one) == _classes.decisions(other)).mean())


def difference(outputs: Path | str, reference: Path | str) -> dict[str, float]:
    """Greatest absolute and relative difference between two files of outputs (see :mod:`edgekit.agree`)."""
    from edgekit import agree

    return agree.compare(load_outputs(reference), load_outputs(outputs))


def _scored(metric: metrics.Metric, models: list[list[Array]], labels: Array) -> dict[str, Any]:
    """Value and interval of the first model, and of its difference to the second if there is one."""
    parts = [metric.per_sample(outputs, labels) for outputs in models]
    if any(p is None for p in parts):
        return _scored_whole(metric, models, labels)
    known = [p for p in parts if p is not None]
    values = [metric.combine(p) for p in known]
    if metric.is_mean and all(_is_hits(p) for p in known):
        return _scored_hits(values, [p.astype(bool) for p in known])
    budget = _CHEAP if metric.is_mean else _COSTLY
    resamples = max(100, min(RESAMPLES, budget // known[0].size))

    def score(rows: Array) -> tuple[float, ...]:
        return tuple(metric.combine(p[rows]) for p in known)

    return _bootstrapped(values, score, len(labels), resamples)


def _scored_hits(values: list[float], hits: list[Array]) -> dict[str, Any]:
    """Samples that are hit or not: intervals from the counts alone."""
    low, high = _intervals.wilson(int(hits[0].sum()), len(hits[0]))
    found: dict[str, Any] = {"value": values[0], "ci95": [low, high], "ci_method": "Wilson"}
    if len(hits) > 1:
        found |= {
            "delta": values[0] - values[1],
            "delta_ci95": list(_intervals.newcombe(hits[0], hits[1])),
            "delta_method": "Newcombe, paired",
            "p_value": _intervals.mcnemar(hits[0], hits[1]),
        }
    return found


def _scored_whole(metric: metrics.Metric, models: list[list[Array]], labels: Array) -> dict[str, Any]:
    """A user's metric that only scores whole sets: each resample calls it again, as often as patience allows."""
    start = time.monotonic()
    values = [metric.score(outputs, labels) for outputs in models]
    cost = max(time.monotonic() - start, 1e-9)
    resamples = next((n for n in (RESAMPLES, 500, 200, 100) if n * cost < _PATIENCE_S), 50)

    def score(rows: Array) -> tuple[float, ...]:
        return tuple(metric.score([o[rows] for o in outputs], labels[rows]) for outputs in models)

    return _bootstrapped(values, score, len(labels), resamples)


def _bootstrapped(
    values: list[float], score: Callable[[Array], tuple[float, ...]], samples: int, resamples: int
) -> dict[str, Any]:
    """Intervals of the value and, from the same resamples, of the difference."""
    paired = len(values) > 1

    def with_delta(rows: Array) -> tuple[float, ...]:
        drawn = score(rows)
        return (drawn[0], drawn[0] - drawn[1]) if paired else drawn

    ends = _intervals.bootstrap(with_delta, samples, resamples, SEED)
    method = f"bootstrap, {resamples} resamples"
    found: dict[str, Any] = {"value": values[0], "ci95": _list(ends[0]), "ci_method": method}
    if paired:
        found |= {
            "delta": values[0] - values[1],
            "delta_ci95": _list(ends[1]),
            "delta_method": f"paired {method}",
        }
    return found


def _list(ends: tuple[float, float] | None) -> list[float] | None:
    return None if ends is None else list(ends)


def _is_hits(parts: Array) -> bool:
    """Whether each sample is hit (1) or not (0)."""
    return parts.ndim == 1 and bool(((parts == 0) | (parts == 1)).all())


def _runner(artifact: Path, backend: str, target: dict[str, Any] | None) -> tuple[list[str], Runner]:
    """The output names of a loaded model, and the function that runs a batch of any size."""
    if backend == "torch":
        return _torch_runner(artifact)
    from edgekit import backends
    from edgekit.target import Target

    if backend == "onnx":
        session = open_onnx(artifact)
    else:
        session = backends.load(backend).open_model(artifact, Target.model_validate(target))
    wanted = {port.name for port in session.inputs}

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        if wanted - set(feeds):
            raise InputError(
                f"the model's inputs are {sorted(wanted)}, but the data have {sorted(feeds)}",
                where=str(artifact),
                remedy="name the data's inputs as the model does",
            )
        return backends.run_batched(session, {name: feeds[name] for name in feeds if name in wanted})

    return [port.name for port in session.outputs], run


def open_onnx(model: Path) -> Session:
    """An ONNX file in ONNX Runtime as it comes; of one in bfloat16, which has no CPU kernels there, a float32 copy."""
    from onnx import TensorProto

    from edgekit import backends, onnxfile
    from edgekit.onnxfile import edit

    room, target = backends.load("onnxruntime"), _plain_target()
    tensors = onnxfile.read_model(model, weights=False).graph.initializer
    if all(tensor.data_type != TensorProto.BFLOAT16 for tensor in tensors):
        return room.open_model(model, target)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        copy = onnxfile.write_model(edit.without_bfloat16(onnxfile.read_model(model)), Path(folder, "float.onnx"))
        return room.open_model(copy, target)


def _plain_target() -> Target:
    """ONNX Runtime on this machine's cores, its optimizations as they come."""
    from edgekit.target import Device, Run, Target

    return Target(
        name="onnx",
        title="ONNX Runtime as it comes",
        source="measured",
        backend="onnxruntime",
        device=Device(arch=platform.machine()),
        run=Run(threads=len(os.sched_getaffinity(0))),
    )


def _torch_runner(artifact: Path) -> tuple[list[str], Runner]:
    try:
        import torch
    except ImportError as error:
        raise missing_package("torch", "compress", "to run .pt2 models") from error
    from edgekit import exported

    model = exported.load(artifact)
    model.eval()

    def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
        with torch.inference_mode():
            outputs = exported.run(model, {name: torch.from_numpy(value) for name, value in feeds.items()})
        return [(o.float() if o.dtype == torch.bfloat16 else o).numpy() for o in outputs]  # numpy has no bfloat16

    return list(exported.signature(model).outputs), run


def _checked(outputs: Sequence[Array], feeds: Mapping[str, Array], number: int) -> list[Array]:
    """A batch's outputs, each with one row for each sample."""
    size = len(next(iter(feeds.values())))
    for index, output in enumerate(outputs):
        if output.ndim == 0 or len(output) != size:
            raise StageError(
                f"output {index} has the shape {output.shape} for a batch of {size} samples (batch {number})",
                remedy="let the model's outputs have the batch as their first size, whatever the batch is",
            )
    return list(outputs)


def _room(outputs: list[Array], samples: int) -> list[Array]:
    """Arrays for all samples, shaped as the first batch's outputs: memory for the outputs once, not twice."""
    import numpy as np

    return [np.empty((samples, *output.shape[1:]), output.dtype) for output in outputs]


def _keep(outputs: list[Array], whole: list[Array], done: int) -> None:
    """Put a batch's outputs behind the ``done`` samples before it."""
    for index, (output, array) in enumerate(zip(outputs, whole, strict=True)):
        if output.shape[1:] != array.shape[1:]:
            raise _ragged(f"output {index}", {output.shape[1:], array.shape[1:]})
        array[done : done + len(output)] = output


def _ragged(what: str, shapes: set[tuple[int, ...]]) -> InputError:
    return InputError(
        f"{what} has other sizes from batch to batch: {sorted(shapes)[:4]}",
        remedy="pad the samples of the split to one size",
    )


def _concatenated(parts: list[Array], what: str) -> Array:
    import numpy as np

    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise _ragged(what, shapes)
    return np.concatenate(parts)


def _write(out: Path, names: list[str], arrays: list[Array], digest: str) -> None:
    import numpy as np

    fresh = out.with_name(f".{out.name}")
    try:
        with fresh.open("wb") as file:
            np.savez(file, **{f"{i}:{n}": a for i, (n, a) in enumerate(zip(names, arrays, strict=True))}, digest=digest)  # type: ignore[arg-type]
        fresh.replace(out)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise store.write_error(out, error) from error


def _read(path: Path) -> tuple[list[Array], str]:
    """The outputs in their order, and the digest of the split that they belong to."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            names = sorted((n for n in file.files if n != DIGEST), key=lambda n: int(n.split(":")[0]))
            return [file[name] for name in names], str(file[DIGEST])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"can't read these outputs: {error}", where=str(path), remedy="run the evaluation again"
        ) from error


def _outputs_of(path: Path | str, split: Spool) -> list[Array]:
    outputs, digest = _read(Path(path))
    if digest != split.digest:
        raise InputError(
            "these outputs belong to other samples than this split's",
            where=str(path),
            remedy="run the model on this split again; a comparison needs the same samples",
        )
    return outputs


def _labels(split: Spool) -> Array:
    if not split.labelled:
        raise InputError(
            "the split has no labels, so no metric can be computed",
            where="[data] entry",
            remedy="yield (inputs, labels) for every batch of this split",
        )
    return _concatenated(list(split.labels()), "the labels")
