"""Coupling rules of layers: convolution, norms, attention, embedding, pooling, creation."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from edgekit.pruners._coupling import Analysis, Value, describe, rule
from edgekit.pruners._rules_math import bound, contract


def vector(value: Value, dim: int = 0) -> Tensor | None:
    """The ids along a dimension as a plain vector."""
    ids = value.layers.get(dim)
    return None if ids is None else ids.reshape(-1)


def channels(state: Analysis, node: Node, x: Value, dim: int) -> Tensor | None:
    """The ids along ``dim`` as a vector: what varies over further dimensions is tied along them."""
    ids = x.layers.get(dim % x.rank)
    if ids is None:
        return None
    for o, size in enumerate(ids.shape):
        if o != dim % x.rank and size > 1:
            ids = state.ids.tie_along(ids, o, describe(node))
    return ids.reshape(-1)


def spread(state: Analysis, node: Node, ids: Tensor | None, dim: int) -> Value:
    """A value of the node's sizes with a vector of ids along ``dim``."""
    shape = state.shapes[node][0] if isinstance(state.shapes[node], list) else state.shapes[node]
    if ids is None or shape[dim] == 1:
        return Value(shape)
    return Value(
        shape, {dim % len(shape): ids.reshape([-1 if i == dim % len(shape) else 1 for i in range(len(shape))])}
    )


CONVS = "conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding"
TRANSPOSED = "conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input"


@rule(*(f"aten.{n}" for n in f"{CONVS} {TRANSPOSED} convolution.default".split()))
def convolution(state: Analysis, node: Node) -> Value:
    """Plain, grouped, depthwise and transposed convolutions over ``x (N, C, …)``."""
    named = bound(node)
    x, weight = state.value(named["input"]), state.value(named["weight"])
    bias = vector(state.value(named["bias"])) if named["bias"] is not None else None
    turned = "transpose" in str(node.target) or bool(named.get("transposed", False))
    batched = x.rank == weight.rank
    channel = 1 if batched else 0
    x = state.still(node, x, range(channel + 1, x.rank), "slides over it")
    weight = state.still(node, weight, range(2, weight.rank), "slides with it")
    inputs = channels(state, node, x, channel)
    groups = (state.shapes[node] if turned else x.shape)[channel] // weight.shape[1]  # the argument may be computed
    if groups > 1:
        outputs = _grouped(state, node, inputs, weight, groups, turned)
    else:
        outputs = channels(state, node, weight, 1 if turned else 0)
        state.ids.tie(channels(state, node, weight, 0 if turned else 1), inputs, stays(node))
    if named["bias"] is not None:
        state.ids.tie(outputs, bias, stays(node))
    result = spread(state, node, outputs, channel)
    if batched and 0 in x.layers:  # windows or groups that went into the batch
        result.layers[0] = channels_at(state, node, x, 0)
    return result


def channels_at(state: Analysis, node: Node, x: Value, dim: int) -> Tensor:
    """The ids along ``dim`` with every other dimension of size 1."""
    ids = channels(state, node, x, dim)
    assert ids is not None
    return ids.reshape([-1 if i == dim else 1 for i in range(x.rank)])


def stays(node: Node) -> str:
    """Why what meets something whole stays whole."""
    return f"{describe(node)} joins it to something that stays whole"


