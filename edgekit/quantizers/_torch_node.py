"""One ONNX node, read: what a rule of the torch run is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgekit.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    import onnx

# What a rule returns: the node's inputs (None for one left out) → its output, or a tuple of them.
Call = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node, with what is known of it before any input.

    Attributes:
        op: Operator, ``domain::Name`` outside ONNX's own domain.
        name: As the file has it, or its first output's.
        inputs: Names; empty for one left out. outputs: Names.
        attributes: Numbers, strings and arrays by name.
        constants: The inputs whose value is fixed, by position.
        opset: Of its domain.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    opset: int = 18

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value, or ``default``."""
        return self.attributes.get(name, default)

    def has(self, index: int) -> bool:
        """Whether that input is given."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def values(self, index: int, attribute: str = "") -> Callable[[Sequence[Any]], Any]:
        """How to get an input as Python numbers: shapes, axes, pads.

        Older operator sets have some of them as attributes; a constant is read once, here.

        Returns:
            A function of the node's inputs; it gives a number, a (nested) list, or None where the input is left out.
        """
        if attribute and attribute in self.attributes:
            fixed = self.attributes[attribute]
            return lambda inputs: fixed
        if index in self.constants:
            known = self.constants[index].tolist()
            return lambda inputs: known
        if not self.has(index):
            return lambda inputs: None
        return lambda inputs: inputs[index].tolist()

    def refuse(self, why: str) -> StageError:
        """The error for a variant of the operator that can't be run in torch."""
        return unsupported(self.op, self.name, why)


def unsupported(op: str, name: str, why: str = "") -> StageError:
    """The one wording for what the torch run of an ONNX graph lacks."""
    return StageError(
        f"the node '{name}' ({op}{': ' + why if why else ''}) can't be run in torch, "
        "so this graph can't be fine-tuned; everything else works",
        where="quantization-aware training",
        remedy="use method = 'static', or export the model without this operator",
    )


def read(proto: onnx.ModelProto) -> tuple[list[Node], dict[str, np.ndarray[Any, Any]]]:
    """The nodes of a model in order, functions inlined, and its constants by name."""
    from onnx import inliner, numpy_helper

    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    outputs = {value.name for value in proto.graph.output}
    same: dict[str, str] = {}  # an Identity of a constant is that constant: exporters tie equal ones so
    nodes = []
    for node in proto.graph.node:
        inputs = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and inputs[0] in constants and node.output[0] not in outputs:
            same[node.output[0]] = inputs[0]
            continue
        attributes = {a.name: attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = constant_value(attributes, node.name)
            continue
        domain = node.domain or "ai.onnx"
        nodes.append(
            Node(
                op=node.op_type if domain == "ai.onnx" or node.op_type in SHARED else f"{domain}::{node.op_type}",
                name=node.name or node.output[0],
                inputs=tuple(inputs),
                outputs=tuple(node.output),
                attributes=attributes,
                constants={i: constants[name] for i, name in enumerate(inputs) if name in constants},
                opset=opsets.get(domain, 1),
            )
        )
    return nodes, constants


# Operators that runtimes offered under their own domain before ONNX had the types, with the same meaning.
SHARED = ("QuantizeLinear", "DequantizeLinear")


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """An attribute as a Python value: strings decoded, tensors as arrays."""
    from onnx import helper, numpy_helper

    value = helper.get_attribute_value(attribute)
    if attribute.type == attribute.TENSOR:
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list | tuple) or hasattr(value, "append"):
        return [v.decode() if isinstance(v, bytes) else v for v in value]
    return value


# The forms of a Constant node, and the types of those that are no tensors.
CONSTANTS = {
    "value": "",
    "value_int": "int64",
    "value_ints": "int64",
    "value_float": "float32",
    "value_floats": "float32",
}


def constant_value(attributes: Mapping[str, Any], name: str) -> np.ndarray[Any, Any]:
    """The value of a Constant node, in whichever form it is written."""
    import numpy as np

    for form, dtype in CONSTANTS.items():
        if form in attributes:
            return np.asarray(attributes[form], dtype or None)
    raise unsupported("Constant", name, "of strings or sparse")
