"""The record, ``results.json``: its JSON Schema, reading, writing, and checking the files beside it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from edgekit.errors import InputError
from edgekit.store import sha256_file, sha256_json, write_json

SCHEMA = "edgekit.results/1"
RESULTS = "results.json"
MAX_BYTES = 200_000_000
_MARKERS = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)


def schema() -> dict[str, Any]:
    """The JSON Schema of the record (draft 2020-12)."""
    return cast("dict[str, Any]", json.loads(Path(__file__).with_name("results.schema.json").read_text()))


def validate(results: Any, where: str = RESULTS) -> None:
    """Check a record: its schema version, its JSON Schema, no NaN, and that its rows name one another rightly.

    Args:
        results: The record. where: What to call it in a message.

    Raises:
        InputError: With the place of the first fault, and the others in its details.
    """
    import jsonschema

    _check_version(results, where)
    if bad := next(_not_finite(results, ""), None):
        raise InputError(
            "a number is NaN or infinite", where=f"{where}: {bad}", remedy="write null where there is no value"
        )
    checker = jsonschema.Draft202012Validator(schema())
    faults = sorted(checker.iter_errors(results), key=lambda fault: [str(part) for part in fault.absolute_path])
    if faults:
        lines = [f"{_place(fault.absolute_path)}: {fault.message[:300]}" for fault in faults]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(
            f"{faults[0].message[:300]}{more}",
            where=f"{where}: {_place(faults[0].absolute_path)}",
            remedy=f"this is no {SCHEMA} record; write it again with: edgekit run",
            details="\n".join(lines[:50]),
        )
    _check_names(results, where)


def load_results(path: Path | str) -> dict[str, Any]:
    """Read and check a record.

    Args:
        path: A ``results.json``, or the folder that holds one.

    Raises:
        InputError: Missing, truncated, not JSON, merge-conflict markers, another schema, or not valid.
    """
    file = Path(path)
    file = file / RESULTS if file.is_dir() else file
    where = str(file)
    text = _text(file, where)
    try:
        results = json.loads(text)
    except RecursionError as error:
        raise InputError("nested too deep to be a record", where=where, remedy=_AGAIN) from error
    except json.JSONDecodeError as error:
        raise _not_json(error, text, where) from error
    validate(results, where)
    return cast("dict[str, Any]", results)


def write_results(results: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check a record, seal it with its own digest and write it; return it as written.

    Raises:
        InputError: It is not valid. StageError: It can't be written; the old one is intact.
    """
    validate(results, str(path))
    sealed = {**results, "digest": digest(results)}
    write_json(path, sealed)
    return sealed


def digest(results: dict[str, Any]) -> str:
    """Hex SHA-256 of all of a record but its own ``digest``."""
    return sha256_json(json.loads(json.dumps({k: v for k, v in results.items() if k != "digest"})))


def verify(folder: Path | str) -> list[str]:
    """Compare every file that a record names, and the record itself, with the hashes in it.

    Args:
        folder: The folder that holds ``results.json``.

    Returns:
        What is wrong, one sentence each; empty where all is well.

    Raises:
        InputError: There is no valid record.
    """
    root = Path(folder)
    results = load_results(root / RESULTS)
    problems = []
    if results.get("digest") not in (None, digest(results)):
        problems.append(f"{RESULTS}: changed after it was written")
    named = dict(_files(results))
    problems += [problem for path, sha in named.items() if (problem := _fault(root, path, sha))]
    own = {str(Path(row["artifact"]["path"]).parent) for row in results["variants"] if row["artifact"]}
    return problems + _strangers(root, sorted(own), set(named))


