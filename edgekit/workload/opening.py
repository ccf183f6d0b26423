"""The model loaded and the data read: where every row of a run starts. One process, because each import costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit import metrics, rooms, workload
from edgekit.store import Entry, Store

TORCH_KEYS = ("dynamic_batch", "dynamic_axes", "preprocess")  # what of [export] a loaded model depends on
ONNX_KEYS = ("shapes", "sizes", "opset", "preprocess")


def open_job(
    model: dict[str, Any],
    data: Any,
    base: str,
    seed: int,
    export: dict[str, Any],
    limits: dict[str, int | None],
    key: dict[str, Any],
    store: str,
    planning: bool,
    metric: dict[str, Any],
    own: list[str],
) -> dict[str, Any]:
    """Tell what the model and the data are, by content, and build what the store has not.

    Args:
        model: ``[model]``. data: ``[data] entry``, or a live object; None where there is none.
        base: The recipe's folder. seed: For the user's own random numbers.
        export: ``[export]``.
        limits: Split → samples at most (None: all). Every split but ``train`` is written to disk.
        key: What else the loaded model depends on (versions).
        store: The cache folder.
        planning: Build nothing.
        metric: ``[metric]``. own: Further code of the user's that the recipe names. Both are only looked up, so that a
            wrong name is told now and not after hours of training.

    Returns:
        ``model`` (:func:`edgekit.workload.fingerprint_job`), ``loaded`` and ``spools`` (what names the entries in the
        store; None: not there), ``cached`` (whether the loaded model was there already), ``data``
        (:func:`edgekit.workload.digest_job`).

    Raises:
        InputError: The model, the data, the metric or code of the user's own are wrong.
    """
    metrics.load(metric, Path(base))
    for name in own:
        rooms.load_own(name, Path(base))
    shelf = Store(Path(store))
    facts = workload.fingerprint_job(model, base, seed)
    relevant = {name: export[name] for name in (ONNX_KEYS if facts["kind"] == "onnx" else TORCH_KEYS)}
    naming = {**key, "model": facts, "export": relevant}

    def load(folder: Path, _: Path) -> dict[str, Any]:
        return workload.load_job(model, base, seed, export, str(folder))

    found: dict[str, Any] = {"model": facts, "loaded": naming, "data": {}, "spools": None}
    loaded = shelf.find(naming) if planning else shelf.build(naming, load)
    if loaded is None:
        return {**found, "loaded": None}
    if data is not None:
        found |= _read(data, base, seed, limits, str(loaded.path(loaded.meta["path"])), shelf, planning)
    return {**found, "cached": loaded.cached}


def _read(
    data: Any, base: str, seed: int, limits: dict[str, int | None], model: str, shelf: Store, planning: bool
) -> dict[str, Any]:
    read = workload.digest_job(data, base, model, seed, limits)
    kept = {name: limit for name, limit in limits.items() if name != "train" and read[name]}
    naming = {"stage": "data", "digests": {name: read[name]["digest"] for name in kept}}

    def write(folder: Path, _: Path) -> dict[str, Any]:
        return workload.spool_job(data, base, model, seed, kept, str(folder))

    entry: Entry | None = shelf.find(naming) if planning else shelf.build(naming, write)
    return {"data": read, "spools": naming if entry else None}
