"""Which placements are faster on the target? Timed there, not guessed.

Integer kernels want many channels, but a CNN begins with few on a large map, where a depthwise convolution gains
nothing from integers and conversions are dear. Behind a convolution OpenVINO fuses what is float, which is worth more
than integers where that is a SiLU, and less where it is a residual's sum. Each candidate is built, compiled by the
target's backend and timed beside the scheme's own placement, in turns, by the processor's time, which other programs
lengthen least; it is taken only where it is faster in nearly every turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import backends, console
from edgekit.errors import EdgekitError
from edgekit.quantizers import _graph, _place, _prepare, _ranges, _silu
from edgekit.quantizers._calibrate import Collector
from edgekit.quantizers._draft import Draft
from edgekit.quantizers._samples import Samples
from edgekit.target import lacks

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgekit.target import Target

REASON = "faster in float on the target, as measured"
MOST_FLOAT = 0.045  # of the multiply-adds: the rest must be integers
LEAST_MACS = 100_000_000  # a smaller model runs for so short a time that a few percent can't be told
WORTH = 0.97  # of the time, for layers in float; and that in MOST_ROUNDS of the rounds
WORTH_SCHEME = 0.985  # for another scheme, which costs accuracy no more than the runtimes' own tools do
MOST_ROUNDS = 0.8
ROUNDS, LEAST_ROUNDS, BUDGET_S = 25, 9, 4.0
ROUND_S = 0.02  # of each candidate
FEW = 4  # samples: a kernel's time does not depend on the ranges


def behind_layers(model: ir.Model, data: Samples, target: Target) -> tuple[Target, float | None]:
    """Whether Q/DQ also stands behind the operators of the scheme's ``timed_outputs``.

    Args:
        model: The float model, not yet prepared; it is not changed.
        data: Calibration samples.
        target: Whose device must be this machine, or nothing is timed.

    Returns:
        The target, its scheme's ``quantize_outputs`` filled in where that is faster, and for a report: the time with
        them / without; None where it was not timed.
    """
    outputs = target.quantize.timed_outputs
    if not outputs:
        return target, None
    return _tried(model, data, target, {"quantize_outputs": outputs}, f"with integers behind {', '.join(outputs)}")


def float_silu(model: ir.Model, data: Samples, target: Target) -> tuple[Target, float | None]:
    """Whether a SiLU between integers computes in float; arguments and what is returned as :func:`behind_layers`."""
    scheme = target.quantize
    if scheme.silu != "timed" or "Sigmoid" not in scheme.elementwise or not any(_silu.silus(model.graph)):
        return target, None
    return _tried(model, data, target, {"silu": "float"}, "with SiLU in float")


def _tried(
    model: ir.Model, data: Samples, target: Target, update: dict[str, Any], words: str
) -> tuple[Target, float | None]:
    """The target, its scheme updated if that is faster, and the time with the update / without."""
    if _macs(model, target) is None:
        return target, None
    other = target.model_copy(update={"quantize": target.quantize.model_copy(update=update)})
    console.note(f"timing on {target.name} whether it is faster {words}")
    try:
        ratio, share = _ratio(*_times(model, [(target, ()), (other, ())], data))
    except EdgekitError as error:
        console.note(f"not timed: {error.problem}")
        return target, None
    return (other if ratio < WORTH_SCHEME and share >= MOST_ROUNDS else target), round(ratio, 3)


def first_layers(model: ir.Model, data: Samples, target: Target) -> tuple[tuple[str, ...], dict[str, float]]:
    """The first compute nodes, where the target is faster with them in float; arguments as :func:`behind_layers`.

    Returns:
        The nodes' names (often none), and for a report: last float layer of each candidate → its time / the scheme's.
    """
    candidates = list(_candidates(model, target))
    if not candidates:
        return (), {}
    console.note(f"timing on {target.name} whether its first layers are faster in float")
    try:
        times = _times(model, [(target, names) for names in ((), *candidates)], data)
    except EdgekitError as error:
        console.note(f"not timed: {error.problem}")
        return (), {}
    found = {names[-1]: _ratio(times[0], mine) for names, mine in zip(candidates, times[1:], strict=True)}
    report = {name: round(ratio, 3) for name, (ratio, _) in found.items()}
    good = [names for names in candidates if found[names[-1]][0] < WORTH and found[names[-1]][1] >= MOST_ROUNDS]
    return min(good, key=lambda names: found[names[-1]][0], default=()), report


def rules(target: Target, floats: Collection[str]) -> list[str]:
    """The rules that prepare the graph; a first convolution that stays float needs no padding for integers."""
    return [rule for rule in target.quantize.prepare if rule != "pad_channels" or not floats]


def _macs(model: ir.Model, target: Target) -> tuple[ir.Model, dict[str, int]] | None:
    """The model prepared for floats in front, and its multiply-adds by node; None if it can't be timed here."""
    import onnx_ir as ir

    from edgekit.onnxfile.cost import node_macs

    if lacks(target) or target.compile_on_device:
        return None
    prepared = model.clone()
    _prepare.prepare(prepared, rules(target, ("first",)))
    if _graph.weight_bytes(prepared) > _graph.INLINE_BYTES:
        return None
    try:
        macs = node_macs(ir.to_proto(prepared))
    except EdgekitError:
        return None  # sizes that are free
    return (prepared, macs) if sum(macs.values()) >= LEAST_MACS else None


