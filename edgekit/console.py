"""The only code that talks to a person: progress, notes, warnings, tables.

Silent until :func:`configure` is called, as the command line does; a library user gets
the same events through ``logging`` and the ``progress`` callback instead. Talk goes to
stderr; stdout is for the product (tables asked for, JSON, paths).
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # label, done, total (0: unknown)

log = logging.getLogger("edgekit")
UNWRAPPED = 200  # columns
PROGRESS_FILE = "EDGEKIT_PROGRESS_FILE"  # a child process writes here what its parent shows
# What stands in for a sign on a terminal or in a file that can't carry it; letters lose their accents.
PLAIN = {
    "→": "->", "←": "<-", "×": "x", "…": "...", "−": "-", "–": "-", "—": "-", "·": "|", "±": "+-", "µ": "u", "★": "*",
    "✓": "ok", "✗": "x", "✕": "x", "●": "*", "≤": "<=", "≥": ">=", "≈": "~", "’": "'", "“": '"', "”": '"',
}  # fmt: skip


@dataclass
class _State:
    """How to talk; set once by the command line."""

    speaking: bool = False
    quiet: bool = False
    verbosity: int = 0
    plain: bool = False
    progress: Progress | None = None
    held: Console | None = None
    warnings: list[str] = field(default_factory=list)
    bars: Any = None


_state = _State()
_listener: ContextVar[list[str] | None] = ContextVar("listener", default=None)


def configure(*, quiet: bool | None = None, verbosity: int | None = None, plain: bool | None = None) -> None:
    """Let edgekit speak on stderr (the command line calls this; a library user need not).

    Args:
        quiet: Only warnings and errors. verbosity: How much detail. plain: Lines alone, nothing that is drawn
            over. None: as it is.
    """
    _state.speaking = True
    _state.quiet = _state.quiet if quiet is None else quiet
    _state.verbosity = _state.verbosity if verbosity is None else verbosity
    _state.plain = _state.plain if plain is None else plain
    level = {0: logging.WARNING, 1: logging.INFO}.get(_state.verbosity, logging.DEBUG)
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    log.setLevel(level)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_plain.__name__)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Signs that an encoding lacks, in ASCII; a codec's error handler."""
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    bare = (PLAIN.get(c) or unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() or "?" for c in signs)
    return "".join(bare), error.end


codecs.register_error(_plain.__name__, _plain)


def verbosity() -> int:
    """How much detail was asked for: 0, 1 or 2."""
    return _state.verbosity


@contextmanager
def reporting(progress: Progress | None) -> Iterator[None]:
    """Send progress to ``progress(label, done, total)`` while the block runs."""
    before, _state.progress = _state.progress, progress
    try:
        yield
    finally:
        _state.progress = before


def stderr() -> Console:
    """A rich console on stderr that honours NO_COLOR and non-terminals."""
    from rich.console import Console

    return _state.held or Console(stderr=True, highlight=False, emoji=False, soft_wrap=not sys.stderr.isatty())


@contextmanager
def held() -> Iterator[Console]:
    """One console for all that is said on stderr while the block runs: what it shows live stays below the rest."""
    _state.held = stderr()
    try:
        yield _state.held
    finally:
        _state.held = None


def live() -> bool:
    """Whether a person watches on a terminal that can be drawn over."""
    watched = _state.speaking and not (_state.quiet or _state.plain or _state.progress)
    return watched and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def stdout() -> Console:
    """A rich console on stdout, for the tables a user asked for; never wrapped where no terminal shows them."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else UNWRAPPED
    return Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty(), width=wide)


def note(text: str) -> None:
    """Say one line of progress."""
    if not _state.speaking:
        log.info(text)
    elif not _state.quiet:
        stderr().print(text, markup=False)


def command(text: str) -> None:
    """Say a line to the CI system that reads stderr: as it is, and under ``--quiet`` too."""
    if _state.speaking:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    else:
        log.info(text)


def warn(text: str) -> None:
    """Say a warning once; it is kept for the record too (:func:`warnings`)."""
    if (listener := _listener.get()) is not None:
        listener.append(text)
    if text in _state.warnings:
        return
    _state.warnings.append(text)
    if _state.speaking:
        stderr().print(f"warning: {text}", style="yellow", markup=False)
    else:
        log.warning(text)


def warnings() -> list[str]:
    """Every warning said so far, in order."""
    return list(_state.warnings)


@contextmanager
def overhearing() -> Iterator[list[str]]:
    """Collect the warnings that the block says, in this thread: what it makes says them again when it is found."""
    said: list[str] = []
    token = _listener.set(said)
    try:
        yield said
    finally:
        _listener.reset(token)
        if (outer := _listener.get()) is not None:
            outer.extend(said)


def clear_warnings() -> None:
    """Forget the warnings said so far: a new run begins."""
    _state.warnings.clear()


def out(text: str) -> None:
    """Print the product itself on stdout."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def out_json(document: Any) -> None:
    """Print one JSON document on stdout, and nothing else."""
    out(json.dumps(document, indent=2, sort_keys=False, allow_nan=False))


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` while showing progress: a bar on a terminal, quiet elsewhere."""
    count = total if total is not None else (len(items) if isinstance(items, Sized) else 0)
    with progress(label, count) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def progress(label: str, total: int = 0) -> Iterator[Callable[[int], None]]:
    """Show progress of work that is not a loop; the block calls the yielded ``advance(n)``."""
    show = _reporter(label, total)
    done = 0
    last = 0.0

    def advance(step: int = 1) -> None:
        nonlocal done, last
        done += step
        now = time.monotonic()
        if now - last > 0.1 or done == total:
            last = now
            show(done, total)

    show(0, total)
    try:
        yield advance
    finally:
        show(-1, total)


def _reporter(label: str, total: int) -> Callable[[int, int], None]:
    """Where progress goes: the parent's file, the user's callback, a bar, or nowhere."""
    if path := os.environ.get(PROGRESS_FILE):
        return lambda done, total: _write_progress(Path(path), label, done, total)
    if callback := _state.progress:
        return lambda done, total: callback(label, done, total) if done >= 0 else None
    if live():
        return _bar(label, total)
    return lambda done, total: None


def _write_progress(path: Path, label: str, done: int, total: int) -> None:
    if done < 0:
        return
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps([label, done, total]))
    fresh.replace(path)


def _bar(label: str, total: int) -> Callable[[int, int], None]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if _state.bars is None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        _state.bars = Progress(*columns, console=stderr(), transient=True)
        _state.bars.start()
    bars = _state.bars
    task = bars.add_task(label, total=total or None)

    def show(done: int, total: int) -> None:
        if done >= 0:
            bars.update(task, completed=done, total=total or None)
            return
        bars.remove_task(task)
        if not bars.tasks:
            bars.stop()
            _state.bars = None

    return show


class Relay:
    """Shows in the parent the progress that a child process wrote to ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._label: str | None = None
        self._show: Callable[[int, int], None] | None = None

    def poll(self) -> None:
        """Read the child's latest word, if any."""
        try:
            label, done, total = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return
        if label != self._label:
            self.close()
            self._label, self._show = label, _reporter(label, total)
        if self._show:
            self._show(done, total)

    def close(self) -> None:
        """Take the bar away."""
        if self._show:
            self._show(-1, 0)
        self._label = self._show = None
