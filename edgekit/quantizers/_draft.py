"""A quantized model not yet built: the float graph and every decision about it, cheap to vary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgekit.quantizers import _insert, _place
from edgekit.quantizers._place import Plan

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgekit.quantizers._ranges import Range
    from edgekit.scheme import Scheme

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What decides a static quantization.

    Attributes:
        model: The float graph, prepared; never changed.
        plan: Where Q/DQ stands.
        ranges: Value → the range that its integers span.
        scheme: The target's.
        bits: Node → bits of its weight where they aren't the scheme's.
        weights: Node → int8 weights, where they are not each rounded to the nearest.
        uncorrected: The float graph before its biases made up for weights rounded to the nearest, where they do.
        floats: Nodes that stay float → why.
    """

    model: ir.Model
    plan: Plan
    ranges: Mapping[str, Range]
    scheme: Scheme
    bits: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, Array] = field(default_factory=dict)
    uncorrected: ir.Model | None = None
    floats: Mapping[str, str] = field(default_factory=dict)

    def build(self) -> ir.Model:
        """The Q/DQ model."""
        return _insert.insert(
            self.model.clone(), self.plan, self.ranges, self.scheme, bits=self.bits, weights=self.weights
        )

    def without(self, nodes: Collection[str]) -> Draft:
        """The same with some more nodes left in float."""
        floats = {**dict.fromkeys(nodes, "kept in float to hold the accuracy"), **self.floats}
        return replace(self, plan=_place.plan(self.model.graph, self.scheme, floats), floats=floats)
