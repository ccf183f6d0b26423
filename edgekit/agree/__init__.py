"""Do two models compute the same? And if not, from which node on?

Outputs are compared against their own scale: an error counts as a share of the greatest
magnitude that the output takes over all the inputs tried. How much is tolerated is not
guessed but measured: nudge the inputs by one unit in the last place and see how far the
outputs move (:func:`tolerance_of`); two right programs that round differently may differ by
a multiple of that. Several inputs are tried (:func:`trial_feeds`), because a branch baked in
at export shows on none of those that take it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch
    from torch import nn

    Array = np.ndarray[Any, Any]
    Feeds = dict[str, Array]
    Runner = Callable[[Feeds], Sequence[Array]]

FLOOR = 1e-4  # share of the output's scale that reordered fp32 sums may always differ by
HALF_FLOOR = 1e-2  # the same for outputs in 16-bit floats
CEILING = 1e-2  # never tolerate more, however badly conditioned the model is
ROUNDINGS = 32.0  # how many times the effect of one rounding of the inputs is tolerated
WORST = sys.float_info.max  # stands for infinity, which JSON has not


@dataclass(frozen=True)
class Verdict:
    """Whether two models agree.

    Attributes:
        agrees: Whether every output is within the tolerance.
        max_abs: Greatest absolute difference.
        max_rel: Greatest difference as a share of its output's greatest magnitude; for integer
            and boolean outputs the share of elements that differ.
        tolerance: What ``max_rel`` was held against.
        samples: How many samples were tried.
        output: Index of the output that differs most. trial: index of the trial in which it does.
    """

    agrees: bool
    max_abs: float
    max_rel: float
    tolerance: float
    samples: int
    output: int = 0
    trial: int = 0

    def parity(self) -> dict[str, Any]:
        """As the record tells it."""
        facts = asdict(self)
        return {name: facts[name] for name in ("max_abs", "max_rel", "tolerance", "samples")}


def compare(a: Sequence[Array], b: Sequence[Array]) -> dict[str, float]:
    """Greatest difference between two models' outputs on the same inputs.

    Args:
        a: The reference's outputs, any shapes and dtypes.
        b: The other model's outputs, in the same order.

    Returns:
        ``max_abs`` and ``max_rel`` as :class:`Verdict` defines them. A different count, shape or
        kind of type, and NaN or infinity in one where the other has another value, counts as
        the greatest float.
    """
    if len(a) != len(b):
        return {"max_abs": WORST, "max_rel": WORST}
    gaps = [gap_of(x, y) for x, y in zip(a, b, strict=True)]
    return {"max_abs": max((g[0] for g in gaps), default=0.0), "max_rel": max((g[1] for g in gaps), default=0.0)}


def agree(
    outputs_a: Sequence[Sequence[Array]],
    outputs_b: Sequence[Sequence[Array]],
    tolerance: float | Sequence[float] | None = None,
) -> Verdict:
    """Judge the outputs of two models over several trials.

    An output's scale is that of the trial or of the first one, whichever is greater: so outputs near zero
    in a later trial are not held against themselves alone, and a trial that blows up hides nothing in others.

    Args:
        outputs_a: For each trial the reference's outputs.
        outputs_b: The same of the other model.
        tolerance: Greatest ``max_rel``, for all trials or for each; by default :data:`FLOOR`, or
            :data:`HALF_FLOOR` for 16-bit outputs.
    """
    if tolerance is None:
        tolerance = floor_of(outputs_a[0] if outputs_a else ())
    limits = [tolerance] * len(outputs_a) if isinstance(tolerance, float | int) else list(tolerance)
    if len({len(o) for o in (*outputs_a, *outputs_b)}) > 1 or len(outputs_a) != len(outputs_b):
        return Verdict(False, WORST, WORST, limits[0] if limits else FLOOR, 0)
    verdict = Verdict(True, 0.0, 0.0, limits[0] if limits else FLOOR, 0)
    samples, worst_abs, excess = 0, 0.0, 0.0
    for number, (trial_a, trial_b, limit) in enumerate(zip(outputs_a, outputs_b, limits, strict=True)):
        samples += len(trial_a[0]) if trial_a and trial_a[0].ndim else 1
        for index, (x, y, first) in enumerate(zip(trial_a, trial_b, outputs_a[0], strict=True)):
            gap, relative = _gap(x, y, max(_scale(x), _scale(first)))
            worst_abs = max(worst_abs, gap)
            if relative / limit > excess:
                excess = relative / limit
                verdict = Verdict(excess <= 1, 0.0, relative, limit, 0, index, number)
    return replace(verdict, max_abs=worst_abs, samples=samples)


def check(reference: Runner, other: Runner, trials: Sequence[Feeds]) -> Verdict:
    """Run two models on the same trials and judge; the tolerance is measured on ``reference``, trial by trial.

    Trials that tell nothing are left out: those that ``reference`` itself refuses (a batch size it was not
    made for), and those where it is so badly conditioned that rounding alone moves its outputs by more than
    :data:`CEILING`. The first must run, and counts in any case.
    """
    kept: list[int] = []
    wanted: list[list[Array]] = []
    limits: list[float] = []
    for number, feeds in enumerate(trials):
        try:
            outputs = list(reference(feeds))
            limit = tolerance_of(reference, feeds, outputs)
        except Exception:
            if number == 0:
                raise
            continue
        if number and limit >= CEILING > floor_of(outputs):
            continue
        kept.append(number)
        wanted.append(outputs)
        limits.append(limit)
    verdict = agree(wanted, [list(other(trials[number])) for number in kept], limits)
    return replace(verdict, trial=kept[verdict.trial])


def floor_of(outputs: Sequence[Array]) -> float:
    """The least tolerance for outputs of these dtypes."""
    return HALF_FLOOR if any(o.dtype.itemsize <= 2 and _is_float(o) for o in outputs) else FLOOR


def tolerance_of(model: Runner, feeds: Feeds, outputs: Sequence[Array], seed: int = 0) -> float:
    """How much two right programs for this model may differ, as a share of the output's scale.

    Args:
        model: Runs the model: feeds → outputs.
        feeds: The inputs on which it gave ``outputs``.
        outputs: Its outputs there.
        seed: Of the nudge.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    nudged: Feeds = {}
    for name, value in feeds.items():
        nudged[name] = value
        if _is_float(value):
            unit = np.finfo(value.dtype).eps
            signs = rng.choice(np.array([-1.0, 1.0]), size=value.shape)
            nudged[name] = (value * (1 + unit * signs)).astype(value.dtype)
    moved = compare(outputs, list(model(nudged)))["max_rel"]
    floor = floor_of(outputs)
    return min(max(floor, ROUNDINGS * moved), max(CEILING, floor))


