"""Weights from a file into a module, without running anything that the file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.onnxfile.check import shown
from edgekit.onnxfile.sniffing import KINDS, REMEDIES, sniff

if TYPE_CHECKING:
    import torch

SHOWN = 5  # keys that a message lists
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")  # how checkpoints name the weights


def load_weights(module: torch.nn.Module, path: Path | str) -> None:
    """Load a state dict into a module; every key must fit.

    Args:
        module: Takes the weights, in place.
        path: A ``.safetensors`` file, or a ``.pt`` file with a state dict (or a checkpoint that holds one);
            its content decides, not its ending.

    Raises:
        InputError: Not such a file; a pickle that would run code; keys or shapes that don't fit; NaN in it.
    """
    path = Path(path)
    state = read_state(path)
    _check_fit(module, state, path)
    module.load_state_dict(state)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name.

    Raises:
        InputError: See :func:`load_weights`.
    """
    kind = sniff(path)
    if kind == "safetensors":
        state = _read_safetensors(path)
    elif kind == "pt":
        state = _unwrapped(_read_torch(path), path)
    else:
        remedy = REMEDIES.get(kind, "save them with: safetensors.torch.save_file(model.state_dict(), 'w.safetensors')")
        raise InputError(f"this is {KINDS[kind]}, not a file of weights", where=str(path), remedy=remedy)
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"weights are NaN or infinite in {_listed(broken)}",
            where=str(path),
            remedy="take a checkpoint from before the training diverged",
        )
    return state


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError, KeyError) as error:
        raise InputError(
            f"this safetensors file is damaged: {error}", where=str(path), remedy="copy or download it again"
        ) from error


def _read_torch(path: Path) -> Any:
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # a damaged archive raises whatever its reader met first
        raise InputError(
            f"this torch file is damaged: {type(error).__name__}: {str(error)[:200]}",
            where=str(path),
            remedy="copy or download it again",
        ) from error


def _refused(path: Path, message: str) -> InputError:
    import re

    names = re.findall(r"GLOBAL ([\w.]+)", message) or _asked_for(path)
    if not names:
        return InputError(
            "this torch file is damaged, or no pickle", where=str(path), remedy="copy or download it again"
        )
    return InputError(
        f"this pickle asks to run or import {names[0]}, so it was not loaded: a weights file must hold tensors alone",
        where=str(path),
        remedy="where you trust it, save its weights only: torch.save(model.state_dict(), 'weights.pt')",
        details=message[:2000],
    )


def _asked_for(path: Path) -> list[str]:
    """What a bare pickle would import, read off its instructions without running one."""
    import pickletools

    names: list[str] = []
    words: list[str] = []
    try:
        for operation, value, _ in pickletools.genops(path.read_bytes()):
            if operation.name == "GLOBAL":
                names.append(str(value).replace(" ", "."))
            elif operation.name == "STACK_GLOBAL":
                names.append(".".join(words[-2:]))
            elif isinstance(value, str):
                words.append(value)
    except ValueError:
        pass  # damaged further on
    return names


def _unwrapped(value: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in what was loaded: itself, or under the name that checkpoints use."""
    import torch

    for _ in range(2):
        if isinstance(value, Mapping) and value and all(isinstance(v, torch.Tensor) for v in value.values()):
            return {str(key): tensor for key, tensor in value.items()}
        if not isinstance(value, Mapping):
            break
        value = next((value[name] for name in WRAPPERS if isinstance(value.get(name), Mapping)), None)
    raise InputError(
        "this file holds no state dict (a mapping from names to tensors)",
        where=str(path),
        remedy="save the weights alone: torch.save(model.state_dict(), 'weights.pt')",
    )


def _check_fit(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {list(state[key].shape)}, the model has {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    if not any(found.values()):
        return
    raise InputError(
        "these weights don't fit the model: "
        + "; ".join(f"{len(keys)} {what}: {_listed(keys)}" for what, keys in found.items() if keys),
        where=str(path),
        remedy=_fit_remedy(missing, unexpected),
    )


def _fit_remedy(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    for prefix in ("module.", "_orig_mod.", "model."):
        if unexpected and all(key.startswith(prefix) for key in unexpected):
            cut = {key.removeprefix(prefix) for key in unexpected}
            if cut >= set(missing):
                return f"save the weights of the inner module: every key begins with '{prefix}'"
    return "give the weights of this very model, or build the model that these weights are for"


def _listed(keys: Sequence[str]) -> str:
    text = ", ".join(key if " is [" in key else shown(key) for key in keys[:SHOWN])
    return text + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
