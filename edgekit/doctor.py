"""Which runtimes work here: each is proved by a one-operator model in a process of its own.

What fails is told apart: the package is missing, its native library does not load, there is no
such device, the device (or its driver) is too old, or it computes something wrong.
"""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from edgekit import backends, child, rooms
from edgekit.errors import EdgekitError, StageError, UnavailableError, missing_package

Status = Literal["works", "missing", "broken", "no device", "too old", "wrong"]
PROOF_S = 120.0


def doctor() -> list[dict[str, Any]]:
    """One row for each backend, JSON-ready.

    Returns:
        ``name``, ``works``, ``status`` (see :data:`Status`), ``version``, ``reason`` and ``remedy`` (empty where
        it works), ``warning`` (a version that was not tested), ``devices``: [{``device``, ``works``, ``status``,
        ``reason``, ``remedy``, ``facts``}]. A backend works if one of its devices does.
    """
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(examine, rooms.members("backends")))


def examine(name: str) -> dict[str, Any]:
    """The row of one backend (a name, or the path of the user's own)."""
    backend = backends.load(name)
    loaded = _loads(name, backend)
    if loaded["status"] != "works":
        return {"name": name, **loaded, "warning": "", "devices": []}
    devices = [_prove(name, device, options) for device, options in backend.DEVICES.items()]
    best = next((d for d in devices if d["works"]), devices[0])
    version = loaded["version"]
    return {
        "name": name,
        **{key: best[key] for key in ("works", "status")},
        "version": version,
        **{key: best[key] for key in ("reason", "remedy")},
        "warning": untested(version, backend.TESTED),
        "devices": devices,
    }


def cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """A row for people: backend, whether it works, what was found, what to do."""
    if not row["works"]:
        return row["name"], row["status"], row["reason"], row["remedy"]
    found = [_device_text(device) for device in row["devices"]]
    return row["name"], "yes", f"{row['version']}: {'; '.join(found)}", row["warning"]


def _device_text(device: dict[str, Any]) -> str:
    return f"{device['device']} works" if device["works"] else f"{device['device']}: {device['status']}"


def _loads(name: str, backend: backends.Backend) -> dict[str, Any]:
    """Whether the package is there and its native library loads."""
    if backend.PACKAGE and importlib.util.find_spec(backend.PACKAGE) is None:
        error = missing_package(backend.PACKAGE, backend.EXTRA, "for this runtime")
        return _fault("missing", _plain(error.problem), error.remedy)
    try:
        version = child.call("edgekit.backends:version_job", name=name, timeout_s=PROOF_S)
    except EdgekitError as error:
        return _fault("broken", _crash(error), _broken_remedy(error))
    return {"works": True, "status": "works", "version": version, "reason": "", "remedy": ""}


def _prove(name: str, device: str, options: dict[str, Any]) -> dict[str, Any]:
    try:
        facts = child.call("edgekit.backends:prove_job", backend=name, options=options, timeout_s=PROOF_S)
    except UnavailableError as error:
        problem = _plain(error.problem)
        status: Status = "too old" if "too old" in problem else "no device"
        return {"device": device, **_fault(status, problem, error.remedy), "facts": {}}
    except EdgekitError as error:
        status = "broken" if "crashed" in error.problem or "killed" in error.problem else "wrong"
        return {"device": device, **_fault(status, _crash(error), error.remedy), "facts": {}}
    return {"device": device, "works": True, "status": "works", "reason": "", "remedy": "", "facts": facts}


def _fault(status: Status, reason: str, remedy: str) -> dict[str, Any]:
    return {"works": False, "status": status, "version": "", "reason": reason, "remedy": remedy}


def _crash(error: EdgekitError) -> str:
    problem = _plain(error.problem)
    return f"it uses an instruction that this CPU lacks ({problem})" if "SIGILL" in problem else problem


def _plain(problem: str) -> str:
    return problem.removeprefix("not available here, because ")


def _broken_remedy(error: EdgekitError) -> str:
    if isinstance(error, StageError):
        return "install a build for this CPU, C library and Python version, for example an older one"
    return error.remedy


def untested(version: str, tested: tuple[str, str]) -> str:
    """A warning where ``version`` lies outside the range that edgekit was tested with; else empty."""
    low, high = tested
    if _numbers(low) <= _numbers(version)[: len(_numbers(low))] and _numbers(version)[:2] <= _numbers(high)[:2]:
        return ""
    return f"version {version} was not tested; tested are {low} to {high}"


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())
