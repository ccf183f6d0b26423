"""A device over the system's own ``ssh``: the user's keys, agent, jump hosts and known hosts are honoured.

Nothing is asked, no key is ever accepted on its own. What a device says is bounded and told apart
from what ssh says: every script ends with a record of its own, so a remote exit code of 255 is not
mistaken for a broken connection.
"""

from __future__ import annotations

import os
import re
import secrets
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from edgekit.errors import InputError, UnavailableError

T = TypeVar("T")

MAX_OUTPUT = 2_000_000  # bytes of a device's answer
KEPT_ERRORS = 16_000
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    "StrictHostKeyChecking": "yes",
}
_HOST = re.compile(r"^(ssh://)?[A-Za-z0-9_.%\[\]:@+-]+$")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# What ssh's messages mean, first match wins: pattern, problem, remedy.
_CAUSES = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the device's host key is not the one that is known: another machine answers, or it was set up anew",
        "ask who set it up; if the new key is right, remove the old one with: ssh-keygen -R {name}",
    ),
    (
        "Host key verification failed|host key is known",
        "the device's host key is not known here, and edgekit never accepts one on its own",
        "connect once by hand with: ssh {host}, and compare the fingerprint before you accept it",
    ),
    (
        "Permission denied|Too many authentication failures",
        "the device refused the login",
        "check the user name and the key with: ssh {host}; passwords are never asked for",
    ),
    ("Could not resolve hostname", "no such host name", "check the name, or add it to ~/.ssh/config"),
    (
        "Connection refused",
        "the device is there, but no ssh server listens",
        "start one on the device, or name its port as ssh://user@host:port",
    ),
    (
        "timed out|No route to host|Network is unreachable|Host is down",
        "the device does not answer",
        "is it switched on, and on this network?",
    ),
    ("Bad owner or permissions|Bad configuration option", "ssh refuses its own settings", "see: ssh -v {host}"),
)


class DroppedError(Exception):
    """The connection broke while something ran; worth another try."""


@dataclass(frozen=True)
class Answer:
    """What a remote script said on stdout, and its own exit code."""

    code: int
    out: str


