"""How :mod:`edgekit.exported` exports: preparing the copy, trying free sizes, explaining failures."""

from __future__ import annotations

import copy
import functools
import inspect
import traceback
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from edgekit.console import warn
from edgekit.errors import InputError
from edgekit.exported._graphmodule import Exported, wrap

BATCH = "batch"
Axes = list[dict[int, str]]  # for each leaf of the inputs: axis → the name of its free size


def captured(
    module: torch.nn.Module,
    example: Any,
    dynamic_batch: bool,
    dynamic_axes: Mapping[str, Mapping[Any, str]],
) -> Exported:
    """See :func:`edgekit.exported.capture`."""
    if isinstance(module, Exported):
        return copy.deepcopy(module).eval()
    twin, lost = _prepared(module)
    args, kwargs = arguments(example, _parameters(twin))
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().cpu(), (args, kwargs))
    leaves, spec = pytree.tree_flatten((args, kwargs))
    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise InputError("the example inputs hold no tensor", remedy="give a tensor, a tuple or a dict of tensors")
    names = _leaf_names(twin, args, kwargs)
    named = _named_axes(names, dynamic_axes)
    axes, failure = named, None
    for batched in _batch_choices(leaves) if dynamic_batch else ():
        grown = [_doubled(leaf) if i in batched else leaf for i, leaf in enumerate(leaves)]
        axes = [({0: BATCH} if i in batched else {}) | named[i] for i in range(len(leaves))]
        try:
            exported = traced(twin, pytree.tree_unflatten(grown, spec), axes)
            return _finished(exported, axes, lost)
        except Exception as error:
            failure = failure or error
    try:
        exported = traced(twin, pytree.tree_unflatten(leaves, spec), named)
    except Exception as error:
        raise _explained(twin, failure or error) from error
    if failure is not None:
        why = f"{_reason(failure)}{_at(twin, failure)}"
        lost.append(f"a free batch, because the model fixes it: {why}; the example's batch is kept")
    return _finished(exported, named, lost)


