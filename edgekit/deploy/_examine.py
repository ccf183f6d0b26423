"""What a device is, has and can measure, and which targets it could be: nothing is sent, nothing is left there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekit import target
from edgekit.deploy import _preflight
from edgekit.deploy._remote import Remote, patiently
from edgekit.errors import EdgekitError, UnavailableError

RUNTIMES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
KERNELS = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "bf16")


@dataclass(frozen=True)
class Examined:
    """A device as it was found.

    Attributes:
        host: As it was named. status: ``ok`` or ``unavailable``, with ``reason`` and ``remedy``.
        found: What it is and has, as pairs of words, in order.
        targets: The packaged targets that it could be, by processor, instructions, name and cores.
    """

    host: str
    status: str = "ok"
    reason: str = ""
    remedy: str = ""
    exit_code: int = 0
    found: tuple[tuple[str, str], ...] = ()
    targets: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "found": dict(self.found)}


def examine(hosts: Sequence[str], home: str, ssh_config: Path | None = None) -> list[Examined]:
    """Look at devices, all at once; one that can't be reached is told so.

    Raises:
        InputError: What is no host.
    """
    remotes = [Remote(host, ssh_config) for host in hosts]
    with ThreadPoolExecutor(max_workers=min(16, len(remotes) or 1)) as pool:
        return list(pool.map(lambda remote: _one(remote, home), remotes))


def _one(remote: Remote, home: str) -> Examined:
    try:
        facts = patiently(lambda: _preflight.look(remote, home), remote.host)
    except EdgekitError as error:
        status = "unavailable" if isinstance(error, UnavailableError) else "failed"
        return Examined(remote.host, status, error.problem, error.remedy, error.exit_code)
    return Examined(remote.host, found=tuple(_told(facts)), targets=tuple(fitting(facts)))


def fitting(facts: dict[str, str]) -> Iterator[str]:
    """The packaged targets whose device these facts describe."""
    features = set(facts.get("features", "").split())
    name = f"{facts.get('cpu', '')} {facts.get('board', '')}".lower()
    cores = int(facts["cores"]) if facts.get("cores", "").isdigit() else 0
    for aim in (target.load_target(one) for one in target.names()):
        device = aim.device
        same = device.arch == facts.get("arch") and device.cpu.lower() in name
        same = same and features.issuperset(device.isa) and features.isdisjoint(device.isa_absent)
        if same and aim.run.threads <= cores and (device.cpu or not _accelerator(aim)):
            yield aim.name


def _accelerator(aim: target.Target) -> bool:
    """Whether a target computes on something that a look at the processor does not show."""
    device = aim.options.get("device", aim.options.get("provider", "CPU"))
    return aim.backend == "tensorrt" or str(device).lower() != "cpu"


def _told(facts: dict[str, str]) -> Iterator[tuple[str, str]]:
    features = facts.get("features", "").split()
    runtimes = [f"{name} {facts[f'has_{name}']}" for name in RUNTIMES if facts.get(f"has_{name}")]
    memory, free = (_mebibytes(facts.get(key, "")) for key in ("memory_kb", "free_kb"))
    temperature = facts.get("temperature", "")
    lines = (
        ("processor", facts.get("arch")),
        ("board", facts.get("board")),
        ("cpu", facts.get("cpu")),
        ("cores", facts.get("cores")),
        ("kernels' instructions", " ".join(name for name in KERNELS if name in features)),
        ("memory", memory),
        ("free disk", free),
        ("system", facts.get("os")),
        ("C library", facts.get("libc")),
        ("Python", facts.get("python_version") or "none: install Python 3.8 or newer"),
        ("runtimes", ", ".join(runtimes) or "none: deploy with --install"),
        ("governor", facts.get("governor")),
        ("temperature", f"{int(temperature) / 1000:.0f} °C" if temperature.isdigit() else ""),
        ("throttled", facts.get("throttled")),
        ("~/.cache/edgekit", _folder(facts)),
        ("at work", f"another deploy (process {facts['busy']})" if facts.get("busy") else "no"),
        ("can measure", f"latency, memory, {_energy(facts)}"),
    )
    yield from ((name, value) for name, value in lines if value)


def _folder(facts: dict[str, str]) -> str:
    if facts.get("writable") != "yes":
        return "can't be written"
    return "writable" if facts.get("executable") == "yes" else "writable, but nothing may run from it (noexec)"


def _energy(facts: dict[str, str]) -> str:
    return f"energy ({facts['power']})" if facts.get("power") else "no energy (no sensor that this user may read)"


def _mebibytes(kibibytes: str) -> str:
    return f"{int(kibibytes) // 1024:,} MiB" if kibibytes.isdigit() else ""
