"""Reads a ``.pt2`` archive without trusting it: what it asks torch to run is refused first.

``torch.export.load`` unpickles tensors marked so and custom objects, falls back to full
unpickling of the sample inputs, evaluates size expressions and executes guard code. Here
the members are read by the standard library, checked, and only what passed is handed on.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import InputError

TARGET = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.\w+\.\w+|torch\.sym_\w+|math\.(ceil|floor|trunc|sqrt|pow)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem|index|pos|abs)"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast)"
)
READS_FILES = ("torch.ops.aten.from_file",)
EXPRESSION = re.compile(r"([\w\s+\-*/(),<>=&|~%'\"]|(?<=\d)\.(?=\d))*")
WORDS = frozenset(
    [
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "Mod",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "CeilDiv",
        "LShift",
        "RShift",
        "PowByNatural",
        "FloatPow",
        "FloatTrueDiv",
        "IntTrueDiv",
        "IsNonOverlappingAndDenseIndicator",
        "TruncToFloat",
        "TruncToInt",
        "RoundToInt",
        "RoundDecimal",
        "ToFloat",
        "Identity",
        "Max",
        "Min",
        "Abs",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
        "Not",
        "Piecewise",
        "True",
        "False",
        "true",
        "false",
        "oo",
        "int_oo",
        "floor",
        "ceiling",
        "sqrt",
        "Symbol",
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Tuple",
        "Equality",
        "Unequality",
        "StrictLessThan",
        "LessThan",
        "StrictGreaterThan",
        "GreaterThan",
        "positive",
        "negative",
        "nonnegative",
        "nonzero",
        "integer",
        "real",
        "finite",
        "precision",
    ]
)
SYMBOL = re.compile(r"(s|u|zuf|zf)\d+|\d+")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
DOTTED = re.compile(r"[^\"'\\\x00-\x1f]+")  # the name of a parameter, which stands in generated source between quotes
TREE_TYPES = frozenset(("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"))
MAX_JSON = 512 * 1024 * 1024
EXTRA = "extra/edgekit.json"


def read(path: Path) -> tuple[io.BytesIO, dict[str, Any]]:
    """The archive's checked content as a fresh archive, and edgekit's own notes in it.

    Raises:
        InputError: Not a ``.pt2`` archive, damaged, or one that asks for pickle or other code.
    """
    members = _members(path)
    for name, data in members.items():
        if name.endswith("_config.json"):
            _check_payloads(path, json.loads(data))
        elif name.startswith("models/"):
            members[name] = _checked_model(path, data)
        elif name.startswith("data/sample_inputs/"):
            _check_samples(path, data)
    notes = json.loads(members.get(f"data/{EXTRA}", members.get(EXTRA, b"{}")))
    fresh = io.BytesIO()
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    fresh.seek(0)
    return fresh, notes


def _refuse(path: Path, why: str, remedy: str = "") -> InputError:
    safe = "save it again with edgekit, or with torch.export.save from plain tensors, tuples and dicts"
    return InputError(f"refused, and nothing in it was run: {why}", where=str(path), remedy=remedy or safe)


def _members(path: Path) -> dict[str, bytes]:
    """Every member's bytes by its name without the archive's root folder."""
    _check_magic(path)
    found: dict[str, bytes] = {}
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.partition("/")[2]
                if info.is_dir():
                    continue
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                    raise _refuse(path, f"its member {name!r} is compressed, which torch never writes")
                if name in found:
                    raise _refuse(path, f"its member {name!r} is there twice")
                if name.endswith(".json") and info.file_size > MAX_JSON:
                    raise _refuse(path, f"its member {name!r} has {info.file_size} bytes")
                _check_name(path, name)
                found[name] = archive.read(info)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"this .pt2 file is damaged: {error}", where=str(path), remedy="copy it again, or export the model again"
        ) from error
    if found.get("archive_format") != b"pt2" or not any(n.startswith("models/") for n in found):
        raise InputError(
            "this zip archive is no exported program",
            where=str(path),
            remedy="write one with torch.export.save(torch.export.export(model, inputs), path), or use [model] entry",
        )
    return found


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(
            f"can't read this file: {error.strerror or error}",
            where=str(path),
            remedy="check the path and its permissions",
        ) from error
    if not head:
        raise InputError("this file is empty", where=str(path), remedy="copy or export it again")
    if head.startswith(b"version https://git-lfs"):
        raise InputError("this is a Git LFS pointer, not the model", where=str(path), remedy="run: git lfs pull")
    if head.startswith(b"PK"):
        return
    kind = "a pickle" if head[:1] == b"\x80" else "an HTML page" if b"<" in head[:16] else "no zip archive"
    raise InputError(
        f"this is {kind}, and a .pt2 file is a zip archive",
        where=str(path),
        remedy="give a file written by torch.export.save or edgekit; weights alone go with [model] entry and weights",
    )


def _check_name(path: Path, name: str) -> None:
    """Refuse members whose very presence makes torch run code."""
    leaf = name.rpartition("/")[2]
    if name.startswith(("data/weights/", "data/constants/")) and leaf.endswith((".pt", ".pkl")):
        raise _refuse(path, f"its member {name!r} is a pickle (an old format)")
    if leaf.startswith(("custom_obj_", "opaque_obj_")):
        raise _refuse(path, f"its member {name!r} is a pickled object")
    if name.startswith(("data/aotinductor/", "data/executorch/")):
        raise _refuse(path, f"its member {name!r} is compiled code")


def _check_payloads(path: Path, config: dict[str, Any]) -> None:
    for tensor, payload in config["config"].items():
        if payload.get("use_pickle") or payload.get("tensor_meta") is None:
            raise _refuse(path, f"its tensor {tensor!r} is stored as a pickle")


def _check_samples(path: Path, data: bytes) -> None:
    """The sample inputs are a torch file: only tensors and plain containers may stand in it."""
    import torch

    try:
        if data:
            torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        raise _refuse(path, "its sample inputs ask for pickle") from error


def _checked_model(path: Path, data: bytes) -> bytes:
    """The program with its guard code and call sources taken out, or an error for what must not be run."""
    try:
        program = json.loads(data)
        for item in _dicts(program):
            _check_item(path, item)
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise InputError(
            f"this .pt2 file's program is damaged: {error}", where=str(path), remedy="export the model again"
        ) from error
    program["guards_code"] = []
    return json.dumps(program).encode()


def _dicts(root: Any) -> Iterator[dict[str, Any]]:
    """Every dict in a JSON value, without recursion."""
    stack = [root]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _check_item(path: Path, item: dict[str, Any]) -> None:
    for key in ("target", "as_operator"):
        target = item.get(key)
        is_node = key == "as_operator" or ("inputs" in item and "outputs" in item)
        if isinstance(target, str) and is_node and not TARGET.fullmatch(target):
            raise _refuse(path, f"it calls {target!r}", "export a model that uses torch's own operations only")
        if isinstance(target, str) and target.startswith(READS_FILES):
            raise _refuse(path, f"it reads files ({target})", "export a model that holds its own weights")
    if "as_custom_obj" in item:
        raise _refuse(path, "it holds a custom object")
    if isinstance(text := item.get("expr_str"), str):
        words = re.findall(r"[A-Za-z_]\w*", text)
        if not EXPRESSION.fullmatch(text) or any(w not in WORDS and not SYMBOL.fullmatch(w) for w in words):
            raise _refuse(path, f"it has an unknown size expression {text[:60]!r}")
    for key in ("in_spec", "out_spec"):
        if isinstance(item.get(key), str) and item[key]:
            _check_tree(path, item[key])
    for key, value in item.items():
        pattern = IDENTIFIER if key in ("name", "as_name") else DOTTED if key.endswith("_name") else None
        if pattern and isinstance(value, str) and value and not pattern.fullmatch(value):
            raise _refuse(path, f"it uses {value[:60]!r} as a name, which would be run as code")
    for value in item.get("forward_arg_names") or ():
        if not IDENTIFIER.fullmatch(value):
            raise _refuse(path, f"it uses {value[:60]!r} as a name, which would be run as code")
    if isinstance(metadata := item.get("metadata"), dict):
        for key in ("source_fn_stack", "from_node", "custom"):
            metadata.pop(key, None)


def _check_tree(path: Path, spec: str) -> None:
    for item in _dicts(json.loads(spec)):
        kind = item.get("type")
        if "children_spec" in item and kind is not None and kind not in TREE_TYPES:
            raise _refuse(path, f"its inputs or outputs are of the type {kind!r}")
