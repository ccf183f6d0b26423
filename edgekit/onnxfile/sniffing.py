"""What a file is, told by its bytes and not by its name."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgekit.errors import InputError

HEAD = 4096  # bytes that tell what a file is
GRAPH_FIELD = 7  # of ONNX's ModelProto
NUMBER_FIELDS = {1, 5}  # ir_version and model_version; the others are strings and messages
MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}

KINDS = {
    "onnx": "an ONNX model",
    "pt2": "a torch exported program (.pt2)",
    "pt": "a torch checkpoint or pickle",
    "torchscript": "a TorchScript archive",
    "safetensors": "a safetensors file",
    "keras": "a Keras model",
    "hdf5": "an HDF5 file (Keras?)",
    "tflite": "a TensorFlow Lite model",
    "zip": "a zip archive that no torch wrote, or a damaged one",
    "html": "a web page",
    "lfs": "a Git-LFS pointer",
    "empty": "an empty file",
    "unknown": "of no known kind",
}
REMEDIES = {
    "html": "download the file itself, not the page about it",
    "lfs": "run: git lfs pull",
    "empty": "write or download the file again",
    "torchscript": "export the model's class with torch.export.save, or to ONNX",
    "pt": "write a function that builds the module, name it as [model] entry, and give this file as weights",
    "safetensors": "write a function that builds the module, name it as [model] entry, and give this file as weights",
    "pt2": "name it as [model] path; its content decides, not its ending",
    "onnx": "name it as [model] path; its content decides, not its ending",
}


def sniff(path: Path | str) -> str:
    """What a file is, told by its content: a key of :data:`KINDS`.

    Raises:
        InputError: Missing, a directory, not a regular file, or not readable.
    """
    path = Path(path)
    head, size = _head(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if not size:
        return "empty"
    if text.startswith(b"version https://git-lfs"):
        return "lfs"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "html"
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if head.startswith(b"\x89HDF"):
        return "hdf5"
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[0] == 0x80 and len(head) > 2 and 2 <= head[1] <= 5:
        return "pt"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= max(size - 8, 0):
        return "safetensors"
    return "onnx" if _is_model_proto(path, size) else "unknown"


def require(path: Path | str, kind: str) -> None:
    """Raise unless the file is of that kind, and whole as far as its frame tells.

    Raises:
        InputError: What it is instead, or that it is cut off.
    """
    path = Path(path)
    found = sniff(path)
    if found != kind:
        what = KINDS[found]
        remedy = REMEDIES.get(found, f"give {KINDS[kind]}; if this should be one, write or download it again")
        raise InputError(f"this is {what}, not {KINDS[kind]}", where=str(path), remedy=remedy)
    if kind == "onnx" and not _is_whole(path):
        raise InputError(
            f"this ONNX file is cut off after {path.stat().st_size} bytes",
            where=str(path),
            remedy="copy, download or export it again",
        )


def _head(path: Path) -> tuple[bytes, int]:
    try:
        facts = path.stat()
        if stat.S_ISREG(facts.st_mode):
            with path.open("rb") as file:
                return file.read(HEAD), facts.st_size
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"can't read this file: {reason}", where=str(path), remedy="check the path and its permissions"
        ) from error
    what = "a directory" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
    raise InputError(f"this is {what}, not a model file", where=str(path), remedy="give the path of the model file")


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "zip"
    inner = {name.partition("/")[2] for name in names} | set(names)
    if "archive_format" in inner or any("serialized_exported_program" in name for name in inner):
        return "pt2"
    if "constants.pkl" in inner:
        return "torchscript"
    if "data.pkl" in inner:
        return "pt"
    return "keras" if "config.json" in inner and "metadata.json" in inner else "zip"


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, bool]]:
    """The top-level fields of a protobuf message: (number, whether it is whole); stops at the first that is not."""
    while (start := file.tell()) < size:
        tag = _varint(file)
        if tag is None:
            yield 0, False
            return
        number, wire = tag >> 3, tag & 7
        if (wire == 0) != (number in NUMBER_FIELDS):  # text that starts with a newline would read as field 1
            yield 0, False
            return
        if wire == 0:
            end: int | None = None if _varint(file) is None else file.tell()
        elif wire == 2:
            length = _varint(file)
            end = None if length is None else file.tell() + length
        else:
            end = start + {1: 9, 5: 5}.get(wire, size + 1)  # ModelProto has no other kind
        whole = end is not None and end <= size
        yield number, whole
        if not whole or end is None:
            return
        file.seek(end, os.SEEK_SET)


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
    return None


def _is_model_proto(path: Path, size: int) -> bool:
    """Whether the first fields are ones that ONNX's ModelProto has, and a graph is among them or still to come."""
    with path.open("rb") as file:
        for count, (number, whole) in enumerate(_fields(file, size)):
            if number not in MODEL_FIELDS:
                return False
            if number == GRAPH_FIELD or not whole or count > 64:
                return count > 0 or number == GRAPH_FIELD
    return True


def _is_whole(path: Path) -> bool:
    size = path.stat().st_size
    with path.open("rb") as file:
        seen = list(_fields(file, size))
    return all(whole for _, whole in seen) and any(number == GRAPH_FIELD for number, _ in seen)
