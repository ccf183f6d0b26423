"""The baseline as it is kept: a record that a person can review, and the artifacts by their hash beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from edgekit.errors import InputError
from edgekit.store import sha256_file, sha256_json, write_error, write_text

# Bulk that the gate does not read: it would bury the numbers in a diff.
DROPPED = ("layers", "reports", "stages", "scheme")
ROUNDED = 6  # significant digits


def keep_baseline(results: dict[str, Any], folder: Path, path: Path) -> list[str]:
    """Write ``results`` as the baseline ``path`` and copy its artifacts to ``PATH.artifacts/HASH/``.

    Args:
        results: The record. folder: Where it lies.
        path: The file to write; if it is there, it must be a record.

    Returns:
        Notes: what was kept, and what the baseline held before.

    Raises:
        InputError: ``path`` holds something that is no record. StageError: It can't be written.
    """
    from edgekit import result

    before = _before(path)
    kept = {k: v for k, v in results.items() if k not in ("digest", "warnings")}
    kept["variants"] = [_row(row, folder, path) for row in results["variants"]]
    kept["gate"] = {"passed": None, "checks": []}
    result.validate(kept, str(path))
    kept["digest"] = result.digest(kept)
    write_text(path, json.dumps(kept, indent=2, sort_keys=True, allow_nan=False) + "\n")
    note = f"the baseline {path} now holds these {len(kept['variants'])} rows"
    return [note, *_changes(before, kept)]


def artifact_path(row: dict[str, Any], folder: Path) -> Path:
    """A row's main file, after all of its files were compared with their hashes.

    Raises:
        InputError: It has none, or a file is missing, changed, or outside of ``folder``.
    """
    artifact = row.get("artifact")
    if not artifact:
        raise InputError("this row has no artifact", where=row["id"], remedy="run the recipe again")
    root = folder.resolve()
    for file in artifact["files"]:
        place = (root / file["path"]).resolve()
        if not place.is_relative_to(root) or not place.is_file() or sha256_file(place) != file["sha256"]:
            raise InputError(
                "this artifact is missing or was changed since it was recorded",
                where=f"{row['id']}: {place}",
                remedy="restore it (git lfs pull, or CI's artifact store), or run the recipe again",
            )
    return root / str(artifact["path"])


def _before(path: Path) -> dict[str, Any] | None:
    from edgekit import result

    if not path.exists():
        return None
    try:
        return result.load_results(path)
    except InputError as error:
        raise InputError(
            f"not overwritten, because it is no record of edgekit: {error.problem}",
            where=str(path),
            remedy="remove it yourself, or name another file",
        ) from error


def _row(row: dict[str, Any], folder: Path, path: Path) -> dict[str, Any]:
    kept = {k: ([] if k == "stages" else v) for k, v in row.items() if k not in DROPPED or k == "stages"}
    if measured := kept.get("measured"):
        kept["measured"] = {k: v for k, v in measured.items() if k not in ("files", "noise", "warnings")}
    if row.get("artifact"):
        kept["artifact"] = _artifact(row, folder, path)
    return {k: _rounded(v) if k in ("latency_ms", "measured") else v for k, v in kept.items()}


def _artifact(row: dict[str, Any], folder: Path, path: Path) -> dict[str, Any]:
    """Copy a row's files into a folder named by their content; return the artifact with the new paths."""
    main = artifact_path(row, folder)
    files = row["artifact"]["files"]
    name = sha256_json(sorted((Path(f["path"]).name, f["sha256"]) for f in files))[:32]
    place = path.with_name(path.name + ".artifacts") / name
    try:
        if not place.is_dir():
            fresh = place.with_name(f".{name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            for file in files:
                shutil.copyfile(folder / file["path"], fresh / Path(file["path"]).name)
            fresh.rename(place)
    except OSError as error:
        raise write_error(place, error) from error
    base = f"{place.parent.name}/{name}"
    moved = [{**file, "path": f"{base}/{Path(file['path']).name}"} for file in files]
    return {**row["artifact"], "path": f"{base}/{main.name}", "files": moved}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{ROUNDED}g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value


def _changes(before: dict[str, Any] | None, now: dict[str, Any]) -> list[str]:
    """What the new baseline accepts: each row whose metric or size moved."""
    if before is None:
        return []
    old = {row["id"]: row for row in before["variants"]}
    lines = [f"{row['id']}: new in the baseline" for row in now["variants"] if row["id"] not in old]
    lines += [f"{name}: no longer in the baseline" for name in old.keys() - {row["id"] for row in now["variants"]}]
    for row in now["variants"]:
        then = old.get(row["id"])
        if then is None:
            continue
        sizes = then.get("size_bytes"), row.get("size_bytes")
        values = (then.get("metric") or {}).get("value"), (row.get("metric") or {}).get("value")
        moved = [f"{what} {a} → {b}" for what, (a, b) in (("size", sizes), ("metric", values)) if a != b]
        if moved:
            lines.append(f"{row['id']}: {', '.join(moved)}")
    return lines
