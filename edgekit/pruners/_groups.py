"""Groups of channels that compete with each other, and the parameters that speak for each channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgekit.pruners._coupling import Analysis, Value, attribute
from edgekit.pruners._ids import Components


@dataclass(frozen=True)
class Part:
    """One parameter's share in a group of channels.

    Attributes:
        name: The parameter's name (``layer1.0.conv1.weight``).
        role: ``output`` (it makes the channels), ``input`` (it reads them) or ``scale`` (one number for each).
        weights: float32 (channels, elements).
        gradients: The same of the loss's gradient, where the method asked for it.
    """

    name: str
    role: str
    weights: Tensor
    gradients: Tensor | None = None


@dataclass(frozen=True)
class Group:
    """Channels that the same parameters make and read: they are ranked against each other.

    Attributes:
        members: int64 (channels,): their components.
        parts: What is known of them.
        layers: The user's modules that make them.
    """

    members: Tensor
    parts: tuple[Part, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Axis:
    """One parameter along the dimensions over which its ids vary."""

    name: str
    role: str
    ids: Tensor  # (positions,)
    tensor: Tensor  # (positions, elements), a view
    gradient: Tensor | None


def axes(analysis: Analysis, gradients: dict[str, Tensor] | None = None) -> list[Axis]:
    """Every floating-point or complex parameter along each of its dimensions that has ids, tied ones once."""
    found, seen = [], set()
    for node in analysis.module.graph.nodes:
        value = analysis.values.get(node)
        if node.op != "get_attr" or not isinstance(value, Value) or id(value) in seen:
            continue
        seen.add(id(value))
        name = str(node.target)
        tensor = attribute(analysis.module, name)
        if not isinstance(tensor, torch.nn.Parameter) or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        turned = any("transpose" in str(user.target) for user in node.users)
        for d, ids in value.layers.items():
            role = "scale" if tensor.dim() == 1 else "output" if (d == 1) == turned else "input"
            if any("embedding" in str(user.target) for user in node.users):
                role = "output"
            gradient = (gradients or {}).get(name)
            found.append(Axis(name, role, *_table(ids, _real(tensor.detach()), gradient)))
    return found


def _table(ids: Tensor, tensor: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    varied = [i for i, n in enumerate(ids.shape) if n > 1]
    rest = [i for i in range(tensor.dim()) if i not in varied]

    def flat(t: Tensor) -> Tensor:
        return t.permute(*varied, *rest).reshape(int(np.prod([t.shape[i] for i in varied])), -1)

    return ids.reshape(-1), flat(tensor), None if gradient is None else flat(_real(gradient))


def _real(tensor: Tensor) -> Tensor:
    return tensor.abs().float() if tensor.is_complex() else tensor.float()


def groups(solved: Components, known: list[Axis]) -> list[Group]:
    """The free components, divided by which parameters they lie in."""
    marks = _signatures(solved, known)
    matrix = np.zeros(solved.count, dtype=bool)
    for axis in known:
        if axis.role != "scale":
            matrix[solved.of[axis.ids].numpy()] = True
    matrix[0] = False
    members = np.flatnonzero(matrix)
    if not len(members):
        return []
    order = members[np.argsort(marks[members], kind="stable")]
    cuts = np.flatnonzero(np.diff(marks[order])) + 1
    parted = sorted((np.sort(part) for part in np.split(order, cuts)), key=lambda m: int(m[0]))
    owner = np.full(solved.count, -1)
    for number, inside in enumerate(parted):
        owner[inside] = number
    parts: list[list[Part]] = [[] for _ in parted]
    for axis in known:
        for number, part in _shares(solved, axis, owner, parted):
            parts[number].append(part)
    return [Group(torch.from_numpy(m), tuple(p), _makers(p)) for m, p in zip(parted, parts, strict=True)]


def _makers(parts: list[Part]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.name.rpartition(".")[0] for part in parts if part.role == "output"))


def _signatures(solved: Components, known: list[Axis]) -> np.ndarray:
    """A number for each component that is equal where they lie in the same parameters' dimensions."""
    random = np.random.default_rng(0).integers(1, 2**62, size=len(known), dtype=np.int64)
    marks = np.zeros(solved.count, dtype=np.int64)
    for axis, mark in zip(known, random, strict=True):
        marks[np.unique(solved.of[axis.ids].numpy())] ^= mark
    return marks


def _shares(solved: Components, axis: Axis, owner: np.ndarray, parted: list[np.ndarray]) -> Iterator[tuple[int, Part]]:
    """What one axis adds to each group that lies in it."""
    component = solved.of[axis.ids].numpy()
    order = np.argsort(component, kind="stable")
    component = component[order]
    for number in np.unique(owner[component]).tolist():
        if number >= 0:
            yield number, _part(axis, component, order, parted[number])


def _part(axis: Axis, component: np.ndarray, order: np.ndarray, members: np.ndarray) -> Part:
    """The rows of an axis for each member; one that lies in several positions has them side by side."""
    first = np.searchsorted(component, members, "left")
    count = np.searchsorted(component, members, "right") - first
    width = int(count.max())
    step = np.minimum(np.arange(width)[None], np.maximum(count[:, None] - 1, 0))
    rows = torch.from_numpy(order[np.minimum(first[:, None] + step, len(order) - 1)])
    there = torch.from_numpy(np.arange(width)[None] < count[:, None])

    def table(tensor: Tensor) -> Tensor:
        return (tensor[rows] * there.unsqueeze(-1)).reshape(len(rows), -1)

    gradients = None if axis.gradient is None else table(axis.gradient)
    return Part(axis.name, axis.role, table(axis.tensor), gradients)


