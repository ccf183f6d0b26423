"""Coupling rules of recurrent layers, whole and step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.pruners._coupling import Analysis, Value, describe, rule
from edgekit.pruners._rules_layers import channels, spread, stays, vector
from edgekit.pruners._rules_math import bound

GATES = {"aten.lstm.input": 4, "aten.gru.input": 3, "aten.rnn_tanh.input": 1, "aten.rnn_relu.input": 1}


@rule(*GATES)
def recurrent(state: Analysis, node: Node) -> list[Value]:
    """LSTM, GRU and RNN: a hidden unit goes in every gate, in the recurrence and in what reads it."""
    named, gates = bound(node), GATES[str(node.target)]
    x = state.value(named["input"])
    per = 4 if named["has_biases"] else 2
    ways = 2 if named["bidirectional"] else 1
    weights = [state.value(p) for p in named["params"]]
    initial = named["hx"] if isinstance(named["hx"], (list, tuple)) else [named["hx"]]
    if len(weights) != per * ways * named["num_layers"]:  # a projection: its hidden size is another
        state.freeze(node, node.args, why=f"{describe(node)} has a projection")
        return [Value(s) for s in state.shapes[node]]
    inputs = channels(state, node, x, -1)
    hidden: list[Tensor] = []
    units: list[Tensor] = []
    for layer in range(named["num_layers"]):
        units = []
        for way in range(ways):
            start = (layer * ways + way) * per
            units.append(_cell(state, node, weights[start : start + per], inputs, gates))
        hidden += units
        inputs = torch.cat(units)
    everything = torch.stack(hidden).unsqueeze(1)  # (layers · ways, 1, hidden)
    for state_ in initial:
        state.ids.tie(state.value(state_).layers.get(2), everything, stays(node))
    state.ids.balance(everything, 2)
    shapes = state.shapes[node]
    out = Value(shapes[0], {2: inputs.reshape(1, 1, -1)} if inputs is not None else {})
    return [out, *(Value(s, {2: everything}) for s in shapes[1:])]


def _cell(state: Analysis, node: Node, weights: list[Value], inputs: Tensor | None, gates: int) -> Tensor:
    """One direction of one layer: ``w_ih (gates · hidden, in)``, ``w_hh (gates · hidden, hidden)``, biases."""
    w_ih, w_hh, *biases = weights
    units = state.ids.fresh(w_hh.shape[1])
    state.ids.tie(vector(w_ih, 1), inputs, stays(node))
    state.ids.tie(vector(w_hh, 1), units, stays(node))
    for part in (w_ih, w_hh, *biases):
        ids = vector(part, 0)
        state.ids.tie(None if ids is None else ids.reshape(gates, -1), units.reshape(1, -1), stays(node))
    return units


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
    units = _cell(state, node, [state.value(w) for w in weights if w is not None], inputs, CELLS[str(node.target)])
    for before in initial if isinstance(initial, (list, tuple)) else [initial]:
        state.ids.tie(channels(state, node, state.value(before), -1), units, stays(node))
    found = spread(state, node, units, -1)
    shapes = state.shapes[node]
    return [Value(s, dict(found.layers)) for s in shapes] if isinstance(shapes, list) else found
