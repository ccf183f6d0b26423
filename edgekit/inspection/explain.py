"""Why a compiled model is slower than it should be, in words, with the fix where there is one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from edgekit import machine
from edgekit.backends import CONVERSIONS, INTEGER, LayerPrecision, LayerTime
from edgekit.target import Target

NOTABLE = 0.05  # share of the time below which a cause is not worth a sentence
FEW_MACS_PER_BYTE = 8.0  # below this a layer waits for memory: CPUs do tens of int8 products in the time of a byte
NAMED = 3  # layers named in one sentence

# Integer operators that ONNX Runtime and OpenVINO run slower than, or hardly faster than, their float ones (measured).
SLOW_INTEGER = {
    "QLinearSoftmax": "Softmax in integers is slower than in float",
    "QLinearSigmoid": "Sigmoid in integers is a table look-up, slower than the fused float SiLU",
    "QLinearMul": "an element-wise product in integers rescales both sides; in float it is fused",
    "QLinearLeakyRelu": "LeakyRelu in integers is a table look-up, and in float it is fused into the convolution",
}


def explain(
    layers: Sequence[LayerPrecision],
    times: Sequence[LayerTime],
    target: Target,
    *,
    wall_ms: float | None = None,
    single_thread_ms: float | None = None,
) -> list[str]:
    """Findings, the costliest first; empty where nothing stands out.

    Args:
        layers: What each layer computes in. times: What each layer takes, from the same artifact.
        target: For its threads.
        wall_ms: Time of a whole inference, measured without a profiler.
        single_thread_ms: The same with one thread.
    """
    total = sum(layer.milliseconds for layer in times)
    if not total:
        return []
    found = [
        *_float_layers(layers, times, total),
        *_conversions(times, total),
        *_slow_integers(times, total),
        *_islands(layers, times, total),
        *_memory_bound(layers, times, total),
        *_threads(target, wall_ms, single_thread_ms),
        *_overhead(times, total, wall_ms),
    ]
    return [sentence for _, sentence in sorted(found, key=lambda item: -item[0])]


def by_operator(times: Iterable[LayerTime]) -> list[tuple[str, int, float]]:
    """``(operator, how many, milliseconds)``, the slowest first."""
    sums: dict[str, list[float]] = defaultdict(list)
    for layer in times:
        sums[layer.operator].append(layer.milliseconds)
    rows = [(operator, len(values), sum(values)) for operator, values in sums.items()]
    return sorted(rows, key=lambda row: -row[2])


Finding = tuple[float, str]  # share of the time, sentence


def _float_layers(layers: Sequence[LayerPrecision], times: Sequence[LayerTime], total: float) -> list[Finding]:
    """Convolutions and products of a quantized model that stayed float, together by reason."""
    if not any(layer.precision in INTEGER for layer in layers):
        return []
    spent = {layer.name: layer.milliseconds for layer in times}
    groups: dict[str, list[LayerPrecision]] = defaultdict(list)
    for layer in layers:
        if layer.macs and layer.precision not in INTEGER:
            groups[layer.reason].append(layer)
    found = []
    for reason, group in groups.items():
        share = sum(spent.get(layer.name, 0.0) for layer in group) / total
        if share >= NOTABLE:
            found.append((share, f"{_named([g.name for g in group])} ran in float, {share:.0%} of the time: {reason}"))
    return found


def _conversions(times: Sequence[LayerTime], total: float) -> list[Finding]:
    kinds = [row for row in by_operator(times) if row[0] in CONVERSIONS]
    share = sum(milliseconds for _, _, milliseconds in kinds) / total
    if share < NOTABLE:
        return []
    counts = ", ".join(f"{count} {operator}" for operator, count, _ in kinds)
    return [
        (
            share,
            f"conversions take {share:.0%} of the time ({counts}): they stand where the type or the layout changes; "
            "quantize the layers between them too, or leave all of such a stretch in float",
        )
    ]


def _slow_integers(times: Sequence[LayerTime], total: float) -> list[Finding]:
    found = []
    for operator, count, milliseconds in by_operator(times):
        share = milliseconds / total
        if operator in SLOW_INTEGER and share >= NOTABLE:
            why = SLOW_INTEGER[operator]
            fix = "leave it out of elementwise in the target's [quantize] table and compare"
            takes = "takes" if count == 1 else "take"
            found.append((share, f"{count} {operator} {takes} {share:.0%} of the time: {why}; {fix}"))
    return found


def _islands(layers: Sequence[LayerPrecision], times: Sequence[LayerTime], total: float) -> list[Finding]:
    """Stretches of float layers without multiply-adds between integer ones."""
    order = [(t, next((p for p in layers if p.name == t.name), None)) for t in times]
    integer = [bool(p and p.precision in INTEGER and p.operator not in CONVERSIONS) for _, p in order]
    if not any(integer):
        return []
    first, last = integer.index(True), len(integer) - 1 - integer[::-1].index(True)
    stretches: list[list[LayerTime]] = [[]]
    for (layer, _), whole in zip(order[first : last + 1], integer[first : last + 1], strict=True):
        if whole:
            stretches.append([])
        elif layer.operator not in CONVERSIONS and not _macs(layer.name, layers):
            stretches[-1].append(layer)
    islands = [stretch for stretch in stretches if stretch]
    share = sum(layer.milliseconds for stretch in islands for layer in stretch) / total
    if share < NOTABLE:
        return []
    kinds = sorted({layer.operator for stretch in islands for layer in stretch})
    return [
        (
            share,
            f"{_count(len(islands), 'float island')} ({', '.join(kinds)}) between integer layers, {share:.0%} of the "
            "time: rewrite them into operators with an integer kernel (a mean over H and W into GlobalAveragePool), "
            "or end the integer part before them",
        )
    ]


def _memory_bound(layers: Sequence[LayerPrecision], times: Sequence[LayerTime], total: float) -> list[Finding]:
    """Layers that move many bytes for few multiply-adds, and so run far below the rate of the best layer."""
    rates = {t.name: _macs(t.name, layers) / t.milliseconds for t in times if t.milliseconds > 0.02 * total}
    best = max(rates.values(), default=0.0)
    bound = [
        layer
        for layer in times
        if layer.bytes_moved
        and 0 < _macs(layer.name, layers) / layer.bytes_moved < FEW_MACS_PER_BYTE
        and rates.get(layer.name, best) < best / 3
    ]
    share = sum(layer.milliseconds for layer in bound) / total
    if share < NOTABLE:
        return []
    worst = max(bound, key=lambda layer: layer.milliseconds)
    density, rate = _macs(worst.name, layers) / worst.bytes_moved, rates[worst.name] / best
    verb = "waits" if len(bound) == 1 else "wait"
    return [
        (
            share,
            f"{_count(len(bound), 'layer')} {verb} for memory, {share:.0%} of the time (worst '{worst.name}': "
            f"{density:.1f} multiply-adds a byte, {rate:.0%} of the best layer's rate): "
            "fewer multiply-adds won't make them faster; smaller activations or fewer channels around them will",
        )
    ]


def _threads(target: Target, wall_ms: float | None, single_thread_ms: float | None) -> list[Finding]:
    threads, cores = target.run.threads, machine.usable_threads()
    if threads > cores:
        return [(1.0, f"{threads} threads share {cores} usable cores and wait for one another: set [run] threads")]
    if threads > 1 and wall_ms and single_thread_ms and single_thread_ms < wall_ms * 0.98:
        return [
            (
                1 - single_thread_ms / wall_ms,
                f"one thread is faster than {threads} ({single_thread_ms:.3f} against {wall_ms:.3f} ms): the layers "
                "are too small to share; set threads = 1 under [run] in the target",
            )
        ]
    return []


def _overhead(times: Sequence[LayerTime], total: float, wall_ms: float | None) -> list[Finding]:
    if not wall_ms or wall_ms < total or (share := 1 - total / wall_ms) < 0.2:
        return []
    each = (wall_ms - total) / len(times) * 1000
    return [
        (
            share,
            f"{share:.0%} of an inference is spent between the layers ({len(times)} of them, {each:.0f} µs each): "
            "fewer, larger layers or a larger batch would help; fewer multiply-adds won't",
        )
    ]


def _macs(name: str, layers: Sequence[LayerPrecision]) -> int:
    return next((layer.macs for layer in layers if layer.name == name), 0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
