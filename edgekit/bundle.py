"""One folder for a device: the artifact, what is to be known of it, golden data, and a program to prove and run it.

The device needs the runtime and numpy, not edgekit. The same record gives the same bytes.
"""

from __future__ import annotations

import fnmatch
import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import edgekit
from edgekit import child, console, result, store
from edgekit.errors import InputError, UnavailableError
from edgekit.target import Target, load_target

SCHEMA = "edgekit.bundle/1"
MANIFEST, RUNNER, GOLDEN = "manifest.json", "edgekit_runner.py", "golden.npz"
MAX_FILES, MAX_BYTES = 1000, 64 * 1024**3
KEPT = 0.99  # share of the reference's metric that counts as kept where the recipe sets no limit (MLPerf's rule)
_RUNNER = Path(__file__).with_name("runner")
_DAY = (1980, 1, 1, 0, 0, 0)  # an archive's members all have this date, so that bytes repeat


def bundle(
    folder: Path | str, target: str, variant: str | None = None, out: Path | str = "bundle", zip: bool = False
) -> Path:
    """Make a bundle from a record.

    Args:
        folder: Holds ``results.json``. target: The target's name there.
        variant: The variant's name; None: the fastest that kept the metric.
        out: The folder to make; with ``zip`` the archive (``.zip`` is added where it is missing).
        zip: One archive in place of a folder.

    Returns:
        The folder or archive.

    Raises:
        InputError: No such row, a changed artifact, or ``out`` holds something else.
        UnavailableError: The row has no artifact, or its runtime no runner.
        StageError: ``out`` can't be written.
    """
    root = Path(folder)
    results = result.load_results(root)
    row = choose(results, target, variant)
    place = Path(out)
    if zip and place.suffix != ".zip":
        place = place.with_name(place.name + ".zip")
    _check_place(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".edgekit-bundle-") as temporary:
            made = Path(temporary) / "bundle"
            made.mkdir()
            _fill(made, root, results, row)
            _publish(_zipped(made, Path(temporary) / "bundle.zip") if zip else made, place)
    except OSError as error:
        raise store.write_error(place, error) from error
    console.note(f"bundled {row['id']} into {place}")
    return place


def choose(results: dict[str, Any], target: str, variant: str | None = None) -> dict[str, Any]:
    """The row to bundle: the one named, else the fastest on ``target`` that kept the metric.

    Of rows whose latencies can't be told from the fastest's (their intervals overlap) the one with the better
    metric, then the smaller. Where none was measured (a device that is not here), the smallest of those stands in.

    Raises:
        InputError: No such target or variant. UnavailableError: No row that can be bundled; says why.
    """
    rows = [row for row in results["variants"] if row["target"] == target]
    if not rows:
        known = sorted({row["target"] for row in results["variants"]})
        raise InputError(f"the record has no target '{target}'", remedy=f"choose one of {', '.join(known)}")
    if variant:
        rows = [row for row in rows if row["variant"] == variant]
        if not rows:
            known = sorted({row["variant"] for row in results["variants"] if row["target"] == target})
            raise InputError(f"the record has no variant '{variant}'", remedy=f"choose one of {', '.join(known)}")
    finished = [row for row in rows if row["artifact"]]
    if not finished:
        reasons = "; ".join(f"{row['id']} {row['status']}: {row['reason']}" for row in rows)
        raise UnavailableError(f"nothing to bundle for '{target}' ({reasons})", remedy="mend that and run again")
    if variant:
        return finished[0]
    kept = [row for row in finished if kept_metric(results, row)]
    if not kept:
        raise UnavailableError(
            f"no variant on '{target}' kept the metric", remedy="name one with --variant, or raise the limit in [gate]"
        )
    measured = [row for row in kept if row["latency_ms"]]
    if not measured:
        return min(kept, key=lambda row: (row["size_bytes"], row["id"]))
    return min(_as_fast(measured), key=lambda row: (_loss(row), row["size_bytes"], row["id"]))


