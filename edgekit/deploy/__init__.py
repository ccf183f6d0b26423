"""Bring a bundle to devices over SSH, prove it there, measure it there, and bring the numbers home.

On a device everything lies under ``~/.cache/edgekit``. A bundle is sent file by file into a folder
``….part``; an interrupted file goes on where it broke, and only when every hash is right is the
folder renamed, so nothing half-copied ever runs. What runs there runs on when the connection
breaks: the next ``deploy`` of the same bundle fetches its results in place of starting again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekit import bundle as bundles
from edgekit import console, result, store
from edgekit.deploy import _job, _preflight, _transfer, _wheels
from edgekit.deploy._job import Finished
from edgekit.deploy._preflight import Check
from edgekit.deploy._remote import DroppedError, Remote, patiently
from edgekit.errors import EdgekitError, InputError, StageError, UnavailableError

HOME = ".cache/edgekit"
SECONDS = 3.0
POLL_S, LOST_S = 1.0, 90.0  # how often to ask; how long a device may stay away while it works


@dataclass(frozen=True)
class Deployed:
    """What came of one device.

    Attributes:
        host: As it was named. status: ``ok``, ``failed`` (it ran, and is wrong) or ``unavailable``.
        reason, remedy: Why it is not ``ok``. exit_code: 0, 3 or 4 accordingly.
        preflight: What was looked at before anything was sent, as a table.
        check, bench: What the runner said there; None where it did not come so far.
        resumed: Whether these are the results of an earlier call whose connection broke.
    """

    host: str
    status: str
    reason: str = ""
    remedy: str = ""
    exit_code: int = 0
    preflight: tuple[Check, ...] = ()
    check: dict[str, Any] | None = None
    bench: dict[str, Any] | None = None
    resumed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass
class _Device:
    """A device at work: what is known of it so far."""

    remote: Remote
    manifest: dict[str, Any]
    digest: str
    checks: list[Check] = field(default_factory=list)

    @property
    def place(self) -> str:
        return f"{HOME}/bundles/{self.digest[:24]}"


def deploy(
    bundle: Path | str,
    hosts: Sequence[str],
    *,
    install: bool = False,
    results: Path | str | None = None,
    wheel_folder: Path | str | None = None,
    ssh_config: Path | str | None = None,
    seconds: float = SECONDS,
) -> list[Deployed]:
    """Copy a bundle to devices, run ``check`` and ``bench`` there, and tell what came of each.

    Devices work at the same time; one that fails stops no other.

    Args:
        bundle: A bundle's folder or archive.
        hosts: Devices, each as ssh takes it.
        install: Put the runtime into an environment of its own on the device, from wheels sent from here.
        results: A ``results.json`` (or its folder) that gets the numbers, as that target's.
        wheel_folder: Where the wheels lie; None: ``pip download`` gets them from the index that pip uses here.
        ssh_config: Another configuration file than the user's.
        seconds: How long to measure.

    Returns:
        One outcome for each host, in their order.

    Raises:
        InputError: The bundle or the record is wrong, or they don't belong together; nothing was sent.
    """
    config = Path(ssh_config) if ssh_config else None
    remotes = [Remote(host, config) for host in hosts]
    if not remotes:
        raise InputError("no device is named", remedy="name one with --host user@device")
    if len(set(hosts)) < len(hosts):
        raise InputError("a device is named twice", remedy="name each once")
    with bundles.opened(bundle) as (folder, manifest):
        record = _record(results, manifest) if results else None
        digest = store.sha256_file(folder / bundles.MANIFEST)
        source = Path(wheel_folder) if wheel_folder else None

        def work(remote: Remote) -> Deployed:
            device = _Device(remote, manifest, digest)
            return _guarded(device, folder, source if install else None, install, seconds)

        with ThreadPoolExecutor(max_workers=min(16, len(remotes))) as pool:
            outcomes = list(pool.map(work, remotes))
    if record and results:
        merged = merge(record, manifest, outcomes)
        result.write_results(merged, _results_file(results))
    return outcomes


def _guarded(device: _Device, folder: Path, source: Path | None, install: bool, seconds: float) -> Deployed:
    """One device from preflight to numbers; whatever goes wrong there is its outcome, not an exception."""
    host = device.remote.host
    try:
        return _one(device, folder, source, install, seconds)
    except EdgekitError as error:
        status = "unavailable" if isinstance(error, UnavailableError) else "failed"
        console.warn(f"{host}: {error.problem}")
        code = 4 if status == "unavailable" else 3
        return Deployed(host, status, error.problem, error.remedy, code, tuple(device.checks))


def _one(device: _Device, folder: Path, source: Path | None, install: bool, seconds: float) -> Deployed:
    remote, host = device.remote, device.remote.host
    facts = patiently(lambda: _preflight.look(remote, HOME), host)
    size = sum(file["size_bytes"] for file in device.manifest["files"].values())
    device.checks = _preflight.judge(facts, device.manifest, size, install)
    if failed := next((check for check in device.checks if not check.ok), None):
        raise UnavailableError(f"{failed.name}: {failed.value}", where=host, remedy=failed.remedy)
    python = facts["python"]
    if install:
        python = _wheels.install(remote, HOME, facts, device.manifest, source)
    names = [*device.manifest["files"], bundles.MANIFEST]
    _transfer.send(remote, {name: folder / name for name in names}, device.place)
    job = f"{device.place}.job"
    resumed = patiently(lambda: _job.pending(remote, job), host)
    if resumed:
        console.note(f"{host}: fetching the results of the call before, whose connection broke")
    else:
        patiently(lambda: _job.start(remote, HOME, device.place, job, python, seconds), host)
    finished = _wait(device, job, seconds)
    with contextlib.suppress(UnavailableError):  # the numbers are home; the next call tidies up
        patiently(lambda: _job.forget(remote, job), host)
    return _judged(device, finished, resumed)


def _wait(device: _Device, job: str, seconds: float) -> Finished:
    """Ask until the job is done; a broken connection is no end of it.

    Raises:
        UnavailableError: The device stays away; the job goes on there.
        StageError: The job ended without a result, or takes too long.
    """
    host, lost = device.remote.host, None
    limit = time.monotonic() + 120 + 20 * seconds + (3600 if device.manifest["target"]["compile_on_device"] else 0)
    while True:
        try:
            finished = _job.fetch(device.remote, job)
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


def _judged(device: _Device, finished: Finished, resumed: bool) -> Deployed:
    """The outcome by the runner's own exit codes."""
    host, checks = device.remote.host, tuple(device.checks)
    for code, report, errors in finished.steps():
        if code == 0 and report is not None:
            continue
        reason, remedy = _told(report, errors)
        believable = report is not None or code != 0
        status, own = ("failed", 3) if believable and code != 4 else ("unavailable", 4)
        return Deployed(host, status, reason, remedy, own, checks, finished.check, None, resumed)
    if finished.bench and (slowed := _slowed(finished.bench)):
        console.warn(f"{host}: {slowed} while it measured: let it cool, and deploy again")
    return Deployed(host, "ok", "", "", 0, checks, finished.check, finished.bench, resumed)


