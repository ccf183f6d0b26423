"""Training data: the user's batches as tensors, and each process's share of them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError, InputError
from edgekit.workload.spool import Spool

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    Batch = tuple[dict[str, Tensor], Tensor | None]
    Convert = Callable[[Any, str], tuple[dict[str, Any], Any]]

MIXED = 16  # batches of a spool that are mixed with one another


@dataclass(frozen=True)
class Split:
    """A split as tensors, re-iterable.

    Attributes:
        name: ``train`` or ``validation``.
        source: What the user gave: re-iterable over ``(inputs, labels)``, or a :class:`~edgekit.workload.spool.Spool`.
        convert: Turns one of its items into ``(feeds, labels)``, arrays that fit the model, or raises.
        shuffle: Whether the samples of a spool, which lie in a fixed order, are mixed at each pass.
    """

    name: str
    source: Iterable[Any]
    convert: Convert
    shuffle: bool = False

    def __iter__(self) -> Iterator[Batch]:
        """Yield ``(feeds, labels)``: input name → tensor (N, …), and labels (N, …) or None.

        Raises:
            InputError: The split is empty, raises, or a batch does not fit the model.
        """
        import torch

        count = 0
        for item in self._items():
            feeds, labels = self.convert(item, f"[data] {self.name}, batch {count}")
            tensors = {name: torch.as_tensor(value) for name, value in feeds.items()}
            yield tensors, None if labels is None else torch.as_tensor(labels)
            count += 1
        if not count:
            raise self.empty()

    def empty(self) -> InputError:
        """The error for a split that gives nothing, or gives nothing the second time."""
        return InputError(
            f"the split '{self.name}' gave no batches",
            where="[data]",
            remedy="return at least one batch, from a list or a class that can be read again and again, "
            "not from a generator",
        )

    def _items(self) -> Iterator[Any]:
        number = 0
        try:
            spooled = self.source if self.shuffle and isinstance(self.source, Spool) else None
            for item in _mixed(spooled) if spooled else self.source:
                yield item
                number += 1
        except EdgekitError:
            raise
        except Exception as error:
            raise InputError(
                f"the split '{self.name}' raises {type(error).__name__} at batch {number}: {error}",
                where="[data]",
                remedy="iterate it alone and mend what it says",
            ) from error

    def __len__(self) -> int:
        """How many batches: as the split says, or counted in one pass."""
        if isinstance(self.source, Sized):
            with contextlib.suppress(TypeError):  # a DataLoader over a stream has the method, and raises
                return len(self.source)
        return sum(1 for _ in self._items())


def _mixed(spool: Spool) -> Iterator[Any]:
    """The samples of a spool in a random order: ``MIXED`` batches at a time are shuffled together."""
    import numpy as np

    held: list[Any] = []
    order = np.random.permutation(spool.batches)
    for place, number in enumerate(order):
        held.append(spool.batch(int(number)))
        if len(held) == MIXED or place == len(order) - 1:
            yield from _reshuffle(held)
            held = []


def _reshuffle(batches: list[Any]) -> Iterator[Any]:
    """Batches of the same sizes with the same samples, mixed; ragged ones as they are."""
    import numpy as np

    shapes = {tuple((k, v.shape[1:]) for k, v in feeds.items()) for feeds, _ in batches}
    if len(shapes) > 1:
        yield from batches
        return
    feeds = {name: np.concatenate([b[0][name] for b in batches]) for name in batches[0][0]}
    labels = None if batches[0][1] is None else np.concatenate([b[1] for b in batches])
    order = np.random.permutation(len(next(iter(feeds.values()))))
    start = 0
    for one, _ in batches:
        rows = order[start : start + len(next(iter(one.values())))]
        start += len(rows)
        yield {name: value[rows] for name, value in feeds.items()}, None if labels is None else labels[rows]


def seed_all(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed Python, numpy and torch for one epoch, so that a resumed run meets the same random numbers."""
    import numpy as np
    import torch

    mixed = (seed * 1_000_003 + epoch * 1_009 + rank) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def shares(accelerator: Accelerator, batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """This process's share of every batch, with its weight in the mean over processes.

    The first process reads, so that the user's data may be in any order of its own making; the
    batch, and with it the effective batch size, stays the same however many processes there are.

    Raises:
        InputError: What reading raised in the first process, in all of them.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    for feeds, labels in batches if world == 1 else _broadcast(accelerator, batches):
        yield share((feeds, labels), rank, world)


def share(batch: Batch, rank: int, world: int) -> tuple[Batch, float]:
    """One process's part of a batch, and the weight with which its mean enters the mean over processes.

    A batch with fewer than two samples a process is given whole to each: the mean of equal
    gradients is that gradient, and batch statistics need at least two samples.
    """
    feeds, labels = batch
    size = len(next(iter(feeds.values())))
    if world == 1 or size < 2 * world:
        return batch, 1.0
    low, high = rank * size // world, (rank + 1) * size // world
    part = {name: value[low:high] for name, value in feeds.items()}
    return (part, None if labels is None else labels[low:high]), (high - low) * world / size


def _broadcast(accelerator: Accelerator, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Every batch that the first process reads, in every process."""
    from accelerate.utils import broadcast, broadcast_object_list
    from accelerate.utils.operations import initialize_tensors, send_to_device

    reader = iter(batches) if accelerator.is_main_process else iter(())
    while True:
        tensors: dict[str, Any] | None = None
        head: list[Any] = [None]
        if accelerator.is_main_process:
            tensors, head = _read(reader)
        broadcast_object_list(head)
        if isinstance(head[0], EdgekitError):
            raise head[0]
        if head[0] is None:
            return
        if tensors is None:
            tensors = initialize_tensors(head[0])
        tensors = broadcast(send_to_device(tensors, accelerator.device))
        yield {name[3:]: t for name, t in tensors.items() if name != "labels"}, tensors.get("labels")


def _read(reader: Iterator[Batch]) -> tuple[dict[str, Any] | None, list[Any]]:
    """The next batch as one flat dict, and its structure: None at the end, or the error that reading raised."""
    from accelerate.utils.operations import get_data_structure

    try:
        feeds, labels = next(reader)
    except StopIteration:
        return None, [None]
    except EdgekitError as error:
        return None, [error]
    tensors = {f"in:{name}": value.contiguous() for name, value in feeds.items()}
    if labels is not None:
        tensors["labels"] = labels.contiguous()
    return tensors, [get_data_structure(tensors)]
