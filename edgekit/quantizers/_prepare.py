"""Rules that bring a float graph into the form that integer kernels know; each keeps what is computed.

A rule's name stands in the target's scheme (``prepare``), where a measurement showed that it pays there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgekit.quantizers import _graph
from edgekit.quantizers._graph import attribute, constant
from edgekit.quantizers._select import select_early

if TYPE_CHECKING:
    import onnx_ir as ir


def prepare(model: ir.Model, rules: Sequence[str]) -> dict[str, int]:
    """Apply rules in place; returns how often each was used."""
    used = {}
    for name in rules:
        used[name] = RULES[name](model)
        if used[name]:
            _graph.infer(model)
    return {name: count for name, count in used.items() if count}


def mean_to_pool(model: ir.Model) -> int:
    """A ReduceMean over all spatial axes is a GlobalAveragePool (ONNX Runtime has no integer ReduceMean)."""
    import onnx_ir as ir

    count = 0
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "ReduceMean" else None
        axes = _axes(node) if value is not None else None
        size = _graph.rank(value) if value is not None else None
        if axes is None or size is None or size < 3 or sorted(a % size for a in axes) != list(range(2, size)):
            continue
        pool = ir.node("GlobalAveragePool", [value], name=f"{node.name}_pool")
        made = [pool]
        if not attribute(node, "keepdims", 1):
            made.append(ir.node("Flatten", [pool.outputs[0]], {"axis": 1}, name=f"{node.name}_flatten"))
        pool.outputs[0].name = f"{node.name}_pooled"
        _replace(model.graph, node, made)
        count += 1
    return count


def shortcut_to_conv(model: ir.Model) -> int:
    """A strided Slice and a zero Pad of channels (the CIFAR ResNets' shortcut) are one pointwise convolution.

    It is exact, its weights are ones and zeros, and it stays in integers and in the kernels' own layout;
    Slice and Pad alone cost conversions both ways.
    """
    import numpy as np
    import onnx_ir as ir

    count = 0
    for pad in [node for node in model.graph if node.op_type == "Pad"]:
        crop = pad.inputs[0].producer() if pad.inputs[0] is not None else None
        channels = _channel_padding(pad)
        step = _spatial_step(crop) if crop is not None and len(crop.outputs[0].consumers()) == 1 else None
        if channels is None or step is None or crop is None:
            continue
        before, kept, after = channels
        weight = np.zeros((before + kept + after, kept, 1, 1), np.float32)
        weight[np.arange(kept) + before, np.arange(kept)] = 1
        value = _graph.add_constant(model.graph, f"{pad.name}_weight", weight)
        conv = ir.node("Conv", [crop.inputs[0], value], {"strides": [step, step]}, name=f"{pad.name}_conv")
        _replace(model.graph, pad, [conv])
        model.graph.remove(crop, safe=True)
        count += 1
    return count


def _channel_padding(pad: ir.Node) -> tuple[int, int, int] | None:
    """``(before, channels, after)`` of a Pad that adds zero channels to an (N, C, H, W) and nothing else."""
    value = pad.inputs[0]
    amounts = constant(pad.inputs[1]) if len(pad.inputs) > 1 else None
    fill = constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else None
    if (len(pad.inputs) > 3 and pad.inputs[3] is not None) or attribute(pad, "mode", "constant") != "constant":
        return None
    if (
        value is None
        or value.shape is None
        or amounts is None
        or len(amounts) != 8
        or (fill is not None and fill.any())
    ):
        return None
    before, after, channels = int(amounts[1]), int(amounts[5]), value.shape[1]
    others = [a for i, a in enumerate(amounts) if i not in (1, 5)]
    if any(others) or min(before, after) < 0 or not isinstance(channels, int):
        return None
    return before, channels, after


def _spatial_step(crop: ir.Node) -> int | None:
    """The step of a Slice that takes every ``step``-th row and column of all of an (N, C, H, W)."""
    value = crop.inputs[0]
    if crop.op_type != "Slice" or value is None or _graph.rank(value) != 4 or len(crop.inputs) < 5:
        return None
    starts, ends, axes, steps = (constant(v) for v in crop.inputs[1:5])
    if starts is None or ends is None or axes is None or steps is None or value.shape is None:
        return None
    if sorted(int(a) % 4 for a in axes) != [2, 3] or starts.any() or len(set(steps.tolist())) != 1:
        return None
    sizes = [value.shape[int(a)] for a in axes]
    whole = all(int(e) >= (s if isinstance(s, int) else 2**31 - 1) for e, s in zip(ends, sizes, strict=True))
    return int(steps[0]) if whole and steps[0] > 0 else None


def pad_channels(model: ir.Model) -> int:
    """A first convolution of 3 channels gets a fourth of zeros: the kernels add products in groups of four.

    With the padding, on 224 × 224: MobileNet's 3 × 3 430 → 295 microseconds, ResNet's 7 × 7 1349 → 1222; but a patch
    embedding's 16 × 16 245 → 319, so windows that do not overlap are left alone.
    """
    import numpy as np
    import onnx_ir as ir

    count = 0
    for node in list(model.graph):
        weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
        source = node.inputs[0] if node.inputs else None
        if weight is None or weight.ndim != 4 or source is None or not source.is_graph_input():
            continue
        missing = -weight.shape[1] % 4
        apart = list(attribute(node, "strides", [1, 1])) == list(weight.shape[2:])
        if not missing or apart or attribute(node, "group", 1) != 1:
            continue
        amounts = _graph.add_constant(
            model.graph, f"{node.name}_pads", np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64)
        )
        pad = ir.node("Pad", [source, amounts], name=f"{node.name}_pad")
        pad.outputs[0].name = f"{node.name}_padded"
        model.graph.insert_before(node, pad)
        wide = np.pad(weight, [(0, 0), (0, missing), (0, 0), (0, 0)])
        node.replace_input_with(0, pad.outputs[0])
        node.replace_input_with(1, _graph.add_constant(model.graph, f"{node.name}_wide", wide))
        count += 1
    return count


def unfold_transpose(model: ir.Model) -> int:
    """Reshape → Transpose of the last two axes → Reshape (attention's keys, as exported) is Reshape → Transpose.

    What is left is a Transpose right before a MatMul, which ONNX Runtime takes into the product.
    """
    import numpy as np
    import onnx_ir as ir

    count = 0
    for last in [node for node in model.graph if node.op_type == "Reshape"]:
        turn = last.inputs[0].producer() if last.inputs[0] is not None else None
        first = turn.inputs[0].producer() if turn is not None and turn.inputs[0] is not None else None
        shape = constant(last.inputs[1])
        if turn is None or first is None or shape is None or len(shape) < 3 or min(shape[-2:]) < 1:
            continue
        if (turn.op_type, first.op_type) != ("Transpose", "Reshape") or attribute(turn, "perm", None) != (0, 2, 1):
            continue
        inner = first.outputs[0].shape
        if inner is None or [inner[2], inner[1]] != list(shape[-2:]) or len(turn.outputs[0].consumers()) > 1:
            continue
        unfolded = _graph.add_constant(
            model.graph, f"{last.name}_unfolded", np.array([*shape[:-2], shape[-1], shape[-2]], np.int64)
        )
        reshape = ir.node("Reshape", [first.inputs[0], unfolded], name=f"{last.name}_unfold")
        reshape.outputs[0].name = f"{last.name}_unfold"
        perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        _replace(model.graph, last, [reshape, ir.node("Transpose", reshape.outputs, {"perm": perm}, name=last.name)])
        count += 1
    return count


def gemm_to_matmul(model: ir.Model) -> int:
    """Reshape → Gemm → Reshape (a Linear of rows, as onnxsim writes it) is MatMul → Add.

    The Reshapes keep OpenVINO from fusing what is around the product, and :func:`select_early` ends at them.
    """
    import numpy as np
    import onnx_ir as ir

    count = 0
    for node in [node for node in model.graph if node.op_type == "Gemm"]:
        flatten = node.inputs[0].producer() if node.inputs[0] is not None else None
        readers, weight = node.outputs[0].consumers(), constant(node.inputs[1])
        if flatten is None or len(readers) != 1 or weight is None or attribute(node, "transA", 0):
            continue
        if (flatten.op_type, readers[0].op_type) != ("Reshape", "Reshape") or node.outputs[0].is_graph_output():
            continue
        if not _same_rows(flatten, readers[0]):
            continue
        if {attribute(node, name, 1.0) for name in ("alpha", "beta")} != {1.0}:
            continue
        rows = node.inputs[1]
        if attribute(node, "transB", 0):
            rows = _graph.add_constant(model.graph, f"{node.name}_rows", np.ascontiguousarray(weight.T))
        made = [ir.node("MatMul", [flatten.inputs[0], rows], name=node.name)]
        made[0].outputs[0].name = f"{node.name}_product"
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            made.append(ir.node("Add", [made[0].outputs[0], node.inputs[2]], name=f"{node.name}_add"))
        _replace(model.graph, readers[0], made)
        model.graph.remove(node, safe=True)
        if not flatten.outputs[0].consumers():
            model.graph.remove(flatten, safe=True)
        count += 1
    return count


def _same_rows(flatten: ir.Node, unflatten: ir.Node) -> bool:
    """Whether rows stay rows: the last axis is kept, and all others are in the end as they were.

    As many elements are in them, so one may be unknown.
    """
    values = (flatten.inputs[0], flatten.outputs[0], unflatten.outputs[0])
    before, rows, after = (list(v.shape) if v is not None and v.shape is not None else [] for v in values)
    if not len(before) == len(after) > 2 == len(rows) or before[-1] != rows[-1] or not isinstance(rows[-1], int):
        return False
    pairs = list(zip(before[:-1], after[:-1], strict=True))
    known = [a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
    return all(known) and len(known) >= len(pairs) - 1


RULES: dict[str, Callable[[ir.Model], int]] = {
    "gemm_to_matmul": gemm_to_matmul,
    "mean_to_pool": mean_to_pool,
    "pad_channels": pad_channels,
    "select_early": select_early,
    "shortcut_to_conv": shortcut_to_conv,
    "unfold_transpose": unfold_transpose,
}


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of a reduction: an attribute up to opset 17, an input since."""
    if (axes := attribute(node, "axes", None)) is not None:
        return list(axes)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if given is None else [int(a) for a in given]


def _replace(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put nodes in an old one's place; the last one's first output stands for the old one's."""
    value, fresh = old.outputs[0], new[-1].outputs[0]
    name, fresh.type, fresh.shape = value.name, value.type, value.shape
    graph.insert_before(old, new)
    value.replace_all_uses_with(fresh, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    fresh.name = name