def pareto(rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether each row is on the front of its target.

    A row is on it unless another row of the same target is at least as good in everything and
    better in something: the metric, the median latency, the size; those of them that every
    finished row of that target has.

    Args:
        rows: The record's ``variants``.
    """
    fronts = [False] * len(rows)
    for target in {row["target"] for row in rows}:
        own = [i for i, row in enumerate(rows) if row["target"] == target and row["status"] in ("ok", "built")]
        costs = dict(zip(own, _costs([rows[i] for i in own]), strict=True))
        for i in own:
            fronts[i] = not any(_dominates(costs[j], costs[i]) for j in own)
    return fronts


def _costs(rows: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """What each row costs, lower is better, in the terms that all of them have."""
    columns = []
    if rows and all(row.get("metric") for row in rows):
        columns.append([-_signed(row["metric"]) for row in rows])
    if rows and all(row.get("latency_ms") for row in rows):
        columns.append([row["latency_ms"]["median"] for row in rows])
    columns.append([row["size_bytes"] for row in rows])
    return list(zip(*columns, strict=True))


def _signed(metric: dict[str, Any]) -> float:
    return float(metric["value"] if metric["higher_is_better"] else -metric["value"])


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


_AGAIN = "write it again with: edgekit run"


def _text(file: Path, where: str) -> str:
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{size} bytes: too large for a record", where=where, remedy="check the path")
        raw = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"can't read this record: {error.strerror or error}", where=where, remedy="check the path"
        ) from error
    if not raw.strip():
        raise InputError("this record is empty", where=where, remedy=_AGAIN)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", where=where, remedy=_AGAIN) from error
    if marker := _MARKERS.search(text):
        line = text.count("\n", 0, marker.start()) + 1
        raise InputError(
            "this record holds the markers of an unresolved merge conflict",
            where=f"{where}:{line}",
            remedy="choose one of the two sides, for example: git checkout --ours results.json",
        )
    return text


def _not_json(error: json.JSONDecodeError, text: str, where: str) -> InputError:
    cut = error.pos >= len(text.rstrip()) - 1 or "Unterminated string" in error.msg
    problem = "this record is truncated: it ends in the middle" if cut else f"not JSON: {error.msg}"
    return InputError(problem, where=f"{where}:{error.lineno}:{error.colno}", remedy=_AGAIN)


def _check_version(results: Any, where: str) -> None:
    found = results.get("schema") if isinstance(results, dict) else None
    if found == SCHEMA:
        return
    if not isinstance(found, str) or not found.startswith("edgekit.results/"):
        raise InputError(
            f"not a record of edgekit (its schema is {str(found)[:60]!r}, not '{SCHEMA}')",
            where=where,
            remedy="give the results.json that edgekit run wrote",
        )
    raise InputError(
        f"this record has the schema '{found[:60]}'; this edgekit reads '{SCHEMA}'",
        where=where,
        remedy="use the edgekit that wrote it, or run the recipe again with this one",
    )


def _check_names(results: dict[str, Any], where: str) -> None:
    ids = [row["id"] for row in results["variants"]]
    wanted = [("reference", results["reference"])]
    wanted += [(f"variants.{i}.vs_reference.id", r["vs_reference"]["id"]) for i, r in _compared(results)]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise InputError(f"two rows have the id '{twice[0]}'", where=where, remedy=_AGAIN)
    for place, name in wanted:
        if name not in ids:
            raise InputError(f"it names the row '{name}', which is not there", where=f"{where}: {place}", remedy=_AGAIN)


def _compared(results: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return [(i, row) for i, row in enumerate(results["variants"]) if row["vs_reference"]]


def _not_finite(value: Any, place: str) -> Iterator[str]:
    """The places of NaN and infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place or "(top)"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, f"{place}.{index}".lstrip("."))


def _place(path: Any) -> str:
    return ".".join(str(part) for part in path) or "(top)"


def _files(value: Any) -> Iterator[tuple[str, str]]:
    """Every ``{path, sha256}`` in the record: artifacts, and what else lies in hashed files beside it."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str) and isinstance(value.get("sha256"), str):
            yield value["path"], value["sha256"]
        for inner in value.values():
            yield from _files(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _files(inner)


def _fault(root: Path, path: str, sha: str) -> str | None:
    """What is wrong with one file, or None."""
    file = root / path
    if not _inside(path):
        return f"{path}: points outside of the record's folder"
    if any(part.is_symlink() for part in (file, *file.parents) if part.is_relative_to(root) and part != root):
        return f"{path}: is a symbolic link"
    if not file.is_file():
        return f"{path}: missing"
    try:
        found = sha256_file(file)
    except OSError as error:
        return f"{path}: can't be read: {error.strerror or error}"
    return None if found == sha else f"{path}: changed: its sha256 is {found[:12]}…, the record says {sha[:12]}…"


def _inside(path: str) -> bool:
    return not Path(path).is_absolute() and ".." not in Path(path).parts


def _strangers(root: Path, folders: Sequence[str], named: set[str]) -> list[str]:
    """Files in an artifact's own folder that the record does not name: a runtime might load them."""
    inside = [root / folder for folder in folders if _inside(folder) and folder != "."]
    found = [p.relative_to(root) for f in inside if f.is_dir() for p in sorted(f.iterdir()) if p.is_file()]
    return [f"{path}: the record does not name this file" for path in found if str(path) not in named]
