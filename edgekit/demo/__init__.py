"""``edgekit demo``: the main job on real data, with nothing downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from edgekit import child, console, rooms
from edgekit.store import write_bytes

HERE = Path(__file__).parent
FILES = ("model.py", "recipe.toml")
EPOCHS = 14


def prepare(folder: Path) -> Path:
    """Put the demo's model, data and recipe into ``folder`` and train the model; return the recipe's path.

    Files that are there already stay as the user left them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if not (folder / name).exists():
            write_bytes(folder / name, (HERE / name).read_bytes())
    weights = folder / "weights.safetensors"
    if not weights.exists():
        accuracy = child.call("edgekit.demo:train_job", folder=str(folder), out=str(weights), threads=2)
        console.note(f"demo: trained a small CNN on scikit-learn's digits, validation accuracy {accuracy:.4f}")
    return folder / "recipe.toml"


def train_job(folder: str, out: str) -> float:
    """Train the demo's CNN from scratch; return its accuracy on the validation split."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    np.random.seed(0)
    user = rooms.load_file(Path(folder) / "model.py")
    model, _ = user.build()
    splits = user.data()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    steps = EPOCHS * len(splits["train"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for _ in console.track(range(EPOCHS), "training the demo's CNN"):
        for images, labels in splits["train"]:
            loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    temporary = Path(out).with_suffix(".new")
    save_file(model.state_dict(), temporary)
    shutil.move(temporary, out)
    return _accuracy(model, splits["validation"])


def _accuracy(model: Any, batches: Any) -> float:
    import torch

    model.eval()
    with torch.no_grad():
        hits = [model(torch.from_numpy(x)).argmax(1).numpy() == y for x, y in batches]
    return float(sum(h.sum() for h in hits) / sum(len(h) for h in hits))
