"""Take out of a Q/DQ file the pairs that cost more than they bring, each kind measured on the target."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import child, console
from edgekit.errors import InputError
from edgekit.measure.bench import benchmark
from edgekit.target import Target

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
MOST_KINDS = 6  # kinds of operator that are tried, those with most pairs first


def lighten(model: Path, target: Target, out: Path, *, budget_s: float = 30.0) -> dict[str, Any]:
    """Try, for each kind of operator, the file without the Q/DQ pairs after it; write the best one if it is faster.

    An element-wise operator between Q/DQ runs in integers, which for some (Softmax, SiLU) is slower than the fused
    float one. Pairs after convolutions and matrix products stay. What is proved faster (see
    :mod:`edgekit.measure.statistics`) is kept, alone and together.

    Args:
        model: A Q/DQ ``.onnx``; it is not changed.
        target: Where it is measured: this machine must be the device.
        out: Where the faster file goes; nothing is written if there is none.
        budget_s: Seconds of measuring for each file that is tried.

    Returns:
        ``tried``: [{``operators``, ``pairs``, ``ratio``, ``ratio_ci95``, ``different``}] (time over the file's as it
        is), ``removed`` (kinds), ``ratio`` and ``ratio_ci95`` of the file written, ``path`` (None: nothing helped).

    Raises:
        InputError: Not a Q/DQ file.
    """
    counts: dict[str, int] = child.call("edgekit.inspection.lighten:count_job", model=str(model))
    if not counts:
        raise InputError(
            "there is no Q/DQ pair after an operator without weights, so there is nothing to take out",
            where=str(model),
            remedy="give the quantized ONNX file as it was before it was compiled",
        )
    kinds = sorted(counts, key=lambda kind: -counts[kind])[:MOST_KINDS]
    with tempfile.TemporaryDirectory(prefix="edgekit-lighten-") as folder:
        tried = _measured(model, [[kind] for kind in kinds], counts, target, Path(folder), budget_s)
        helpful = [row["operators"][0] for row in tried if row["different"] and row["ratio"] < 1]
        if len(helpful) > 1:
            tried += _measured(model, [helpful], counts, target, Path(folder), budget_s)
        faster = [row for row in tried if row["different"] and row["ratio"] < 1]
        best = min(faster, key=lambda row: row["ratio"], default=None)
    if best is None:
        return {"tried": tried, "removed": [], "ratio": None, "ratio_ci95": None, "path": None}
    _write(model, best["operators"], out)
    facts = {key: best[key] for key in ("ratio", "ratio_ci95")}
    return {"tried": tried, "removed": best["operators"], **facts, "path": str(out)}


def _measured(
    model: Path, choices: list[list[str]], counts: dict[str, int], target: Target, folder: Path, budget_s: float
) -> list[dict[str, Any]]:
    """Each choice of kinds, measured against the file as it is, in one interleaved run."""
    files = [_write(model, kinds, folder / f"{'-'.join(kinds)}.onnx") for kinds in choices]
    found = benchmark([model, *files], target=target, budget_s=budget_s * (len(files) + 1))[1:]
    rows = []
    for kinds, measured in zip(choices, found, strict=True):
        if measured.status != "ok":
            console.warn(f"without Q/DQ after {', '.join(kinds)}: {measured.reason}")
        rows.append(
            {
                "operators": kinds,
                "pairs": sum(counts[kind] for kind in kinds),
                "ratio": measured.ratio,
                "ratio_ci95": measured.ratio_ci95,
                "different": bool(measured.different and measured.trusted),
            }
        )
    return rows


def _write(model: Path, kinds: list[str], out: Path) -> Path:
    child.call("edgekit.inspection.lighten:write_job", model=str(model), kinds=kinds, out=str(out))
    return out


def count_job(model: str) -> dict[str, int]:
    """Kinds of operator without weights whose output is quantized, and how many pairs that is."""
    from edgekit import onnxfile

    return dict(Counter(node.op_type for node, _ in _pairs(onnxfile.read_model(model))))


def write_job(model: str, kinds: list[str], out: str) -> None:
    """Write the file without the pairs after operators of these kinds."""
    from edgekit import onnxfile

    onnxfile.write_model(without_pairs(onnxfile.read_model(model), kinds), out)


def without_pairs(model: onnx.ModelProto, kinds: list[str]) -> onnx.ModelProto:
    """A copy of the model in which readers of an operator's dequantized output read its float output instead."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, renamed, dropped = result.graph, {}, set()
    for node, quantize in _pairs(result):
        if node.op_type not in kinds:
            continue
        dropped.add(quantize.output[0])
        for reader in graph.node:
            if reader.op_type == "DequantizeLinear" and reader.input[0] == quantize.output[0]:
                dropped.add(reader.output[0])
                renamed[reader.output[0]] = node.output[0]
    kept = [node for node in graph.node if node.output[0] not in dropped]
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    return result


def _pairs(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """``(operator without weights, the QuantizeLinear of its output)`` where nothing but DequantizeLinear reads that.

    A pair whose value leaves the model is not one: it would take the name of an output away.
    """
    graph = model.graph
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in graph.output}
    found = []
    for node in graph.node:
        if node.op_type in WEIGHTED or "Linear" in node.op_type or len(node.output) != 1:
            continue
        for quantize in readers[node.output[0]]:
            if quantize.op_type != "QuantizeLinear":
                continue
            back = readers[quantize.output[0]]
            leaves = {quantize.output[0], *(name for reader in back for name in reader.output)} & outputs
            if back and all(reader.op_type == "DequantizeLinear" for reader in back) and not leaves:
                found.append((node, quantize))
    return found


def text(report: dict[str, Any]) -> list[str]:
    """Sentences for a person: what was tried, and what it brought."""
    lines = []
    for row in report["tried"]:
        what = f"without Q/DQ after {' and '.join(row['operators'])} ({row['pairs']} pairs)"
        if row["ratio"] is None:
            lines.append(f"{what}: not measured")
            continue
        low, high = row["ratio_ci95"]
        verdict = ("faster" if row["ratio"] < 1 else "slower") if row["different"] else "no difference proved"
        lines.append(f"{what}: {row['ratio']:.3f} of the time ({low:.3f} to {high:.3f}), {verdict}")
    if report["path"]:
        lines.append(f"written to {report['path']}: judge its accuracy before you ship it")
    return lines
