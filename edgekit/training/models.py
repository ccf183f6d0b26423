"""A model to train or to learn from, whatever file it comes from: feeds in, outputs out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError

if TYPE_CHECKING:
    from torch import nn

# Where a model file is opened, by its ending: a function like :func:`open_trainee`.
OPENERS = {
    ".pt2": "edgekit.training.models:open_exported",
    ".onnx": "edgekit.quantizers._torch_graph:open_trainee",
}


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """A model as the loop sees it.

    Attributes:
        module: ``forward(feeds: dict[str, Tensor]) -> tuple[Tensor, …]``; ``train()`` and ``eval()`` work.
        ending: What it ends in: ``logits``, ``sigmoid``, ``softmax`` or ``log_softmax``.
        save: Writes it to a file of the kind it was opened from.
        watching: Makes of module names a ``module`` that has in ``features``, after each call, what those modules gave,
            by name; None where the graph knows no modules.
    """

    module: nn.Module
    ending: str
    save: Callable[[Path], object]
    watching: Callable[[Sequence[str]], nn.Module] | None = None


def open_trainee(path: Path, source: Path | None = None, *, learn_scales: bool = False) -> Trainee:
    """Open a ``.pt2`` or ``.onnx`` file.

    Args:
        path: The model.
        source: The float model that a Q/DQ ``.onnx`` was made from: its weights are finer than the stored integers.
        learn_scales: Of a Q/DQ ``.onnx``: train its scales too.

    Raises:
        InputError: Another kind of file.
        StageError: An ONNX graph with an operation that can't be run in torch.
    """
    if path.suffix not in OPENERS:
        raise InputError(f"can't train a '{path.suffix}' file", where=str(path), remedy="give a .pt2 or an .onnx file")
    module, _, name = OPENERS[path.suffix].partition(":")
    opened: Trainee = getattr(importlib.import_module(module), name)(path, source, learn_scales=learn_scales)
    return opened


def open_exported(path: Path, source: Path | None = None, *, learn_scales: bool = False) -> Trainee:
    """Open an exported module, which has neither integers nor scales."""
    from edgekit import exported

    captured = exported.load(path)
    module = by_feeds(captured, exported.run)
    return Trainee(
        module=module,
        ending=ending_of(captured),
        save=lambda out: exported.save(captured, out),
        watching=lambda names: _watching(captured, names),
    )


def _watching(captured: nn.Module, names: Sequence[str]) -> nn.Module:
    from edgekit.exported._watch import ends_of, run_watched

    nodes = ends_of(captured, names)

    def run(model: nn.Module, feeds: dict[str, Any]) -> tuple[Any, ...]:
        outputs, module.features = run_watched(model, feeds, nodes)
        return outputs

    module = by_feeds(captured, run)
    return module


def by_feeds(model: nn.Module, run: Callable[..., Any]) -> nn.Module:
    """``model`` as a module whose ``forward`` takes feeds and gives a flat tuple, by ``run(model, feeds)``."""
    from torch import nn

    class ByFeeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, feeds: dict[str, Any]) -> tuple[Any, ...]:
            outputs = run(self.inner, feeds)
            return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)

    return ByFeeds()


# Operations that do not change what an output means: looked through from the end.
_SHAPING = ("view", "reshape", "squeeze", "unsqueeze", "flatten", "contiguous", "clone", "alias", "permute", "to_copy")


def ending_of(model: nn.Module) -> str:
    """What a graph module's first output comes from; ``logits`` where it is neither sigmoid nor softmax.

    A module without a graph is asked for its last submodule.
    """
    from torch import fx, nn

    for part in model.modules():
        if isinstance(part, fx.GraphModule):
            return _graph_ending(part.graph)
    last = [part for part in model.modules() if not list(part.children())][-1]
    kinds = {nn.Sigmoid: "sigmoid", nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax"}
    return kinds.get(type(last), "logits")


def _graph_ending(graph: Any) -> str:
    from torch import fx

    node = next(n for n in reversed(graph.nodes) if n.op == "output").args[0]
    while not isinstance(node, fx.Node):
        if not node:
            return "logits"
        node = next(iter(node.values())) if isinstance(node, dict) else node[0]
    while node.op != "placeholder":
        name = str(getattr(node.target, "__name__", node.target)).split(".")[0].strip("_")
        name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else name
        name = name.strip("_")
        if name in ("sigmoid", "softmax", "log_softmax"):
            return name
        if not name.startswith(_SHAPING) or not node.all_input_nodes:
            return "logits"
        node = node.all_input_nodes[0]
    return "logits"
