"""A data split on disk: the batches as they came, one file each, no pickle.

Written once from the user's iterable, then read by every child process in constant memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import InputError
from edgekit.store import write_json

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Batch = tuple[dict[str, Array], Array | None]

INDEX = "index.json"


@dataclass(frozen=True)
class Spool:
    """A split on disk; iterate it as often as you like.

    Attributes:
        folder: Where it lies.
        batches: How many batches. samples: How many samples in all.
        digest: Hex hash of the content, independent of the batching.
        labelled: Whether every batch has labels.
    """

    folder: Path
    batches: int
    samples: int
    digest: str
    labelled: bool

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield ``(feeds, labels)``: input name → array (N, …), and labels (N, …) or None."""
        for number in range(self.batches):
            yield self.batch(number)

    def batch(self, number: int) -> Batch:
        """The batch of that number, from 0."""
        import numpy as np

        with np.load(self.folder / f"{number:06d}.npz", allow_pickle=False) as file:
            feeds = {name[3:]: file[name] for name in file.files if name.startswith("in:")}
            return feeds, (file["label"] if "label" in file.files else None)

    def feeds(self) -> Iterator[dict[str, Array]]:
        """Yield the inputs alone."""
        for inputs, _ in self:
            yield inputs

    def labels(self) -> Iterator[Array]:
        """Yield the labels alone, (N, …), of a labelled split; the inputs are not read."""
        import numpy as np

        for number in range(self.batches):
            with np.load(self.folder / f"{number:06d}.npz", allow_pickle=False) as file:
                yield file["label"]

    def sample_hashes(self) -> set[str]:
        """The content hash of each sample's inputs, to find overlap between splits."""
        return set(json.loads((self.folder / INDEX).read_text())["hashes"])


def write(batches: Iterable[tuple[Mapping[str, Array], Array | None]], folder: Path) -> Spool:
    """Write batches into ``folder``, hashing each sample on the way.

    Raises:
        InputError: No sample at all, or inputs of one batch that differ in their first size.
    """
    import numpy as np

    hashes: list[str] = []
    digest, count, labelled = hashlib.sha256(), 0, True
    folder.mkdir(parents=True, exist_ok=True)
    for feeds, labels in batches:
        sizes = {name: len(value) for name, value in feeds.items()}
        if labels is not None:
            sizes["labels"] = len(labels)
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"batch {count} has inputs of different lengths: {sizes}",
                remedy="give each input and the labels one batch size",
            )
        labelled = labelled and labels is not None
        arrays = {f"in:{name}": value for name, value in feeds.items()}
        if labels is not None:
            arrays["label"] = labels
        np.savez(folder / f"{count:06d}.npz", **arrays)  # type: ignore[arg-type]
        for row in range(next(iter(sizes.values()))):
            sample = hash_sample(feeds, row)
            hashes.append(sample)
            digest.update(sample.encode())
            if labels is not None:
                digest.update(np.ascontiguousarray(labels[row]).tobytes())
        count += 1
    if not hashes:
        raise InputError("the split has no samples", remedy="return at least one batch with at least one sample")
    facts = {"batches": count, "samples": len(hashes), "digest": digest.hexdigest(), "labelled": labelled}
    write_json(folder / INDEX, {**facts, "hashes": hashes})
    return Spool(folder, **facts)  # type: ignore[arg-type]


def read(folder: Path | str) -> Spool:
    """Open a spool that :func:`write` made."""
    facts = json.loads((Path(folder) / INDEX).read_text())
    facts.pop("hashes")
    return Spool(Path(folder), **facts)


def hash_sample(feeds: Mapping[str, Array], row: int) -> str:
    """The content hash of one sample's inputs: names, dtypes, shapes and bytes."""
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(feeds):
        value = np.ascontiguousarray(feeds[name][row])
        digest.update(f"{name}{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:32]