def _candidates(model: ir.Model, target: Target) -> Iterator[tuple[str, ...]]:
    """All first layers that may be float, the first half of them, and so on."""
    found = _macs(model, target)
    if found is None:
        return
    prepared, macs = found
    total, seen, names = sum(macs.values()), 0, []
    for node in prepared.graph:
        seen += macs.get(node.name or "", 0)
        if seen > MOST_FLOAT * total:
            break
        if node.op_type in target.quantize.compute:
            names.append(node.name or "")
    while names:
        yield tuple(names)
        names = names[: len(names) // 2]


def _times(model: ir.Model, choices: list[tuple[Target, tuple[str, ...]]], data: Samples) -> list[list[float]]:
    """Processor seconds by choice (a scheme, and nodes in float) and round, the choices in turns."""
    with ExitStack() as stack:
        sessions = []
        for target, names in choices:
            backend = backends.load(target.backend)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-")))
            _graph.save(_built(model, names, data, target), folder / "model.onnx")
            artifact = backend.compile_model(folder / "model.onnx", target, folder)
            sessions.append(backend.open_model(artifact, target))
        feeds = dict(next(data.groups(choices[0][0].run.batch, full=True)))
        return _rounds([lambda session=s: session.run(feeds) for s in sessions])


def _built(model: ir.Model, floats: tuple[str, ...], data: Samples, target: Target) -> ir.Model:
    scheme, prepared = target.quantize, model.clone()
    _prepare.prepare(prepared, rules(target, floats))
    plan = _place.plan(prepared.graph, scheme, dict.fromkeys(floats, REASON))
    collector = Collector(prepared, list(plan.activations), histogram=False)
    collector.run(Samples(data.spool, FEW))
    ranges = _ranges.ranges(collector.statistics, plan.activations, "minmax", scheme)
    return Draft(model=prepared, plan=plan, ranges=ranges, scheme=scheme).build()


def _rounds(runs: list[Any]) -> list[list[float]]:
    """Each run's processor seconds in each round; a model of a millisecond runs several times in a round."""
    for run in runs:
        run()  # the first one allocates
    started = time.perf_counter()
    for run in runs:
        run()
    once = time.perf_counter() - started
    repeats = max(1, int(ROUND_S * len(runs) / once))
    rounds = min(ROUNDS, int(BUDGET_S / (once * repeats)))
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds if rounds >= LEAST_ROUNDS else 0):
        for index in range(len(runs)):
            place = (index + number) % len(runs)
            started = time.process_time()
            for _ in range(repeats):
                runs[place]()
            times[place].append(time.process_time() - started)
    return times


def _ratio(theirs: list[float], mine: list[float]) -> tuple[float, float]:
    """Median of this time / the scheme's over the rounds, and the share of rounds in which it is faster."""
    ratios = [b / a for a, b in zip(theirs, mine, strict=True)]
    if not ratios:
        return 1.0, 0.0  # a model so slow that it can't be timed here
    return statistics.median(ratios), sum(ratio < 1 for ratio in ratios) / len(ratios)
