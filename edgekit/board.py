"""The live table of a run: a line for each row, what it is at and for how long.

On a terminal it stands below what is said until the run ends. Elsewhere, and under ``--quiet``, there is none:
then each finished stage is one plain line. Progress bars appear below it by themselves.

    with showing(["fp32@x86-cpu", "int8@x86-cpu"]):
        at("int8@x86-cpu", "quantize")
        done("int8@x86-cpu", "quantize", "2.1 s")
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekit import console

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

STYLES = {"running": "bold", "waiting": "dim", "failed": "red", "unavailable": "yellow"}
ROOM = 10  # lines of the terminal that the table leaves to bars, warnings and its own frame


@dataclass
class _Line:
    """What is known of one row: its stage, how that stands, the seconds of work so far, and since when it works."""

    stage: str = ""
    state: str = "waiting"
    spent: float = 0.0
    since: float | None = None

    def seconds(self, now: float) -> float:
        return self.spent + (now - self.since if self.since is not None else 0.0)


@dataclass
class _Board:
    """The table; rich draws it anew several times a second."""

    lines: dict[str, _Line] = field(default_factory=dict)

    def __rich_console__(self, terminal: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title, width in (("row", 0), ("stage", 8), ("state", 11)):  # as wide as what comes, so that nothing jumps
            table.add_column(title, min_width=width, no_wrap=True, overflow="ellipsis")
        table.add_column("time", min_width=7, justify="right", no_wrap=True)
        shown = self._window(max(4, terminal.height - ROOM))
        for name in shown:
            line = self.lines[name]
            seconds = line.seconds(now)
            cells = (name, line.stage, line.state, _clock(seconds) if seconds else "")
            table.add_row(*(Text(cell) for cell in cells), style=STYLES.get(line.state, ""))
        yield table
        if left := len(self.lines) - len(shown):
            waiting = sum(line.state == "waiting" for line in self.lines.values())
            yield Text(f"and {left} more rows; {waiting} of {len(self.lines)} still wait", style="dim")

    def _window(self, most: int) -> list[str]:
        """The rows that fit: the one at work last touched, and those around it."""
        names = list(self.lines)
        busy = max((i for i, name in enumerate(names) if self.lines[name].since is not None), default=0)
        start = max(0, min(busy - most // 2, len(names) - most))
        return names[start : start + most]


_board: _Board | None = None


@contextmanager
def showing(rows: Iterable[str]) -> Iterator[None]:
    """Show these rows, all waiting, while the block runs; nothing where no terminal would show them."""
    global _board
    if not console.live() or _board is not None:
        yield
        return
    from rich.live import Live

    _board = _Board({name: _Line() for name in rows})
    try:
        with console.held() as terminal, Live(_board, console=terminal, refresh_per_second=4, transient=True):
            yield
    finally:
        _board = None


def at(row: str, stage: str, state: str = "running") -> None:
    """Tell the table, where there is one, what a row is at; any other state than ``running`` stops its clock."""
    if _board is None:
        return
    line, now = _board.lines.setdefault(row, _Line()), time.monotonic()
    line.stage, line.state = stage, state
    if state != "running":
        line.spent, line.since = line.seconds(now), None
    elif line.since is None:
        line.since = now


def done(row: str, stage: str, took: str) -> None:
    """A row has finished a stage: a new state in the table, or a plain line where there is none."""
    at(row, stage, took)
    if _board is None:
        console.note(f"{row}: {stage} ({took})")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes else f"{seconds:.1f} s"
