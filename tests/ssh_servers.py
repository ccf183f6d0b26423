"""Servers on loopback for the real ``ssh`` client: asyncssh's, and OpenSSH's own where it is installed.

Either one's "device" is a home folder, a PATH, and whatever a test has done to each command first. A proxy between
client and server counts what passes, and cuts the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import asyncssh

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
USER = pwd.getpwuid(os.getuid()).pw_name  # OpenSSH lets nobody else in, unless root runs it
TOOLS = (
    *("sh", "cat", "mkdir", "mv", "rm", "ls", "wc", "head", "tail", "df", "uname"),
    *("getconf", "sed", "tr", "chmod", "touch", "setsid", "nohup", "sleep", "kill", "env", "dirname"),
)

# What a login runs: the test's own lines, then the client's command.
LOGIN = """\
printf '%s\\n' "$SSH_ORIGINAL_COMMAND" >>{commands}
cd
. {before}
exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""

SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {host_key}
AuthorizedKeysFile {authorized}
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
SetEnv {environment}
ForceCommand {login}
"""


@dataclass(frozen=True)
class Device:
    """What lies behind a server.

    Attributes:
        folder: Where all of it lies. home: Its home folder. path: Its PATH.
        before: A file of shell text, run before every command.
    """

    folder: Path
    path: Path
    home: Path
    before: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": str(self.path), "OMP_NUM_THREADS": "1"}

    @property
    def login(self) -> str:
        return f"/bin/sh {self.folder / 'login.sh'}"

    @property
    def commands(self) -> list[str]:
        """The lines of all commands that were run."""
        told = self.folder / "commands"
        return told.read_text().splitlines() if told.exists() else []


def device(folder: Path, python: Path | None, home: Path | None = None) -> Device:
    """A device with a shell's usual tools, and perhaps a Python."""
    made = Device(folder, folder / "bin", home or folder / "home", folder / "before.sh")
    made.home.mkdir(exist_ok=True)
    made.path.mkdir()
    made.before.touch()
    (folder / "login.sh").write_text(LOGIN.format(commands=folder / "commands", before=made.before))
    for name in TOOLS:
        if found := shutil.which(name):
            (made.path / name).symlink_to(found)
    if python:
        launcher = made.path / "python3"  # a link would leave its environment behind
        launcher.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        launcher.chmod(0o755)
    return made


class Server(Protocol):
    """A server that listens."""

    device: Device
    port: int

    def stop(self) -> None: ...


class Asyncssh:
    """asyncssh's server, in a thread of this process."""

    def __init__(self, device: Device, keys: Path) -> None:
        self.device, self.keys, self.port = device, keys, 0
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self._serve, args=(ready,), daemon=True).start()
        assert ready.wait(20)

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)

        async def listen() -> None:
            self.listener = await asyncssh.listen(
                "127.0.0.1",
                0,
                server_host_keys=[str(self.keys / "host")],
                authorized_client_keys=str(self.keys / "user.pub"),
                process_factory=self._process,
                encoding=None,
            )
            self.port = self.listener.sockets[0].getsockname()[1]
            ready.set()

        self.loop.run_until_complete(listen())
        self.loop.run_forever()

    async def _process(self, process: Any) -> None:
        child = await asyncio.create_subprocess_exec(
            *self.device.login.split(),
            env={**self.device.environment, "SSH_ORIGINAL_COMMAND": process.command},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
        code = await child.wait()
        await process.stdout.drain()
        process.exit(code)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.listener.close)
        self.loop.call_soon_threadsafe(self.loop.stop)


class OpenSSH:
    """OpenSSH's own server, as the user who runs the tests."""

    def __init__(self, device: Device, keys: Path) -> None:
        assert SSHD is not None
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where a system's start script makes it
        self.device = device
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        config, log = device.folder / "sshd_config", device.folder / "sshd.log"
        environment = " ".join(f"{name}={value}" for name, value in device.environment.items())
        words = {"host_key": keys / "host", "authorized": keys / "user.pub", "environment": environment}
        config.write_text(SSHD_CONFIG.format(port=self.port, login=device.login, **words))
        self.process = subprocess.Popen([SSHD, "-D", "-f", config, "-E", log], stdin=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"sshd does not listen: {log.read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Proxy:
    """Between client and server: counts what the client sends, and cuts the connection after ``budget`` bytes of it."""

    def __init__(self, to: int) -> None:
        self.to, self.budget, self.sent, self.cuts = to, None, 0, 0  # type: ignore[var-annotated]
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.to))
                except OSError:
                    client.close()
                    continue
                self.open += [client, server]
                threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(8192):
                if counted and self.budget is not None:
                    self.budget -= len(data)
                    if self.budget < 0:
                        self.budget, self.cuts = None, self.cuts + 1
                        break
                self.sent += len(data) if counted else 0
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Cut every connection, and take no new one."""
        self.socket.close()
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def keys(folder: Path) -> Path:
    """Key pairs of the device, of its user, and of others, in a folder."""
    for name in ("user", "stranger", "host", "other_host"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
        subprocess.run(command, check=True)
    return folder


def config(
    folder: Path, keys: Path, port: int, *, key: str = "user", known: str | None = "host", name: str = "127.0.0.1"
) -> Path:
    """A configuration of ssh's own, as a user would write it: the device's aliases, port, key and known hosts."""
    hosts = folder / "known_hosts"
    hosts.write_text(f"device {(keys / f'{known}.pub').read_text()}" if known else "")
    path = folder / f"config-{port}-{key}-{known}"
    path.write_text(
        f"Host device device2\n  HostName {name}\n  Port {port}\n  User {USER}\n  IdentityFile {keys / key}\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {hosts}\n  GlobalKnownHostsFile /dev/null\n"
        "  HostKeyAlias device\n"
    )
    return path