Rank = Callable[[Group], Tensor]


def scores(solved: Components, found: list[Group], rank: Rank) -> Tensor:
    """float32 (components,): each component's importance by a method; low goes first."""
    result = torch.zeros(solved.count)
    for group in found:
        result[group.members] = rank(group).float().cpu()
    return result


def bundled(solved: Components, importance: Tensor) -> Components:
    """Components after those that must go evenly from several rows are bundled, weakest with weakest.

    Where rows can't be made even, their components are frozen.
    """
    tables = [t.numpy() for t in sorted(solved.rows, key=lambda t: (t.shape[1], t.shape[0]))]
    of = solved.of.numpy().copy()
    _all_even(of, importance.double().numpy().copy(), tables)
    if uneven := {id(t) for t in tables if not _is_even(of[t])}:  # rows overlap: begin anew with what they share
        of = solved.of.numpy().copy()
        value = importance.double().numpy().copy()
        for together in _overlapping(of, tables):
            if not uneven.isdisjoint(map(id, together)):
                _by_pieces(of, value, together)
        _all_even(of, value, tables)
    for _ in range(8):
        left = [t for t in tables if not _is_even(of[t])]
        if not left:
            break
        for table in left:
            _by_place(of, table)
    for table in tables:
        if not _is_even(of[table]):
            _merge(of, np.unique(of[table]), 0)
    roots = np.unique(np.append(of, 0))
    number = np.zeros(solved.count, dtype=np.int64)
    number[roots] = np.arange(len(roots))
    reasons = dict(solved.reasons)
    return Components(torch.from_numpy(number[of]), len(roots), solved.raw, reasons, solved.rows)


def _all_even(of: np.ndarray, value: np.ndarray, tables: list[np.ndarray]) -> None:
    for table in tables:
        _even(of, value, table)


def _overlapping(of: np.ndarray, tables: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Tables that share components, directly or over others."""
    found: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for table in tables:
        members, together = np.unique(of[table]), [table]
        members = members[members != 0]
        apart = []
        for others, theirs in found:
            if np.isin(members, others, assume_unique=True).any():
                members, together = np.union1d(members, others), together + theirs
            else:
                apart.append((others, theirs))
        found = [*apart, (members, together)]
    return [together for _, together in found if len(together) > 1]


def _by_pieces(of: np.ndarray, value: np.ndarray, tables: list[np.ndarray]) -> None:
    """Bundle so that every piece that rows of several tables share loses the same part of its size."""
    places: dict[int, list[tuple[int, int]]] = {}
    for number, table in enumerate(tables):
        for row, ids in enumerate(np.unique(np.sort(of[table], axis=1), axis=0)):
            for member in ids.tolist():
                places.setdefault(member, []).append((number, row))
    if 0 in places or any(len({n for n, _ in p}) < len(p) for p in places.values()):
        return  # one that stays, or one that lies in a table twice: no equal parts
    pieces: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for member, where in places.items():
        pieces.setdefault(tuple(where), []).append(member)
    parts = math.gcd(*(len(p) for p in pieces.values()))
    if parts == 1:
        return
    ordered = [np.array(sorted(p, key=lambda m: -value[m])).reshape(parts, -1) for p in pieces.values()]
    _bundle(of, value, np.concatenate(ordered, axis=1))


def _is_even(table: np.ndarray) -> bool:
    """Whether every component lies equally often in every row."""
    ordered = np.sort(table, axis=1)
    return bool((ordered == ordered[0]).all())


def _even(of: np.ndarray, value: np.ndarray, table: np.ndarray) -> None:
    rows = np.unique(np.sort(of[table], axis=1), axis=0)
    if len(rows) == 1:
        return
    kinds = [_kinds(row) for row in rows]
    members = np.concatenate([k[0] for k in kinds])
    if len(np.unique(members)) < len(members):
        return  # rows share some components: tied by place below
    if len({int(n) for k in kinds for n in k[1]}) != 1:
        return  # some components lie more often in a row than others
    ordered = [k[0][np.argsort(-value[k[0]], kind="stable")] for k in kinds]
    least = min(len(o) for o in ordered)
    for row in ordered:  # strongest first: what one row has more than another stays
        _merge(of, row[: len(row) - least], 0)
    pairs = np.stack([row[len(row) - least :] for row in ordered], axis=1)
    _bundle(of, value, pairs)


def _kinds(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    members, count = np.unique(row, return_counts=True)
    return members[members != 0], count[members != 0]


def _bundle(of: np.ndarray, value: np.ndarray, pairs: np.ndarray) -> None:
    """Make each row of ``pairs`` one component."""
    to = np.arange(len(value))
    to[pairs] = pairs[:, :1]
    value[pairs[:, 0]] = value[pairs].sum(axis=1)
    of[:] = to[of]


def _by_place(of: np.ndarray, table: np.ndarray) -> None:
    """Tie what stands at the same place in every row."""
    current = of[table]
    for place in range(current.shape[1]):
        members = np.unique(current[:, place])
        _merge(of, members, int(members[0]))  # 0 is the least: what meets a frozen one stays
        current[:] = of[table]


def _merge(of: np.ndarray, members: np.ndarray, target: int) -> None:
    if len(members):
        of[np.isin(of, members)] = target