def trial_feeds(
    example: Mapping[str, Array], dynamic: Mapping[str, Mapping[int, str]] | None = None, seed: int = 0
) -> list[Feeds]:
    """The inputs that agreement is tried on: the example first, then others of its kind.

    Random values in the example's own range (indices stay valid), the example mirrored about
    zero (which takes the other side of a branch on a sum), and, where the first size is free,
    batches of 1 and of 3.

    Args:
        example: Input name → array (N, …).
        dynamic: Input name → axis → name of the free size.
        seed: Of the random values.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    first = {name: np.asarray(value) for name, value in example.items()}
    random = {name: _random_like(value, value.shape, rng) for name, value in first.items()}
    trials = [first, random]
    if any(_is_float(value) for value in first.values()):
        trials.append({name: -value if _is_float(value) else random[name] for name, value in first.items()})
    batched = {name: axis for name, axes in (dynamic or {}).items() for axis in axes if axis == 0}
    for size in (1, 3) if batched else ():
        shapes = {n: (size, *v.shape[1:]) if n in batched else v.shape for n, v in first.items()}
        trials.append({name: _random_like(value, shapes[name], rng) for name, value in first.items()})
    return trials


def _random_like(value: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random values of the same dtype in the same range; for zeros, standard normal ones."""
    import numpy as np

    if value.size == 0:
        return np.zeros(shape, value.dtype)
    if value.dtype == bool:
        return rng.random(shape) < 0.5
    low, high = value.min(), value.max()
    if np.issubdtype(value.dtype, np.integer):
        return rng.integers(int(low), int(high), size=shape, endpoint=True).astype(value.dtype)
    if not _is_float(value):
        return np.broadcast_to(value.flat[0], shape).copy()
    if not np.isfinite([float(low), float(high)]).all() or low == high == 0:
        return rng.standard_normal(shape).astype(value.dtype)
    if low == high:  # a mask of ones, a temperature: values about it
        low, high = sorted((0.5 * low, 1.5 * high))
    return rng.uniform(float(low), float(high), size=shape).astype(value.dtype)


