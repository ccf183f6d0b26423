"""Is a slowdown of 2 % found when given the time? The share found by the number of pairs, beside the theory's.

    python benchmarks/power.py [--rounds 360] [--out benchmarks/power.md]

Two models run in fresh processes, round after round: 50 equal layers and 51. Then edgekit's own procedure judges
windows of these rounds, told to go on to so many pairs (``[measure] precision`` as fine as can be, ``max_pairs``). The
theory takes each pair as independent: the slowdown is found where fewer than k of n ratios are below 1, so with the
share p of all pairs that are, in P(Bin(n, p) < k) of runs. About 1.5 s a round: 360 rounds take 9 minutes.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import _repetition  # noqa: E402
from edgekit import machine  # noqa: E402
from edgekit.measure import statistics as rules  # noqa: E402
from edgekit.measure.lock import machine_lock  # noqa: E402
from edgekit.recipe import MeasureSection  # noqa: E402

MODELS = {"reference": 50, "2 % more": 51}
PAIRS = (8, 12, 16, 24, 32, 40, 60, 80)
FINE = 1e-6  # a precision that no run reaches, so that it goes on to ``max_pairs``


def main() -> None:
    """Record, judge, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=360)
    parser.add_argument("--out", type=Path, default=HERE / "power.md")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, machine_lock():
        rounds = _repetition.record(Path(folder), options.rounds, MODELS)
    text = table(*rounds.values(), time.monotonic() - start)
    print(text)
    options.out.write_text(text)


def table(before: list[float], after: list[float], seconds: float) -> str:
    """The Markdown: what was recorded, and the share found by the number of pairs."""
    rules.bootstrap_interval = lambda *_, **__: (0.0, 0.0)  # the interval that is shown decides nothing here
    logs = np.log(after) - np.log(before)
    facts, count, reference = machine.describe(), len(before), np.median(before)
    lines = [
        "# A slowdown of 2 %, given the time",
        "",
        f"{count} pairs of fresh processes in {seconds / 60:.1f} minutes on {facts['cpu']}, "
        f"{facts['cores']['available']} cores (load at the end {machine.load()}); reference {reference:.3f} ms, "
        f"scatter of its processes {rules.scatter(before):.1%}; true ratio (all pairs) "
        f"{math.exp(np.median(logs)):.4f}, {np.mean(logs < 0):.1%} of the pairs are below 1.",
        "Windows overlap, every second round starts one. Written by `python benchmarks/power.py`.",
        "",
        "| pairs | found | share | by theory | windows without overlap |",
        "| --- | --- | --- | --- | --- |",
    ]
    for pairs in (n for n in PAIRS if n <= count):
        starts = range(0, count - pairs + 1, 2)
        asked = MeasureSection(precision=FINE, max_pairs=pairs)
        found, _ = _repetition.verdicts(before, after, starts, asked)
        rank = rules.order_rank(pairs, rules.split(2 if pairs > rules.LEAST_PAIRS else 1))
        theory = rules.binomial_below(pairs, float(np.mean(logs < 0)), rank)
        share = found / len(starts)
        lines.append(f"| {pairs} | {found} of {len(starts)} | {share:.0%} | {theory:.0%} | {count // pairs} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
