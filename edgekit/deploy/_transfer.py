"""Bring files to a device so that they are whole or not there: resumed, hashed, then renamed into place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from edgekit import console, store
from edgekit.deploy._remote import Remote, patiently
from edgekit.errors import InputError, StageError

ROUNDS = 3
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$")
_LIST = """
cd && [ -d {folder} ] || exit 0
python3 -c '
import hashlib, json, os, sys
held = {{}}
for name in os.listdir(sys.argv[1]):
    with open(os.path.join(sys.argv[1], name), "rb") as file:
        digest, size = hashlib.sha256(), 0
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            size += len(block)
    held[name] = [size, digest.hexdigest()]
print(json.dumps(held))
' {folder}
"""


def send(remote: Remote, files: Mapping[str, Path], place: str) -> None:
    """Copy files into the folder ``place`` (relative to the device's home folder).

    What is there already and right is not sent again; a file that was interrupted goes on where it
    broke. They gather in ``place.part``, which is renamed when every hash is right.

    Args:
        remote: The device. files: Name there → file here. place: The folder to make.

    Raises:
        UnavailableError: The connection broke too often, or the device's disk is full.
        StageError: The files arrive damaged again and again.
    """
    wanted = {name: store.sha256_file(path) for name, path in files.items()}
    for name in files:
        if not _NAME.match(name):
            raise InputError(f"the file name {name!r} can't be sent", remedy="rename it: letters, digits, . _ + -")
    if _matches(_held(remote, place), wanted):
        return
    part = f"{place}.part"
    _do(remote, f"cd && mkdir -p {part}")
    for _ in range(ROUNDS):
        held = _held(remote, part)
        if _matches(held, wanted):
            _do(remote, f"cd && rm -rf {place} && mv {part} {place}")
            return
        for stranger in sorted(set(held) - set(wanted)):
            if _NAME.match(stranger):
                _do(remote, f"cd && rm -f {part}/{stranger}")
        for name in sorted(wanted):
            size, digest = held.get(name, (0, ""))
            if digest != wanted[name]:
                _send_file(remote, files[name], f"{part}/{name}", size)
    raise StageError(
        "what is sent arrives damaged again and again", where=remote.host, remedy="check the network and the disk"
    )


def _send_file(remote: Remote, path: Path, there: str, held: int) -> None:
    """Send one file from byte ``held`` on; a broken connection is tried again from where it broke."""
    total = path.stat().st_size
    if held >= total:  # all of it is there, and wrong
        _do(remote, f"cd && rm -f {there}")
        held = 0
    first = True
    label = f"{remote.host}: {path.name}"

    def go_on() -> None:
        nonlocal first
        start = held if first else _size(remote, there)
        first = False
        with path.open("rb", buffering=0) as file:
            file.seek(min(start, total))
            remote.append(there, file)

    console.note(f"{label} ({total - held} of {total} bytes to send)")
    patiently(go_on, remote.host)


def _held(remote: Remote, folder: str) -> dict[str, tuple[int, str]]:
    """Size and hash of the files in a folder on the device; empty where it is not there."""
    answer = patiently(lambda: remote.script(_LIST.format(folder=folder), 600.0), remote.host)
    try:
        found = json.loads(answer.out or "{}")
        return {str(name): (int(size), str(digest)) for name, (size, digest) in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StageError(
            "the device can't tell what it holds", where=remote.host, remedy="log in and check its Python"
        ) from error


def _size(remote: Remote, path: str) -> int:
    told = remote.script(f"cd && wc -c <{path} 2>/dev/null || echo 0").out.strip()
    return int(told) if told.isdigit() else 0


def _matches(held: dict[str, tuple[int, str]], wanted: dict[str, str]) -> bool:
    return {name: digest for name, (_, digest) in held.items()} == wanted


def _do(remote: Remote, script: str) -> None:
    """Run a script that must succeed."""
    answer = patiently(lambda: remote.script(script), remote.host)
    if answer.code:
        raise StageError(
            f"the device failed at '{script[:80]}' (exit code {answer.code})",
            where=remote.host,
            remedy="log in and look at ~/.cache/edgekit",
        )
