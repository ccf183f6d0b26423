"""Golden data: a few inputs and the outputs that they give, by which a device proves itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import store
from edgekit.errors import InputError, StageError
from edgekit.workload.spool import Spool

if TYPE_CHECKING:
    import numpy as np

    from edgekit.backends import Port, Session
    from edgekit.target import Target

    Array = np.ndarray[Any, Any]

SAMPLES = 8
MAX_BYTES = 4 * 1024 * 1024
FREE = 32  # what a free size other than the batch is taken to be where no example tells
# Greatest difference that another machine's right kernels may show, as a share of an output's greatest value:
# (computes in integers, is compiled on the device by another runtime) → share. Integers: single roundings, seen
# between kernels that are all right, reach the logits as about 1 %; an x86 CPU without VNNI, whose products
# overflow, as 4 % and more, and must fail.
TOLERANCE = {(False, False): 1e-3, (True, False): 2e-2, (False, True): 1e-2, (True, True): 5e-2}


def keep(spool: Spool, folder: Path, name: str = "golden.npz") -> dict[str, Any]:
    """Keep the first samples of a split beside the record, for bundles made from it later.

    Args:
        spool: The split. folder: The record's folder. name: The file's name there.

    Returns:
        ``path``, ``sha256``, ``samples``: the record's ``golden``.

    Raises:
        StageError: It can't be written.
    """
    first, _ = next(iter(spool))
    size = sum(value[:1].nbytes for value in first.values())
    count = max(1, min(SAMPLES, MAX_BYTES // max(size, 1), len(next(iter(first.values())))))
    write({f"in:{key}": value[:count] for key, value in first.items()}, folder / name)
    return {"path": name, "sha256": store.sha256_file(folder / name), "samples": count}


def write(arrays: Mapping[str, Array], path: Path) -> None:
    """Write arrays as ``.npz``, the same bytes for the same arrays."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    store.write_bytes(path, buffer.getvalue())


def golden_job(
    artifact: str, backend: str, target: dict[str, Any], inputs: str | None, integer: bool, out: str
) -> dict[str, Any]:
    """Run an artifact on golden inputs; write inputs and outputs as ``in:NAME`` and ``out:NAME`` into ``out``.

    Args:
        artifact: The model's file.
        backend: What runs it here: the target's backend, or ``onnx`` where the target compiles on the device.
        target: ``Target.model_dump(mode="json")``.
        inputs: An ``.npz`` that :func:`keep` wrote; None: seeded noise.
        integer: Whether the model computes in integers, so that single roundings show.
        out: The ``.npz`` to write.

    Returns:
        ``inputs`` and ``outputs`` (``name``, ``dtype``, ``shape``), ``samples``, ``origin``, ``tolerance`` (greatest
        difference as a share of an output's greatest value), ``options`` (the backend's, defaults filled in).

    Raises:
        InputError: The kept inputs are not this model's.
        StageError: The outputs are not finite.
    """
    from edgekit import backends, evaluate
    from edgekit.target import Target

    aim = Target.model_validate(target)
    model = Path(artifact)
    session = evaluate.open_onnx(model) if backend == "onnx" else backends.load(backend).open_model(model, aim)
    feeds = _read(inputs, session.inputs) if inputs else _noise(session.inputs)
    outputs = backends.run_batched(session, feeds)
    _check(outputs, session.outputs)
    arrays = {f"in:{name}": value for name, value in feeds.items()}
    arrays |= {f"out:{port.name}": value for port, value in zip(session.outputs, outputs, strict=True)}
    write(arrays, Path(out))
    return {
        "inputs": [_told(port) for port in session.inputs],
        "outputs": [_told(port) for port in session.outputs],
        "samples": len(next(iter(feeds.values()))),
        "origin": "test data" if inputs else "seeded noise",
        "tolerance": _tolerance(session, feeds, outputs, TOLERANCE[integer, backend != aim.backend]),
        "options": _options(model, aim),
    }


def _read(path: str, ports: Sequence[Port]) -> dict[str, Array]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {port.name: file[f"in:{port.name}"] for port in ports}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"the record's golden inputs are not this model's: {error}", where=path, remedy="run the recipe again"
        ) from error


def _noise(ports: Sequence[Port]) -> dict[str, Array]:
    """Seeded inputs by the ports' types: standard normal, bytes from 0 to 255, other integers 0 or 1."""
    import numpy as np

    rng = np.random.default_rng(0)
    feeds = {}
    for port in ports:
        shape = tuple((SAMPLES if axis == 0 else FREE) if n is None else n for axis, n in enumerate(port.shape))
        kind = np.dtype(port.dtype)
        if kind.kind == "f":
            feeds[port.name] = rng.standard_normal(shape).astype(kind)
        else:
            feeds[port.name] = rng.integers(0, 256 if kind == np.uint8 else 2, shape).astype(kind)
    return feeds


def _check(outputs: Sequence[Array], ports: Sequence[Port]) -> None:
    import numpy as np

    for port, value in zip(ports, outputs, strict=True):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise StageError(
                f"output '{port.name}' is NaN or infinite on the golden inputs",
                remedy="this model can't be proved on a device; look at the variant's accuracy in the report",
            )


def _tolerance(session: Session, feeds: dict[str, Array], outputs: Sequence[Array], floor: float) -> float:
    """``floor``, or more where one rounding of the inputs alone moves the outputs further."""
    from edgekit import agree, backends

    nudged = agree.tolerance_of(lambda inputs: backends.run_batched(session, inputs), feeds, outputs)
    return float(max(floor, nudged))


def _options(artifact: Path, target: Target) -> dict[str, Any]:
    """The target's options, and what this very artifact needs besides to run as it was measured."""
    from edgekit import backends

    room: Any = backends.load(target.backend)
    if hasattr(room, "options_for") and not target.compile_on_device:
        checked = room.options_for(artifact, target)
    else:
        checked = backends.options_of(room.Options, target)
    return dict(checked.model_dump(mode="json"))


def _told(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}
