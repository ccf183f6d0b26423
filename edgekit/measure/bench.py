"""``edgekit bench`` and ``edgekit.benchmark``: measure model files as they are, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import InputError, UnavailableError
from edgekit.measure.engine import TIMEOUT_S, Row, measure_rows
from edgekit.measure.lock import machine_lock
from edgekit.measure.results import Measured, each_once
from edgekit.measure.scenarios import explore, setting
from edgekit.recipe import MeasureSection
from edgekit.report import scenarios as scenario_report
from edgekit.target import Target, check_table, differs_from, load_target

if TYPE_CHECKING:
    from rich.table import Table

# What runs a file of that ending, where the target's own runtime does not.
BACKENDS = {".xml": "openvino", ".ort": "onnxruntime", ".engine": "tensorrt", ".plan": "tensorrt"}


def benchmark(
    paths: str | Path | Sequence[str | Path],
    *,
    target: str | Target = "x86-cpu",
    inputs: str | Path | None = None,
    budget_s: float = 60.0,
    pairs: int = 8,
    max_pairs: int = 40,
    precision: float = 0.025,
    scenarios: Sequence[str] = (),
    samples: str | Path | None = None,
    seed: int = 0,
    timeout_s: float = TIMEOUT_S,
) -> list[Measured]:
    """Measure models against the first one: fresh processes, interleaved, until the ratios are known well enough.

    Needs the models' runtimes, and neither torch nor onnx.

    Args:
        paths: Model files (``.onnx``, ``.ort``, ``.xml``, ``.engine`` …), the first is the reference; one may repeat.
        target: A device profile or its name: threads, batch, and the options of its runtime.
        inputs: An ``.npz`` with one array for each input; None: random ones by the model's shapes.
        budget_s: Seconds for all of it at most (scenarios come on top).
        pairs: Pairs of processes at least. max_pairs: At most.
        precision: Half-width of a ratio's exact interval at which to stop.
        scenarios: Further ones of :data:`edgekit.measure.scenarios.SCENARIOS`, for each model.
        samples: A folder for the raw times.
        seed: Of the order and the bootstrap.
        timeout_s: For one process.

    Returns:
        One :class:`Measured` for each path, in order: times in milliseconds, sizes in bytes, ``ratio`` to the first
        with its intervals. A model that can't be run is ``failed`` or ``unavailable`` with its reason.

    Raises:
        UnavailableError: This machine is of another kind than the target's device.
        InputError: No such file, target, inputs or scenario; a setting out of range; an ONNX file that is damaged,
            foreign, reaches outside its folder or is newer than all that is known here: no runtime has seen it then.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise InputError("no model to measure", remedy="give the path of at least one model file")
    profile = target if isinstance(target, Target) else load_target(target)
    asked = {"pairs": pairs, "max_pairs": max(pairs, max_pairs), "budget_s": budget_s, "precision": precision}
    settings = check_table(MeasureSection, asked, Path("bench"), "measure")
    rows = rows_of(files, profile, Path(inputs) if inputs else None)
    _prove(files, profile)
    place = Path(samples) if samples else None
    measured = measure_rows(rows, profile, settings, samples=place, seed=seed, timeout_s=timeout_s)
    if not scenarios:
        return measured
    with machine_lock():
        return [
            dataclasses.replace(
                one, scenarios=explore(scenarios, setting(row, profile, timeout_s=timeout_s, base=None))
            )
            if one.status == "ok"
            else one
            for row, one in zip(rows, measured, strict=True)
        ]


def _prove(files: Sequence[Path], target: Target) -> None:
    """That this machine is of the target's kind, and that ONNX files are sound; others are for their runtimes to judge.

    Raises:
        UnavailableError, InputError: See :func:`benchmark`.
    """
    from edgekit import backends

    if other := differs_from(target):
        raise UnavailableError(
            f"{other}: its times can't be measured here",
            where=target.name,
            remedy="name a target of this machine, or bundle the model and deploy it to the device",
        )
    for file in dict.fromkeys(files):
        if file.suffix.lower() == ".onnx":
            backends.prove_sound(file)


def rows_of(files: Sequence[Path], target: Target, inputs: Path | None) -> list[Row]:
    """A row for each file, run by the target's runtime or by the one that its ending names.

    Raises:
        InputError: No such file.
    """
    for file in [*files, *([inputs] if inputs else [])]:
        if not file.is_file():
            raise InputError("no such file", where=str(file), remedy="check the path")
    rows: list[Row] = []
    for file, name in zip(files, _names(files), strict=True):
        backend = BACKENDS.get(file.suffix.lower(), target.backend)
        # Options belong to the target's own runtime; another one runs with its defaults.
        own = target if backend == target.backend else target.model_copy(update={"backend": backend, "options": {}})
        rows.append(Row(id=name, artifact=file, backend=backend, feeds=inputs, target=own))
    return rows


def _names(files: Sequence[Path]) -> list[str]:
    """Each file by its name, with as many of its folders as tell it from the others; one that repeats has a number."""
    different = [f.resolve().parts for f in dict.fromkeys(f.resolve() for f in files)]
    named: list[str] = []
    for file in files:
        parts = file.resolve().parts
        others = [other for other in different if other != parts]
        depth = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
        name = str(Path(*parts[-depth:]))
        again = sum(before.partition(" (")[0] == name for before in named)
        named.append(f"{name} ({again + 1})" if again else name)
    return named


def exit_code(measured: Sequence[Measured]) -> int:
    """What ``edgekit bench`` exits with: 2 where a file or its inputs are wrong, 3 where a model failed, 4 where one
    can't run here, else 0; where several hold, the first of them.
    """
    return min((one.exit_code for one in measured if one.exit_code), default=0)


def table(measured: Sequence[Measured]) -> Table:
    """The measurements as a table for a terminal, and each verdict and warning below it."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for heading in ("model", "median ms", "p90", "p99", "first", "memory", "size", "time over the first's"):
        shown.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=heading != "model")
    for one in measured:
        shown.add_row(*(Text(cell) for cell in _cells(one)))
    lines = [f"{one.id}: {one.verdict or one.reason}" for one in measured]
    found = [
        f"{one.id}: {line}"
        for one in measured
        for name, what in one.scenarios.items()
        for line in scenario_report.lines(name, what)
    ]
    shown.caption = Text("\n".join([*lines, *_warned(measured), *found]))
    shown.caption_justify = "left"
    return shown


def _warned(measured: Sequence[Measured]) -> list[str]:
    ran = {one.id: one.warnings for one in measured if one.status == "ok"}
    return [f"warning: {line}" for line in each_once(ran)]


def _cells(one: Measured) -> list[str]:
    if one.latency_ms is None:
        return [one.id, one.status, "", "", "", "", "", ""]
    ratio = "the first"
    if one.ratio_ci95 and one.ratio:
        ratio = f"{one.ratio:.3f} [{one.ratio_ci95[0]:.3f}, {one.ratio_ci95[1]:.3f}]"
    times = [f"{one.latency_ms[key]:.3f}" for key in ("median", "p90", "p99")]
    return [one.id, *times, f"{one.first_inference_ms:.2f}", _mega(one.peak_rss_bytes), _mega(one.size_bytes), ratio]


def _mega(value: int | None) -> str:
    return f"{value / 1e6:.2f} MB" if value is not None else "–"
