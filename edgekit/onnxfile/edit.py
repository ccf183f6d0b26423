"""Small edits on an ONNX graph in memory (onnx-ir): names, free sizes, fixed shapes, preprocessing in front."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.onnxfile.check import shown
from edgekit.onnxfile.cost import SHAPES_KEY

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from edgekit.recipe import Preprocess

MODULE_KEY = "edgekit.module"  # of a node: the user's module it came from
SOURCE_KEY = "edgekit.source"  # of a node: the user's file and line


def values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value of the model, constants and inner graphs' values too."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from (value for value in node.outputs if value is not None)


def name_free_sizes(model: ir.Model, dynamic: Mapping[str, Mapping[int, str]]) -> None:
    """Call the free sizes of the inputs by the user's names, wherever they or terms with them stand.

    Args:
        model: Changed in place.
        dynamic: Input name → axis → name.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in dynamic.get(value.name or "", {}).items():
            if value.shape is not None and (symbol := _symbol(value.shape[int(axis)])):
                names.setdefault(symbol, name)
    replace_sizes(model, names)


def replace_sizes(model: ir.Model, sizes: Mapping[str, str | int]) -> None:
    """Put a name or a number in place of a free size; a term that loses its last name becomes unknown."""
    import onnx_ir as ir

    def replaced(size: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        symbol = _symbol(size)
        if symbol is None:
            return size
        if symbol in sizes:
            chosen = sizes[symbol]
            return chosen if isinstance(chosen, int) else ir.SymbolicDim(chosen)
        text = re.sub(r"[A-Za-z_]\w*", lambda m: str(sizes.get(m[0], m[0])), symbol)
        return ir.SymbolicDim(text if re.search(r"[A-Za-z_]", text) else None)

    for value in values(model):
        if value.shape is not None and any(_symbol(size) for size in value.shape):
            value.shape = ir.Shape([replaced(size) for size in value.shape])


def _symbol(size: Any) -> str | None:
    return None if isinstance(size, int) else size.value


def name_ports(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs their names; whatever else had such a name gets another.

    Raises:
        InputError: An input and an output are to have one name, or the counts differ.
    """
    graph = model.graph
    if both := set(inputs) & set(outputs):
        raise InputError(
            f"an input and an output are both named {shown(min(both))}", remedy="return the output under another name"
        )
    if (len(inputs), len(outputs)) != (len(graph.inputs), len(graph.outputs)):
        raise InputError(
            f"the graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; "
            f"{len(inputs)} and {len(outputs)} were expected",
            remedy="pass every input as a tensor, and return tensors",
        )
    _separate_outputs(graph)
    wanted = dict(zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True))
    taken = {value.name for value in values(model)} | set(wanted.values())
    for value in list(values(model)):
        if value not in wanted and value.name in wanted.values():
            value.name = _fresh(value.name, taken)
    for value, name in wanted.items():
        value.name = name


def _separate_outputs(graph: ir.Graph) -> None:
    """Let each output be a value of its own: no input, no constant, none twice."""
    import onnx_ir as ir

    for index, value in enumerate(list(graph.outputs)):
        if value.is_graph_input() or value.is_initializer() or value in list(graph.outputs)[:index]:
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]


def unique_names(model: ir.Model) -> None:
    """Name every node, each differently."""
    taken: set[str] = set()
    for graph in model.graphs():
        for node in graph:
            if not node.name or node.name in taken:
                node.name = _fresh(node.name or f"{node.op_type}_{node.outputs[0].name if node.outputs else ''}", taken)
            taken.add(node.name)


def _fresh(name: str | None, taken: set[str | None] | set[str]) -> str:
    count = 1
    while (candidate := f"{name}_{count}") in taken:
        count += 1
    taken.add(candidate)
    return candidate


def keep_origins(model: ir.Model) -> None:
    """Keep of the exporter's notes what a user can read: module and source line of each node.

    The rest (a kilobyte a node, with paths of this machine) does not belong into what ships.
    """
    for graph in model.graphs():
        graph.metadata_props.clear()
        for node in graph:
            module, source = origin_of(node.metadata_props)
            module = _owner(node) or module
            node.metadata_props.clear()
            if module:
                node.metadata_props[MODULE_KEY] = module
            if source:
                node.metadata_props[SOURCE_KEY] = source
    for value in values(model):
        value.metadata_props.clear()
    model.metadata_props.clear()


def _owner(node: ir.Node) -> str:
    """The module whose weight a node uses; a fused node would else be told as the normalization it took in."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or not weight.is_initializer() or not (weight.name or "").endswith(".weight"):
        return ""
    return (weight.name or "").removesuffix(".weight")


def origin_of(notes: Mapping[str, str]) -> tuple[str, str]:
    """The user's module and ``file:line`` in a node's notes, ours or the exporter's; each may be empty."""
    import ast

    if MODULE_KEY in notes or SOURCE_KEY in notes:
        return notes.get(MODULE_KEY, ""), notes.get(SOURCE_KEY, "")
    try:
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    return (scopes[-2] if len(scopes) > 1 else ""), source_line(notes.get("pkg.torch.onnx.stack_trace", ""))


def source_line(trace: str) -> str:
    """``file:line`` of the innermost frame that is the user's own, from a torch stack trace."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [(file, line) for file, line in frames if "site-packages" not in file and not file.startswith("<")]
    return f"{own[-1][0].rpartition('/')[2]}:{own[-1][1]}" if own else ""


def carry_shapes(model: ir.Model, example: Mapping[str, Sequence[int]]) -> None:
    """Note in the file the input shapes of one sample, by which its costs are counted."""
    model.metadata_props[SHAPES_KEY] = json.dumps({name: list(shape) for name, shape in example.items()})


def shapes_for(model: ir.Model, sizes: Mapping[str, int]) -> dict[str, list[int]]:
    """The shape of one sample for each input whose free sizes are all told; the first size may be the batch.

    Raises:
        InputError: No input has a free size of that name.
    """
    symbols = {symbol for value in model.graph.inputs for size in value.shape or [] if (symbol := _symbol(size))}
    if unknown := sorted(set(sizes) - symbols):
        raise InputError(
            f"[export] sizes names the free size {shown(unknown[0])}, which the model does not have",
            remedy=f"its free sizes are {', '.join(map(shown, sorted(symbols))) or 'none'}",
        )
    found = {}
    for value in model.graph.inputs:
        shape = [_told(size, sizes, 1 if axis == 0 else None) for axis, size in enumerate(value.shape or [])]
        if value.shape is not None and None not in shape:
            found[value.name or ""] = [size for size in shape if size is not None]
    return found


def _told(size: Any, sizes: Mapping[str, int], default: int | None) -> int | None:
    symbol = _symbol(size)
    return size if symbol is None and isinstance(size, int) else sizes.get(symbol or "", default)


def fix_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Fix the shapes of inputs, as targets without free sizes need them.

    Raises:
        InputError: No such input, another rank, or a size that the model has fixed to another value.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    sizes: dict[str, str | int] = {}
    for name, shape in shapes.items():
        value = inputs.get(name)
        if value is None:
            raise InputError(
                f"[export] shapes names the input {shown(name)}, which the model does not have",
                remedy=f"its inputs are {', '.join(shown(n or '') for n in inputs)}",
            )
        own = list(value.shape or [])
        if len(own) != len(shape) or any(isinstance(o, int) and o != s for o, s in zip(own, shape, strict=False)):
            text = " × ".join(str(size) if isinstance(size, int) else (size.value or "any") for size in own)
            raise InputError(
                f"[export] shapes wants {list(shape)} for the input {shown(name)}, which is {text}",
                remedy="give every size; sizes that the model fixes can't be changed here",
            )
        for size, number in zip(own, shape, strict=True):
            if (symbol := _symbol(size)) and sizes.setdefault(symbol, number) != number:
                raise InputError(
                    f"[export] shapes gives the size '{symbol}' two values: {sizes[symbol]} and {number}",
                    remedy="give one value to sizes that are the same in the model",
                )
    replace_sizes(model, sizes)


def put_preprocessing_in_front(model: ir.Model, settings: Preprocess) -> None:
    """Let the graph take raw uint8: cast, scale, mean and deviation, and layout inside, before the first node.

    Raises:
        InputError: No such input, not a float one, or statistics for another number of channels.
    """
    import numpy as np
    import onnx_ir as ir

    value = _chosen_input(model, settings)
    shape = value.shape
    if shape is None or len(shape) < 2 or value.dtype is None or not value.dtype.is_floating_point():
        raise InputError(
            f"the input {shown(value.name or '')} is no float tensor with channels",
            remedy="take [export.preprocess] out, or name another input with input = …",
        )
    rank, channels = len(shape), shape[1]
    factor, offset = affine(settings, channels if isinstance(channels, int) else None)
    raw = ir.Value(name=value.name, type=ir.TensorType(ir.DataType.UINT8))
    order = [0, *range(2, rank), 1] if settings.layout == "nhwc" else list(range(rank))
    raw.shape = ir.Shape([shape[axis] for axis in order])
    spread = (1, -1, *[1] * (rank - 2))
    constants = [np.reshape(c, spread).astype(value.dtype.numpy()) for c in (factor, offset)]
    value.name = f"{raw.name}_float"
    nodes = [ir.node("Cast", [raw], {"to": value.dtype.value})]
    if settings.layout == "nhwc":
        nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [0, rank - 1, *range(1, rank - 1)]}))
    for kind, constant in zip(("Mul", "Add"), constants, strict=True):
        weight = ir.Value(name=f"{raw.name}_{kind.lower()}", const_value=ir.tensor(constant))
        weight.shape, weight.type = ir.Shape(constant.shape), ir.TensorType(value.dtype)
        model.graph.register_initializer(weight)
        nodes.append(ir.node(kind, [nodes[-1].outputs[0], weight]))
    for node in nodes:
        node.outputs[0].name = f"{raw.name}_{node.op_type.lower()}ed"
        node.name = f"{raw.name}/{node.op_type}"
        node.outputs[0].type = ir.TensorType(value.dtype)
    value.replace_all_uses_with(nodes[-1].outputs[0])
    nodes[-1].outputs[0].shape = shape
    index = list(model.graph.inputs).index(value)
    model.graph.inputs[index] = raw
    model.graph.insert_before(model.graph[0], nodes)


def affine(settings: Preprocess, channels: int | None) -> tuple[Any, Any]:
    """``(raw * scale - mean) / std`` as ``raw * factor + offset``: two float64 arrays, one value or one a channel.

    Raises:
        InputError: Statistics for another number of channels than the input has.
    """
    import numpy as np

    mean, std = np.asarray(settings.mean, np.float64), np.asarray(settings.std, np.float64)
    counts = {len(mean), len(std)} - {1}
    if len(counts) > 1 or (channels is not None and counts - {channels}):
        raise InputError(
            f"[export.preprocess] has {len(mean)} means and {len(std)} deviations; the input has "
            f"{channels if channels is not None else 'one number of'} channels",
            remedy="give one value, or one for each channel",
        )
    return settings.scale / std, -mean / std


def _chosen_input(model: ir.Model, settings: Preprocess) -> ir.Value:
    names = [value.name or "" for value in model.graph.inputs]
    return model.graph.inputs[chosen_index(names, settings)]


def chosen_index(names: Sequence[str], settings: Preprocess) -> int:
    """Which of the inputs preprocessing concerns.

    Raises:
        InputError: No such input, or several and none named.
    """
    if settings.input in names:
        return list(names).index(settings.input)
    if settings.input or len(names) != 1:
        problem = f"there is no input {shown(settings.input)}" if settings.input else "the model has several inputs"
        raise InputError(
            f"[export.preprocess] {problem}", remedy=f"name one with input = …: {', '.join(map(shown, names))}"
        )
    return 0


def without_inferable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model (changed in place) without the types and shapes that every reader works out.

    They are those of constants and of what ONNX's own operators make: in a small integer model a third of all that
    is not weights.
    """
    graph = proto.graph
    foreign = {name for node in graph.node if node.domain not in ("", "ai.onnx") for name in node.output}
    kept = [value for value in graph.value_info if value.name in foreign]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return proto


def without_bfloat16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model (changed in place) that computes in float32 what it says in bfloat16: its weights stay rounded."""
    from onnx import TensorProto, numpy_helper

    def widened(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))

    for tensor in proto.graph.initializer:
        widened(tensor)
    for node in proto.graph.node:
        for attribute in node.attribute:
            widened(attribute.t)
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    del proto.graph.value_info[:]
    return proto


def restore_notes(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Give a rewritten graph the notes of the one it came from, node by node by the values they make."""
    notes = {name: node.metadata_props for node in before.graph.node for name in node.output if name}
    for node in after.graph.node:
        if not node.metadata_props and (kept := next((notes[n] for n in node.output if n in notes), None)):
            node.metadata_props.extend(kept)
    del after.metadata_props[:]
    after.metadata_props.extend(before.metadata_props)