def _is_float(value: Array) -> bool:
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def _scale(value: Array) -> float:
    """The greatest finite magnitude of an output."""
    import numpy as np

    if not _is_float(value) or value.size == 0:
        return 1.0
    magnitudes = np.abs(value.astype(np.float64))
    magnitudes = magnitudes[np.isfinite(magnitudes)]
    return float(magnitudes.max()) if magnitudes.size else 0.0


def gap_of(x: Array, y: Array) -> tuple[float, float]:
    """Absolute and relative difference of one value, against the scale of ``x``."""
    return _gap(x, y, _scale(x))


def _gap(x: Array, y: Array, scale: float) -> tuple[float, float]:
    """Absolute and relative difference of one output."""
    import numpy as np

    if x.shape != y.shape or _is_float(x) != _is_float(y):
        return WORST, WORST
    if x.size == 0:
        return 0.0, 0.0
    if not _is_float(x):
        differs = x != y
        wide = np.abs(x.astype(np.float64) - y.astype(np.float64)) if x.dtype.kind in "iub" else differs
        return float(np.max(wide)), float(np.mean(differs))
    p, q = x.astype(np.float64), y.astype(np.float64)
    odd = ~(np.isfinite(p) & np.isfinite(q))
    if not np.array_equal(p[odd], q[odd], equal_nan=True):
        return WORST, WORST
    gap = float(np.max(np.abs(p[~odd] - q[~odd]), initial=0.0))
    return gap, gap / scale if scale else (0.0 if gap == 0 else WORST)


# ── models as runners ────────────────────────────────────────────────────────────────────


def torch_runner(module: nn.Module) -> Runner:
    """An exported module (:mod:`edgekit.exported`) as a function from arrays to arrays."""
    import torch

    from edgekit import exported

    def run(feeds: Feeds) -> list[Array]:
        with torch.no_grad():
            outputs = exported.run(module, {name: torch.from_numpy(value) for name, value in feeds.items()})
        return [as_array(tensor) for tensor in outputs]

    return run


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor as an array; bfloat16, which numpy has not, as float32."""
    import torch

    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def example_for(model: onnx.ModelProto, seed: int = 0) -> tuple[Feeds, dict[str, dict[int, str]]]:
    """Random inputs that an ONNX model takes, and which of their sizes are free, for :func:`trial_feeds`.

    Integers are 0 or 1, which are valid indices into any table.

    Raises:
        InputError: A size other than the batch is free, and nothing says what it is.
    """
    import numpy as np
    import onnx

    from edgekit.onnxfile.cost import input_shapes

    rng = np.random.default_rng(seed)
    shapes = input_shapes(model)
    feeds: Feeds = {}
    dynamic: dict[str, dict[int, str]] = {}
    for value in model.graph.input:
        if value.name not in shapes:
            continue
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        dims, shape = value.type.tensor_type.shape.dim, list(shapes[value.name])
        if dims and dims[0].dim_value <= 0:
            dynamic[value.name], shape[0] = {0: dims[0].dim_param}, 2
        floats = dtype.kind == "f" or dtype.name == "bfloat16"
        drawn = rng.standard_normal(shape) if floats else rng.integers(0, 256 if dtype == np.uint8 else 2, shape)
        feeds[value.name] = drawn.astype(dtype)
    return feeds, dynamic