def _grouped(
    state: Analysis, node: Node, inputs: Tensor | None, weight: Value, groups: int, turned: bool
) -> Tensor | None:
    """Ids of the outputs of a grouped convolution; each group keeps as many inputs and outputs as any other."""
    rows = channels(state, node, weight, 0)  # outputs; inputs where transposed
    count = weight.shape[0]
    each = weight.shape[1]
    if rows is None:
        state.ids.freeze(inputs, stays(node))
        return None
    if count == groups and each == 1:  # depthwise: a group is a channel
        state.ids.tie(rows, inputs, stays(node))
        return rows
    inside = weight.layers.get(1)
    if turned:
        state.ids.tie(rows, inputs, stays(node))
        if count > groups:
            state.ids.balance(rows.reshape(groups, -1), 1)
        return _turned(state, node, rows, inside, weight, groups)
    if inputs is None:
        state.ids.freeze(inside, stays(node))
    elif each > 1:
        table = inputs.reshape(groups, 1, each).expand(groups, count // groups, each).reshape(count, each)
        state.ids.tie(inside if inside is None else inside.reshape(inside.shape[0], each), table, stays(node))
        state.ids.balance(inputs.reshape(groups, each), 1)
    if each == 1:  # one input channel a group: the whole group goes
        first = state.ids.tie_along(rows.reshape(groups, -1), 1, describe(node))
        state.ids.tie(first.reshape(-1), inputs, stays(node))
    else:
        state.ids.balance(rows.reshape(groups, -1), 1)
    return rows


def _turned(
    state: Analysis, node: Node, rows: Tensor, inside: Tensor | None, weight: Value, groups: int
) -> Tensor | None:
    """Outputs of a grouped transposed convolution: ``weight (in, out / groups, …)``."""
    count, each = weight.shape[:2]
    if each == 1:  # one output a group: all its inputs go with it
        return state.ids.tie_along(rows.reshape(groups, -1), 1, describe(node)).reshape(-1)
    if inside is None:
        return None
    outputs = state.ids.fresh(groups * each)
    table = outputs.reshape(groups, 1, each).expand(groups, count // groups, each).reshape(count, each)
    state.ids.tie(inside.reshape(inside.shape[0], each), table, describe(node))
    state.ids.balance(outputs.reshape(groups, each), 1)
    return outputs


def _affine(state: Analysis, node: Node, ids: Tensor | None, *arguments: Any) -> None:
    """Tie per-channel vectors (scales, biases, statistics) to the channels."""
    for argument in arguments:
        if argument is not None:
            state.ids.tie(vector(state.value(argument)), ids, stays(node))


@rule("aten.batch_norm.default", "aten.instance_norm.default", "aten._native_batch_norm_legit_no_training.default")
@rule("aten._native_batch_norm_legit.default", "aten.native_batch_norm.default", "aten.cudnn_batch_norm.default")
def batch_norm(state: Analysis, node: Node) -> Any:
    """Per-channel statistics along dimension 1."""
    x = state.value(node.args[0])
    if "instance_norm" in str(node.target):
        x = state.still(node, x, range(2, x.rank), "takes statistics over it")
    ids = channels(state, node, x, 1)
    _affine(state, node, ids, *[a for a in node.args[1:5] if isinstance(a, Node)])
    result = spread(state, node, ids, 1)
    other = {d: i for d, i in x.layers.items() if d != 1 and i.shape[1] == 1}
    result = Value(result.shape, {**other, **result.layers})
    if isinstance(state.shapes[node], list):
        return [result, *(Value(s) if s is not None else None for s in state.shapes[node][1:])]
    return result


@rule(
    "aten.layer_norm.default", "aten.native_layer_norm.default", "aten.rms_norm.default", "aten._fused_rms_norm.default"
)
def layer_norm(state: Analysis, node: Node) -> Any:
    """Statistics over the last dimensions: those of the channels that stay."""
    named = bound(node)
    x, over = state.value(node.args[0]), len(named["normalized_shape"])
    tail = list(range(x.rank - over, x.rank))
    for argument in (named.get("weight"), named.get("bias")):
        value = state.value(argument)
        for i, d in enumerate(tail):
            if argument is None or value.rank != over or x.shape[d] == 1:
                continue
            mine = value.layers.get(i)
            state.ids.tie(
                None if mine is None else mine.reshape((1,) * (x.rank - over) + tuple(mine.shape)),
                x.layers.get(d),
                stays(node),
            )
    result = Value(x.shape, dict(x.layers))
    if isinstance(state.shapes[node], list):
        return [result, *(Value(s) for s in state.shapes[node][1:])]
    return result


@rule("aten.group_norm.default", "aten.native_group_norm.default")
def group_norm(state: Analysis, node: Node) -> Any:
    """Statistics over groups of channels along dimension 1: each group keeps as many."""
    named = bound(node)
    groups = int(named["num_groups"] if "num_groups" in named else named["group"])
    x = state.value(node.args[0])
    x = state.still(node, x, range(2, x.rank), "takes statistics over it")
    ids = channels(state, node, x, 1)
    _affine(state, node, ids, named.get("weight"), named.get("bias"))
    if ids is not None and 1 < groups < x.shape[1]:
        state.ids.balance(ids.reshape(groups, -1), 1)
    result = spread(state, node, ids, 1)
    if isinstance(state.shapes[node], list):
        return [result, *(Value(s) for s in state.shapes[node][1:])]
    return result


@rule("aten.prelu.default", "aten._prelu_kernel.default")
def prelu(state: Analysis, node: Node) -> Value:
    """A slope for each channel of dimension 1, or one for all."""
    x, slope = state.value(node.args[0]), state.value(node.args[1])
    if slope.shape and max(slope.shape) > 1:
        d = next(i for i, n in enumerate(slope.shape) if n > 1)
        place = d if slope.rank == x.rank else min(1, x.rank - 1)
        state.ids.tie(vector(slope, d), channels(state, node, x, place), stays(node))
    return Value(x.shape, dict(x.layers))


@rule("aten.scaled_dot_product_attention.default")
def attention(state: Analysis, node: Node) -> Value:
    """``softmax(q · kᵀ) · v``: channels of q and k go together, those of v go to the output."""
    named = bound(node)
    q, k, v = (state.value(named[n]) for n in ("query", "key", "value"))
    if named["enable_gqa"] and q.shape[-3] != k.shape[-3]:
        k, v = (_repeated(t, q.shape[-3]) for t in (k, v))
    lead = [f"b{i}" for i in range(q.rank - 2)]
    k = state.still(node, k, [-2], "takes a softmax over it")
    products = [(q, [*lead, "l", "e"]), (k, [*lead, "s", "e"]), (v, [*lead, "s", "v"])]
    if named["attn_mask"] is not None:
        mask = state.value(named["attn_mask"])
        products.append((mask, [*lead, "l", "s"][len(lead) + 2 - mask.rank :]))
    return contract(state, node, products, [*lead, "l", "v"])


def _repeated(x: Value, heads: int) -> Value:
    """Keys or values of grouped-query attention, as many heads as the queries have."""
    d = x.rank - 3
    times = heads // x.shape[d]
    shape = tuple(heads if i == d else n for i, n in enumerate(x.shape))
    return Value(shape, {k: i.repeat_interleave(times, d) if i.shape[d] > 1 else i for k, i in x.layers.items()})


@rule("aten.embedding.default", "aten.embedding_bag.padding_idx", "aten.embedding_bag.default")
def embedding(state: Analysis, node: Node) -> Any:
    """Rows of a table, or means of them; its columns are channels, its rows are the vocabulary."""
    table = state.value(node.args[0])
    state.ids.freeze(table.layers.get(0), f"{describe(node)} looks rows up by number")
    state.freeze(node, node.args[1:], why=f"{describe(node)} uses it as row numbers")
    found = spread(state, node, channels(state, node, table, 1), -1)
    shapes = state.shapes[node]
    return [found, *(Value(s) for s in shapes[1:])] if isinstance(shapes, list) else found


WINDOWS = {
    1: "avg_pool1d.default max_pool1d.default adaptive_avg_pool1d.default adaptive_max_pool1d.default"
    " max_pool1d_with_indices.default upsample_linear1d.vec upsample_nearest1d.vec upsample_linear1d.default"
    " upsample_nearest1d.default",
    2: "avg_pool2d.default max_pool2d.default max_pool2d_with_indices.default adaptive_avg_pool2d.default"
    " adaptive_max_pool2d.default upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec"
    " upsample_nearest2d.default upsample_bilinear2d.default upsample_bicubic2d.default _upsample_bilinear2d_aa.default"
    " _upsample_bicubic2d_aa.default _upsample_nearest_exact2d.vec _adaptive_avg_pool2d.default"
    " reflection_pad2d.default replication_pad2d.default grid_sampler.default grid_sampler_2d.default",
    3: "avg_pool3d.default max_pool3d.default max_pool3d_with_indices.default adaptive_avg_pool3d.default"
    " upsample_nearest3d.vec upsample_trilinear3d.vec adaptive_max_pool3d.default",
}


def _window(size: int) -> Any:
    def pool(state: Analysis, node: Node) -> Any:
        """Pooling and resizing over the last dimensions: they stay, the others pass."""
        x = state.value(node.args[0])
        for other in node.all_input_nodes[1:]:
            for ids in state.value(other).layers.values():
                state.ids.freeze(ids, f"{describe(node)} uses it as places")
        lead = state.still(node, x, range(x.rank - size, x.rank), "slides over it").layers
        shapes = state.shapes[node]
        if isinstance(shapes, list):
            return [Value(s, dict(lead)) for s in shapes]
        return Value(shapes, lead)

    return pool


for _size, _names in WINDOWS.items():
    rule(*(f"aten.{n}" for n in _names.split()))(_window(_size))


CREATED = (
    "zeros.default ones.default full.default new_zeros.default new_ones.default new_full.default empty.memory_format"
)
ALIKE = "zeros_like.default ones_like.default full_like.default empty_like.default rand_like.default randn_like.default"


@rule(*(f"aten.{n}" for n in f"{CREATED} new_empty.default rand.default randn.default".split()))
def created(state: Analysis, node: Node) -> Value:
    """Elements that are all alike: any number of them will do."""
    shape = state.shapes[node]
    fresh = {
        d: state.ids.fresh(*(n if i == d else 1 for i, n in enumerate(shape)))
        for d in range(len(shape))
        if shape[d] > 1
    }
    return Value(shape, fresh)


@rule(*(f"aten.{n}" for n in ALIKE.split()))
def alike(state: Analysis, node: Node) -> Value:
    """As many elements as another tensor has."""
    x = state.value(node.args[0])
    return Value(x.shape, dict(x.layers))


@rule("aten.arange.default", "aten.arange.start", "aten.arange.start_step", "aten.linspace.default", "aten.eye.default")
@rule("aten.scalar_tensor.default", "aten.tensor.default", "aten.eye.m", "aten.bincount.default", "aten.bernoulli.p")
def counted(state: Analysis, node: Node) -> Value:
    """Elements that are told apart by their place: they stay."""
    return Value(state.shapes[node])


@rule("aten.triu.default", "aten.tril.default", "aten.triu_.default", "aten.tril_.default")
def triangle(state: Analysis, node: Node) -> Value:
    """Part of a matrix by place: its last two dimensions stay."""
    return state.still(node, state.value(node.args[0]), [-1, -2], "cuts a triangle from it")


@rule("aten.copy_.default", "aten.copy.default")
def copy(state: Analysis, node: Node) -> Value:
    """One tensor written into another, element by element."""
    from edgekit.pruners._rules_math import elementwise

    return elementwise(state, node, [state.value(node.args[0]), state.value(node.args[1])])


@rule("aten._weight_norm.default", "aten._weight_norm_interface.default")
def weight_norm(state: Analysis, node: Node) -> Any:
    """``g · v / |v|``: the norm is taken over all dimensions but one, which alone can go."""
    v, g, d = state.value(node.args[0]), state.value(node.args[1]), bound(node)["dim"] % 8
    v = state.still(node, v, [i for i in range(v.rank) if i != d], "takes a norm over it")
    ids = vector(v, d)
    state.ids.tie(vector(g, d), ids, stays(node))
    shapes = state.shapes[node]
    if isinstance(shapes, list):
        return [Value(v.shape, {d: v.layers[d]} if d in v.layers else {}), Value(shapes[1])]
    return Value(v.shape, {d: v.layers[d]} if d in v.layers else {})


for _index in ("aten.sym_size.int",):
    rule(_index)(lambda state, node: None)
