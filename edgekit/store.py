"""Artifacts by content, written atomically: the line's memory.

An entry is a folder named by the hash of everything that went into it. It is built in a
temporary folder on the same disk and renamed into place, so what stands under its final
name is always whole; a killed run leaves nothing but a scratch folder to go on from.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgekit.console import overhearing, warn
from edgekit.errors import InputError, StageError

MANIFEST = "manifest.json"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen half-written: temporary file, fsync, rename.

    Raises:
        StageError: The disk is full, or the folder can't be written; the old file is intact.
    """
    _write_whole(path, lambda file: file.write(data))


def copy_file(source: Path, path: Path) -> Path:
    """Copy a file of any size as :func:`write_bytes` writes one; return ``path``."""

    def fill(file: BinaryIO) -> None:
        with source.open("rb") as data:
            shutil.copyfileobj(data, file, 1 << 20)

    _write_whole(path, fill)
    return path


def _write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
            _sync_folder(path.parent)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise write_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically (see :func:`write_bytes`)."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused (see :func:`write_bytes`)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_error(path: Path, error: OSError) -> StageError:
    """The one wording for a file that can't be written."""
    return StageError(
        f"can't write this file: {error.strerror or error}",
        where=str(path),
        remedy="free some disk space or choose a writable folder; what was there before is intact",
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems can't; the rename itself is still atomic
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Entry:
    """A finished artifact: a folder of files and what is known of them.

    Attributes:
        key: Hex hash of what went in.
        folder: Where the files lie; treat it as read-only.
        meta: What the builder said of them (JSON).
        seconds: How long the building took.
        cached: Whether it was there already.
    """

    key: str
    folder: Path
    meta: dict[str, Any]
    seconds: float
    cached: bool

    def path(self, name: str) -> Path:
        """The path of one of its files."""
        return self.folder / name


class Store:
    """Finished artifacts under one cache folder, by the hash of what went into them.

    Args:
        root: The folder; by default ``EDGEKIT_CACHE_DIR`` or the user's cache folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_dir()
        try:
            for name in ("entries", "building", "scratch", "locks", "quarantine"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            tag = self.root / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_text("Signature: 8a477f597d28d172789f06886806bc55\n# edgekit's cache: safe to delete\n")
        except OSError as error:
            raise InputError(
                f"can't write to the cache folder: {error.strerror or error}",
                where=str(self.root),
                remedy="set EDGEKIT_CACHE_DIR to a folder that can be written",
            ) from error

    def find(self, inputs: dict[str, Any]) -> Entry | None:
        """The finished entry for ``inputs``, or None; what was warned of when it was made is said again.

        A corrupted one is set aside with a warning.
        """
        key = sha256_json(inputs)
        folder = self._folder(key)
        if not folder.is_dir():
            return None
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            broken = [name for name, digest in manifest["files"].items() if not _intact(folder / name, digest)]
            entry = Entry(key, folder, manifest["meta"], manifest["seconds"], cached=True)
            warned = manifest["warnings"]
        except (OSError, ValueError, KeyError):
            broken = [MANIFEST]
        if broken:
            self._quarantine(key, folder, broken[0])
            return None
        for text in warned:
            warn(text)
        return entry

    def discard(self, inputs: dict[str, Any]) -> None:
        """Remove the entry for ``inputs``, if there is one."""
        key = sha256_json(inputs)
        with self._lock(key):
            shutil.rmtree(self._folder(key), ignore_errors=True)

    def build(self, inputs: dict[str, Any], make: Callable[[Path, Path], dict[str, Any]]) -> Entry:
        """Return the entry for ``inputs``, building it if it is not there.

        Args:
            inputs: JSON: everything that the result depends on, by content (hashes, settings, versions).
            make: ``make(folder, scratch) -> meta`` writes the files into ``folder``; ``scratch`` survives
                a killed run (checkpoints), and is removed when the entry is finished.

        Raises:
            StageError: The cache can't be written (disk full).
        """
        if entry := self.find(inputs):
            return entry
        key = sha256_json(inputs)
        with self._lock(key):
            if entry := self.find(inputs):  # another run built it while we waited
                return entry
            scratch = self.root / "scratch" / key
            try:
                scratch.mkdir(exist_ok=True)
                building = Path(tempfile.mkdtemp(dir=self.root / "building", prefix=f"{key[:12]}."))
            except OSError as error:
                raise write_error(self.root, error) from error
            try:
                start = time.monotonic()
                with overhearing() as warned:
                    meta = json.loads(json.dumps(make(building, scratch), allow_nan=False))  # as a later run reads it
                seconds = round(time.monotonic() - start, 3)
                self._finish(key, building, {"inputs": inputs, "meta": meta, "seconds": seconds, "warnings": warned})
            except OSError as error:
                raise write_error(self._folder(key), error) from error
            finally:
                shutil.rmtree(building, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)
        return Entry(key, self._folder(key), meta, seconds, cached=False)

    def _finish(self, key: str, building: Path, facts: dict[str, Any]) -> None:
        files = {str(p.relative_to(building)): sha256_file(p) for p in sorted(building.rglob("*")) if p.is_file()}
        write_json(building / MANIFEST, {**facts, "files": files})
        final = self._folder(key)
        final.parent.mkdir(parents=True, exist_ok=True)
        building.chmod(0o755)
        building.rename(final)
        _sync_folder(final.parent)

    def _folder(self, key: str) -> Path:
        return self.root / "entries" / key[:2] / key

    def _quarantine(self, key: str, folder: Path, name: str) -> None:
        warn(f"the cached artifact {key[:12]} is damaged ({name}); it is set aside and made again")
        aside = Path(tempfile.mkdtemp(dir=self.root / "quarantine", prefix=f"{key[:12]}."))
        folder.rename(aside / folder.name)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Hold the key's lock; the kernel frees it when its holder dies."""
        with (self.root / "locks" / f"{key}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def cache_dir() -> Path:
    """``EDGEKIT_CACHE_DIR``, else the user's cache folder."""
    import platformdirs

    chosen = os.environ.get("EDGEKIT_CACHE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("edgekit"))


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest
