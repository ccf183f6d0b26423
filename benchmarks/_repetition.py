"""The work of ``statistics.py``: record many rounds once, then judge every window of them by edgekit's procedure.

Four models run in fresh processes, round after round, forth and back: a CNN of 40 equal layers, the same
file again, and two with one and two layers more (2.5 % and 5 % more work). The procedure is edgekit's own
(first look at 8 pairs, more until the exact interval is narrow enough, 40 at most).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit import machine
from edgekit.measure import statistics as rules
from edgekit.measure.engine import Row, launched
from edgekit.measure.lock import machine_lock
from edgekit.measure.loop import Effort
from edgekit.measure.rounds import Answer, run_rounds
from edgekit.recipe import MeasureSection
from edgekit.target import load_target

LAYERS = 40
MODELS = {"reference": LAYERS, "same file": LAYERS, "2.5 % more": LAYERS + 1, "5 % more": LAYERS + 2}
LEAST_WINDOW = 24  # rounds that a window has at least; with fewer than 40 the procedure may have to end early
EXCHANGES = 2000  # draws in which the two copies of one file are exchanged at random, pair by pair

BURNER = """
import random, time
draw = random.Random()
while True:
    end = time.monotonic() + draw.expovariate(1 / 0.3)
    while time.monotonic() < end:
        pass
    time.sleep(draw.expovariate(1 / 0.6))
"""

Rounds = dict[str, list[float]]  # model → its process's median in each round, milliseconds


def main() -> None:
    """Record, judge, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=240)
    parser.add_argument("--load", action="store_true", help="let two other programs come and go meanwhile")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("statistics.md"))
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, machine_lock(), _load(options.load):
        rounds = record(Path(folder), options.rounds, MODELS)
    text = table(rounds, time.monotonic() - start, loaded=options.load)
    print(text)
    options.out.write_text(text)


def record(folder: Path, count: int, models: Mapping[str, int]) -> Rounds:
    """Each model once a round, in fresh processes as edgekit starts them; the order is turned round every time.

    Args:
        folder: Where the models go. count: How many rounds. models: Name → layers, the reference first.
    """
    target = load_target("x86-cpu")
    cores = machine.pick_cores(1)
    rows = []
    for name, layers in models.items():
        path = folder / f"{layers}.onnx"
        cnn(path, layers, channels=8, size=16)
        rows.append(Row(name, path, "onnxruntime"))
    rounds: Rounds = {name: [] for name in models}
    draw, order = random.Random(0), list(range(len(rows)))
    for number in range(count):
        if number % 2 == 0:
            draw.shuffle(order)
        else:
            order.reverse()
        for i in order:
            rounds[rows[i].id].append(float(launched(rows[i], target, 1, cores, Effort())["median_ms"]))
        if number % 20 == 19:
            print(f"{number + 1}/{count} rounds", file=sys.stderr, flush=True)
    return rounds


