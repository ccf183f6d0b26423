"""OpenVINO's model cache, trusted only as far as its blobs are the bytes that were written.

OpenVINO notices a blob that is cut off or whose header is damaged, but loads one whose weights are, and computes
something else (measured: 4 KiB of zeros in the weights). So each blob has its hash beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgekit.console import warn
from edgekit.store import sha256_file, write_text


@contextmanager
def vouched(folder: Path) -> Iterator[None]:
    """Drop what is not as it was written, let the block compile, then note the hashes of what it wrote.

    The folder must be edgekit's alone: a blob without a hash was not finished, and goes too.
    """
    if folder.is_dir():
        for blob in folder.glob("*.blob"):
            if not _intact(blob):
                warn(f"OpenVINO's cached blob {blob} is damaged or unfinished: it is compiled again")
                blob.unlink(missing_ok=True)
    yield
    for blob in folder.glob("*.blob"):
        if not _seal(blob).exists():
            write_text(_seal(blob), sha256_file(blob) + "\n")


def _intact(blob: Path) -> bool:
    with suppress(OSError):
        return _seal(blob).read_text().strip() == sha256_file(blob)
    return False


def _seal(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.sha256")
