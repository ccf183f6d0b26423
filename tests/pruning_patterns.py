"""What the tests of pruning share: the smallest way to write a pattern down, and what must hold of every result."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import edgekit
from edgekit.pruners import Pruned

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
TOKENS = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(6))


def settled(model: nn.Module, inputs: Any) -> nn.Module:
    """The model with random norm layers, as if trained, in evaluation mode."""
    torch.manual_seed(3)
    for module in model.modules():
        if (
            isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm))
            and module.weight is not None
        ):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        model.train()(*inputs) if isinstance(inputs, tuple) else model.train()(inputs)
    return model.eval()


def zeroed(model: nn.Module, result: Pruned) -> nn.Module:
    """The user's own model with every removed parameter element at zero: independent of the graph."""
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    origin = result.origin()
    for name, parameter in parameters.items():
        kept = torch.zeros(parameter.numel())
        kept[origin.get(name, torch.empty(0, dtype=torch.int64)).reshape(-1)] = 1  # of a branch that is gone: none
        with torch.no_grad():
            parameter *= kept.reshape(parameter.shape)
    return twin


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else first(output[0])


def proved(
    model: nn.Module, inputs: Any, *, ratio: float = 0.4, below: float = 0.8, same: bool = True, **options: Any
) -> Pruned:
    """Prune, to the very ratio, and check what must hold of every result."""
    model = settled(model, inputs)
    before = copy.deepcopy(model.state_dict())
    result = edgekit.prune(model, inputs, ratio=ratio, **{"round_to": 1, **options})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert result.macs[1] < below * result.macs[0], result.kept
    assert not any(word in k["reason"] for k in result.kept for word in ("please report", "not be proved")), result.kept
    assert result.parity < 1e-5
    output, original = result.model(*_call(inputs)), model(*_call(inputs))
    assert first(output).shape == first(original).shape
    assert first(output).isfinite().all()
    if same:
        torch.testing.assert_close(first(output), first(zeroed(model, result)(*_call(inputs))), rtol=1e-4, atol=1e-5)
    other = tuple(torch.cat([t, t, t]) for t in _call(inputs))
    assert first(result.model(*other)).shape[0] == 3 * first(original).shape[0]
    first(result.model.train()(*_call(inputs))).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in result.model.parameters())
    result.model.eval()
    return result


def _call(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


class Layers(nn.Module):
    """Named layers and a forward given as a function: the smallest way to write a pattern down."""

    def __init__(self, forward: Any, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.way = forward

    def forward(self, *args: Tensor) -> Tensor:
        return self.way(self, *args)


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))
