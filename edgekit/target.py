"""A device profile: one TOML file in ``targets/``, or the user's own by path."""

from __future__ import annotations

import functools
import json
import platform
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit import child, machine, rooms
from edgekit.console import warn
from edgekit.errors import EdgekitError, InputError, UnavailableError
from edgekit.rooms import did_you_mean
from edgekit.scheme import Scheme
from edgekit.store import sha256_file, sha256_json

M = TypeVar("M", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(_Section):
    """What the device is.

    Attributes:
        arch: As ``platform.machine()`` says it there: ``x86_64``, ``aarch64``.
        isa: CPU flags (as in ``/proc/cpuinfo``) without which the artifact can't run.
        isa_absent: CPU flags that the device lacks: a machine that has them runs other kernels, so its
            numbers are not the device's.
        cpu: A part of the CPU's or board's name; empty: any CPU of that architecture.
        cores: CPU cores. memory_mb: RAM in MiB. tops: int8 tera-operations a second, as published.
    """

    arch: str
    isa: tuple[str, ...] = ()
    isa_absent: tuple[str, ...] = ()
    cpu: str = ""
    cores: int | None = None
    memory_mb: int | None = None
    tops: float | None = None


class Run(_Section):
    """How the device will run the model: what is measured is what ships."""

    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)


class Target(_Section):
    """A device profile.

    Attributes:
        name: The file's name without its ending.
        title: For people.
        source: Where the facts come from (a data sheet's address, or "measured").
        evidence: ``measured`` (someone ran the benchmarks on it) or ``datasheet``.
        backend: The runtime, a member of ``edgekit/backends``.
        cross: Whether an artifact for it can be made on another machine (its row is then ``built``).
        compile_on_device: The runtime compiles on the device itself; what is made here is the ONNX file.
        quantize: The scheme of its integer kernels.
        precisions: What the device computes fast: ``fp32``, ``fp16``, ``bf16``, ``int8``.
        options: Passed to the backend, which checks them.
    """

    name: str
    title: str
    source: str
    evidence: Literal["measured", "datasheet"] = "datasheet"
    backend: str
    cross: bool = False
    compile_on_device: bool = False
    precisions: tuple[Literal["fp32", "fp16", "bf16", "int8", "int4"], ...] = ("fp32", "int8")
    device: Device
    run: Run = Run()
    quantize: Scheme = Scheme()
    options: dict[str, Any] = Field(default_factory=dict)

    def digest(self) -> str:
        """Hex SHA-256 of everything that the file says, and of the user's own backend if it names one."""
        own = sha256_file(Path(self.backend)) if self.backend.endswith(".py") else ""
        return sha256_json([self.model_dump(mode="json"), own])


def folder() -> Path:
    """Where the packaged targets lie: beside the code when installed, else beside the package."""
    inside = Path(__file__).parent / "targets"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "targets"


def names() -> list[str]:
    """The names of the packaged targets, sorted."""
    return sorted(p.stem for p in folder().glob("*.toml"))


def load_target(name: str, *, base: Path | None = None) -> Target:
    """Find a target: a path to a ``.toml``, ``targets/NAME.toml`` beside the recipe, or a packaged one.

    Args:
        name: A target's name or a path.
        base: The recipe's folder; relative paths start there.

    Raises:
        InputError: No such target (the nearest names are offered), or a wrong file (with line and key).
    """
    here = base or Path()
    if name.endswith(".toml") or "/" in name:
        return read_target(here / name)
    for candidate in (here / "targets" / f"{name}.toml", folder() / f"{name}.toml"):
        if candidate.is_file():
            return read_target(candidate)
    known = names()
    raise InputError(
        f"no target named '{name}'{did_you_mean(name, known)}",
        remedy=f"choose one of {', '.join(known)}, or give the path of a .toml file",
    )


def read_target(path: Path) -> Target:
    """Read and check one target file.

    Raises:
        InputError: Missing, not TOML, an unknown key, or a value of the wrong kind.
    """
    data = {"name": path.stem, **read_toml(path)}
    backend = data.get("backend")
    if isinstance(backend, str) and backend.endswith(".py"):
        data["backend"] = str((path.parent / backend).resolve())  # a path in a file starts at its folder
    target = checked(Target, data, path)
    if not target.backend.endswith(".py"):
        module = rooms.load("backends", target.backend, where=str(path))
        check_table(module.Options, target.options, path, "options")
    return target


