"""Binary and ternary weights in torch: latent float weights, whose signs and magnitudes the graph computes with.

Gradients pass straight through to the latent weights (Courbariaux et al., "BinaryConnect", NIPS 2015); after
training, bytes and scales are written as :mod:`edgekit.quantizers.binary` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.quantizers import _codebook
from edgekit.quantizers._torch_node import Node
from edgekit.quantizers.binary import THRESHOLD, binarize, ternarize

Array = np.ndarray[Any, Any]
FORM = ("Cast", "Gather", "Reshape", "Reshape")  # from bytes to values; a Slice may stand between
UNFOLDING = {*FORM, "Slice"}
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Chain:
    """The nodes that unfold a layer's bytes into its weight.

    Attributes:
        nodes: From the Cast of the bytes to the product with the scale.
        output: The weight. packed, scale: The constants it is made of.
        values: The weight without its scale: −1, (0,) 1.
    """

    nodes: tuple[Node, ...]
    output: str
    packed: str
    scale: str
    values: Array


def chains(nodes: Sequence[Node], constants: Mapping[str, Array], readers: Mapping[str, list[Node]]) -> Iterator[Chain]:
    """The weights that :func:`edgekit.quantizers._codebook.store` gave a scale."""
    for start in nodes:
        packed = start.constants.get(0)
        if start.op != "Cast" or packed is None or packed.dtype != np.uint8:
            continue
        found = [start]
        while found[-1].op in UNFOLDING and len(after := readers.get(found[-1].outputs[0], [])) == 1:
            found.append(after[0])
        if [node.op for node in found if node.op != "Slice"] != [*FORM, "Mul"]:
            continue
        gather, shaped, product = found[1], found[-2], found[-1]
        if 0 not in gather.constants or 1 not in shaped.constants or 1 not in product.constants:
            continue
        shape = shaped.constants[1]
        values = gather.constants[0][packed].reshape(-1)[: shape.prod()].reshape(shape)
        yield Chain(tuple(found), product.outputs[0], start.inputs[0], product.inputs[1], values)


class Signs(nn.Module):
    """A binary or ternary weight that is trained.

    Args:
        chain: Where it stands in the file. constants: The file's.
        floats: Weights of the model before; the one with these signs is the latent weight to begin with.
    """

    def __init__(self, chain: Chain, constants: Mapping[str, Array], floats: Sequence[Array]) -> None:
        super().__init__()
        scale = constants[chain.scale]
        self.chain = chain
        self.axis = int(np.argmax(scale.shape))
        self.ternary = bool((chain.values == 0).any())
        alike = (f for f in floats if f.shape == chain.values.shape and np.array_equal(self._signs(f), chain.values))
        latent = next(alike, chain.values)
        latent = latent * (scale / np.maximum(self._split(latent)[2], TINY))  # the file's scales need not be its own
        self.value = nn.Parameter(torch.from_numpy(np.array(latent, np.float32)))

    def forward(self) -> Tensor:
        """The weight that the graph computes with, in the latent weight's shape."""
        weight = self.value
        others = [i for i in range(weight.ndim) if i != self.axis]
        size = weight.detach().abs()
        if self.ternary:
            large = (size > THRESHOLD * size.mean(others, keepdim=True)).float()
            scale = (size * large).sum(others, keepdim=True) / large.sum(others, keepdim=True).clamp_min(1)
            whole = weight.detach().sign() * large * scale
        else:
            whole = torch.where(weight.detach() >= 0, 1.0, -1.0) * size.mean(others, keepdim=True)
        return weight + (whole - weight).detach()

    def written(self) -> dict[str, Array]:
        """The bytes and the scale, by their names in the file."""
        indices, values, scale = self._split(self.value.detach().cpu().numpy())
        packed = _codebook.pack(indices, len(values))
        return {self.chain.packed: packed, self.chain.scale: scale.astype(np.float32)}

    def _split(self, weight: Array) -> tuple[Array, Array, Array]:
        return ternarize(weight, self.axis) if self.ternary else binarize(weight, self.axis)

    def _signs(self, weight: Array) -> Array:
        indices, values, _ = self._split(weight)
        return values[indices]
