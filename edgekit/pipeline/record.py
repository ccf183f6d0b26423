"""The record of a run: ``results.json``, the artifacts beside it, and what locks its inputs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekit
from edgekit import child, console, evaluate, machine, report, result
from edgekit import gating as gate
from edgekit.errors import EdgekitError, InputError
from edgekit.pipeline import golden
from edgekit.pipeline.workshop import ONNX, TORCH, Artifact, Workshop
from edgekit.store import sha256_file, sha256_json, write_error

if TYPE_CHECKING:
    from edgekit.pipeline import Row

RESULTS = "results.json"


def prepare_folder(out: Path) -> Path:
    """Make sure that ``out`` can be written before any work is done.

    Raises:
        InputError: It can't, or it is a file.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(
            f"can't write to the output folder: {error.strerror or error}",
            where=str(out),
            remedy="choose another with --out DIR",
        ) from error
    return out


def lock(shop: Workshop) -> dict[str, Any]:
    """What the run's inputs were: enough to refuse to repeat it on others."""
    resolved = resolved_recipe(shop)
    return {
        "edgekit": edgekit.__version__,
        "recipe": sha256_json(resolved),
        "model": shop.model["digest"],
        "weights": shop.model["weights"],
        "data": {name: facts["digest"] if facts else None for name, facts in shop.data.items()},
        "seed": shop.recipe.seed,
        "versions": machine.versions(),
        "machine": machine.fingerprint(),
    }


def check_lock(folder: Path, now: dict[str, Any]) -> None:
    """Refuse to go on when an input differs from what ``folder/results.json`` locks.

    Raises:
        InputError: There is no earlier record, or an input changed; says which.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise InputError("there is no record to be locked to", where=str(path), remedy="run once without --locked")
    before = result.load_results(path)["lock"]
    changed = _differences(before, now, "")
    if changed:
        raise InputError(
            f"--locked, but {len(changed)} input(s) changed: " + "; ".join(changed[:8]),
            where=str(path),
            remedy="restore them, or run without --locked to make a new record",
        )


def _differences(before: Any, now: Any, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{name}.{k}".strip("."))]
    return [] if before == now else [f"{name} was {_short(before)}, is {_short(now)}"]


def _short(value: Any) -> str:
    return "absent" if value is None else str(value)[:16]


def resolved_recipe(shop: Workshop) -> dict[str, Any]:
    """The recipe with every default filled in; live objects by their type's name."""
    return _plain(shop.recipe.model_dump())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k != "base"}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return f"<{type(value).__name__}>"


def is_whole(folder: Path) -> bool:
    """Whether a finished run's record lies there."""
    try:
        return not result.load_results(folder / RESULTS).get("interrupted", False)
    except EdgekitError:
        return False


def write(
    shop: Workshop, rows: list[Row], lock: dict[str, Any], folder: Path, *, interrupted: bool = False
) -> dict[str, Any]:
    """Write artifacts, ``results.json`` and the report into ``folder``; return the record.

    All of it is made beside the earlier record and then put in its place.

    Raises:
        StageError: The folder can't be written; an earlier record is intact.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".edgekit-") as temporary:
            fresh, old = Path(temporary, "new"), Path(temporary, "old")
            fresh.mkdir()
            old.mkdir()
            composed = _compose(shop, rows, lock, fresh)
            if interrupted:
                composed["interrupted"] = True
            results = result.write_results(composed, fresh / RESULTS)
            report.write(results, fresh)
            for path in sorted(fresh.iterdir(), key=lambda p: p.name == RESULTS):  # the record itself last
                if (folder / path.name).exists():
                    (folder / path.name).rename(old / path.name)
                path.rename(folder / path.name)
    except OSError as error:
        raise write_error(folder, error) from error
    return results


def _compose(shop: Workshop, rows: list[Row], lock: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The record, and in ``folder`` the files that it names."""
    variants = [_row(shop, row, rows, folder) for row in rows]
    for variant, on_front in zip(variants, result.pareto(variants), strict=True):
        variant["pareto"] = on_front
    results: dict[str, Any] = {
        "schema": "edgekit.results/1",
        "recipe": resolved_recipe(shop),
        "environment": machine.describe(),
        "seed": shop.recipe.seed,
        "lock": lock,
        "reference": variants[0]["id"],
        "variants": variants,
        "gate": {"passed": None, "checks": []},
        "warnings": console.warnings(),
    }
    if test := shop.split("test"):
        results["golden"] = golden.keep(test, folder)  # a bundle made from this record proves itself on these
    results["gate"] = gate.judge(results, shop.recipe.gate)
    return results