def _prepared(module: torch.nn.Module) -> tuple[torch.nn.Module, list[str]]:
    """A copy on the CPU in evaluation mode whose outputs are plain containers, and what its export loses."""
    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper
    if isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        module = module.module
    _refuse_foreign(module)
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        raise InputError(
            f"the model can't be copied: {str(error).splitlines()[0][:200]}",
            remedy="pass a model whose tensors are its own parameters and buffers (not results of a computation)",
        ) from error
    twin = twin.cpu().eval()
    hooked = [name for name, part in twin.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    if hooked:
        warn(f"modules have hooks ({some_of(hooked)}): what they compute is part of the graph, and they are gone")
    twin.forward = _plain(twin.forward)
    return twin, list(_lost(twin))


def _refuse_foreign(module: Any) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("the model is a TorchScript module", remedy="pass the torch.nn.Module it was made from")
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"the model is a {type(module).__name__}, not a torch.nn.Module", remedy="pass a torch.nn.Module"
        )
    for name, part in module.named_modules():
        kind = type(part).__module__
        if kind.startswith(("torch.ao.nn.quantized", "torch.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise InputError(
                f"the module '{name}' ({type(part).__name__}) is already quantized",
                remedy="pass the float model; edgekit quantizes it for each target",
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_quantized or tensor.device.type == "meta":
            what = "already quantized" if tensor.is_quantized else "on the meta device: it has no values"
            raise InputError(f"the tensor '{name}' is {what}", remedy="pass the float model with its weights loaded")


def _plain(forward: Any) -> Any:
    """``forward`` with its outputs as plain tuples, lists and dicts of tensors."""

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _plain_output(forward(*args, **kwargs))

    return call


def _plain_output(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain_output(v) for k, v in value.items() if _has_tensor(v)}
    if isinstance(value, list):
        return [_plain_output(v) for v in value if _has_tensor(v)]
    if isinstance(value, tuple):
        return tuple(_plain_output(v) for v in value if _has_tensor(v))
    if hasattr(value, "__dataclass_fields__"):
        return _plain_output({name: getattr(value, name) for name in value.__dataclass_fields__})
    return value


def _has_tensor(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, Mapping):
        return any(_has_tensor(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_tensor(v) for v in value)
    return hasattr(value, "__dataclass_fields__") and not isinstance(value, type)


def _lost(module: torch.nn.Module) -> Iterable[str]:
    """What an export in evaluation mode can't carry, as far as the modules tell."""
    found: dict[str, list[str]] = {}
    for name, part in module.named_modules():
        kind = type(part).__name__
        rate = getattr(part, "drop_prob", getattr(part, "p", 0.0))
        if kind in ("DropPath", "StochasticDepth", "DropBlock2d") and rate:
            found.setdefault(kind, []).append(name)
        if isinstance(part, torch.nn.MultiheadAttention) and part.dropout:
            found.setdefault("the dropout inside attention", []).append(name)
    for kind, names in found.items():
        yield f"{kind} acts in training only, and is gone ({some_of(names)})"


def some_of(names: list[str]) -> str:
    """A list of module names in a message: three at most."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(n) for n in names[:3]) + more


def arguments(inputs: Any, parameters: Iterable[str] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The user's inputs as positional and keyword arguments (see :func:`edgekit.exported.capture`)."""
    if isinstance(inputs, Mapping):
        plain = dict(inputs)
        if parameters is not None and plain and set(plain) <= set(parameters):
            return (), plain
        return (plain,), {}
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def _parameters(module: torch.nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, p in inspect.signature(module.forward).parameters.items() if p.kind in kinds]


def _leaf_names(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """The name of each leaf of the inputs, as ``torch.export`` will name its placeholder."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    names = []
    for path, _ in pytree.tree_leaves_with_path(dict(bound)):
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
        names.append("_".join(parts).replace(".", "_"))
    return names


def _named_axes(names: list[str], dynamic_axes: Mapping[str, Mapping[Any, str]]) -> Axes:
    if unknown := [name for name in dynamic_axes if name not in names]:
        raise InputError(
            f"dynamic_axes names the input '{unknown[0]}', which the model does not have",
            remedy=f"its inputs are {', '.join(names)}",
        )
    return [{int(axis): str(size) for axis, size in dynamic_axes.get(name, {}).items()} for name in names]


def _batch_choices(leaves: list[Any]) -> list[set[int]]:
    """Which leaves may carry the batch, the likeliest guess first."""
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.dim() > 0]
    if not tensors:
        return []
    batch = leaves[tensors[0]].shape[0]
    alike = [i for i in tensors if leaves[i].shape[0] == batch]
    choices = [alike, [i for i in alike if leaves[i].dim() > 1], tensors[:1]]
    return [set(c) for n, c in enumerate(choices) if c and c not in choices[:n]]


def _doubled(leaf: Any) -> Any:
    """Export takes a size of 1 for a constant, so a batch of one becomes two."""
    return torch.cat([leaf, leaf]) if leaf.shape[0] == 1 else leaf


def traced(module: torch.nn.Module, inputs: Any, axes: Axes) -> torch.export.ExportedProgram:
    """Export with the given axes free; ``inputs`` are ``(args, kwargs)``."""
    args, kwargs = inputs
    leaves, spec = pytree.tree_flatten((args, kwargs))
    free = [
        dict.fromkeys(axes[i], torch.export.Dim.DYNAMIC) if isinstance(leaf, torch.Tensor) else None
        for i, leaf in enumerate(leaves)
    ]
    positional, keyword = pytree.tree_unflatten(free, spec)
    shapes = _by_parameter(module, positional, keyword)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operation has no training mode and no ONNX
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _by_parameter(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)


def _finished(exported: torch.export.ExportedProgram, axes: Axes, lost: list[str]) -> Exported:
    dynamic = {i: axes[i] for i in range(len(axes)) if axes[i]}
    module = from_program(exported, {"axes": dynamic, "lost": lost})
    used = {tensor.data_ptr() for tensor in module.parameters()}  # by place: of tied ones one name stays
    state = exported.state_dict
    gone = [name for name in exported.graph_signature.parameters if state[name].data_ptr() not in used]
    unused = sorted({name.rpartition(".")[0] for name in gone})
    said = module.meta["edgekit"]["lost"]
    if unused:
        said.append(f"the parameters of {some_of(unused)} are not used in evaluation, and are gone")
    for text in said:
        warn(f"lost in the export: {text}")
    return module


def from_program(exported: torch.export.ExportedProgram, notes: dict[str, Any]) -> Exported:
    """An exported program as a module; ``notes`` are what :func:`edgekit.exported.save` wrote beside it."""
    if exported.example_inputs is None:
        raise InputError(
            "the program holds no sample inputs", remedy="save it as torch.export.export(model, inputs) gave it"
        )
    leaves = pytree.tree_leaves(exported.example_inputs)
    holders = [n for n in exported.graph.nodes if n.op == "placeholder"][-len(leaves) :]
    entries: list[dict[str, Any]] = []
    example: dict[str, torch.Tensor] = {}
    dynamic: dict[str, dict[int, str]] = {}
    for place, (leaf, node) in enumerate(zip(leaves, holders, strict=True)):
        if not isinstance(leaf, torch.Tensor):
            entries.append({"value": leaf})
            continue
        entries.append({"name": node.name})
        example[node.name] = leaf.detach()
        if found := _free_axes(node, place, notes):
            dynamic[node.name] = found
    module = exported.module(check_guards=False)
    outputs = notes.get("outputs") or _output_names(module, set(example))
    meta = {"leaves": entries, "example": example, "dynamic": dynamic, "outputs": outputs}
    return wrap(module, {**meta, "lost": list(notes.get("lost", []))})


def _free_axes(node: torch.fx.Node, place: int, notes: dict[str, Any]) -> dict[int, str]:
    """Axis → name of the free sizes of an input: as noted, else as the program's own shapes say."""
    noted = notes.get("axes", {}).get(place) or notes.get("dynamic", {}).get(node.name)
    if noted or "axes" in notes or "dynamic" in notes:
        return {int(axis): name for axis, name in (noted or {}).items()}
    sizes = node.meta["val"].shape
    return {i: BATCH if i == 0 else str(s) for i, s in enumerate(sizes) if not isinstance(s, int)}


def _output_names(module: torch.fx.GraphModule, taken: set[str]) -> list[str]:
    """A name for each output tensor: its keys and places in what the model returns."""
    spec = module.graph._codegen.pytree_info.out_spec
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    leaves = list(output.args[0])
    tree = pytree.tree_unflatten(leaves, spec)
    names = []
    for path, leaf in pytree.tree_leaves_with_path(tree):
        if not isinstance(leaf, torch.fx.Node):
            continue
        parts = [str(getattr(key, "key", getattr(key, "idx", ""))) for key in path]
        name = "_".join(parts) if parts and not parts[0].isdigit() else "_".join(["output", *parts])
        if len(leaves) == 1 and parts == ["0"]:
            name = "output"
        names.append(f"output_{name}" if name in taken else name)
    return names


def _reason(error: BaseException) -> str:
    """The first telling line of an export error, in plain words."""
    text = str(error).strip()
    if "data-dependent" in text:
        first = "its control flow depends on the data (a Python 'if' or a loop over values)"
        return f"{first}, which no exported graph can carry"
    for line in text.splitlines():
        if "specialized" in line or "inferred to be a constant" in line:
            return "its code turns that size into a constant"
    return (text.splitlines() or [type(error).__name__])[0][:300]


def _frames(error: BaseException) -> list[tuple[str, int, dict[str, Any]]]:
    """The user's frames of an exception: outside torch and edgekit."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    found = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith((*own, "<")) and "site-packages/sympy" not in file:
            found.append((file, line, frame.f_locals))
    return found


def _at(module: torch.nn.Module, error: BaseException) -> str:
    place, name = _place(module, error)
    return (f", in the module '{name}'" if name else "") + (f" ({place})" if place else "")


def _place(module: torch.nn.Module, error: BaseException) -> tuple[str, str]:
    """``file:line`` and the module's name where the export failed, as far as the traceback tells."""
    names = {id(part): name or type(part).__name__ for name, part in module.named_modules()}
    owners = [names[id(f.f_locals["self"])] for f, _ in traceback.walk_tb(error.__traceback__) if _owner(f, names)]
    frames = [f for f in _frames(error) if "forward" in f[2] or f[2].get("self") is not None] or _frames(error)
    place = f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""
    return place, owners[-1] if owners else ""


def _owner(frame: Any, names: dict[int, str]) -> bool:
    return id(frame.f_locals.get("self")) in names


def _explained(module: torch.nn.Module, error: BaseException) -> InputError:
    place, name = _place(module, error)
    remedy = "rewrite that line with tensor operations (torch.where), or take it out of the model"
    if "data-dependent" not in str(error):
        remedy = "check the example inputs; the model must run with them, and use tensor operations only"
    return InputError(
        f"torch can't export the model: {_reason(error)}" + (f", in the module '{name}'" if name else ""),
        where=place,
        remedy=remedy,
        details=str(error)[-4000:],
    )
