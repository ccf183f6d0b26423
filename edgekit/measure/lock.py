"""One benchmark on a machine at a time, whoever started it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.console import note
from edgekit.errors import InconclusiveError, InputError

WAIT_S = 1800.0


def default_path() -> Path:
    """The one file that all users of this machine lock."""
    return Path(tempfile.gettempdir()) / "edgekit-measure.lock"


@contextmanager
def machine_lock(path: Path | None = None, *, wait_s: float = WAIT_S, poll_s: float = 0.2) -> Iterator[None]:
    """Hold the machine for one measurement; the kernel frees it when its holder dies.

    Raises:
        InconclusiveError: Another benchmark still measures after ``wait_s`` seconds.
        InputError: The lock file can't be opened.
    """
    place = path or default_path()
    handle = _open(place)
    try:
        deadline, told = time.monotonic() + wait_s, False
        while not _try_lock(handle):
            if not told:
                note("another edgekit benchmark is measuring on this machine; waiting for it")
                told = True
            if time.monotonic() > deadline:
                raise InconclusiveError(
                    f"another edgekit benchmark has been measuring on this machine for over {wait_s:.0f} s",
                    where=str(place),
                    remedy="wait for it or end it: two benchmarks at once measure each other",
                )
            time.sleep(poll_s)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> int:
    """Open the file, made by whoever comes first and open to all; a link is not followed."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)  # without O_CREAT: the kernel refuses that on another user's file in /tmp
        handle = os.open(path, flags | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):
            os.fchmod(handle, 0o666)  # past the umask
        return handle
    except OSError as error:
        raise InputError(
            f"can't open the lock of this machine's benchmarks: {error.strerror or error}",
            where=str(path),
            remedy="remove that file, or set TMPDIR to a folder that can be written",
        ) from error
