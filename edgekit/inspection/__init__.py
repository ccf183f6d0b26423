"""What is in a model file, what it computes in, and where its time goes: ``edgekit inspect``."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import backends, child
from edgekit.backends import LayerPrecision, LayerTime
from edgekit.errors import InputError
from edgekit.inspection.explain import by_operator, explain
from edgekit.recipe import ModelSection
from edgekit.store import sha256_file
from edgekit.target import Device, Run, Target, load_target

BACKENDS = {".onnx": "onnxruntime", ".ort": "onnxruntime", ".xml": "openvino", ".engine": "tensorrt"}
THIS_MACHINE = "this machine"
TIMED_S, WARM_UP = 0.5, 5  # of the stop-watch beside the profiler


def inspect(
    artifact: Path, *, target: str | None = None, profile: bool = False, feeds: Path | None = None
) -> dict[str, Any]:
    """Describe a model file or compiled artifact, JSON-ready.

    Args:
        artifact: ``.pt2``, ``.onnx``, ``.ort``, ``.xml`` or ``.engine``.
        target: The target it is for; by default one thread on this machine, with the runtime of the file's kind.
        profile: Also run it and tell the time by operator and layer, and why it is slow.
        feeds: An ``.npz`` with an array for each input; by default zeros.

    Returns:
        ``path``, ``kind``, ``size_bytes``, ``sha256``, ``inputs``, ``outputs``, and for what a runtime reads
        ``macs``, ``int8_macs_share``, ``conversions``, ``layers``; with ``profile`` also ``wall_ms``,
        ``operators``, ``times``, ``findings`` and, where edgekit can do something about them, ``offer``.

    Raises:
        InputError: Not a model. UnavailableError: Its runtime or device is not here.
    """
    if not artifact.is_file():
        raise InputError("no such file", where=str(artifact), remedy="give the path of a model file")
    report = {
        "path": str(artifact),
        "kind": artifact.suffix.lstrip("."),
        "size_bytes": sum(file.stat().st_size for file in _files(artifact)),
        "sha256": sha256_file(artifact),
    }
    if artifact.suffix == ".pt2":
        return {**report, **child.call("edgekit.inspection:pt2_job", model=str(artifact))}
    if artifact.suffix == ".onnx":
        backends.prove_sound(artifact)
    aim = load_target(target) if target else this_machine(_backend_of(artifact))
    settings = aim.model_dump(mode="json")
    report |= child.call("edgekit.inspection:ports_job", artifact=str(artifact), target=settings)
    place = str(feeds) if feeds else None
    report |= {"target": aim.name, "backend": aim.backend}
    report |= child.call(
        "edgekit.inspection:compiled_job", artifact=str(artifact), target=settings, feeds=place, profile=profile
    )
    return {**report, "offer": _offer(artifact, aim)} if report.get("findings") else report


def compiled_job(artifact: str, target: dict[str, Any], feeds: str | None, profile: bool) -> dict[str, Any]:
    """What the layers of a compiled artifact compute in; with ``profile`` also where its time goes, and why.

    Returns:
        ``macs``, ``int8_macs_share``, ``conversions``, ``layers``; profiled also ``wall_ms``, ``operators``,
        ``times`` and ``findings`` (:func:`edgekit.inspection.explain.explain`).
    """
    aim = Target.model_validate(target)
    rows = backends.layers_job(artifact, target)
    layers = [LayerPrecision(**row) for row in rows]
    told = {
        "macs": sum(layer.macs for layer in layers),
        "int8_macs_share": backends.int8_macs_share(layers),
        "conversions": backends.conversions(layers),
        "layers": rows,
    }
    return {**told, **_profiled(artifact, aim, layers, feeds)} if profile else told


def _profiled(artifact: str, target: Target, layers: list[LayerPrecision], feeds: str | None) -> dict[str, Any]:
    settings = target.model_dump(mode="json")
    rows = backends.profile_job(artifact, settings, feeds)
    times = [LayerTime(**row) for row in rows]
    wall, alone = time_job(artifact, settings, feeds), None
    if target.run.threads > 1:
        alone = time_job(artifact, {**settings, "run": {**settings["run"], "threads": 1}}, feeds)
    total = sum(layer.milliseconds for layer in times) or 1.0
    return {
        "wall_ms": wall,
        "operators": [
            {"operator": operator, "count": count, "milliseconds": ms, "share": ms / total}
            for operator, count, ms in by_operator(times)
        ],
        "times": rows,
        "findings": explain(layers, times, target, wall_ms=wall, single_thread_ms=alone),
    }


def fix(model: Path, out: Path, *, target: str | None = None) -> dict[str, Any]:
    """Write a Q/DQ file without the pairs that are measured to cost more than they bring.

    See :func:`edgekit.inspection.lighten.lighten`; by default it is measured by one thread on this machine.
    """
    from edgekit.inspection import lighten

    return lighten.lighten(model, load_target(target) if target else this_machine(_backend_of(model)), out)


def fix_text(report: dict[str, Any]) -> str:
    """The report of :func:`fix` for a person."""
    from edgekit.inspection import lighten

    return "\n".join(lighten.text(report))


def _offer(artifact: Path, target: Target) -> str:
    """What edgekit can do about it: take Q/DQ pairs out of a file that still has them; empty: nothing."""
    counts = {}
    if artifact.suffix == ".onnx":
        counts = child.call("edgekit.inspection.lighten:count_job", model=str(artifact))
    if not counts:
        return ""
    where = "" if target.name == THIS_MACHINE else f" --target {target.name}"
    return (
        f"edgekit inspect {artifact}{where} --fix OUT.onnx tries it without the {sum(counts.values())} Q/DQ pairs "
        f"after {', '.join(sorted(counts))}, kind by kind, and writes what is measured to be faster"
    )


def this_machine(backend: str) -> Target:
    """One thread on this machine with that runtime, its options as they come."""
    return Target(
        name=THIS_MACHINE,
        title=THIS_MACHINE,
        source="measured",
        backend=backend,
        device=Device(arch=platform.machine()),
        run=Run(threads=1),
    )


def _backend_of(artifact: Path) -> str:
    if artifact.suffix not in BACKENDS:
        raise InputError(
            f"no runtime reads '{artifact.suffix or artifact.name}' files",
            where=str(artifact),
            remedy=f"give a file that ends in .pt2, {', '.join(BACKENDS)}",
        )
    return BACKENDS[artifact.suffix]


def _files(artifact: Path) -> list[Path]:
    """The artifact and the files of its weights beside it."""
    beside = [artifact.with_suffix(".bin")] if artifact.suffix == ".xml" else sorted(artifact.parent.glob("*.data"))
    return [artifact, *(file for file in beside if file.is_file())]


def ports_job(artifact: str, target: dict[str, Any]) -> dict[str, Any]:
    """Inputs and outputs of a loaded artifact."""
    aim = Target.model_validate(target)
    session = backends.load(aim.backend).open_model(Path(artifact), aim)
    return {
        side: [{"name": port.name, "dtype": port.dtype, "shape": list(port.shape)} for port in ports]
        for side, ports in (("inputs", session.inputs), ("outputs", session.outputs))
    }


def time_job(artifact: str, target: dict[str, Any], feeds: str | None = None) -> float:
    """Median milliseconds of one inference: a stop-watch for :func:`explain`, not a benchmark."""
    import statistics

    aim = Target.model_validate(target)
    session = backends.load(aim.backend).open_model(Path(artifact), aim)
    values = backends.read_feeds(feeds, session.inputs, aim.run.batch)
    for _ in range(WARM_UP):
        session.run(values)
    spans: list[int] = []
    deadline = time.monotonic() + TIMED_S
    while len(spans) < WARM_UP or time.monotonic() < deadline:
        start = time.perf_counter_ns()
        session.run(values)
        spans.append(time.perf_counter_ns() - start)
    return statistics.median(spans) / 1e6


def pt2_job(model: str) -> dict[str, Any]:
    """Inputs, outputs, parameters and operators of an exported program."""
    from collections import Counter

    from edgekit import exported

    module = exported.load(model)
    facts = exported.signature(module)
    nodes = exported.program(module).graph.nodes
    return {
        "inputs": [
            {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
            for name, value in facts.example.items()
        ],
        "outputs": [{"name": name} for name in facts.outputs],
        "parameters": sum(p.numel() for p in module.parameters()),
        "operators": [
            {"operator": operator, "count": count}
            for operator, count in Counter(str(n.target) for n in nodes if n.op == "call_function").most_common()
        ],
    }


def text(report: dict[str, Any], *, top: int = 12) -> str:
    """The report for a person, in plain text; ``top``: layers and operators listed at most."""
    lines = [f"{report['path']}: {report['kind']}, {report['size_bytes']:,} bytes, sha256 {report['sha256'][:16]}…"]
    for side in ("inputs", "outputs"):
        lines += [f"  {side[:-1]} {port['name']} {_port(port)}".rstrip() for port in report[side]]
    if "parameters" in report:
        lines.append(f"  {report['parameters']:,} parameters")
    if "layers" in report:
        lines += _layer_lines(report, top)
    if "findings" in report:
        lines += _profile_lines(report, top)
    return "\n".join(lines)


def _port(port: dict[str, Any]) -> str:
    if "shape" not in port:
        return ""
    return f"{port['dtype']} ({', '.join('?' if size is None else str(size) for size in port['shape'])})"


def _layer_lines(report: dict[str, Any], top: int) -> list[str]:
    share = report["int8_macs_share"]
    lines = [f"  {report['macs']:,} multiply-adds, {'none' if share is None else f'{share:.1%}'} of them in integers"]
    if report["conversions"]:
        counts = ", ".join(f"{count} {operator}" for operator, count in report["conversions"].items())
        lines.append(f"  conversions left: {counts}")
    if share:  # of a float model every layer is float, which needs no list
        floats = [layer for layer in report["layers"] if layer["macs"] and layer["precision"] not in backends.INTEGER]
        floats.sort(key=lambda layer: -layer["macs"])
        lines += [f"  float: {f['name']} ({f['operator']}, {f['macs']:,}): {f['reason']}" for f in floats[:top]]
        if len(floats) > top:
            lines.append(f"  … and {len(floats) - top} more in float")
    return lines


def _profile_lines(report: dict[str, Any], top: int) -> list[str]:
    lines = [f"  {report['wall_ms']:.3f} ms an inference, without the profiler", "  time by operator:"]
    lines += [
        f"    {row['share']:6.1%}  {row['milliseconds']:9.4f} ms  {row['count']:4d} x {row['operator']}"
        for row in report["operators"][:top]
    ]
    slowest = sorted(report["times"], key=lambda row: -row["milliseconds"])[:top]
    lines.append("  slowest layers:")
    lines += [
        f"    {row['milliseconds']:9.4f} ms  {row['precision']:6s} {row['operator']} {row['name']}" for row in slowest
    ]
    lines += [f"  why: {sentence}" for sentence in report["findings"]] or ["  nothing stands out"]
    return [*lines, f"  offer: {report['offer']}"] if report.get("offer") else lines


def inspect_entry(entry: str, ratio: float | None, base: Path | None = None) -> dict[str, Any]:
    """Describe a model that ``file.py:function`` returns; with ``ratio`` also what pruning would do, untrained.

    Returns:
        ``entry``, ``macs`` and ``parameters`` (before and, pruned, after), ``table`` by layer, ``kept`` with
        reasons, ``notes``.

    Raises:
        InputError: The entry is wrong, or the model can't be exported.
    """
    where = str((base or Path()).resolve())
    return {"entry": entry, **child.call("edgekit.inspection:entry_job", entry=entry, base=where, ratio=ratio or 0.0)}


def entry_job(entry: str, base: str, ratio: float) -> dict[str, Any]:
    """Child side of :func:`inspect_entry`."""
    from edgekit import pruners, workload

    module, example = workload.build(ModelSection(entry=entry), Path(base), seed=0)
    pruned = pruners.preview(module, example, ratio)
    return {
        "ratio": ratio,
        "macs": pruned.macs,
        "parameters": pruned.parameters,
        "table": pruned.table,
        "kept": pruned.kept,
        "notes": pruned.notes,
    }


def entry_text(report: dict[str, Any]) -> str:
    """The report of :func:`inspect_entry` for a person: a table by layer, what stays and why."""
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "kind", "channels", "multiply-adds", "parameters", box=None, pad_edge=False)
    for row in report["table"]:
        cells = [_change(row[key]) for key in ("channels", "macs", "parameters")]
        table.add_row(row["layer"], row["kind"], *cells)
    table.add_row("all", "", "", _change(report["macs"]), _change(report["parameters"]))
    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(table, markup=False)
    lines = [captured.get().rstrip()]
    lines += [f"stays whole: {kept['layer']}: {kept['reason']}" for kept in report["kept"]]
    return "\n".join([*lines, *report["notes"]])


def _change(pair: Sequence[int]) -> str:
    before, after = pair
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"
