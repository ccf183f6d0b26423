"""Which process runs when: rounds over all rows, forth and back, until each row's ratio is known well enough.

A round is one fresh process for each row that is still open, the reference among them; a row's
datum is its time over the reference's in the same round. Every second round runs in the opposite
order (ABBA), so a drift of the machine that is linear over two rounds cancels out; the order itself is shuffled
(seeded), so that no row always follows the same neighbour.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.measure import statistics
from edgekit.measure.statistics import Comparison
from edgekit.recipe import MeasureSection

Answer = dict[str, Any]  # what a worker says; "median_ms" among it
Launch = Callable[[int], Answer]


@dataclass
class Track:
    """What is known of one row so far.

    Attributes:
        answers: Round → what its process said.
        error: What ended the row; its answers are invalid then.
        comparison: With the reference; None for the reference itself, and where there is none.
        settled: Whether its ratio is known as narrowly as was asked.
    """

    answers: dict[int, Answer] = field(default_factory=dict)
    error: EdgekitError | None = None
    comparison: Comparison | None = None
    settled: bool = False


def run_rounds(
    count: int,
    launch: Launch,
    settings: MeasureSection,
    clock: Callable[[], float],
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Track]:
    """Measure rows 0 … ``count`` - 1, the first being the reference.

    Args:
        launch: Starts one process for a row and returns its answer; an :class:`EdgekitError` ends that row only.
        clock: Seconds, monotonic.
        advance: Called with 1 after each process.
    """
    tracks = [Track() for _ in range(count)]
    draw, start, order, number = random.Random(seed), clock(), list(range(count)), 0
    while open_rows := [i for i, t in enumerate(tracks) if not t.error and not t.settled]:
        if number and _spent(number, clock() - start, settings):
            break
        rows = set(open_rows)
        if not tracks[0].error:
            rows.add(0)
        if number % 2 == 0:
            draw.shuffle(order)
        else:
            order.reverse()
        for index in (i for i in order if i in rows):
            _launch(tracks[index], number, launch, index)
            advance(1)
        number += 1
        if number >= settings.pairs and (number - settings.pairs) % 2 == 0:
            _settle(tracks, settings)
    for track in tracks[1:]:
        track.comparison = None if track.error else compare(tracks[0], track, settings, seed)
    return tracks


def compare(reference: Track, track: Track, settings: MeasureSection, seed: int) -> Comparison | None:
    """The row over the reference, from the rounds that both finished; None where there are none."""
    before, after = _paired(reference, track)
    return statistics.compare(before, after, seed=seed, looks=_looks(len(before), settings)) if before else None


def half_width(before: list[float], after: list[float], settings: MeasureSection) -> float:
    """Half the width of the ratio's exact interval, as a fraction; infinite where there is none."""
    logs = [math.log(b / a) for a, b in zip(before, after, strict=True)]
    interval = statistics.order_interval(logs, statistics.split(_looks(len(logs), settings)))
    return math.expm1((interval[1] - interval[0]) / 2) if interval else math.inf


def _paired(reference: Track, track: Track) -> tuple[list[float], list[float]]:
    """The medians of both in the rounds that both finished; none if the reference failed."""
    rounds = sorted(set(reference.answers) & set(track.answers)) if not reference.error else []
    before, after = ([float(t.answers[r]["median_ms"]) for r in rounds] for t in (reference, track))
    return before, after


def _looks(pairs: int, settings: MeasureSection) -> int:
    """How often a run of so many pairs has looked, in effect: tests/test_measure_rounds.py simulates it."""
    return 2 if pairs > max(settings.pairs, statistics.LEAST_PAIRS) else 1


def _launch(track: Track, number: int, launch: Launch, index: int) -> None:
    try:
        track.answers[number] = launch(index)
    except EdgekitError as error:
        track.error = error


def _settle(tracks: Sequence[Track], settings: MeasureSection) -> None:
    """Mark the rows whose ratio is narrow enough; the reference is settled once all others are."""
    for track in tracks[1:]:
        if track.error or track.settled:
            continue
        before, after = _paired(tracks[0], track)
        # Without a reference to compare with, more rounds would tell nothing more.
        track.settled = not before or half_width(before, after, settings) <= settings.precision
    tracks[0].settled = all(t.error or t.settled for t in tracks[1:])


def _spent(number: int, seconds: float, settings: MeasureSection) -> bool:
    """Whether the rounds or the time are used up: another round must fit into what is left."""
    return number >= settings.max_pairs or seconds * (number + 1) / number > settings.budget_s
