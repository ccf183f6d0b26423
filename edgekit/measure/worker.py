"""One fresh process: load one model, warm it up, time it, weigh its memory, answer, end.

Runs through :mod:`edgekit.child`, so a crash of the runtime costs this process alone.
Everything here is monotonic time; a clock that is set while it runs changes nothing.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.measure import loop
from edgekit.measure.energy import Meter
from edgekit.measure.loop import Effort
from edgekit.measure.noise import Watch

if TYPE_CHECKING:
    import numpy as np

    from edgekit.backends import Port, Session

    Array = np.ndarray[Any, Any]

clock = time.perf_counter_ns


def work(
    backend: str,
    artifact: str,
    target: dict[str, Any],
    feeds: str | None,
    cores: list[int],
    effort: dict[str, Any],
    scenario: dict[str, Any] | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """Measure one model once; JSON in, JSON out.

    Args:
        backend: A member of ``edgekit/backends``, or the path of the user's own file.
        artifact: The model file.
        target: ``Target.model_dump(mode="json")``.
        feeds: An ``.npz`` with one array for each input; None: random ones by the model's shapes.
        cores: The core set to stay on; empty: any.
        effort: Fields of :class:`edgekit.measure.loop.Effort`.
        scenario: None for back-to-back inferences; else see :mod:`edgekit.measure.scenarios`.
        base: The folder that a relative backend path starts from.

    Returns:
        ``samples_ns`` (time of one inference each), ``load_ms``, ``first_ms``, ``cpu_ms`` (for one inference),
        ``peak_bytes`` (above the runtime's own, or None), ``runtime_bytes``, ``noise``, ``warm_up`` {``inferences``,
        ``steady``}, ``calls`` (a sample's), ``repeatable``, ``finite``, ``runtime`` (its version).
    """
    _pin(cores)
    from edgekit import backends
    from edgekit.target import Target

    room = backends.load(backend, base=Path(base) if base else None)
    profile = Target.model_validate(target)
    version = room.probe()["version"]  # loads the runtime: its memory and time are not the model's
    given = _read_feeds(feeds)
    gc.collect()
    baseline = _reset_peak()
    start = clock()
    session = room.open_model(Path(artifact), profile)
    load_ms = (clock() - start) / 1e6
    inputs = matched(given, session.inputs, profile.run.batch, artifact)
    if scenario and scenario.get("batch"):
        inputs = {name: resized(value, int(scenario["batch"])) for name, value in inputs.items()}
    gc.collect()
    gc.disable()
    start = clock()
    first = [output.copy() for output in session.run(inputs)]
    first_ms = (clock() - start) / 1e6
    facts = {"load_ms": load_ms, "first_ms": first_ms, "runtime": version, **_same(first, session.run(inputs))}
    timed = _scenario(session, inputs, Effort(**effort), scenario)
    return {**facts, **timed, "runtime_bytes": baseline, "peak_bytes": _peak_above(baseline)}


def _scenario(
    session: Session, feeds: dict[str, Array], effort: Effort, scenario: dict[str, Any] | None
) -> dict[str, Any]:
    run = session.run

    def call() -> None:
        run(feeds)

    warm, steady = loop.warm_up(call, clock, effort)
    calls = loop.calls_per_sample(loop.median_ms(warm) * 1e6, loop.resolution(clock))
    watch, late = Watch(), 0
    meter = Meter() if scenario and scenario.get("energy") else None
    cpu = time.process_time_ns()
    if scenario and scenario["kind"] == "paced":
        interval, count = float(scenario["interval_ms"]), int(scenario["count"])
        samples, late = loop.paced(call, clock, time.sleep, interval_ms=interval, count=count)
        calls = 1
    else:
        samples = loop.block(call, clock, effort, calls)  # type: ignore[assignment]
    cpu = time.process_time_ns() - cpu
    energy = meter.stop() if meter else None
    return {
        "energy": asdict(energy) if energy else None,
        "samples_ns": samples,
        "calls": calls,
        "late": late,
        "cpu_ms": cpu / 1e6 / (len(samples) * calls),
        "noise": watch.noise().to_dict(),
        "warm_up": {"inferences": len(warm), "steady": steady},
    }


def _pin(cores: Sequence[int]) -> None:
    """Stay on these cores; every thread that the runtime starts later does too."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _read_feeds(path: str | None) -> dict[str, Array]:
    import numpy as np

    if not path:
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name.removeprefix("in:"): file[name] for name in file.files if name != "label"}
    except (OSError, ValueError) as error:
        raise InputError(
            f"can't read the example inputs: {error}",
            where=path,
            remedy="give an .npz file with one array for each input of the model",
        ) from error


def matched(given: dict[str, Array], ports: Sequence[Port], batch: int, where: str) -> dict[str, Array]:
    """The inputs that the model asks for: by name, the only one by itself, or random ones where none are given.

    Raises:
        InputError: An input is missing, has the wrong number of dimensions, or a free size that nothing fixes.
    """
    import numpy as np

    if given and len(ports) == 1 and ports[0].name not in given and len(given) == 1:
        given = {ports[0].name: next(iter(given.values()))}
    feeds: dict[str, Array] = {}
    for port in ports:
        if not given:
            feeds[port.name] = invented(port, batch, where)
        elif port.name in given:
            feeds[port.name] = np.ascontiguousarray(given[port.name])
        else:
            raise InputError(
                f"the model has an input '{port.name}', the example inputs have only {', '.join(sorted(given))}",
                where=where,
                remedy="give an array for each input of the model, under its name",
            )
    return feeds


def invented(port: Port, batch: int, where: str) -> Array:
    """A random input of a port's shape and type, the same in every process (numbers 0 or 1 where it takes integers)."""
    import numpy as np

    sizes = [batch if axis == 0 and size is None else size for axis, size in enumerate(port.shape)]
    if None in sizes:
        raise InputError(
            f"input '{port.name}' has a free size {list(port.shape)} that only example inputs can fix",
            where=where,
            remedy="give example inputs as an .npz file (--inputs), one array for each input",
        )
    shape = tuple(int(size) for size in sizes if size is not None)
    draw = np.random.default_rng(0)
    dtype = np.dtype(port.dtype)
    if dtype.kind in "iub":
        return draw.integers(0, 2, shape).astype(dtype)
    return draw.standard_normal(shape).astype(dtype)


def resized(value: Array, batch: int) -> Array:
    """An input with another batch: its samples over again."""
    import numpy as np

    return np.ascontiguousarray(np.resize(value, (batch, *value.shape[1:]))) if value.ndim else value


def _same(first: list[Array], second: list[Array]) -> dict[str, bool]:
    """Whether two runs on the same input agree (but for rounding), and whether all is finite."""
    import numpy as np

    def near(a: Array, b: Array) -> bool:
        if a.shape != b.shape or a.dtype.kind not in "fc":
            return np.array_equal(a, b)
        scale = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)))
        return bool(np.allclose(a, b, rtol=1e-4, atol=1e-4 * scale, equal_nan=True))

    return {
        "repeatable": all(near(a, b) for a, b in zip(first, second, strict=True)),
        "finite": all(bool(np.isfinite(a).all()) for a in first if a.dtype.kind == "f"),
    }


def _reset_peak() -> int | None:
    """Set the kernel's peak of this process's memory back to what it holds now; return that, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmHWM")


def _peak_above(baseline: int | None) -> int | None:
    """Peak memory since :func:`_reset_peak`, above what was held then; None where the kernel can't say."""
    peak = _status("VmHWM")
    return None if baseline is None or peak is None else max(0, peak - baseline)


def _status(key: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{key}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