def _slowed(bench: dict[str, Any]) -> str:
    """What slowed the device down while it measured, in words; empty: nothing that it tells of."""
    before, after = bench["before"], bench["after"]
    if before["throttled"] != after["throttled"]:
        return f"the device throttled ({before['throttled']} → {after['throttled']})"
    first, last = before["frequency_mhz"], after["frequency_mhz"]
    if first and last and last < 0.9 * first:
        return f"its clock fell from {first:.0f} to {last:.0f} MHz"
    return ""


def _told(report: dict[str, Any] | None, errors: str) -> tuple[str, str]:
    if report and report.get("error"):
        return str(report["error"])[:500], str(report.get("remedy") or "")[:500]
    last = [line for line in errors.strip().split("\n") if line]
    reason = last[-1][:300] if last else "what the device reports is no report of the runner"
    return reason, "log in and run, in the bundle's folder under ~/.cache/edgekit: python3 edgekit_runner.py check"


def merge(results: dict[str, Any], manifest: dict[str, Any], outcomes: Sequence[Deployed]) -> dict[str, Any]:
    """The record with the devices' numbers in the bundle's row; the first device that fits gives the row's own.

    A device of another family, or an emulated one, proves numerics and gives no number.
    """
    measured = [outcome for outcome in outcomes if outcome.status == "ok" and outcome.bench]
    fitting = [o for o in measured if o.bench and not o.bench["numerics_only"] and o.bench["latency_ms"]]
    for outcome in measured:
        if outcome not in fitting and outcome.bench:
            console.warn(f"{outcome.host}: its numbers are not recorded: {outcome.bench['numerics_only']}")
    rows = [dict(row) for row in results["variants"]]
    row = next(row for row in rows if row["id"] == manifest["id"])
    row["devices"] = [_device_facts(outcome) for outcome in outcomes]
    if fitting and fitting[0].bench:
        bench = fitting[0].bench
        row.update({key: bench[key] for key in ("latency_ms", "first_inference_ms", "peak_rss_bytes")})
        # What this machine measured of it, verdicts included, is not the device's.
        row |= {"status": "ok", "reason": "", "measured": None, "measured_on": _device_facts(fitting[0])}
        _ratios(rows, row["target"])
    for each, front in zip(rows, result.pareto(rows), strict=True):
        each["pareto"] = front
    return {**results, "variants": rows}


