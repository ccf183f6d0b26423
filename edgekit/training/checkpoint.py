"""Checkpoints that a killed run goes on from: one file of tensors and numbers, whole or not there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from edgekit.console import warn
from edgekit.store import write_bytes

NAME = "checkpoint.pt"
FORMAT = 2


def save(folder: Path, digest: str, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts of them) as the folder's checkpoint.

    Raises:
        StageError: The disk is full, or the folder can't be written; the old checkpoint is intact.
    """
    import torch

    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "digest": digest, **state}, buffer)
    write_bytes(folder / NAME, buffer.getvalue())


def load(folder: Path, digest: str) -> dict[str, Any] | None:
    """The folder's checkpoint, if it is of the same job; opened without pickle's powers (``weights_only``)."""
    import torch

    path = folder / NAME
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        warn(f"the checkpoint {path} can't be read ({type(error).__name__}); training begins again")
        return None
    if state.get("format") != FORMAT or state.get("digest") != digest:
        return None  # of another job, or of another version: not ours to go on from
    return state