def _row(shop: Workshop, row: Row, rows: list[Row], folder: Path) -> dict[str, Any]:
    """One row of the record."""
    route, artifact = row.route, row.artifact
    finished = row.status in ("ok", "built") and artifact is not None
    shipped = _ship(artifact, folder, route.id) if finished and artifact else None
    facts = _facts(shop, row) if finished else {}
    measured = row.measured or {}
    document: dict[str, Any] = {
        "id": route.id,
        "variant": route.variant,
        "target": route.target.name,
        "backend": route.target.backend,
        "status": row.status,
        "reason": row.reason,
        "stages": [_stage(name, made) for name, made in row.stages],
        "artifact": shipped,
        "size_bytes": sum(f["size_bytes"] for f in shipped["files"]) if shipped else None,
        "parameters": facts.get("parameters"),
        "macs": facts.get("macs"),
        "int8_macs_share": facts.get("int8_macs_share"),
        "metric": _metric(artifact.metric) if finished and artifact else None,
        "latency_ms": measured.get("latency_ms"),
        "first_inference_ms": measured.get("first_inference_ms"),
        "peak_rss_bytes": measured.get("peak_rss_bytes"),
        "measured": _beside(measured, artifact, folder, route.id) if finished else None,
        "scheme": _scheme(row),
        "profile": route.target.model_dump(mode="json"),
        **{key: facts[key] for key in ("layers", "conversions", "operators", "explain") if key in facts},
        "reports": {name: _report(made) for name, made in row.stages},
    }
    document["vs_reference"] = _against(shop, row, rows, document, folder) if finished else None
    if row.status == "built":
        half = route.quantize is not None and route.quantize.method == "bf16"
        document["metric_from"] = f"{'a float32 copy in ' if half else ''}this machine's runtime"
    return document


def _scheme(row: Row) -> dict[str, Any] | None:
    """What a row was quantized to: the method, and the target's integer scheme where it goes by that."""
    made = dict(row.stages).get("quantize")
    if made is None or row.route.quantize is None:
        return None
    method = made.entry.meta.get("method", row.route.quantize.method)
    return {"method": method, **(row.route.target.quantize.model_dump(mode="json") if method == "static" else {})}


def _ship(artifact: Artifact, folder: Path, name: str) -> dict[str, Any]:
    """Copy an artifact's files into the record's folder; tell their hashes."""
    place = folder / "artifacts" / name
    place.mkdir(parents=True)
    names = [str(path.relative_to(artifact.entry.folder)) for path in artifact.files]
    for file in names:
        shutil.copyfile(artifact.entry.path(file), place / file)
    files: list[dict[str, Any]] = [
        {
            "path": str((place / file).relative_to(folder)),
            "sha256": sha256_file(place / file),
            "size_bytes": (place / file).stat().st_size,
        }
        for file in names
    ]
    main = next(f for f in files if f["path"].endswith(artifact.path.name))
    return {"path": main["path"], "sha256": main["sha256"], "files": files}


def _beside(measured: dict[str, Any], artifact: Artifact | None, folder: Path, name: str) -> dict[str, Any]:
    """Copy raw times and per-sample outputs beside the record; return what else was measured."""
    raw: dict[str, Any] = {}
    sources = {"times": (measured.get("samples") or {}).get("path"), "outputs": artifact and artifact.outputs}
    for kind, source in sources.items():
        if not source:
            continue
        place = folder / "samples" / f"{name}.{kind}{Path(source).suffix}"
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, place)
        raw[kind] = {"path": str(place.relative_to(folder)), "sha256": sha256_file(place)}
    told = ("status", "reason", "latency_ms", "first_inference_ms", "peak_rss_bytes", "samples")
    return {**{k: v for k, v in measured.items() if k not in told}, "files": raw}


