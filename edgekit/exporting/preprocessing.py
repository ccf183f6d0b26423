"""Preprocessing inside the model: the device feeds raw uint8, the graph scales and normalizes."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.onnxfile.edit import affine, chosen_index
from edgekit.recipe import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import nn


def with_preprocessing(module: nn.Module, example: Any, settings: Preprocess) -> tuple[nn.Module, Any]:
    """The module with its preprocessing inside, and the example as a device would feed it: raw uint8.

    Args:
        module: The user's, or an exported one; it is copied. State-dict names stay.
        example: Its example inputs; an exported module has its own.
        settings: What is folded in.

    Raises:
        InputError: No such input, or statistics for another number of channels.
    """
    import torch
    from torch.utils import _pytree as pytree

    from edgekit import exported
    from edgekit.exported._capture import arguments

    twin = copy.deepcopy(module)
    if exported.is_exported(module):
        return _in_graph(twin, settings)
    shape = inspect.signature(twin.forward)
    args, kwargs = arguments(example, list(shape.parameters))
    names, leaves, spec = _named_leaves(shape, args, kwargs)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    place = tensors[chosen_index([names[i] for i in tensors], settings)]
    fold = _folding(settings, leaves[place])

    def change(args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        _, found, spec = _named_leaves(shape, args, kwargs)
        found[place] = fold(found[place])
        return inspect.BoundArguments(shape, pytree.tree_unflatten(found, spec))

    _prepend(twin, change)
    leaves[place] = fold.back(leaves[place])
    filled = inspect.BoundArguments(shape, pytree.tree_unflatten(leaves, spec))
    return twin, (dict(filled.arguments) if kwargs else tuple(filled.args))


def _prepend(module: nn.Module, change: Callable[..., inspect.BoundArguments]) -> None:
    """Let ``change`` have a module's arguments first.

    It is done in a class of the module's own, because a function on the instance would go on calling
    *this* module's weights from every copy of it.
    """
    inner = type(module).forward

    @functools.wraps(inner)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bound = change(args, kwargs)
        return inner(self, *bound.args, **bound.kwargs)

    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def _in_graph(module: Any, settings: Preprocess) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The same for an exported module: its graph gets the operations behind the input's placeholder."""
    import torch

    from edgekit.exported import META

    example: dict[str, torch.Tensor] = module.meta[META]["example"]
    name = list(example)[chosen_index(list(example), settings)]
    fold = _folding(settings, example[name])
    raw = next(node for node in module.graph.nodes if node.op == "placeholder" and node.name == name)
    readers = list(raw.users)
    scale, shift = (_free_name(module, f"{name}_{what}") for what in ("scale", "shift"))
    module.register_buffer(scale, fold.scale)
    module.register_buffer(shift, fold.shift)
    aten = torch.ops.aten
    with module.graph.inserting_before(next(n for n in module.graph.nodes if n.op not in ("placeholder", "get_attr"))):
        value = raw
        if fold.channels_last:
            value = module.graph.call_function(aten.movedim.int, (value, -1, 1))
        value = module.graph.call_function(aten.to.dtype, (value, fold.scale.dtype))
        value = module.graph.call_function(aten.mul.Tensor, (value, module.graph.get_attr(scale)))
        value = module.graph.call_function(aten.add.Tensor, (value, module.graph.get_attr(shift)))
    for reader in readers:
        reader.replace_input_with(raw, value)
    example[name] = fold.back(example[name])
    module.graph.lint()
    module.recompile()
    return module, example


def _free_name(module: nn.Module, name: str) -> str:
    while hasattr(module, name):
        name += "_"
    return name


def _named_leaves(
    shape: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[str], list[Any], Any]:
    """The leaves of a call's arguments, named as the export names them."""
    from torch.utils import _pytree as pytree

    bound = shape.bind_partial(*args, **kwargs).arguments
    found, spec = pytree.tree_flatten_with_path(dict(bound))
    keys = [[str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", "")))) for k in path] for path, _ in found]
    return ["_".join(parts) for parts in keys], [leaf for _, leaf in found], spec


@dataclass(frozen=True)
class _Folding:
    """Raw → what the model takes: ``raw * scale + shift``, channels first.

    Attributes:
        scale, shift: Tensors that broadcast over the model's input.
        channels_last: Whether raw comes with its channels last.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    channels_last: bool

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """The model's input for a raw one."""
        planes = raw.movedim(-1, 1) if self.channels_last else raw
        return planes.to(self.scale.dtype) * self.scale + self.shift

    def back(self, value: torch.Tensor) -> torch.Tensor:
        """The raw uint8 for an example of the model's input; one that is raw already stays."""
        import torch

        if not value.is_floating_point():
            return value.to(torch.uint8)
        raw = ((value - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)
        return raw.movedim(1, -1).contiguous() if self.channels_last else raw


def _folding(settings: Preprocess, like: torch.Tensor) -> _Folding:
    import torch

    last = settings.layout == "nhwc"
    kind = like.dtype if like.is_floating_point() else torch.float32
    channels = like.shape[-1 if last and not like.is_floating_point() else 1]
    spread = (1, -1, *[1] * (like.dim() - 2))
    scale, shift = (torch.as_tensor(c).reshape(spread).to(kind) for c in affine(settings, channels))
    return _Folding(scale, shift, last)