def _device_facts(outcome: Deployed) -> dict[str, Any]:
    bench, check = outcome.bench or {}, outcome.check or {}
    facts: dict[str, Any] = {"host": outcome.host, "status": outcome.status, "reason": outcome.reason}
    facts |= {key: bench.get(key) for key in ("device", "before", "after", "latency_ms", "numerics_only")}
    return {**facts, "difference": check.get("difference"), "tolerance": check.get("tolerance")}


def _ratios(rows: list[dict[str, Any]], target: str) -> None:
    """Speed-ups between rows of one device; without an interval, for they were not interleaved.

    A row whose reference was measured elsewhere has none.
    """
    here = {row["id"]: row for row in rows if row["target"] == target and row.get("measured_on")}
    for row in here.values():
        if against := row["vs_reference"]:
            reference = here.get(against["id"])
            same = reference and reference["measured_on"]["host"] == row["measured_on"]["host"]
            speedup = reference["latency_ms"]["median"] / row["latency_ms"]["median"] if reference and same else None
            row["vs_reference"] = {**against, "speedup": speedup, "speedup_ci95": None}


def _record(results: Path | str, manifest: dict[str, Any]) -> dict[str, Any]:
    """The record, if the bundle's artifact is one of its rows'.

    Raises:
        InputError: No such row, or another artifact.
    """
    path = _results_file(results)
    record = result.load_results(path)
    row = next((row for row in record["variants"] if row["id"] == manifest["id"]), None)
    model = manifest["files"].get(manifest["model"], {}).get("sha256")
    if row is None or not row["artifact"] or row["artifact"]["sha256"] != model:
        raise InputError(
            f"the bundle's artifact ('{manifest['id']}') is not in this record",
            where=str(path),
            remedy="give the record that the bundle was made from, or make the bundle again",
        )
    return record


def _results_file(results: Path | str) -> Path:
    path = Path(results)
    return path / result.RESULTS if path.is_dir() else path


def table(outcomes: Sequence[Deployed]) -> Iterator[tuple[str, str, str, str]]:
    """Rows for people: host, what was looked at, what was found, and whether that is good."""
    for outcome in outcomes:
        for check in outcome.preflight:
            yield outcome.host, check.name, check.value, "ok" if check.ok else f"no: {check.remedy}"
        if outcome.bench and outcome.bench["latency_ms"]:
            times = outcome.bench["latency_ms"]
            told = f"median {times['median']:.3f} ms, p90 {times['p90']:.3f} ms"
            yield outcome.host, "latency", told, outcome.bench["numerics_only"] or "ok"
        yield outcome.host, "outcome", outcome.status, outcome.reason or "ok"
