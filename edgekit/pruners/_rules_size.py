"""Rewriting rules: where sizes stand in an operation's arguments, and what they become."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.pruners._coupling import attribute
from edgekit.pruners._rewrite import Rewrite, sizes
from edgekit.pruners._rules_move import slice_bounds

Named = dict[str, Any]


@sizes("view.default", "reshape.default", "_unsafe_view.default")
def view(state: Rewrite, node: Node, named: Named) -> None:
    """The sizes of a view."""
    key = "size" if "size" in named else "shape"
    named[key] = state.resized(named[key], state.analysis.shapes[node], state.after(node))


@sizes("expand.default", "broadcast_to.default")
def expand(state: Rewrite, node: Node, named: Named) -> None:
    """The sizes of an expansion."""
    named["size"] = state.resized(named["size"], state.analysis.shapes[node], state.after(node))


@sizes("unflatten.int")
def unflatten(state: Rewrite, node: Node, named: Named) -> None:
    """The sizes that one dimension is divided into."""
    before, after = state.analysis.shapes[node], state.after(node)
    d, count = named["dim"] % state.value(node.args[0]).rank, len(named["sizes"])
    named["sizes"] = state.resized(named["sizes"], before[d : d + count], after[d : d + count])


@sizes("zeros.default", "ones.default", "full.default", "empty.memory_format", "rand.default", "randn.default")
@sizes("new_zeros.default", "new_ones.default", "new_full.default", "new_empty.default")
def created(state: Rewrite, node: Node, named: Named) -> None:
    """The sizes of a new tensor."""
    named["size"] = state.resized(named["size"], state.analysis.shapes[node], state.after(node))


@sizes("repeat.default", "tile.default")
def repeat(state: Rewrite, node: Node, named: Named) -> None:
    """How often a dimension of size 1 is copied."""
    x, before, after = state.value(node.args[0]), state.analysis.shapes[node], state.after(node)
    key = "repeats" if "repeats" in named else "dims"
    times, ahead = list(named[key]), len(before) - x.rank
    for d in range(len(times)):
        if before[d] != after[d] and (d < ahead or x.shape[d - ahead] == 1):
            times[d] = after[d]
    named[key] = times


@sizes("slice.Tensor")
def slice_(state: Rewrite, node: Node, named: Named) -> Node | None:
    """Start and end, counted in what stays."""
    x, d, start, end, step = slice_bounds(state, node)
    if start is None or end is None or state.cut.kept(x, d) == x.shape[d]:
        return None
    if step != 1:
        return _reordered(state, node, d, torch.arange(x.shape[d])[start:end:step])
    named["start"], named["end"] = _kept_before(state, node, d, start), _kept_before(state, node, d, end)
    return None


def _places(state: Rewrite, node: Node, d: int, places: Tensor) -> Tensor:
    """Places along ``d`` of the first argument, counted in what stays, of the elements that stay."""
    row = _row(state, node, d)
    return (row.long().cumsum(0) - 1)[places[row[places]]]


def _reordered(state: Rewrite, node: Node, d: int, places: Tensor) -> Node:
    """An ``index_select`` in the node's place."""
    index = state.constant(_places(state, node, d, places))
    arguments = (state.nodes[node.args[0]], d, index)
    return state.graph.create_node("call_function", torch.ops.aten.index_select.default, arguments, {}, node.name)


@sizes("roll.default")
def roll(state: Rewrite, node: Node, named: Named) -> Node | None:
    """Channels moved around a ring of which some go."""
    x = state.value(node.args[0])
    dims, shifts = ([n] if isinstance(n, int) else list(n) for n in (named["dims"], named["shifts"]))
    changed = [
        (d % x.rank, s) for d, s in zip(dims, shifts, strict=True) if state.cut.kept(x, d % x.rank) != x.shape[d]
    ]
    if len(changed) != 1 or len(dims) != 1:
        return None
    ((d, shift),) = changed
    return _reordered(state, node, d, torch.arange(x.shape[d]).roll(shift))


@sizes("narrow.default")
def narrow(state: Rewrite, node: Node, named: Named) -> None:
    """Start and length, counted in what stays."""
    x, d, start, end, _ = slice_bounds(state, node)
    if start is None or end is None or state.cut.kept(x, d) == x.shape[d]:
        return
    first = _kept_before(state, node, d, start)
    named["start"], named["length"] = first, _kept_before(state, node, d, end) - first


