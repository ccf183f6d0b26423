"""Coupling rules of new sizes and orders: views, permutations, expansion, repetition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.pruners._coupling import Analysis, Value, describe, rule
from edgekit.pruners._rules_math import bound

Group = tuple[list[int], list[int]]


def regroup(old: tuple[int, ...], new: tuple[int, ...]) -> list[Group]:
    """Which dimensions of ``old`` a view turns into which of ``new``: the smallest groups of equal size."""
    groups: list[Group] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a: list[int] = []
        b: list[int] = []
        left = right = 1
        while not (a or b) or left != right:
            if (left <= right and i < len(old)) or j >= len(new):
                left *= old[i]
                a.append(i)
                i += 1
            else:
                right *= new[j]
                b.append(j)
                j += 1
        while i < len(old) and old[i] == 1 and (j >= len(new) or new[j] != 1):
            a.append(i)
            i += 1
        while j < len(new) and new[j] == 1 and (i >= len(old) or old[i] != 1):
            b.append(j)
            j += 1
        groups.append((a, b))
    return groups


@rule("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints")
@rule("aten.unflatten.int", "aten.view_as.default", "aten.reshape_as.default")
def view(state: Analysis, node: Node) -> Value:
    """New sizes for the same elements in the same order."""
    x, new = state.value(node.args[0]), state.shapes[node]
    if 0 in new:
        return Value(new)
    groups = regroup(x.shape, new)
    layers: dict[int, Tensor] = {}
    for d in sorted(x.layers, key=lambda d: (-x.shape[d], d)):  # where several are merged, the largest may go
        ids = x.layers[d]
        inside, outside = next(g for g in groups if d in g[0])
        for o in inside:  # a removed channel must stay one whole run of elements, or the same one in each
            if o > d and ids.shape[o] > 1:
                ids = state.ids.tie_along(ids, o, f"{describe(node)} interleaves it")
        moved = _regrouped(ids, x.shape, new, groups)
        ways = [o for o in outside if moved.shape[o] > 1] or [o for o in outside if new[o] > 1]
        if len(ways) > 1:
            moved, place = _divided(state, node, moved, ways)
        else:
            place = ways[0]
        if place in layers:
            state.ids.freeze(moved, f"{describe(node)} merges it with channels that can go too")
        else:
            layers[place] = moved
    return Value(new, layers)


def _regrouped(ids: Tensor, old: tuple[int, ...], new: tuple[int, ...], groups: list[Group]) -> Tensor:
    full, sizes = [], [1] * len(new)
    for inside, outside in groups:
        varies = any(ids.shape[i] > 1 for i in inside)
        full += [old[i] if varies else 1 for i in inside]
        for o in outside:
            sizes[o] = new[o] if varies else 1
    moved = ids.expand(full).reshape(sizes)
    for d, size in enumerate(moved.shape):  # a dimension along which nothing varies carries no channels
        if size > 1 and bool((moved == moved.narrow(d, 0, 1)).all()):
            moved = moved.narrow(d, 0, 1)
    return moved


def _divided(state: Analysis, node: Node, ids: Tensor, ways: list[int]) -> tuple[Tensor, int]:
    """Channels that become several dimensions are taken from one of them: the last, unless chosen otherwise."""
    state.splits.setdefault(node.name, ids)
    chosen = state.packing.get(node.name, 0) % len(ways)
    place = ways[len(ways) - 1 - chosen]
    for o in ways:
        if o > place and ids.shape[o] > 1:
            ids = state.ids.tie_along(ids, o, f"{describe(node)} divides it")
    return ids, place


def permuted(state: Analysis, node: Node, order: list[int]) -> Value:
    """The dimensions in another order."""
    x = state.value(node.args[0])
    return Value(state.shapes[node], {order.index(d): ids.permute(order) for d, ids in x.layers.items()})


@rule("aten.permute.default")
def permute(state: Analysis, node: Node) -> Value:
    """``permute``."""
    rank = state.value(node.args[0]).rank
    return permuted(state, node, [d % rank for d in node.args[1]])


@rule("aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default")
def transpose(state: Analysis, node: Node) -> Value:
    """Two dimensions swapped."""
    rank = state.value(node.args[0]).rank
    order = list(range(rank))
    a, b = node.args[1] % rank, node.args[2] % rank
    order[a], order[b] = b, a
    return permuted(state, node, order)


@rule("aten.t.default", "aten.numpy_T.default", "aten.mT.default", "aten.adjoint.default")
def flip_last(state: Analysis, node: Node) -> Value:
    """The transposed matrix."""
    rank = state.value(node.args[0]).rank
    order = list(range(rank))
    if str(node.target) == "aten.numpy_T.default":
        return permuted(state, node, order[::-1])
    return permuted(state, node, order if rank < 2 else [*order[:-2], rank - 1, rank - 2])


@rule("aten.movedim.int", "aten.movedim.intlist", "aten.moveaxis.int")
def movedim(state: Analysis, node: Node) -> Value:
    """Dimensions moved: the order is found by moving a tensor that knows its own."""
    x = state.value(node.args[0])
    probe = torch.empty([d + 2 for d in range(x.rank)], device="meta")
    return permuted(state, node, [n - 2 for n in torch.movedim(probe, node.args[1], node.args[2]).shape])


@rule("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default", "aten.unsqueeze.default")
def squeeze(state: Analysis, node: Node) -> Value:
    """Dimensions of size 1 come or go."""
    return view(state, node)


@rule("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def expand(state: Analysis, node: Node) -> Value:
    """Dimensions of size 1 grow; the copies are alike, so any number of them will do."""
    x, shape = state.value(node.args[0]), state.shapes[node]
    return Value(shape, _grown(state, x, shape))


def _grown(state: Analysis, x: Value, shape: tuple[int, ...]) -> dict[int, Tensor]:
    ahead = len(shape) - x.rank
    layers = {d + ahead: ids.reshape((1,) * ahead + tuple(ids.shape)) for d, ids in x.layers.items()}
    for d, size in enumerate(shape):
        if size > 1 and (d < ahead or x.shape[d - ahead] == 1):
            layers[d] = state.ids.fresh(*(size if i == d else 1 for i in range(len(shape))))
    return layers


@rule("aten.repeat.default", "aten.tile.default")
def repeat(state: Analysis, node: Node) -> Value:
    """Copies side by side: a channel goes in each of them."""
    x, shape = state.value(node.args[0]), state.shapes[node]
    ahead = len(shape) - x.rank
    layers = {}
    for d, ids in _grown(state, x, shape).items():
        times = shape[d] // x.shape[d - ahead] if d >= ahead and d - ahead in x.layers else 1
        layers[d] = ids.repeat([times if i == d else 1 for i in range(len(shape))])
        if times > 1:
            continue
    for d in list(layers):  # copies along other dimensions that ids vary over
        ids = layers[d]
        sizes = [shape[i] // n if i != d and n > 1 else 1 for i, n in enumerate(ids.shape)]
        layers[d] = ids.repeat(sizes)
    return state.like(node, layers)


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(state: Analysis, node: Node) -> Any:
    """Each element several times in a row."""
    x, times, d = state.value(node.args[0]), node.args[1], bound(node)["dim"]
    if d is None:
        state.freeze(node, node.args)
        return Value(state.shapes[node])
    d %= x.rank
    moved = {k: ids.repeat_interleave(times, d) if ids.shape[d] > 1 else ids for k, ids in x.layers.items()}
    return state.like(node, moved)
