"""Channel ids: which elements of which tensors must be removed together, and which never.

Every removable position of every tensor carries an id; id 0 stands for "never removed".
Rules tie ids, freeze them with a reason, and note which of them must be removed evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class Ids:
    """The edges, frozen ids and rows that the rules have noted."""

    count: int = 1
    edges: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    _seen_rows: set[tuple[int, ...]] = field(default_factory=set)

    def fresh(self, *shape: int) -> Tensor:
        """New ids, int64, of the given shape."""
        size = int(np.prod(shape, dtype=np.int64))
        ids = torch.arange(self.count, self.count + size).reshape(shape)
        self.count += size
        return ids

    def tie(self, a: Tensor | None, b: Tensor | None, reason: str) -> None:
        """Elements at the same (broadcast) place go together; None is all zeros."""
        if a is None or b is None:
            self.freeze(a if b is None else b, reason)
            return
        if a is b:
            return
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        a, b = a.reshape(-1), b.reshape(-1)
        same = (a == b).all()
        if same:
            return
        both = (a != 0) & (b != 0)
        if not both.all():
            self.freeze(a[b == 0], reason)
            self.freeze(b[a == 0], reason)
            a, b = a[both], b[both]
        if a.numel():
            self.edges.append((a, b))

    def tie_along(self, ids: Tensor, dim: int, reason: str) -> Tensor:
        """Tie all ids along one dimension; return the ids with that dimension reduced to 1."""
        first = ids.narrow(dim, 0, 1)
        self.tie(first.expand_as(ids), ids, reason)
        return first

    def freeze(self, ids: Tensor | None, reason: str) -> None:
        """These are never removed, and why."""
        if ids is not None and ids.numel():
            self.frozen.append((ids.reshape(-1), reason))

    def balance(self, ids: Tensor, dim: int) -> None:
        """Every row along ``dim`` keeps the same number."""
        table = ids.movedim(dim, -1)
        table = table.reshape(-1, table.shape[-1])
        if table.shape[0] > 1:
            table = torch.unique(table, dim=0)
        key = (table.shape[0], table.shape[1], int(table[0, 0]), int(table[-1, -1]), int(table.sum()))
        if table.shape[0] > 1 and key not in self._seen_rows:
            self._seen_rows.add(key)
            self.rows.append(table)


@dataclass
class Components:
    """The ids after all ties: id → component; component 0 is what is never removed.

    Attributes:
        of: int64 (ids,): the component of each id.
        count: Number of components, 0 among them.
        reasons: Component before freezing → the first reason for which it was frozen.
        rows: Tables of ids whose rows must keep equal numbers.
    """

    of: Tensor
    count: int
    raw: Tensor
    reasons: dict[int, str]
    rows: list[Tensor]

    def reason(self, ids: Tensor) -> str:
        """Why (the first of) these ids are frozen; empty where they are free."""
        for root in torch.unique(self.raw[ids.reshape(-1)]).tolist():
            if root in self.reasons:
                return self.reasons[root]
        return ""


def components(ids: Ids) -> Components:
    """Solve the ties: connected components by minimum labels with pointer jumping."""
    label = _connected(ids.count, ids.edges)
    raw = torch.from_numpy(label)
    reasons: dict[int, str] = {0: ""}
    for members, reason in ids.frozen:
        for root in np.unique(label[members.numpy()]).tolist():
            reasons.setdefault(root, reason)
    free = np.ones(ids.count, dtype=bool)
    free[list(reasons)] = False
    roots = np.unique(label)
    roots = roots[free[roots]]
    number = np.zeros(ids.count, dtype=np.int64)
    number[roots] = np.arange(1, len(roots) + 1)
    return Components(torch.from_numpy(number[label]), len(roots) + 1, raw, reasons, ids.rows)


def _connected(count: int, edges: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    label = np.arange(count)
    if not edges:
        return label
    a = torch.cat([e[0] for e in edges]).numpy()
    b = torch.cat([e[1] for e in edges]).numpy()
    while True:
        la, lb = label[a], label[b]
        differ = la != lb
        if not differ.any():
            return label
        a, b, la, lb = a[differ], b[differ], la[differ], lb[differ]
        low = np.minimum(la, lb)
        np.minimum.at(label, la, low)
        np.minimum.at(label, lb, low)
        while True:  # pointer jumping: every label becomes its root's
            up = label[label]
            if (up == label).all():
                break
            label = up