def _row(state: Rewrite, node: Node, d: int) -> Tensor:
    """False where the first row of the first argument's ids along ``d`` is removed."""
    ids = state.value(node.args[0]).layers[d]
    return ~state.cut.mask(ids[tuple(slice(None) if i == d else 0 for i in range(ids.dim()))])


def _kept_before(state: Rewrite, node: Node, d: int, place: int) -> int:
    return int(_row(state, node, d)[:place].sum())


@sizes("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "unsafe_split.Tensor")
@sizes("unsafe_chunk.default", "tensor_split.sections")
def split(state: Rewrite, node: Node, named: Named) -> Node | None:
    """The parts' sizes, one by one."""
    x = state.value(node.args[0])
    d = named["dim"] % x.rank
    if state.cut.kept(x, d) == x.shape[d]:
        return None
    parts = [state.cut.kept(v, d) for v in state.analysis.values[node]]
    source = state.nodes[node.args[0]]
    return state.graph.create_node(
        "call_function", torch.ops.aten.split_with_sizes.default, (source, parts, d), {}, node.name
    )


@sizes("constant_pad_nd.default", "pad.default")
def pad(state: Rewrite, node: Node, named: Named) -> None:
    """How many of the added elements stay."""
    value = state.value(node)
    amounts = list(named["pad"])
    for i in range(len(amounts) // 2):
        d = value.rank - 1 - i
        before, after = amounts[2 * i], amounts[2 * i + 1]
        if d in value.layers and (before or after) and value.layers[d].shape[d] > 1:
            ids = value.layers[d]
            row = ~state.cut.mask(ids[tuple(slice(None) if n == d else 0 for n in range(ids.dim()))])
            amounts[2 * i] = int(row[:before].sum())
            amounts[2 * i + 1] = int(row[len(row) - after :].sum()) if after else 0
    named["pad"] = amounts


@sizes("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding")
@sizes("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input", "convolution.default")
def groups(state: Rewrite, node: Node, named: Named) -> None:
    """Where a group is one channel, there are as many groups as channels."""
    if state.value(named["weight"]).shape[1] != 1:
        return
    x = state.value(named["input"])
    d = x.rank - (state.value(named["weight"]).rank - 1)
    turned = "transpose" in str(node.target) or named.get("transposed", False)
    before = state.analysis.shapes[node][d] if turned else x.shape[d]
    after = state.after(node)[d] if turned else state.cut.kept(x, d)
    named["groups"] = state.resized([named["groups"]], (before,), (after,))[0]


@sizes("layer_norm.default", "native_layer_norm.default", "rms_norm.default", "_fused_rms_norm.default")
def normalized(state: Rewrite, node: Node, named: Named) -> None:
    """The sizes that are normalized over."""
    x = state.value(named["input"])
    count = len(named["normalized_shape"])
    named["normalized_shape"] = state.resized(named["normalized_shape"], x.shape[-count:], state.cut.shape(x)[-count:])


@sizes("group_norm.default")
def group_norm(state: Rewrite, node: Node, named: Named) -> None:
    """Where a group is one channel, there are as many groups as channels."""
    x = state.value(named["input"])
    if named["num_groups"] == x.shape[1]:
        named["num_groups"] = state.cut.kept(x, 1)


@sizes("scaled_dot_product_attention.default")
def attention(state: Rewrite, node: Node, named: Named) -> None:
    """The scale stays that of the original head."""
    size = state.value(named["query"]).shape[-1]
    if (
        named["scale"] is None
        and state.cut.kept(state.value(named["query"]), len(state.value(named["query"]).shape) - 1) != size
    ):
        named["scale"] = size**-0.5


@sizes("index_select.default")
def index_select(state: Rewrite, node: Node, named: Named) -> Node | None:
    """Places, counted in what stays, of the elements that stay."""
    x, d = state.value(node.args[0]), named["dim"] % state.value(node.args[0]).rank
    if state.cut.kept(x, d) == x.shape[d] or d not in x.layers:
        return None
    target = str(named["index"].target)
    state.tensors[target] = _places(state, node, d, attribute(state.analysis.module, target))
    return None
