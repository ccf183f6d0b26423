"""An ONNX graph as the quantizers see it: constants lifted, names unique, shapes inferred."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import onnxfile
from edgekit.errors import InputError, StageError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    Array = np.ndarray[Any, Any]

QDQ_OPSET = 13  # the first with a scale for each channel
INLINE_BYTES = 1_500_000_000  # above this, weights go beside the file: protobuf ends at 2 GiB


def load(path: Path) -> ir.Model:
    """Read an ONNX file: functions inlined, Constant nodes as initializers, every name unique.

    Raises:
        InputError: Not readable, or its opset can't be converted.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    model = ir.from_proto(onnxfile.read_model(path))
    model = at_least(model, QDQ_OPSET, str(path))
    passes = ir.passes.Sequential(
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveInitializersFromInputsPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
        common.TopologicalSortPass(),
    )
    return infer(passes(model).model)


def at_least(model: ir.Model, opset: int, where: str = "") -> ir.Model:
    """The model at an opset, converted up if it is older.

    Raises:
        InputError: ONNX has no conversion for one of its operators.
    """
    import onnx_ir as ir
    from onnx import version_converter

    if model.opset_imports.get("", opset) >= opset:
        return model
    try:
        return ir.from_proto(version_converter.convert_version(ir.to_proto(model), opset))
    except Exception as error:
        raise InputError(
            f"its opset {model.opset_imports['']} can't be converted to {opset}: {str(error)[:300]}",
            where=where,
            remedy=f"export the model again with opset {opset} or above",
        ) from error


def infer(model: ir.Model) -> ir.Model:
    """Fill in types and shapes where ONNX's own inference can tell them."""
    from onnx_ir.passes import common

    return common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model).model


def save(model: ir.Model, path: Path) -> None:
    """Write the file; weights beyond protobuf's limit go into ``NAME.data`` beside it.

    Raises:
        StageError: The file can't be written.
    """
    import onnx
    import onnx_ir as ir

    from edgekit.onnxfile import edit
    from edgekit.store import write_error

    try:
        if weight_bytes(model) > INLINE_BYTES:
            ir.save(model, path, external_data=f"{path.name}.data")
        else:
            onnx.save(edit.without_inferable(ir.to_proto(model)), str(path))
    except OSError as error:
        raise write_error(path, error) from error


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer; None for anything else."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Register an initializer; where the name is there already, its value is taken."""
    import onnx_ir as ir

    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    graph.register_initializer(value)
    return value


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of a node's attribute, or ``default``."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def rank(value: ir.Value) -> int | None:
    """The number of axes, where known."""
    return None if value.shape is None else len(value.shape)


def integer_operators(model: ir.Model) -> dict[str, int]:
    """The operators by which some tool has put integers into this graph already, and how many of each."""
    marks = (
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
        "MatMulNBits",
    )
    found = Counter(n.op_type for n in model.graph if n.op_type in marks or n.op_type.startswith("QLinear"))
    return dict(sorted(found.items()))


def session(model: ir.Model, *, optimized: bool = False) -> Any:
    """An ONNX Runtime CPU session of the model as it stands.

    Raises:
        StageError: ONNX Runtime refuses the graph (its own message names the node).
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other work shares the cores
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise StageError(
                f"ONNX Runtime does not load this graph: {str(error)[:600]}",
                remedy="the message names the node; replace the operator, or export again",
            ) from error