def _facts(shop: Workshop, row: Row) -> dict[str, Any]:
    """Parameters and MACs; of the compiled graph also what its layers compute in and where its time goes."""
    graphs = {name: made for name, made in row.stages if made.form == ONNX}
    onnx = graphs.get("simplify") or graphs.get("export") or graphs.get("load")  # scales are no parameters
    facts: dict[str, Any] = {}
    try:
        if onnx:
            inputs = {"artifact": onnx.entry.key}
            facts = shop.make(
                "facts",
                inputs,
                "facts",
                "facts",
                lambda folder, _: child.call("edgekit.onnxfile.cost:facts_job", model=str(onnx.path)),
            ).entry.meta
        if row.artifact and row.artifact.form not in (ONNX, TORCH):
            facts = {**facts, **_compiled_facts(shop, row, row.artifact)}
    except EdgekitError as error:
        console.warn(f"{row.route.id}: can't read the compiled graph: {error.problem}")
    return facts


def _compiled_facts(shop: Workshop, row: Row, artifact: Artifact) -> dict[str, Any]:
    target = row.route.target
    measured = row.measured is not None and row.status == "ok"
    inputs = {"artifact": artifact.entry.key, "target": target.model_dump(mode="json"), "profile": measured}
    if measured:
        inputs["machine"] = machine.fingerprint()

    def work(folder: Path, _: Path) -> dict[str, Any]:
        told = child.call(
            "edgekit.inspection:compiled_job",
            artifact=str(artifact.path),
            target=inputs["target"],
            feeds=str(row.feeds) if row.feeds else None,
            profile=measured,
        )
        facts = {key: told[key] for key in ("layers", "int8_macs_share", "conversions", "operators") if key in told}
        return {**facts, **({"explain": told["findings"]} if measured else {})}

    return shop.make("layers", inputs, "layers", "facts", work).entry.meta


def _stage(name: str, made: Artifact) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": made.entry.seconds,
        "cached": made.entry.cached,
        "metric": made.metric["value"] if made.metric else None,
        "size_bytes": made.size_bytes,
        "parity": made.parity,
    }


def _report(made: Artifact) -> dict[str, Any]:
    hidden = ("seconds", "files", "path", "parity")
    return {k: v for k, v in made.entry.meta.items() if k not in hidden}


def _metric(judged: dict[str, Any] | None) -> dict[str, Any] | None:
    if judged is None:
        return None
    return {k: judged[k] for k in ("name", "value", "ci95", "samples", "higher_is_better")}


def _against(
    shop: Workshop, row: Row, rows: list[Row], document: dict[str, Any], folder: Path
) -> dict[str, Any] | None:
    """This row against the untouched model on the same target, on the same samples."""
    reference = next((r for r in rows if r.route.target.name == row.route.target.name and r.route.reference), None)
    if reference is None or reference.artifact is None or reference.status not in ("ok", "built"):
        return None
    against: dict[str, Any] = {"id": reference.route.id, "metric_delta": None, "metric_delta_ci95": None}
    mine, theirs, test = row.artifact, reference.artifact, shop.split("test")
    if mine and mine.outputs and theirs.outputs and test:
        metric = shop.recipe.metric.model_dump(mode="json")
        judged = evaluate.judge(mine.outputs, test, metric, shop.recipe.base, reference=theirs.outputs)
        against |= {
            "metric_delta": judged["delta"],
            "metric_delta_ci95": judged["delta_ci95"],
            "agreement": judged.get("agreement"),
        }
    measured = row.measured or {}
    return {
        **against,
        "size_ratio": document["size_bytes"] / theirs.size_bytes,
        "speedup": measured.get("speedup"),
        "speedup_ci95": measured.get("speedup_ci95"),
        "verdict": measured.get("verdict"),
    }
