"""The checks that an ONNX file must pass before a library works on it.

Parsers, checkers and runtimes trust what a file says of itself: where its weights lie on
this disk, how large its tensors are, in which order its nodes run. Each was a way to read
foreign files, to exhaust memory or to abort the process (CVE-2024-27318, CVE-2026-27489,
CVE-2026-34446, CVE-2026-34447, onnx#8481), so they are checked here, in Python.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 1  # protobuf's own limit
MAX_ELEMENTS = 2**31  # of one tensor: 8 GiB in fp32, beyond any edge device
_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
AGAIN = "export the model again; if it was downloaded, compare its checksum with the publisher's"


@dataclass(frozen=True)
class External:
    """Where a tensor's bytes lie outside the ONNX file."""

    tensor: str
    location: str
    offset: int
    length: int


def parse(path: Path) -> onnx.ModelProto:
    """Parse without touching any other file.

    Raises:
        InputError: Not protobuf, nested too deep, or too large.
    """
    import onnx

    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _wrong(path, f"this file has {size} bytes; ONNX files end at 2 GiB", "save it with external data")
    try:
        return onnx.ModelProto.FromString(path.read_bytes())
    except Exception as error:  # the decoder's own type is protobuf's business
        raise _wrong(path, "this is no sound ONNX file: it can't be parsed (damaged, or nested too deep)") from error


