"""Coupling rules of recurrent layers, whole and step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.pruners._coupling import Analysis, Value, rule
from edgekit.pruners._rules_layers import channels, spread, stays, vector
from edgekit.pruners._rules_math import bound

GATES = {"aten.lstm.input": 4, "aten.gru.input": 3, "aten.rnn_tanh.input": 1, "aten.rnn_relu.input": 1}


@rule(*GATES)
def recurrent(state: Analysis, node: Node) -> list[Value]:
    """LSTM, GRU and RNN: a hidden unit goes in every gate, in the recurrence and in what reads it."""
    named, gates = bound(node), GATES[str(node.target)]
    weights = [state.value(p) for p in named["params"]]
    cells = named["num_layers"] * (2 if named["bidirectional"] else 1)
    per = len(weights) // cells
    projected = per > (4 if named["has_biases"] else 2)
    inputs = channels(state, node, state.value(named["input"]), -1)
    hidden: list[Tensor] = []
    units: list[Tensor] = []
    for place in range(cells):
        if place and place % (cells // named["num_layers"]) == 0:
            inputs = torch.cat(hidden[-(cells // named["num_layers"]) :])
        mine = weights[place * per : (place + 1) * per]
        outputs, inside = _cell(state, node, mine, inputs, gates, projected=projected)
        hidden.append(outputs)
        units.append(inside)
    states = [torch.stack(ids).unsqueeze(1) for ids in (hidden, units)]  # each (layers · ways, 1, size)
    initial = named["hx"] if isinstance(named["hx"], (list, tuple)) else [named["hx"]]
    for before, ids in zip(initial, states, strict=False):
        state.ids.tie(state.value(before).layers.get(2), ids, stays(node))
    for ids in states:
        state.ids.balance(ids, 2)
    last = torch.cat(hidden[-(cells // named["num_layers"]) :])
    shapes = state.shapes[node]
    after = [Value(s, {2: ids}) for s, ids in zip(shapes[1:], states, strict=False)]
    return [Value(shapes[0], {2: last.reshape(1, 1, -1)}), *after]


def _cell(
    state: Analysis, node: Node, weights: list[Value], inputs: Tensor | None, gates: int, *, projected: bool = False
) -> tuple[Tensor, Tensor]:
    """One direction of one layer: ids of what it gives, and of its units.

    Args:
        weights: ``w_ih (gates · units, in)``, ``w_hh (gates · units, out)``, biases, and the projection
            ``(out, units)`` where there is one; without, a unit is an output.
    """
    w_ih, w_hh, *biases = weights
    units = outputs = state.ids.fresh(w_ih.shape[0] // gates)
    if projected:
        projection, outputs = biases.pop(), state.ids.fresh(w_hh.shape[1])
        state.ids.tie(vector(projection, 0), outputs, stays(node))
        state.ids.tie(vector(projection, 1), units, stays(node))
    state.ids.tie(vector(w_ih, 1), inputs, stays(node))
    state.ids.tie(vector(w_hh, 1), outputs, stays(node))
    for part in (w_ih, w_hh, *biases):
        ids = vector(part, 0)
        state.ids.tie(None if ids is None else ids.reshape(gates, -1), units.reshape(1, -1), stays(node))
    return outputs, units


CELLS = {
    "aten.lstm_cell.default": 4,
    "aten.gru_cell.default": 3,
    "aten.rnn_tanh_cell.default": 1,
    "aten.rnn_relu_cell.default": 1,
}


@rule(*CELLS)
def cell(state: Analysis, node: Node) -> Any:
    """One step of a recurrent layer."""
    x, initial, *weights = node.args
    inputs = channels(state, node, state.value(x), -1)
    known = [state.value(w) for w in weights if w is not None]
    units, _ = _cell(state, node, known, inputs, CELLS[str(node.target)])
    for before in initial if isinstance(initial, (list, tuple)) else [initial]:
        state.ids.tie(channels(state, node, state.value(before), -1), units, stays(node))
    found = spread(state, node, units, -1)
    shapes = state.shapes[node]
    return [Value(s, dict(found.layers)) for s in shapes] if isinstance(shapes, list) else found