@dataclass(frozen=True)
class Availability:
    """Whether a target can be used on this machine.

    Attributes:
        status: ``runs`` here; ``cross``: an artifact can be made here, for a device that is not here; ``unavailable``.
        reason: Why it does not run here; empty for ``runs``.
        remedy: What to do about it. warning: What to know though it runs.
        facts: What the runtime says of itself (``version``, ``devices``, ``driver`` …): part of an artifact's key.
    """

    status: Literal["runs", "cross", "unavailable"]
    reason: str = ""
    remedy: str = ""
    warning: str = ""
    facts: dict[str, str] = field(default_factory=dict)


def availability(target: Target) -> Availability:
    """Whether ``target`` can be used here: the machine is compared, the runtime is proved in a child process.

    Warns where the target runs but not as its name says (a CPU without VNNI).
    """
    found = _availability(target)
    if found.warning:
        warn(f"{target.name}: {found.warning}")
    return found


def targets(names_or_paths: Iterable[str] = (), *, base: Path | None = None) -> list[dict[str, Any]]:
    """Every packaged target (or those named), with whether it can be used here, as JSON-ready rows.

    Raises:
        InputError: No such target, or a wrong file.
    """
    chosen = [load_target(name, base=base) for name in (list(names_or_paths) or names())]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(_availability, chosen))
    return [_row(target, can) for target, can in zip(chosen, found, strict=True)]


def _row(target: Target, can: Availability) -> dict[str, Any]:
    device = target.device.model_dump(mode="json")
    facts = target.model_dump(mode="json", include={"name", "title", "source", "evidence", "backend", "precisions"})
    return {
        **facts,
        **{key: device[key] for key in ("arch", "isa", "cpu", "cores", "memory_mb", "tops")},
        "threads": target.run.threads,
        "status": can.status,
        "reason": can.reason,
        "remedy": can.remedy,
        "warning": can.warning,
    }


def _availability(target: Target) -> Availability:
    lacking = lacks(target)
    if lacking and not target.cross:
        return Availability("unavailable", f"not available here, because {lacking}", "run edgekit on that device")
    if lacking and target.compile_on_device:
        return Availability("cross", lacking, "bundle it, and run it on the device")
    try:
        facts = _proved(target.backend, json.dumps({} if lacking else target.options, sort_keys=True))
    except UnavailableError as error:
        if target.compile_on_device and target.cross:
            return Availability("cross", error.problem, error.remedy)
        return Availability("unavailable", error.problem, error.remedy)
    except InputError:
        raise
    except EdgekitError as error:
        reason = f"not available here, because its runtime does not work: {error.problem}"
        return Availability("unavailable", reason, "see: edgekit doctor")
    if lacking:
        return Availability("cross", lacking, "bundle it, and run it on the device", facts=facts)
    return Availability("runs", warning=_warning(target), facts=facts)


def lacks(target: Target) -> str:
    """What this machine lacks to be the target's device, in words; empty: nothing."""
    if differs := differs_from(target):
        return differs
    if target.run.threads > machine.usable_threads():
        return f"this machine has {machine.usable_threads()} usable cores, the device runs {target.run.threads} threads"
    return ""


def differs_from(target: Target) -> str:
    """Why this machine is of another kind than the target's device, in words; empty: it is of that kind."""
    device, arch = target.device, platform.machine()
    if device.arch != arch:
        return f"this machine is {arch}, the device is {device.arch}"
    names = f"{machine.cpu_name()} {machine.board() or ''}".strip()
    if device.cpu and device.cpu.lower() not in names.lower():
        return f"this machine is '{names}', the device is '{device.cpu}'"
    flags = machine.cpu_flags()
    if missing := [flag for flag in device.isa if flag not in flags]:
        return f"this CPU lacks {', '.join(missing)}"
    if extra := [flag for flag in device.isa_absent if flag in flags]:
        return f"this CPU has {', '.join(extra)}, which the device lacks, and so runs other kernels"
    return ""