def _as_fast(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest row, and those whose latency's interval reaches into that of the fastest."""
    fastest = min(rows, key=lambda row: row["latency_ms"]["median"])
    _, most = fastest["latency_ms"]["ci95"] or (0.0, 0.0)
    return [row for row in rows if row is fastest or (row["latency_ms"]["ci95"] or (math.inf,))[0] <= most]


def _loss(row: dict[str, Any]) -> float:
    """A row's metric as a loss: lower is better; 0 where it has none."""
    metric = row["metric"]
    return 0.0 if metric is None else -metric["value"] if metric["higher_is_better"] else metric["value"]


def kept_metric(results: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row's metric is within the recipe's limits; without any, at least 99 % of the reference's."""
    metric, against = row["metric"], row["vs_reference"]
    if metric is None or against is None or against["metric_delta"] is None:
        return True  # nothing to hold it against
    limits = _limits(results, row)
    sign = 1.0 if metric["higher_is_better"] else -1.0
    drop = -sign * against["metric_delta"]
    floor = limits.get("min_metric")
    if floor is not None and sign * metric["value"] < sign * floor:
        return False
    allowed = limits.get("max_metric_drop")
    if allowed is None:
        allowed = (1 - KEPT) * abs(metric["value"] - against["metric_delta"])
    return bool(drop <= allowed)


def read_bundle(folder: Path | str) -> dict[str, Any]:
    """A bundle's manifest, after every file was compared with it.

    Raises:
        InputError: Not a bundle, or a file that differs, is missing, or is not named.
    """
    root = Path(folder)
    again = "make the bundle again"
    try:
        manifest: dict[str, Any] = json.loads((root / MANIFEST).read_text())
        named = {str(name): str(facts["sha256"]) for name, facts in manifest["files"].items()}
        schema = manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"not a bundle: {error}", where=str(root / MANIFEST), remedy=again) from error
    if schema != SCHEMA:
        raise InputError(f"this bundle is '{schema}', not '{SCHEMA}'", where=str(root), remedy=again)
    for name in named:
        _safe(name, root)
    for name, digest in named.items():
        path = root / name
        if path.is_symlink() or not path.is_file():
            raise InputError("a file of the bundle is missing", where=str(path), remedy=again)
        if store.sha256_file(path) != digest:
            raise InputError("a file of the bundle was changed: its hash differs", where=str(path), remedy=again)
    if strangers := sorted({p.name for p in root.iterdir() if not p.name.startswith(".")} - {*named, MANIFEST}):
        raise InputError(f"'{strangers[0]}' does not belong to this bundle", where=str(root), remedy="remove it")
    return manifest


@contextmanager
def opened(path: Path | str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A bundle's folder and manifest, unpacked for as long as the block runs where ``path`` is an archive.

    Raises:
        InputError: As :func:`read_bundle` and :func:`unpack`.
    """
    place = Path(path)
    if place.is_dir():
        yield place, read_bundle(place)
        return
    if not place.exists():
        raise InputError("no such bundle", where=str(place), remedy="check the path, or make one with: edgekit bundle")
    with tempfile.TemporaryDirectory(prefix="edgekit-bundle-") as temporary:
        unpack(place, Path(temporary))
        yield Path(temporary), read_bundle(temporary)


def unpack(archive: Path, into: Path) -> None:
    """Unpack a bundle's archive member by member; nothing but plain files inside of ``into`` is ever written.

    Raises:
        InputError: Not an archive; absolute paths, ``..``, links, two members of one name, or absurd sizes.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            _check_members(members, archive)
            for member in members:
                with file.open(member) as source, (into / member.filename).open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"can't read this archive: {error}", where=str(archive), remedy="copy or make the bundle again"
        ) from error


def _check_members(members: list[zipfile.ZipInfo], archive: Path) -> None:
    names = [member.filename for member in members]
    if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_BYTES:
        raise InputError("this archive is too large for a bundle", where=str(archive), remedy="check where it is from")
    if len(set(names)) < len(names):
        raise InputError("this archive has two members of one name", where=str(archive), remedy="make it again")
    for member in members:
        _safe(member.filename, archive)
        kind = member.external_attr >> 28
        if member.is_dir() or kind not in (0, 8):
            raise InputError(
                f"'{member.filename[:80]!r}' is no plain file", where=str(archive), remedy="make the bundle again"
            )


def _safe(name: str, where: Path) -> str:
    """A file's name if it stays in its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or len(path.parts) != 1:
        raise InputError(
            f"it names the file {name[:80]!r}, which is not inside of the bundle",
            where=str(where),
            remedy="do not use this bundle; make it again from the record",
        )
    return name


def _limits(results: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The recipe's limits for a row: those of ``[gate]``, then of every rule that fits."""
    gate = results["recipe"].get("gate") or {}
    limits = {key: value for key, value in gate.items() if value is not None}
    for rule in gate.get("rule") or ():
        fits = fnmatch.fnmatch(row["variant"], rule.get("variant", "*"))
        if fits and fnmatch.fnmatch(row["target"], rule.get("target", "*")):
            limits |= {key: value for key, value in rule.items() if value is not None}
    return limits


def _fill(made: Path, root: Path, results: dict[str, Any], row: dict[str, Any]) -> None:
    """Write all of a bundle's files into ``made``."""
    aim = _profile(row)
    _copy_artifact(made, root, row)
    model = PurePosixPath(row["artifact"]["path"]).name
    _copy_runner(made, aim.backend)
    kept = _golden_inputs(root, results)
    facts = child.call(
        "edgekit.pipeline.golden:golden_job",
        artifact=str(made / model),
        backend="onnx" if aim.compile_on_device else aim.backend,
        target=aim.model_dump(mode="json"),
        inputs=kept,
        integer=bool(row.get("scheme")),
        out=str(made / GOLDEN),
    )
    files = {path.name: _facts(path) for path in sorted(made.iterdir())}
    store.write_json(made / MANIFEST, _manifest(results, row, aim, model, facts, files))


def _manifest(
    results: dict[str, Any], row: dict[str, Any], aim: Target, model: str, facts: dict[str, Any], files: dict[str, Any]
) -> dict[str, Any]:
    recipe = results["recipe"]
    preprocess = (recipe.get("export") or {}).get("preprocess")
    versions = results["environment"].get("versions") or results["lock"].get("versions") or {}
    return {
        "schema": SCHEMA,
        "edgekit": edgekit.__version__,
        "id": row["id"],
        "variant": row["variant"],
        "target": {
            "name": aim.name,
            "title": aim.title,
            "device": aim.device.model_dump(mode="json"),
            "compile_on_device": aim.compile_on_device,
        },
        "backend": aim.backend,
        "model": model,
        "inputs": [{**port, "layout": _layout(port, preprocess)} for port in facts["inputs"]],
        "outputs": facts["outputs"],
        "preprocessing": preprocess,
        "scheme": row.get("scheme"),
        "run": {"threads": aim.run.threads, "batch": aim.run.batch, "options": facts["options"]},
        "golden": {"file": GOLDEN, **{key: facts[key] for key in ("samples", "origin", "tolerance")}},
        "metric": row["metric"],
        "parameters": row["parameters"],
        "macs": row["macs"],
        "versions": {key: versions[key] for key in sorted(versions)},
        "licence": (recipe.get("model") or {}).get("licence") or "",
        "record": result.digest(results),
        "files": files,
    }


def _layout(port: dict[str, Any], preprocess: dict[str, Any] | None) -> str | None:
    """``NCHW`` or ``NHWC`` for pictures; None for what is none."""
    if len(port["shape"]) != 4:
        return None
    fed = preprocess and preprocess.get("input") in ("", None, port["name"])
    return str(preprocess["layout"]).upper() if preprocess and fed else "NCHW"


def _profile(row: dict[str, Any]) -> Target:
    """The row's device profile: as the record keeps it, else by its name."""
    profile = row.get("profile")
    aim = Target.model_validate(profile) if profile else load_target(row["target"])
    if not (_RUNNER / f"edgekit_{aim.backend}.py").is_file():
        raise UnavailableError(
            f"edgekit has no runner for the backend '{aim.backend}'",
            where=row["id"],
            remedy="copy the artifact from the record's folder, and load it with the runtime's own tools",
        )
    return aim


def _copy_artifact(made: Path, root: Path, row: dict[str, Any]) -> None:
    """Copy the artifact's files, each checked against the record's hash."""
    artifact = row["artifact"]
    files = artifact["files"] or [artifact]
    for file in files:
        source = root / file["path"]
        name = _safe(PurePosixPath(file["path"]).name, root)
        if source.is_symlink() or not source.is_file() or store.sha256_file(source) != file["sha256"]:
            raise InputError(
                "this artifact is missing, or not the one that the record names",
                where=str(source),
                remedy="run the recipe again; edgekit verify tells all that changed",
            )
        _copy(source, made / name)


def _copy_runner(made: Path, backend: str) -> None:
    for name in (RUNNER, "edgekit_board.py", f"edgekit_{backend}.py"):
        _copy(_RUNNER / name, made / name)


def _copy(source: Path, to: Path) -> None:
    try:
        shutil.copyfile(source, to)
    except OSError as error:
        raise store.write_error(to, error) from error


def _golden_inputs(root: Path, results: dict[str, Any]) -> str | None:
    """The samples that the record keeps, checked; None where it keeps none."""
    kept = results.get("golden")
    if not kept:
        return None
    path = root / _safe(kept["path"], root)
    if not path.is_file() or store.sha256_file(path) != kept["sha256"]:
        raise InputError("the record's golden inputs were changed", where=str(path), remedy="run the recipe again")
    return str(path)


def _facts(path: Path) -> dict[str, Any]:
    return {"sha256": store.sha256_file(path), "size_bytes": path.stat().st_size}


def _check_place(place: Path) -> None:
    """Refuse to overwrite anything but an earlier bundle."""
    if place.is_dir():
        free = not any(place.iterdir()) or all((place / name).is_file() for name in (MANIFEST, RUNNER))
    else:
        free = not place.exists() or place.suffix == ".zip"
    if not free:
        raise InputError("there is something else here", where=str(place), remedy="name a new folder with --out")


def _publish(made: Path, place: Path) -> None:
    """Put the finished bundle in its place; an earlier one goes only then."""
    if place.is_dir():
        shutil.rmtree(place)
    made.chmod(0o755 if made.is_dir() else 0o644)
    made.replace(place)


def _zipped(folder: Path, archive: Path) -> Path:
    """An archive of the folder's files, the same bytes for the same files (stored, not compressed)."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.iterdir()):
            member = zipfile.ZipInfo(path.name, _DAY)
            member.external_attr = 0o100644 << 16
            with path.open("rb") as source, file.open(member, "w", force_zip64=True) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    return archive
