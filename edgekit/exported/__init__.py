"""The exported graph as a module: what every stage between the user's model and ONNX works on.

``capture`` turns the user's module into a ``torch.export`` graph that behaves like it (same
call, same state-dict names), trains, and needs neither the user's class nor pickle to be
saved and loaded. The module that is passed in is never changed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

META = "edgekit"


@dataclass(frozen=True)
class Signature:
    """How an exported module is called, flat.

    Attributes:
        inputs: The names of its input tensors, in order; the ONNX file's input names.
        outputs: The names of its output tensors, in order.
        example: A small input tensor by name, as it was exported with.
        dynamic: Input name → axis → the name of that free size.
        lost: What an export in evaluation mode can't carry (drop-path, auxiliary heads), in words.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: dict[str, Tensor] = field(repr=False)
    dynamic: dict[str, dict[int, str]]
    lost: tuple[str, ...] = ()


def capture(
    module: nn.Module,
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Mapping[Any, str]] | None = None,
) -> nn.Module:
    """Export a module to a graph and return the graph as a module.

    Args:
        module: The user's trained module; it is copied, and the copy is exported in evaluation mode on the CPU.
        example_inputs: A tensor, a tuple or list of arguments, or a dict. A dict whose keys are all parameters of
            ``forward`` is keyword arguments, any other is one argument.
        dynamic_batch: Leave the first size of the inputs free. Where the model fixes it, that is said
            (a warning, and ``signature(...).lost``) and the example's batch is kept.
        dynamic_axes: Further free sizes: input name → axis → name.

    Returns:
        A module in evaluation mode that is called like ``module``.

    Raises:
        InputError: The model can't be exported; names the module and the line of the user's code.
    """
    from edgekit.exported._capture import captured

    return captured(module, example_inputs, dynamic_batch, dynamic_axes or {})


def signature(model: nn.Module) -> Signature:
    """How an exported module is called."""
    meta = _meta(model)
    return Signature(
        inputs=tuple(meta["example"]),
        outputs=tuple(meta["outputs"]),
        example=dict(meta["example"]),
        dynamic={name: dict(axes) for name, axes in meta["dynamic"].items()},
        lost=tuple(meta["lost"]),
    )


def is_exported(model: Any) -> bool:
    """Whether a module came from :func:`capture` or :func:`load`."""
    return META in (getattr(model, "meta", None) or {})


def _meta(model: nn.Module) -> dict[str, Any]:
    if not is_exported(model):
        raise InputError(
            f"{type(model).__name__} is no exported module",
            remedy="call edgekit.exported.capture(model, example_inputs) first",
        )
    return model.meta[META]