@dataclass(frozen=True)
class Remote:
    """A device.

    Attributes:
        host: As ssh takes it: ``user@device``, an alias of ``~/.ssh/config``, ``ssh://user@device:2222``.
        config: Another configuration file than the user's (``ssh -F``).
    """

    host: str
    config: Path | None = None

    def __post_init__(self) -> None:
        if not _HOST.match(self.host) or self.host.startswith("-"):
            raise InputError(f"'{clean(self.host)[:80]}' is no host", remedy="give user@device, as ssh takes it")

    def script(self, text: str, limit_s: float = 60.0) -> Answer:
        """Run a POSIX shell script on the device.

        Raises:
            DroppedError: The connection broke.
            UnavailableError: It can't be made; says which of the many reasons.
        """
        token = secrets.token_hex(8)
        marked = f"echo edgekit-begin {token}\n(\n{text}\n) </dev/null\nprintf '\\nedgekit-end %s %d\\n' {token} $?\n"
        code, out, errors = self._ssh("sh -s", marked.encode(), limit_s)
        return self._parsed(token, code, out, errors)

    def append(self, path: str, source: IO[bytes], limit_s: float = 3600.0) -> None:
        """Append the rest of an open file to a file on the device (its path relative to the home folder).

        Raises:
            DroppedError: The connection broke; what had arrived stays there.
            UnavailableError: The device can't store it (disk full, say).
        """
        token = secrets.token_hex(8)
        store = f"cat 2>&1 >>{path}; code=$?; cat >/dev/null"  # what can't be stored is drained, so that we hear why
        command = f"sh -c 'cd; echo edgekit-begin {token}; {store}; echo; echo edgekit-end {token} $code'"
        code, out, errors = self._ssh(command, source, limit_s)
        answer = self._parsed(token, code, out, errors)
        if answer.code:
            raise UnavailableError(
                f"the device can't store the bundle: {answer.out.strip()[-300:] or 'writing failed'}",
                where=self.host,
                remedy="free some disk space on the device; what was sent stays, and the next try goes on from there",
            )

    def _ssh(self, command: str, feed: bytes | IO[bytes], limit_s: float) -> tuple[int, str, str]:
        """Run ``ssh`` with a bounded answer: its exit code, stdout and the end of stderr."""
        if shutil.which("ssh") is None:
            raise UnavailableError("there is no 'ssh' program here", remedy="install the OpenSSH client")
        words = ["ssh", "-T"] + (["-F", str(self.config)] if self.config else [])
        words += [part for key, value in OPTIONS.items() for part in ("-o", f"{key}={value}")]
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as given:
            if isinstance(feed, bytes):
                given.write(feed)
                given.seek(0)
                feed = given
            process = subprocess.Popen(
                [*words, "--", self.host, command],
                stdin=feed,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
            try:
                out = _bounded(process, limit_s, self.host)
                code = process.wait(10)
            finally:
                process.kill()
                process.wait()
            errors.seek(0, os.SEEK_END)
            errors.seek(max(0, errors.tell() - KEPT_ERRORS))
            return code, out, errors.read().decode(errors="replace")

    def _parsed(self, token: str, code: int, out: str, errors: str) -> Answer:
        """The script's own answer, or why there is none."""
        begin = out.find(f"edgekit-begin {token}\n")
        ended = re.search(rf"\nedgekit-end {token} (\d{{1,3}})\n", out)
        if begin >= 0 and ended:
            body = out[begin + len(f"edgekit-begin {token}\n") : max(ended.start(), begin)]
            return Answer(int(ended[1]), clean(body))
        for pattern, problem, remedy in _CAUSES:
            if re.search(pattern, errors) and begin < 0:
                name = self.host.removeprefix("ssh://").rpartition("@")[2]
                remedy = remedy.format(host=self.host, name=name)
                raise UnavailableError(problem, where=self.host, remedy=remedy, details=clean(errors))
        if code == 255 or code < 0 or begin >= 0:
            raise DroppedError(clean(errors).strip().split("\n")[-1][:200] or "the connection broke")
        raise UnavailableError(
            f"the device ran no shell script (exit code {code}): {clean(errors).strip()[-200:]}",
            where=self.host,
            remedy="edgekit needs a login with a POSIX shell on the device",
            details=clean(errors),
        )


def patiently(work: Callable[[], T], host: str, tries: int = 4, pause_s: float = 1.0) -> T:
    """Do ``work`` again when the connection broke, a little later each time.

    Raises:
        UnavailableError: It broke every time.
    """
    for number in range(1, tries + 1):
        try:
            return work()
        except DroppedError as error:
            if number == tries:
                raise UnavailableError(
                    f"the connection broke {tries} times: {error}",
                    where=host,
                    remedy="run the same command again: it goes on where it was",
                ) from error
            time.sleep(pause_s * number)
    raise AssertionError


def clean(text: str) -> str:
    """Text of a stranger without escape sequences and control characters (line ends and tabs stay)."""
    return _CONTROL.sub("", text.replace("\r", ""))


def _bounded(process: subprocess.Popen[bytes], limit_s: float, host: str) -> str:
    """What the process says, up to a limit of bytes and of time."""
    assert process.stdout is not None
    held, deadline = bytearray(), time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, min(1.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    raise DroppedError(f"no answer in {limit_s:.0f} s")
                continue
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                return held.decode(errors="replace")
            held += chunk
            if len(held) > MAX_OUTPUT:
                raise UnavailableError(
                    f"the device said more than {MAX_OUTPUT} bytes; that is no answer",
                    where=host,
                    remedy="log in by hand and see what its login scripts print",
                )
