"""Bring bundles to devices over SSH, prove them there, measure them there, and bring the numbers home.

On a device everything lies under ``~/.cache/edgekit``. A bundle is sent file by file into a folder
``….part``; an interrupted file goes on where it broke, and only when every hash is right is the
folder renamed, so nothing half-copied ever runs. What runs there runs on when the connection
breaks: the next ``deploy`` of the same bundles fetches its results in place of starting again.
Several bundles are measured in turns, so that their ratio is known with its exact interval.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit import bundle as bundles
from edgekit import console, result, store
from edgekit.deploy import _examine, _job, _preflight, _record, _transfer, _wheels
from edgekit.deploy._examine import Examined
from edgekit.deploy._job import Finished, Work
from edgekit.deploy._outcome import Deployed, judged
from edgekit.deploy._preflight import Check
from edgekit.deploy._record import merge
from edgekit.deploy._remote import DroppedError, Remote, patiently
from edgekit.errors import EdgekitError, InputError, StageError, UnavailableError

__all__ = ["Check", "Deployed", "Examined", "deploy", "examine", "merge", "table"]

HOME = ".cache/edgekit"
SECONDS, ROUND_SECONDS = 3.0, 1.0  # how long a process measures: alone, and in turns
MOST_SECONDS = 3600.0
ROUNDS = 10  # of several bundles in turns; 8 are the least for an exact interval
POLL_S, LOST_S = 1.0, 90.0  # how often to ask; how long a device may stay away while it works


@dataclass(frozen=True)
class _Bundle:
    """A bundle's folder here, its manifest and the manifest's hash, and what it is called among the others."""

    folder: Path
    manifest: dict[str, Any]
    digest: str
    label: str

    @property
    def size(self) -> int:
        return sum(int(file["size_bytes"]) for file in self.manifest["files"].values())


@dataclass
class _Device:
    """A device at work, and what is known of it so far."""

    remote: Remote
    bundles: Sequence[_Bundle]
    install: bool = False
    wheels: Path | None = None
    seconds: float | None = None
    ephemeral: bool = False
    checks: list[Check] = field(default_factory=list)

    @property
    def home(self) -> str:
        """Where everything of this call lies there; a folder of its own where it is to leave nothing."""
        return f"{HOME}/once-{self.name}" if self.ephemeral else HOME

    @property
    def name(self) -> str:
        digests = [bundle.digest for bundle in self.bundles]
        return (digests[0] if len(digests) == 1 else store.sha256_json(digests))[:24]

    def work(self) -> Work:
        several = len(self.bundles) > 1
        return Work(
            folder=f"{self.home}/bundles/{self.name}.job",
            lock=f"{HOME}/busy",
            places=tuple(f"{self.home}/bundles/{bundle.digest[:24]}" for bundle in self.bundles),
            rounds=ROUNDS if several else 1,
            seconds=self.seconds or (ROUND_SECONDS if several else SECONDS),
            cache=self.home if self.ephemeral else "",
        )


def deploy(
    bundle: Path | str | Sequence[Path | str],
    hosts: Sequence[str],
    *,
    install: bool = False,
    results: Path | str | None = None,
    wheel_folder: Path | str | None = None,
    ssh_config: Path | str | None = None,
    seconds: float | None = None,
    ephemeral: bool = False,
) -> list[Deployed]:
    """Copy bundles to devices, run ``check`` and ``bench`` there, and tell what came of each.

    Devices work at the same time; one that fails stops no other. Several bundles (of one target) are measured in
    turns, fresh process by fresh process, and each is compared with the first.

    Args:
        bundle: A bundle's folder or archive, or several.
        hosts: Devices, each as ssh takes it.
        install: Put the runtime into an environment of its own on the device, from wheels sent from here.
        results: A ``results.json`` (or its folder) that gets the numbers, as that target's.
        wheel_folder: Where the wheels lie; None: ``pip download`` gets them from the index that pip uses here.
        ssh_config: Another configuration file than the user's.
        seconds: How long a process measures; None: 3, or 1 in turns.
        ephemeral: Remove from the device all that was put there, environment and engines too.

    Returns:
        One outcome for each host and bundle, in their order.

    Raises:
        InputError: A bundle, an option or the record is wrong, or they don't belong together; nothing was sent.
    """
    config = Path(ssh_config) if ssh_config else None
    remotes = [Remote(host, config) for host in hosts]
    paths = [bundle] if isinstance(bundle, Path | str) else list(bundle)
    if not remotes or not paths:
        what = "device" if not remotes else "bundle"
        raise InputError(f"no {what} is named", remedy="name a bundle, and a device with --host user@device")
    if len(set(hosts)) < len(hosts):
        raise InputError("a device is named twice", remedy="name each once")
    _check_options(install, wheel_folder, seconds)
    with ExitStack() as stack:
        sent = _named(paths, [stack.enter_context(bundles.opened(path)) for path in paths])
        _check_together(sent)
        record = _record.record_of(results, [one.manifest for one in sent]) if results else None
        wheels = Path(wheel_folder) if wheel_folder else None

        def work(remote: Remote) -> list[Deployed]:
            return _guarded(_Device(remote, sent, install, wheels, seconds, ephemeral))

        with ThreadPoolExecutor(max_workers=min(16, len(remotes))) as pool:
            outcomes = [outcome for each in pool.map(work, remotes) for outcome in each]
    if record and results:
        result.write_results(merge(record, outcomes), _record.file_of(results))
    return outcomes


def _named(paths: Sequence[Path | str], opened: Sequence[tuple[Path, dict[str, Any]]]) -> list[_Bundle]:
    """The opened bundles, each under its row's id, with its file's name where two are of one row."""
    ids = [manifest["id"] for _, manifest in opened]
    return [
        _Bundle(
            at,
            manifest,
            store.sha256_file(at / bundles.MANIFEST),
            manifest["id"] if ids.count(manifest["id"]) == 1 else f"{manifest['id']} in {Path(path).name}",
        )
        for (at, manifest), path in zip(opened, paths, strict=True)
    ]


def examine(hosts: Sequence[str], *, ssh_config: Path | str | None = None) -> list[Examined]:
    """What devices are, have and can measure, and which targets they could be; nothing is sent.

    Args:
        hosts: Devices, each as ssh takes it. ssh_config: Another configuration file than the user's.

    Raises:
        InputError: What is no host.
    """
    return _examine.examine(hosts, HOME, Path(ssh_config) if ssh_config else None)


def _check_options(install: bool, wheel_folder: Path | str | None, seconds: float | None) -> None:
    if wheel_folder and not install:
        raise InputError("wheels are given, but nothing is to be installed", remedy="add --install, or leave them out")
    if wheel_folder and not Path(wheel_folder).is_dir():
        raise InputError("no such folder of wheels", where=str(wheel_folder), remedy="check the path")
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        raise InputError(f"a process can't measure for {seconds} seconds", remedy="give more than 0, at most an hour")


def _check_together(sent: Sequence[_Bundle]) -> None:
    targets = {one.manifest["target"]["name"] for one in sent}
    if len(targets) > 1:
        raise InputError(
            f"these bundles are for {' and '.join(sorted(targets))}", remedy="deploy those of one target together"
        )
    if len({one.digest for one in sent}) < len(sent):
        raise InputError("a bundle is named twice", remedy="name each once")


def _guarded(device: _Device) -> list[Deployed]:
    """One device from preflight to numbers; whatever goes wrong there is its outcome, not an exception."""
    host, ids = device.remote.host, [one.label for one in device.bundles]
    try:
        return _one(device)
    except EdgekitError as error:
        status = "unavailable" if isinstance(error, UnavailableError) else "failed"
        console.warn(f"{host}: {error.problem}")
        code = 4 if status == "unavailable" else 3
        checks = tuple(device.checks)
        return [Deployed(host, status, error.problem, error.remedy, code, checks, id=name) for name in ids]
    finally:
        if device.ephemeral:
            _tidy(device)


def _one(device: _Device) -> list[Deployed]:
    remote, host, first = device.remote, device.remote.host, device.bundles[0].manifest
    facts = patiently(lambda: _preflight.look(remote, HOME), host)
    device.checks = _preflight.judge(facts, first, sum(one.size for one in device.bundles), device.install)
    if failed := next((check for check in device.checks if not check.ok), None):
        raise UnavailableError(f"{failed.name}: {failed.value}", where=host, remedy=failed.remedy)
    python = facts["python"]
    if device.install:
        python = _wheels.install(remote, device.home, facts, first, device.wheels)
    work = device.work()
    for one, place in zip(device.bundles, work.places, strict=True):
        names = [*one.manifest["files"], bundles.MANIFEST]
        _transfer.send(remote, {name: one.folder / name for name in names}, place)
    resumed = patiently(lambda: _job.pending(remote, work.folder), host)
    if resumed:
        console.note(f"{host}: fetching the results of the call before, whose connection broke")
    else:
        patiently(lambda: _job.start(remote, work, python), host)
    finished = _wait(device, work)
    with contextlib.suppress(UnavailableError):  # the numbers are home; the next call tidies up
        patiently(lambda: _job.forget(remote, work.folder), host)
    ids = [one.label for one in device.bundles]
    return judged(host, ids, finished, preflight=tuple(device.checks), resumed=resumed)


def _wait(device: _Device, work: Work) -> list[Finished]:
    """Ask until the job is done; a broken connection is no end of it.

    Raises:
        UnavailableError: The device stays away; the job goes on there.
        StageError: The job ended without a result, or takes too long.
    """
    host, lost = device.remote.host, None
    compiles = device.bundles[0].manifest["target"]["compile_on_device"]
    steps = len(work.places) * work.rounds
    limit = time.monotonic() + steps * (120 + 20 * work.seconds) + (3600 if compiles else 0)
    while True:
        try:
            finished = _job.fetch(device.remote, work)
            lost = None
            if finished:
                return finished
        except (DroppedError, UnavailableError) as error:
            now = time.monotonic()
            lost = lost or now
            if now - lost > LOST_S:
                raise UnavailableError(
                    f"the connection broke while the device worked: {error}",
                    where=host,
                    remedy="run the same command again: it fetches the results",
                ) from error
        if time.monotonic() > limit:
            raise StageError("the device did not finish in time", where=host, remedy="log in and see what it is doing")
        time.sleep(POLL_S)


def _tidy(device: _Device) -> None:
    """Remove all that this call put on a device, unless its job is still at work there."""
    home, pid = device.home, f"{device.work().folder}/pid"
    script = f'cd && if kill -0 "$(cat {pid} 2>/dev/null)" 2>/dev/null; then exit 1; fi; rm -rf {home}'
    try:
        gone = patiently(lambda: device.remote.script(script), device.remote.host).code == 0
    except UnavailableError:
        gone = False
    if not gone:
        console.warn(f"{device.remote.host}: what was sent is still there, in ~/{home}: run the same command again")


def table(outcomes: Sequence[Deployed]) -> Iterator[tuple[str, str, str, str]]:
    """Rows for people: host, what was looked at, what was found, and whether that is good."""
    for place, outcome in enumerate(outcomes):
        if place == 0 or outcomes[place - 1].host != outcome.host:
            for check in outcome.preflight:
                yield outcome.host, check.name, check.value, "ok" if check.ok else f"no: {check.remedy}"
        name = f" of {outcome.id}" if outcome.id else ""
        if outcome.bench and outcome.bench["latency_ms"]:
            times = outcome.bench["latency_ms"]
            told = f"median {times['median']:.3f} ms, p90 {times['p90']:.3f} ms"
            yield outcome.host, f"latency{name}", told, outcome.bench["numerics_only"] or "ok"
        if found := outcome.compared:
            low, high = found["speedup_ci95"]
            told = f"{found['speedup']:.3f} times as fast as {found['id']} [{low:.3f}, {high:.3f}]"
            yield outcome.host, f"speed{name}", told, _proved(found)
        yield outcome.host, f"outcome{name}", outcome.status, outcome.reason or "ok"


def _proved(found: dict[str, Any]) -> str:
    if not found["trusted"]:
        return "can't tell: the device slowed down"
    return {True: "proved", False: "no difference proved", None: "can't tell: too few rounds"}[found["different"]]