def check(proto: onnx.ModelProto, path: Path) -> None:
    """Check a parsed model: its opsets, its tensors, the files they lie in, its sizes and its graph.

    Raises:
        InputError: The first thing that is wrong.
    """
    if not proto.graph.node or not proto.graph.output:
        missing = "nodes" if not proto.graph.node else "outputs"
        raise _wrong(path, f"this ONNX model has no {missing}")
    if not proto.opset_import:
        raise _wrong(path, "this ONNX model names no opset")
    for tensor in tensors(proto):
        _check_tensor(tensor, path)
    _check_externals(proto, path)
    for graph in graphs(proto):
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_value(value, path)
    _check_order(proto.graph, set(), path)


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every graph inside its nodes (branches, loop bodies)."""
    waiting = [proto.graph]
    for function in proto.functions:
        waiting += [g for node in function.node for g in subgraphs(node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [inner for node in graph.node for inner in subgraphs(node)]


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    return [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of inner graphs and functions too."""
    for graph in graphs(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant tensor: initializers and attributes, of inner graphs and functions too."""
    for graph in graphs(proto):
        yield from graph.initializer
    for node in nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def externals(proto: onnx.ModelProto) -> list[External]:
    """Where each tensor that lies in another file is to be found."""
    return [_external(tensor) for tensor in tensors(proto) if tensor.data_location == tensor.EXTERNAL]


def _external(tensor: onnx.TensorProto) -> External:
    facts = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(facts.get("offset", 0)), int(facts.get("length", _bytes(tensor)))
    except ValueError:
        offset = length = -1
    return External(tensor.name, facts.get("location", ""), offset, length)


def _bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes the elements take; 0 where the type has no fixed size (strings)."""
    return -(-math.prod(tensor.dims) * _bits(tensor.data_type) // 8)


def _bits(data_type: int) -> int:
    import numpy as np
    import onnx

    name = onnx.TensorProto.DataType.Name(data_type)
    if name.endswith("INT4") or name == "FLOAT4E2M1":
        return 4
    if name.endswith("INT2"):
        return 2
    if name in ("STRING", "UNDEFINED"):
        return 0
    return 8 * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    import onnx

    where = f"{path}, tensor {shown(tensor.name)}"
    if tensor.data_type not in onnx.TensorProto.DataType.values() or tensor.data_type == onnx.TensorProto.UNDEFINED:
        raise _wrong(where, f"data type {tensor.data_type} does not exist")
    if any(not 0 <= size <= MAX_ELEMENTS for size in tensor.dims) or math.prod(tensor.dims) > MAX_ELEMENTS:
        raise _wrong(where, f"its shape {list(tensor.dims)} is impossible")
    expected = _bytes(tensor)
    inside = tensor.data_location != tensor.EXTERNAL and not tensor.HasField("raw_data")
    if inside and math.prod(tensor.dims) and not any(getattr(tensor, field) for field in _TYPED_FIELDS):
        raise _wrong(where, "it holds no values")
    if tensor.HasField("raw_data") and tensor.data_location != tensor.EXTERNAL and len(tensor.raw_data) != expected:
        raise _wrong(where, f"it holds {len(tensor.raw_data)} bytes, but its shape needs {expected}")


def _check_externals(proto: onnx.ModelProto, path: Path) -> None:
    for graph in graphs(proto):
        sparse = list(graph.sparse_initializer)
        sparse += [a.sparse_tensor for n in graph.node for a in n.attribute if a.HasField("sparse_tensor")]
        for tensor in sparse:
            if {tensor.values.data_location, tensor.indices.data_location} != {tensor.values.DEFAULT}:
                raise _wrong(path, "a sparse tensor lies in another file, which no runtime checks", "store it inside")
    places: dict[Path, list[External]] = {}
    for tensor in tensors(proto):
        if tensor.data_location == tensor.EXTERNAL:
            place = _external(tensor)
            file = _contained(place, path)
            if place.length != (needed := _bytes(tensor)):
                what = f"its shape needs {needed} bytes, but {place.length} are named"
                raise _wrong(f"{path}, tensor {shown(place.tensor)}", what)
            places.setdefault(file, []).append(place)
    for file, within in places.items():
        _check_ranges(file, within, path)


def _contained(place: External, path: Path) -> Path:
    """The external file, if it is a plain file of its own inside the model's folder."""
    where = f"{path}, tensor {shown(place.tensor)}"
    remedy = "save the model again with its external data beside it"
    folder = path.resolve().parent
    parts = Path(place.location).parts
    if not place.location or "\0" in place.location or Path(place.location).is_absolute() or ".." in parts:
        raise _wrong(where, f"its data lie outside the model's folder: {shown(place.location)}", remedy)
    file = folder
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise _wrong(where, f"its data lie behind a link: {shown(place.location)}", remedy)
    if not file.is_file() or not file.resolve().is_relative_to(folder):
        raise _wrong(where, f"its data file is missing: {shown(place.location)}", "put it beside the ONNX file")
    if file.lstat().st_nlink != 1:
        raise _wrong(where, f"its data file has a second name (a hard link): {shown(place.location)}", "copy the file")
    return file


def _check_ranges(file: Path, within: list[External], path: Path) -> None:
    size = file.stat().st_size
    ranges = sorted({(p.offset, p.offset + p.length): p for p in within}.items())
    reached = 0
    for (start, end), place in ranges:
        where = f"{path}, tensor {shown(place.tensor)}"
        if start < 0 or end < start or end > size:
            raise _wrong(where, f"bytes {start} to {end} of {file.name} are named, which has {size}")
        if start < reached:
            raise _wrong(where, f"its bytes in {file.name} overlap another tensor's")
        reached = end


def _check_value(value: onnx.ValueInfoProto, path: Path) -> None:
    sizes = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
    if any(size < -1 for size in sizes) or math.prod(max(size, 1) for size in sizes) > MAX_ELEMENTS:
        raise _wrong(f"{path}, value {shown(value.name)}", f"its shape {sizes} is impossible")


def _check_order(graph: onnx.GraphProto, outer: set[str], path: Path) -> None:
    """Every value is made once, every input is made by someone, and no node waits for itself."""
    made: dict[str, int] = {}
    known = outer | {v.name for v in graph.input} | {t.name for t in graph.initializer}
    known |= {t.values.name for t in graph.sparse_initializer}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in made or name in known:
                raise _wrong(f"{path}, node {shown(node.name)}", f"the value {shown(name)} is made twice")
            made[name] = index
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in made and name not in known:
                raise _wrong(f"{path}, node {shown(node.name)}", f"its input {shown(name)} is made by no node")
    for value in graph.output:
        if value.name not in made and value.name not in known:
            raise _wrong(path, f"the output {shown(value.name)} is made by no node")
    if (stuck := len(graph.node) - len(order(graph))) > 0:
        raise _wrong(path, f"the graph has a cycle: {stuck} nodes wait for one another")
    for node in graph.node:
        for inner in subgraphs(node):
            _check_order(inner, known | set(made), path)


def order(graph: onnx.GraphProto) -> list[int]:
    """The nodes' indices in an order in which they can run; those on or behind a cycle are left out."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    waits: list[int] = []
    followers: dict[int, list[int]] = {}
    for index, node in enumerate(graph.node):
        before = {makers[name] for name in reads(node) if name in makers}
        waits.append(len(before))
        for maker in before:
            followers.setdefault(maker, []).append(index)
    ready = [index for index, count in enumerate(waits) if not count]
    done: list[int] = []
    while ready:  # a heap: the first in the file goes first, so an ordered graph stays as it is
        done.append(index := heapq.heappop(ready))
        for follower in followers.get(index, ()):
            waits[follower] -= 1
            if not waits[follower]:
                heapq.heappush(ready, follower)
    return done


def reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads: its inputs, and what its inner graphs take from around them."""
    names = set(filter(None, node.input))
    for graph in subgraphs(node):
        inside = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        inside |= {name for inner in graph.node for name in inner.output}
        taken = {name for inner in graph.node for name in reads(inner)} | {v.name for v in graph.output}
        names |= taken - inside
    return names


def shown(name: str) -> str:
    """A name from a foreign file, fit for a message: quoted, escaped, and cut."""
    text = name if len(name) <= 80 else name[:77] + "…"
    return repr(text)


def _wrong(where: Any, problem: str, remedy: str = AGAIN) -> InputError:
    return InputError(problem, where=str(where), remedy=remedy)