def _warning(target: Target) -> str:
    if target.device.arch != "x86_64" or "int8" not in target.precisions or target.device.isa_absent:
        return ""
    cpu_backends = ("onnxruntime", "openvino")
    vnni = {"avx512_vnni", "avx_vnni"} & machine.cpu_flags()
    if vnni or target.quantize.saturates or target.backend not in cpu_backends:
        return ""
    return (
        "this CPU has no VNNI: its int8 kernels add pairs of products in 16 bits and may saturate; "
        "the target x86-cpu-avx2 is made for it"
    )


@functools.lru_cache(maxsize=64)
def _proved(backend: str, options: str) -> dict[str, str]:
    """What the runtime says of itself after it computed a one-operator model in a child process.

    Raises:
        UnavailableError: It is not here, or has no such device. EdgekitError: It does not work.
    """
    return child.call("edgekit.backends:prove_job", backend=backend, options=json.loads(options), timeout_s=120.0)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; every way in which it can be wrong is an :class:`InputError`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"can't read this file: {error.strerror or error}",
            where=str(path),
            remedy="check the path and its permissions",
        ) from error
    if len(raw) > 1_000_000:
        raise InputError(
            f"this file has {len(raw)} bytes; that is no settings file", where=str(path), remedy="check the path"
        )
    try:
        return tomllib.loads(raw.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", where=str(path), remedy="save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML: {error}", where=str(path), remedy="mend that line") from error


def checked(model: type[M], data: dict[str, Any], path: Path) -> M:
    """Validate ``data`` against a pydantic model; the first error names line, key and the nearest known key.

    Raises:
        InputError: With every further error in its details.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_problem(model, e, path) for e in error.errors()]
        where, problem, remedy = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        details = "\n".join(f"{w}: {p}" for w, p, _ in problems)
        raise InputError(problem + more, where=where, remedy=remedy, details=details) from error


def check_table(model: type[M], table: dict[str, Any], path: Path, section: str) -> M:
    """Validate a free table (a backend's ``[options]``) whose keys only its consumer knows.

    Args:
        model: The consumer's pydantic model.
        table: What the file says.
        path: The file, for the message.
        section: The table's name there.

    Raises:
        InputError: As :func:`checked`, with the key under ``section``.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        where, problem, remedy = _problem(model, error.errors()[0], path, section)
        raise InputError(problem, where=where, remedy=remedy) from error


def _problem(model: type[BaseModel], error: Any, path: Path, section: str = "") -> tuple[str, str, str]:
    keys = [str(part) for part in error["loc"]]
    full = [section, *keys] if section else keys
    key = ".".join(full)
    where = f"{path}{_line_of(path, full)}"
    if error["type"] == "extra_forbidden":
        known = _keys_at(model, keys[:-1])
        nearest = did_you_mean(keys[-1], known)
        return where, f"unknown key '{key}'{nearest}", f"known keys here: {', '.join(known)}"
    if error["type"] == "missing":
        return where, f"the key '{key}' is missing", f"add it: {key} = …"
    message = error["msg"].removeprefix("Value error, ")
    return where, f"'{key}' is wrong: {message} (got {error['input']!r:.80})", "mend that value"


def _keys_at(model: type[BaseModel], keys: list[str]) -> list[str]:
    """The known keys of the (nested) section that ``keys`` leads to."""
    from typing import get_args

    current: Any = model
    for key in keys:
        fields = getattr(current, "model_fields", {})
        if key not in fields:
            continue  # an index into a list, or the tag of a union
        options = [fields[key].annotation]
        while options and not hasattr(options[0], "model_fields"):
            head = options.pop(0)
            options.extend(get_args(head))
        if options:
            current = options[0]
    return [field.alias or name for name, field in current.model_fields.items()]


def _line_of(path: Path, keys: list[str]) -> str:
    """``:LINE`` of the last of ``keys`` in a TOML file, found by reading it section by section."""
    if not path.is_file():
        return ""
    names = [k for k in keys if not k.isdigit()]
    section, best = "", 0
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        text = line.strip()
        if text.startswith("["):
            section = text.strip("[] ")
            best = best or (number if section == ".".join(names[:-1]) else 0)
            if section == ".".join(names):
                return f":{number}"
        elif text.split("=")[0].strip() == names[-1] and section == ".".join(names[:-1]):
            return f":{number}"
    return f":{best}" if best else ""
