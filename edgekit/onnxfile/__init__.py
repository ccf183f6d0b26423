"""ONNX files that others made, taken in safely.

Nothing here trusts a file's name or content: what it is, is told by its bytes
(:mod:`edgekit.onnxfile.sniffing`); where its weights lie, is checked before a library opens them
(:mod:`edgekit.onnxfile.check`); and parsing happens in a child process, because the parsers are
native code that can abort. :func:`read_model` is the one way to load an ONNX file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.onnxfile import check as onnxcheck
from edgekit.onnxfile.adopt import normalize
from edgekit.onnxfile.cost import facts_job, macs, node_macs
from edgekit.onnxfile.sniffing import require, sniff

if TYPE_CHECKING:
    import onnx

    from edgekit.backends import Port

__all__ = [
    "external_files",
    "facts_job",
    "inputs",
    "macs",
    "node_macs",
    "normalize",
    "parameters",
    "read_model",
    "sniff",
    "write_model",
]

INLINE_BYTES = 2 * 1024**3 - 64 * 1024**2  # protobuf's limit of 2 GiB, less room for the graph
# Integers of 64 bits are shapes and axes, not weights.
WEIGHT_TYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT4", "UINT4", "INT2", "UINT2")


def read_model(path: Path | str, *, weights: bool = True) -> onnx.ModelProto:
    """Load an ONNX file with every check of :mod:`edgekit.onnxfile.check`.

    Call it in a child process for a file that edgekit did not write.

    Args:
        path: The file.
        weights: Whether weights that lie in files of their own are loaded too.

    Raises:
        InputError: What is wrong with the file.
    """
    path = Path(path)
    require(path, "onnx")
    proto = onnxcheck.parse(path)
    onnxcheck.check(proto, path)
    if weights:
        from onnx.external_data_helper import load_external_data_for_model

        load_external_data_for_model(proto, str(path.resolve().parent))
    return proto


def write_model(proto: onnx.ModelProto, path: Path | str) -> Path:
    """Write a model; its weights go beside it as ``NAME.data`` where protobuf's 2 GiB would not hold them.

    Write into a folder of your own; the store renames it into place when it is whole.
    """
    import onnx

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    if _weight_bytes(proto) > INLINE_BYTES:
        onnx.save(proto, str(path), save_as_external_data=True, location=data.name, size_threshold=1024)
    else:
        onnx.save(proto, str(path))
    return path


def inputs(path: Path | str) -> tuple[Port, ...]:
    """The inputs of an ONNX file: name, numpy dtype, and shape with None for a free size.

    Raises:
        InputError: See :func:`read_model`.
    """
    import onnx

    from edgekit.backends import Port

    graph = read_model(path, weights=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return tuple(
        Port(
            name=value.name,
            dtype=str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            shape=tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim),
        )
        for value in graph.input
        if value.name not in constants
    )


def external_files(path: Path | str) -> list[Path]:
    """The files beside an ONNX file that its weights lie in."""
    path = Path(path)
    require(path, "onnx")
    proto = onnxcheck.parse(path)
    onnxcheck.check(proto, path)
    return sorted({path.resolve().parent / place.location for place in onnxcheck.externals(proto)})


def parameters(path: Path | str) -> int:
    """Number of weights in the file: elements of its constants, without shapes, axes and lone scalars.

    Scales and zero points that quantization put in are not weights.
    """
    import onnx

    proto = read_model(path, weights=False)
    kinds = {getattr(onnx.TensorProto, name) for name in WEIGHT_TYPES if hasattr(onnx.TensorProto, name)}
    scales = {
        name for node in onnxcheck.nodes(proto) if "QuantizeLinear" in node.op_type for name in list(node.input)[1:3]
    }
    return sum(
        math.prod(tensor.dims)
        for tensor in onnxcheck.tensors(proto)
        if tensor.data_type in kinds and len(tensor.dims) and tensor.name not in scales
    )


def _weight_bytes(proto: onnx.ModelProto) -> int:
    return sum(len(t.raw_data) or 8 * math.prod(t.dims) for t in onnxcheck.tensors(proto))
