"""Coupling rules of data movement: the very same movement is applied to the channel ids."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.pruners._coupling import Analysis, Value, attribute, describe, rule
from edgekit.pruners._rules_math import bound, elementwise


def cut(ids: Tensor, d: int, start: int, end: int) -> Tensor:
    """Ids of a slice along ``d``; ids that do not vary there stay."""
    return ids if ids.shape[d] == 1 else ids[(slice(None),) * d + (slice(start, end),)]


@rule("aten.slice.Tensor", "aten.narrow.default")
def slice_(state: Analysis, node: Node) -> Value:
    """A run of elements along one dimension."""
    x, d, start, end, step = slice_bounds(state, node)
    if start is None or end is None:
        state.ids.freeze(x.layers.get(d), f"{describe(node)} cuts at a place that is computed")
        return state.like(node, {k: ids for k, ids in x.layers.items() if ids.shape[d] == 1})
    if step != 1:
        return picked(state, node, x, d, torch.arange(x.shape[d])[start:end:step])
    return _taken(state, node, {k: cut(ids, d, start, end) for k, ids in x.layers.items()}, d)


def _taken(state: Analysis, node: Node, layers: dict[int, Tensor], d: int) -> Value:
    """What was taken along ``d``; a channel that is taken alone stays, for a dimension is never emptied."""
    if state.shapes[node][d] == 1:
        state.ids.freeze(layers.get(d), f"{describe(node)} takes it alone")
    return state.like(node, layers)


def picked(state: Analysis, node: Node, x: Value, d: int, places: Tensor) -> Value:
    """Elements at known places along ``d``: the same ones in every row, so what varies there is tied."""
    layers = {}
    for k, ids in x.layers.items():
        if k == d:
            for o, size in enumerate(ids.shape):
                ids = state.ids.tie_along(ids, o, describe(node)) if o != d and size > 1 else ids
        layers[k] = ids.index_select(d, places) if ids.shape[d] > 1 else ids
    return _taken(state, node, layers, d)


def slice_bounds(state: Any, node: Node) -> tuple[Value, int, int | None, int | None, int]:
    """The tensor, dimension, start, end and step of a slice; None where they are computed."""
    x, named = state.value(node.args[0]), bound(node)
    d = named["dim"] % x.rank
    size = x.shape[d]
    start = named["start"] if named["start"] is not None else 0
    if "length" in named:
        end = start + named["length"] if isinstance(start, int) and isinstance(named["length"], int) else None
        return x, d, _clamped(start, size), _clamped(end, size), 1
    end = named["end"] if named["end"] is not None else size
    return x, d, _clamped(start, size), _clamped(end, size), named.get("step", 1)


def _clamped(place: Any, size: int) -> int | None:
    if not isinstance(place, int):
        return None
    return min(max(place + size if place < 0 else place, 0), size)


@rule("aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default", "aten.chunk.default")
@rule("aten.tensor_split.sections", "aten.unsafe_split.Tensor", "aten.unsafe_chunk.default")
def split(state: Analysis, node: Node) -> list[Value]:
    """Consecutive runs along one dimension."""
    x, d = state.value(node.args[0]), bound(node)["dim"]
    d %= x.rank
    parts, start = [], 0
    for shape in state.shapes[node]:
        end = start + shape[d]
        layers = {k: cut(ids, d, start, end) for k, ids in x.layers.items()}
        parts.append(Value(shape, {k: ids for k, ids in layers.items() if shape[k] > 1}))
        if shape[d] == 1 and d in x.layers:
            state.ids.freeze(layers[d], f"{describe(node)} takes it alone")
        start = end
    return parts


@rule("aten.select.int")
def select(state: Analysis, node: Node) -> Value:
    """One element along a dimension, which must stay."""
    x, d, place = state.value(node.args[0]), node.args[1], node.args[2]
    d %= x.rank
    if not isinstance(place, int):
        x = state.still(node, x, [d], "takes a channel whose place is computed")
        return _picked(state, node, x, d, 0, state.shapes[node])
    return _picked(state, node, x, d, place % x.shape[d], state.shapes[node])


@rule("aten.unbind.int")
def unbind(state: Analysis, node: Node) -> list[Value]:
    """Every element along a dimension."""
    x, d = state.value(node.args[0]), bound(node)["dim"]
    d %= x.rank
    return [_picked(state, node, x, d, i, shape) for i, shape in enumerate(state.shapes[node])]


def _picked(state: Analysis, node: Node, x: Value, d: int, place: int, shape: tuple[int, ...]) -> Value:
    state.ids.freeze(x.layers.get(d), f"{describe(node)} takes one channel by its place")
    layers = {}
    for k, ids in x.layers.items():
        if k != d:
            layers[k - (k > d)] = ids.select(d, place if ids.shape[d] > 1 else 0)
    return Value(shape, layers)


def joined(state: Analysis, node: Node, values: list[Value], d: int) -> dict[int, Tensor]:
    """Ids of tensors put end to end along ``d``; a tensor without ids there has zeros."""
    rank = len(values[0].shape)
    layers: dict[int, Tensor] = {}
    if any(d in v.layers for v in values):
        parts = [v.layers.get(d, torch.zeros([1] * rank, dtype=torch.long)) for v in values]
        wide = [max(p.shape[i] for p in parts) for i in range(rank)]
        parts = [
            p.expand([v.shape[d] if i == d else wide[i] for i in range(rank)])
            for p, v in zip(parts, values, strict=True)
        ]
        layers[d] = torch.cat(parts, d)
    for k in range(rank):
        if k == d or not any(k in v.layers for v in values):
            continue
        ids = [v.layers.get(k) for v in values]
        known = [i for i in ids if i is not None]
        if len(known) < len(ids):
            for some in known:
                state.ids.freeze(some, f"{describe(node)} joins it to something that stays whole")
            continue
        for o in known:
            if o.shape[d] > 1:
                return {k: v for k, v in layers.items() if k == d} | _ragged_join(state, node, values, d)
        layers[k] = min(known, key=lambda i: i.numel())
        for other in known:
            state.ids.tie(layers[k], other, describe(node))
    return layers


def _ragged_join(state: Analysis, node: Node, values: list[Value], d: int) -> dict[int, Tensor]:
    """Ids that vary along the joined dimension are joined too."""
    layers = {}
    for k in range(len(values[0].shape)):
        ids = [v.layers.get(k) for v in values]
        if k == d or any(i is None for i in ids):
            for some in ids:
                if k != d:
                    state.ids.freeze(some, f"{describe(node)} joins it to something that stays whole")
            continue
        rank = len(values[0].shape)
        wide = [max(i.shape[n] for i in ids if i is not None) for n in range(rank)]
        parts = [
            i.expand([v.shape[d] if n == d else wide[n] for n in range(rank)])
            for i, v in zip(ids, values, strict=True)
            if i is not None
        ]
        layers[k] = torch.cat(parts, d)
    return layers


@rule("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(state: Analysis, node: Node) -> Value:
    """Tensors end to end."""
    values = [state.value(a) for a in node.args[0]]
    values = [v for v in values if v.shape != (0,)]
    d = (bound(node)["dim"] or 0) % values[0].rank
    return state.like(node, joined(state, node, values, d))


@rule("aten.stack.default")
def stack(state: Analysis, node: Node) -> Value:
    """Tensors along a new dimension: each may lose channels of its own, the same number in each."""
    d = (bound(node)["dim"] or 0) % len(state.shapes[node])
    values = []
    for argument in node.args[0]:
        v = state.value(argument)
        shape = (*v.shape[:d], 1, *v.shape[d:])
        values.append(Value(shape, {k + (k >= d): ids.unsqueeze(d) for k, ids in v.layers.items()}))
    layers = _ragged_join(state, node, values, d)
    return state.like(node, layers)


@rule("aten.constant_pad_nd.default", "aten.pad.default")
def pad(state: Analysis, node: Node) -> Value:
    """Constant padding: what is added can go freely; other modes need their neighbours."""
    x, shape, named = state.value(node.args[0]), state.shapes[node], bound(node)
    amounts = named["pad"]
    constant = named.get("mode", "constant") == "constant"
    layers = dict(x.layers)
    for i in range(len(amounts) // 2):
        d, before, after = x.rank - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        if before == 0 and after == 0:
            continue
        if not constant or not all(isinstance(n, int) and n >= 0 for n in (before, after)):
            layers = state.still(node, Value(x.shape, layers), [d], "pads it with its neighbours").layers
            continue
        for k, ids in list(layers.items()):
            if k == d:
                parts = [_new(state, ids, d, before), ids, _new(state, ids, d, after)]
                layers[d] = torch.cat(parts, d)
            elif ids.shape[d] > 1:
                layers[k] = state.ids.tie_along(ids, d, describe(node))
    return Value(shape, {d: ids for d, ids in layers.items() if shape[d] > 1})


def _new(state: Analysis, ids: Tensor, d: int, size: int) -> Tensor:
    """Fresh ids for elements that are added along ``d``."""
    return state.ids.fresh(*(size if i == d else n for i, n in enumerate(ids.shape)))


@rule("aten.roll.default")
def roll(state: Analysis, node: Node) -> Value:
    """Elements moved around a ring."""
    x, named = state.value(node.args[0]), bound(node)
    dims, shifts = ([n] if isinstance(n, int) else list(n) for n in (named["dims"], named["shifts"]))
    if not dims or not all(isinstance(n, int) for n in shifts):
        return state.still(node, x, dims or range(x.rank), "rolls it")
    for d, shift in zip(dims, shifts, strict=True):
        x = picked(state, node, x, d % x.rank, torch.arange(x.shape[d]).roll(shift))
    return x


@rule("aten.flip.default")
def flip(state: Analysis, node: Node) -> Value:
    """Elements in reverse order."""
    x = state.value(node.args[0])
    dims = [d % x.rank for d in node.args[1]]
    return Value(x.shape, {k: ids.flip(dims) for k, ids in x.layers.items()})


@rule("aten.index_select.default")
def index_select(state: Analysis, node: Node) -> Value:
    """Elements by place along one dimension; followed where the places are a constant."""
    x, d = state.value(node.args[0]), node.args[1] % state.value(node.args[0]).rank
    places = constant(state, node.args[2])
    _freeze_places(state, node, node.args[2])
    if places is None:
        return state.like(node, state.still(node, x, [d], "picks channels by computed places").layers)
    return picked(state, node, x, d, places)


def constant(state: Analysis, argument: Any) -> Tensor | None:
    """The tensor behind a ``get_attr`` argument of whole numbers."""
    if isinstance(argument, Node) and argument.op == "get_attr":
        found = attribute(state.module, str(argument.target))
        if isinstance(found, Tensor) and not found.is_floating_point():
            return found.detach()
    return None


def _freeze_places(state: Analysis, node: Node, *arguments: Any) -> None:
    for argument in arguments:
        for ids in state.value(argument).layers.values():
            state.ids.freeze(ids, f"{describe(node)} uses it as places")


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(state: Analysis, node: Node) -> Value:
    """Elements by place: the dimensions that are indexed stay whole, the others pass."""
    x, places = state.value(node.args[0]), list(node.args[1])
    _freeze_places(state, node, *[p for p in places if p is not None])
    at = [d for d, p in enumerate(places) if p is not None]
    x = state.still(node, x, at, "picks elements by their places")
    if any(len(state.value(places[d]).shape) == 0 for d in at) or at != list(range(at[0], at[-1] + 1)):
        for ids in x.layers.values():
            state.ids.freeze(ids, f"{describe(node)} picks elements by their places")
        return Value(state.shapes[node])
    width = max(state.value(places[d]).rank for d in at)
    layers = {}
    for d, ids in x.layers.items():
        lead, tail = ids.shape[: at[0]], ids.shape[at[-1] + 1 :]
        layers[d if d < at[0] else d - len(at) + width] = ids.reshape((*lead, *(1,) * width, *tail))
    return state.like(node, layers)


ADDED = "index_add index_add_ index_copy index_copy_"
PLACED = (
    "gather.default take_along_dim.default scatter.src scatter.value scatter_.src scatter_.value scatter_add.default"
    " scatter_add_.default scatter_reduce.two scatter_reduce_.two"
)


@rule(*(f"aten.{n}.default" for n in ADDED.split()), *(f"aten.{n}" for n in PLACED.split()))
def placed(state: Analysis, node: Node) -> Value:
    """Elements read from, or written to, computed places along one dimension: it stays, the others meet one by one."""
    named = bound(node)
    known = [state.value(a) for a in node.args if isinstance(a, Node)]
    if str(node.target).startswith("aten.index_"):
        _freeze_places(state, node, named["index"])
        known = [state.value(named["self"]), state.value(named["source"])]
    d, rank = named["dim"], known[0].rank
    if d is None or any(v.rank != rank for v in known) or not _alike(known, d % rank):
        state.freeze(node, node.args, why=f"{describe(node)} takes elements by computed places")
        return Value(state.shapes[node])
    known = [state.still(node, v, [d], "takes elements by computed places") for v in known]
    return elementwise(state, node, known)


def _alike(values: list[Value], d: int) -> bool:
    """Whether the sizes are the same but along ``d``."""
    return len({(*v.shape[:d], *v.shape[d + 1 :]) for v in values}) == 1


@rule("aten.pixel_shuffle.default")
def pixel_shuffle(state: Analysis, node: Node) -> Value:
    """``(…, C·r², H, W)`` to ``(…, C, H·r, W·r)``: r² channels go together."""
    return _gathered(state, node, 3, node.args[1] ** 2)


def _gathered(state: Analysis, node: Node, from_end: int, times: int) -> Value:
    x = state.value(node.args[0])
    d = x.rank - from_end
    x = state.still(node, x, range(d + 1, x.rank), "moves channels into it")
    ids = x.layers.get(d)
    if ids is None:
        return Value(state.shapes[node])
    ids = ids.unflatten(d, (-1, times))
    ids = state.ids.tie_along(ids, d + 1, describe(node)).squeeze(d + 1)
    return state.like(node, {d: ids})


@rule("aten.pixel_unshuffle.default")
def pixel_unshuffle(state: Analysis, node: Node) -> Value:
    """``(…, C, H·r, W·r)`` to ``(…, C·r², H, W)``."""
    x = state.value(node.args[0])
    d = x.rank - 3
    x = state.still(node, x, [d + 1, d + 2], "moves it into channels")
    ids = x.layers.get(d)
    return state.like(node, {} if ids is None else {d: ids.repeat_interleave(node.args[1] ** 2, d)})


@rule("aten.im2col.default")
def im2col(state: Analysis, node: Node) -> Value:
    """``(N, C, H, W)`` to ``(N, C·k·k, L)``: the patches of each channel."""
    x = state.value(node.args[0])
    x = state.still(node, x, [2, 3], "cuts patches from it")
    ids = x.layers.get(1)
    if ids is None:
        return Value(state.shapes[node])
    return state.like(node, {1: ids.reshape(1, -1, 1).repeat_interleave(prod(node.args[1]), 1)})


@rule("aten.col2im.default")
def col2im(state: Analysis, node: Node) -> Value:
    """``(N, C·k·k, L)`` to ``(N, C, H, W)``."""
    x = state.value(node.args[0])
    x = state.still(node, x, [2], "joins patches from it")
    ids = x.layers.get(1)
    if ids is None:
        return Value(state.shapes[node])
    ids = state.ids.tie_along(ids.reshape(1, -1, prod(node.args[2])), 2, describe(node))
    return state.like(node, {1: ids.reshape(1, -1, 1, 1)})


@rule("aten.unfold.default")
def unfold(state: Analysis, node: Node) -> Value:
    """Windows along one dimension."""
    x, d = state.value(node.args[0]), node.args[1] % state.value(node.args[0]).rank
    x = state.still(node, x, [d], "cuts windows from it")
    return state.like(node, {k: i.unsqueeze(-1) for k, i in x.layers.items()})


@rule("aten.glu.default")
def glu(state: Analysis, node: Node) -> Value:
    """One half gates the other: a channel goes in both."""
    x, d = state.value(node.args[0]), bound(node)["dim"] % state.value(node.args[0]).rank
    half = x.shape[d] // 2
    layers = {}
    for k, ids in x.layers.items():
        if ids.shape[d] == 1:
            layers[k] = ids
            continue
        layers[k] = ids.narrow(d, 0, half)
        state.ids.tie(layers[k], ids.narrow(d, half, half), describe(node))
    return state.like(node, layers)