def run(model: nn.Module, feeds: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call an exported module with tensors by input name; return its output tensors, flat.

    Gradients are recorded as in any call: use ``torch.no_grad()`` where they are not wanted.

    Raises:
        InputError: An input is missing.
    """
    import torch
    from torch.utils import _pytree as pytree

    args, kwargs = pytree.tree_unflatten(leaves_of(model, feeds), model.graph._codegen.pytree_info.in_spec)
    return tuple(t for t in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(t, torch.Tensor))


def leaves_of(model: nn.Module, feeds: Mapping[str, Tensor]) -> list[Any]:
    """What the module's call takes, flat: tensors by input name, and the constants among its arguments.

    Raises:
        InputError: An input is missing.
    """
    meta = _meta(model)
    if missing := [name for name in meta["example"] if name not in feeds]:
        raise InputError(f"the input '{missing[0]}' is missing", remedy=f"give all of {', '.join(meta['example'])}")
    return [feeds[leaf["name"]] if "name" in leaf else leaf["value"] for leaf in meta["leaves"]]


def feeds_of(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """The user's inputs (tensor or array, tuple, list or dict) as tensors by input name.

    A dict by input name is taken as it is. Sizes and kinds are checked against the signature; a
    number of the same kind but another width (float64, int32) is converted.

    Raises:
        InputError: Another number of inputs, another rank or kind, or a fixed size that differs.
    """
    import torch

    meta = _meta(model)
    example: dict[str, Tensor] = meta["example"]
    if isinstance(inputs, Mapping) and set(inputs) == set(example):
        values = [inputs[name] for name in example]
    else:
        values = _flat(model, inputs)
    if len(values) != len(example):
        raise InputError(
            f"the model takes {len(example)} inputs ({', '.join(example)}), and {len(values)} were given",
            remedy="give a tensor, a tuple or a dict as the model is called",
        )
    feeds = {}
    for (name, like), value in zip(example.items(), values, strict=True):
        tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
        feeds[name] = _checked(name, tensor, like, meta["dynamic"].get(name, {}))
    return feeds


def _flat(model: nn.Module, inputs: Any) -> list[Any]:
    """The leaves of the user's inputs that are tensors in the example, in order."""
    from torch.utils import _pytree as pytree

    from edgekit.exported._capture import arguments

    meta = _meta(model)
    in_spec = model.graph._codegen.pytree_info.in_spec
    names = list(in_spec.children()[1].context or [])
    args, kwargs = arguments(inputs, names if names else None)
    kwargs = {name: kwargs[name] for name in names if name in kwargs} if names else kwargs
    leaves, found = pytree.tree_flatten((args, kwargs), is_leaf=_is_array)
    if found.num_leaves == in_spec.num_leaves:
        return [v for v, leaf in zip(leaves, meta["leaves"], strict=True) if "name" in leaf]
    return [v for v in leaves if v is not None]


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _checked(name: str, value: Tensor, like: Tensor, dynamic: Mapping[int, str]) -> Tensor:
    wrong = value.dim() != like.dim() or any(
        a != b and axis not in dynamic for axis, (a, b) in enumerate(zip(value.shape, like.shape, strict=False))
    )
    if wrong:
        sizes = [dynamic.get(axis, str(size)) for axis, size in enumerate(like.shape)]
        raise InputError(
            f"the input '{name}' has the shape {tuple(value.shape)}; the model takes ({', '.join(sizes)})",
            remedy="give it that shape, or name the size that should be free in dynamic_axes",
        )
    if value.dtype == like.dtype:
        return value
    if value.is_floating_point() != like.is_floating_point() or value.is_complex() != like.is_complex():
        raise InputError(
            f"the input '{name}' is {str(value.dtype)[6:]}; the model takes {str(like.dtype)[6:]}",
            remedy="convert and scale it as in training",
        )
    return value.to(like.dtype)


def program(model: nn.Module) -> ExportedProgram:
    """The ``torch.export`` program of an exported module in evaluation mode, with its free sizes."""
    from torch.utils import _pytree as pytree

    from edgekit.exported._capture import traced

    meta = _meta(model)
    twin = copy.deepcopy(model).eval()
    leaves = [meta["example"][leaf["name"]] if "name" in leaf else leaf["value"] for leaf in meta["leaves"]]
    inputs = pytree.tree_unflatten(leaves, model.graph._codegen.pytree_info.in_spec)
    by_leaf = [meta["dynamic"].get(leaf.get("name"), {}) for leaf in meta["leaves"]]
    return traced(twin, inputs, by_leaf)


def save(model: nn.Module, path: str | Path) -> Path:
    """Write an exported module as a ``.pt2`` archive without pickled objects; atomically.

    Raises:
        InputError: It calls an operation of another library, which :func:`load` would refuse.
        StageError: The file can't be written.
    """
    import io

    import torch

    from edgekit.store import write_bytes

    meta = _meta(model)
    _refuse_foreign_operations(model)
    notes = {key: meta[key] for key in ("leaves", "outputs", "dynamic", "lost")}
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program(model), buffer, extra_files={"edgekit.json": json.dumps(notes)})
    write_bytes(Path(path), buffer.getvalue())
    return Path(path)


def _refuse_foreign_operations(model: nn.Module) -> None:
    from edgekit.exported._archive import TARGET

    for node in model.graph.nodes:
        name = f"torch.ops.{node.target}" if hasattr(node.target, "_schema") else ""
        if name and not TARGET.fullmatch(name):
            raise InputError(
                f"the model calls {name}, an operation that is not torch's own, and could not be loaded again",
                remedy='choose an implementation without it (in transformers: experts_implementation="eager")',
            )


def load(path: str | Path) -> nn.Module:
    """Read a ``.pt2`` archive that :func:`save` or ``torch.export.save`` wrote, as an exported module.

    The archive is checked before torch sees it: one that asks for pickle, or for anything but
    plain tensor operations, is refused.

    Raises:
        InputError: No such archive, a damaged one, or one that is refused.
    """
    import torch

    from edgekit.exported import _archive
    from edgekit.exported._capture import from_program

    file = Path(path)
    archive, notes = _archive.read(file)
    try:
        with _quiet():
            exported = torch.export.load(archive)
        return from_program(exported, notes)
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise InputError(
            f"torch {torch.__version__} can't read this program: {reason}",
            where=str(file),
            remedy="export the model again with this version of torch",
            details=traceback.format_exc()[-4000:],
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's talk about buffers and old formats."""
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