def cnn(path: Path, layers: int, channels: int = 16, size: int = 32) -> None:
    """A chain of equal 3x3 convolutions."""
    draw = np.random.default_rng(0)
    kernel = (draw.standard_normal((channels, channels, 3, 3)) * 0.08).astype(np.float32)
    nodes, last = [], "x"
    for i in range(layers):
        nodes.append(helper.make_node("Conv", [last, "kernel"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last = f"r{i}"
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, channels, size, size]) for n in ("x", last)]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], [numpy_helper.from_array(kernel, "kernel")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


def verdicts(
    before: Sequence[float], after: Sequence[float], starts: Sequence[int], asked: MeasureSection | None = None
) -> tuple[int, float]:
    """How many windows call the two different, and the mean number of pairs that they took.

    Args:
        before, after: Both models' medians, round by round. starts: The windows' first rounds.
        asked: ``[measure]``, but for its budget; None: the defaults.
    """
    different, pairs = 0, 0
    for start in starts:
        most = min((asked or MeasureSection()).max_pairs, len(before) - start)
        settings = (asked or MeasureSection()).model_copy(update={"budget_s": 1e9, "max_pairs": most})
        counts = [0, 0]

        def replay(index: int, start: int = start, counts: list[int] = counts) -> Answer:
            value = (before, after)[index][start + counts[index]]
            counts[index] += 1
            return {"median_ms": value}

        comparison = run_rounds(2, replay, settings, lambda: 0.0)[1].comparison
        assert comparison is not None
        different += bool(comparison.different)
        pairs += comparison.pairs
    return different, pairs / len(starts)


def exchanged(before: Sequence[float], after: Sequence[float]) -> tuple[int, int]:
    """False alarms with the two copies exchanged at random in each pair: under "no difference" as good as new runs."""
    draw, alarms = random.Random(1), 0
    most = MeasureSection().max_pairs
    for _ in range(EXCHANGES):
        start = draw.randrange(0, max(1, len(before) - most))
        pairs = [(a, b) if draw.random() < 0.5 else (b, a) for a, b in zip(before, after, strict=True)][
            start : start + most
        ]
        alarms += verdicts([p[0] for p in pairs], [p[1] for p in pairs], [0])[0]
    return alarms, EXCHANGES


def wilson(hits: int, total: int) -> str:
    """A share with its 95 % interval (Wilson)."""
    z, share = 1.96, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return f"{share:.2%} [{max(0.0, middle - half):.2%}, {min(1.0, middle + half):.2%}]"


def table(rounds: Rounds, seconds: float, *, loaded: bool) -> str:
    """The Markdown that the documentation shows."""
    reference, count = rounds["reference"], len(rounds["reference"])
    rules.bootstrap_interval = lambda *_, **__: (0.0, 0.0)  # the interval that is shown decides nothing here
    most = MeasureSection().max_pairs
    starts = range(0, max(1, count - LEAST_WINDOW + 1), 2)
    facts = machine.describe()
    lines = [
        "# False alarms and power, by repetition",
        "",
        f"{count} rounds of fresh processes, interleaved, in {seconds / 60:.1f} minutes on {facts['cpu']}, "
        f"{facts['cores']['available']} cores{', with two other programs coming and going' if loaded else ''} "
        f"(load at the end {machine.load()}); reference {np.median(reference):.3f} ms, scatter of its processes "
        f"{rules.scatter(reference):.1%}, neighbouring processes correlate by {rules.autocorrelation(reference):.2f}.",
        f"Windows overlap ({len(starts)} of them, {count // most} without overlap). "
        "Written by `python benchmarks/statistics.py`.",
        "",
        "| against the reference | true ratio (all rounds) | called different | mean pairs |",
        "| --- | --- | --- | --- |",
    ]
    for name in list(MODELS)[1:]:
        times = rounds[name]
        truth = math.exp(np.median(np.log(times) - np.log(reference)))
        hits, pairs = verdicts(reference, times, starts)
        lines.append(f"| {name} | {truth:.4f} | {hits} of {len(starts)} | {pairs:.1f} |")
    alarms, draws = exchanged(reference, rounds["same file"])
    lines += [
        f"| same file, the copies exchanged at random | 1 | {wilson(alarms, draws)} | |",
        "",
        "What the same numbers say when they are not paired (the medians of the first and the second half of a window,",
        "one after the other, as most tools compare two runs): the same file differs by over 1 % in "
        f"{sequential(reference):.0%} of windows, by over 5 % in {sequential(reference, 0.05):.0%}.",
        "",
    ]
    return "\n".join(lines)


def sequential(times: Sequence[float], margin: float = 0.01, window: int = 20) -> float:
    """Share of windows in which one model's second half differs from its own first half by over ``margin``."""
    values = [
        abs(np.median(times[i + window : i + 2 * window]) / np.median(times[i : i + window]) - 1) > margin
        for i in range(len(times) - 2 * window + 1)
    ]
    return float(np.mean(values))


@contextlib.contextmanager
def _load(wanted: bool) -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", BURNER]) for _ in range(2 if wanted else 0)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
