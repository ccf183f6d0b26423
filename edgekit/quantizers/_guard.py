"""The accuracy guard: layers that cost most go back to float until the limit on the drop holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from edgekit import console
from edgekit.errors import InputError, StageError
from edgekit.quantizers import _graph
from edgekit.quantizers._draft import Draft
from edgekit.quantizers._samples import Samples, fixed_batch
from edgekit.quantizers._score import Judge

RANKED_ON = 16  # samples
ROUNDS = 15  # of the latency's comparison


def guard(draft: Draft, judge: Judge, max_drop: float) -> tuple[Draft, dict[str, Any]]:
    """Put back what must be float for the metric to stay within ``max_drop`` of the float model's.

    The layers are ranked by the signal-to-noise that the whole model gains when that one layer is float;
    the shortest prefix of the ranking that holds the limit is found by bisection.

    Returns:
        The draft that holds, and the report: ``metric_float``, ``metric``, ``drop``, ``sensitivity``.

    Raises:
        StageError: Even with every layer in float the limit is broken (the preparation must then be at fault).
        InputError: There is nothing to measure the drop with.
    """
    drop = _measure(judge)
    found = drop(draft)
    if found <= max_drop:
        return draft, {"drop": found, "sensitivity": []}
    console.note(f"the drop of {found:.4f} breaks the limit of {max_drop}: ranking the layers")
    ranking = rank(draft, judge)
    kept = _shortest(len(ranking), lambda n: drop(draft.without([name for name, _ in ranking[:n]])) <= max_drop)
    if kept is None:
        raise StageError(
            f"the limit max_drop = {max_drop} does not hold even with every layer in float",
            remedy="raise max_drop, or give more validation samples",
        )
    floats = [name for name, _ in ranking[:kept]]
    chosen = draft.without(floats)
    sensitivity = [
        {"layer": name, "metric_or_sqnr": gain, "kept_float": i < kept} for i, (name, gain) in enumerate(ranking)
    ]
    price = _price(draft, chosen, judge)
    return chosen, {"drop": drop(chosen), "drop_before": found, "sensitivity": sensitivity, "price": price}


def rank(draft: Draft, judge: Judge) -> list[tuple[str, float]]:
    """Compute nodes and the decibels that the model gains when that node alone is float, the greatest first."""
    few = Samples(judge.samples.spool, min(judge.samples.limit, RANKED_ON * 4), judge.samples.part)
    base = judge.sqnr([draft.build()], few)[0]
    names = [name for name in draft.plan.nodes if name in draft.plan.weights or _is_product(draft, name)]
    names += draft.plan.tables
    gains = [
        (name, round(judge.sqnr([draft.without([name]).build()], few)[0] - base, 4))
        for name in console.track(names, "ranking layers")
    ]
    return sorted(gains, key=lambda pair: -pair[1])


def _price(before: Draft, after: Draft, judge: Judge) -> dict[str, float]:
    """What the guard costs: bytes of constants, and latency in ONNX Runtime on this machine, after / before.

    The latency is the median of ratios of runs that alternate; on a machine without integer kernels for the
    target it only says how the work moved.
    """
    import numpy as np

    models = [draft.build() for draft in (before, after)]
    sizes = [_graph.weight_bytes(model) for model in models]
    sessions = [_graph.session(model, optimized=True) for model in models]
    feeds = dict(next(judge.samples.groups(fixed_batch(judge.model) or 1, full=True)))
    ratios = []
    for _ in range(ROUNDS):
        took = []
        for session in sessions:
            started = time.perf_counter()
            session.run(None, feeds)
            took.append(time.perf_counter() - started)
        ratios.append(took[1] / took[0])
    return {"bytes_ratio": round(sizes[1] / sizes[0], 4), "latency_ratio_here": round(float(np.median(ratios)), 3)}


def _is_product(draft: Draft, name: str) -> bool:
    return any(node.name == name and node.op_type == "MatMul" for node in draft.model.graph)


def _measure(judge: Judge) -> Callable[[Draft], float]:
    """How the drop of a draft is measured: by the metric, else by the share of samples whose top-1 changed."""
    if judge.judged():
        reference = judge.metric_of(judge.model)
        return lambda draft: reference - judge.metric_of(draft.build())
    shape = judge.model.graph.outputs[0].shape
    if len(judge.model.graph.outputs) != 1 or shape is None or len(shape) != 2:
        raise InputError(
            "max_drop is set, but there is no labelled validation split to measure the drop on",
            remedy="give a 'validation' split with labels, or remove max_drop",
        )
    console.warn("max_drop is judged by agreement with the float model, as there is no labelled validation split")
    return lambda draft: 1.0 - judge.agreement(draft.build())


def _shortest(count: int, holds: Callable[[int], bool]) -> int | None:
    """The least ``n`` in 1 … count with ``holds(n)``, by bisection; None if ``holds(count)`` is false."""
    if not holds(count):
        return None
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def summary(ranking: Sequence[dict[str, Any]]) -> str:
    """One line for people: which layers went back to float."""
    kept = [row["layer"] for row in ranking if row["kept_float"]]
    return f"{len(kept)} layers kept in float: {', '.join(kept[:5])}" + (" …" if len(kept) > 5 else "")
