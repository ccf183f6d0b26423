"""One TOML file describes the whole job, checked strictly before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edgekit.errors import InputError
from edgekit.target import checked, read_toml


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ModelSection(Section):
    """``[model]``: where the trained model comes from.

    Attributes:
        entry: ``file.py:function`` or ``package.module:function``; returns a ``torch.nn.Module`` and example inputs.
        weights: A ``.safetensors`` or ``.pt`` state dict for it.
        path: Instead of an entry: a ``.pt2`` exported program or an ``.onnx`` file.
        licence: The model's licence, for the bundle's manifest.
    """

    entry: Any = None
    weights: str | None = None
    path: str | None = None
    licence: str = ""


class DataSection(Section):
    """``[data]``: ``entry`` returns ``train``, ``calibration``, ``validation``, ``test``.

    Each split is re-iterable over batches ``(inputs, labels)``; a split that is missing
    matters only to a stage that needs it.
    """

    entry: Any = None


class MetricSection(Section):
    """``[metric]``: what "as good" means.

    Attributes:
        name: A member of ``edgekit/metrics``, or the user's own: ``metric.py``, or ``file.py:function``.
        options: Passed to the metric (``k = 5``, ``average = "macro"``).
    """

    name: str = "accuracy"
    options: dict[str, Any] = Field(default_factory=dict)


class TrainSection(Section):
    """How edgekit trains, in recovery and in quantization-aware training.

    Attributes:
        epochs: Passes over ``train``.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        learning_rate: Peak rate; None: a sensible one for the optimizer and stage.
        weight_decay: As the optimizer's.
        schedule: ``cosine``, ``onecycle``, ``step``, ``plateau`` or ``constant``.
        loss: ``auto`` (from the metric and the labels), a name, or ``file.py:function`` taking (outputs, labels).
        distill: Weight of the distillation from the original in the loss, 0 to 1; 1 needs no labels.
        temperature: Of the distillation.
        features: Modules of the original whose features the student's are kept like, too (``["layer*"]``).
        patience: Epochs without a better validation metric after which to stop; 0: never.
        learn_scales: Of quantization-aware training: let it move the scales of weights and activations too.
        precision: ``fp32``, or ``bf16``: of recovery, the products of its steps in bfloat16 (weights and validation
            stay fp32); faster on a GPU and on CPUs that have it in hardware.
        processes: Data-parallel processes, under ``torchrun``.
        torchrun: Further options for ``torchrun`` (``--nnodes=2`` …).
    """

    epochs: int = Field(3, ge=0)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float | None = Field(None, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "onecycle", "step", "plateau", "constant"] = "onecycle"
    loss: Any = "auto"
    distill: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(4.0, gt=0)
    features: tuple[str, ...] = ()
    patience: int = Field(0, ge=0)
    learn_scales: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    processes: int = Field(1, ge=1)
    torchrun: tuple[str, ...] = ()


class FinetuneSection(TrainSection):
    """``[quantize.train]``: as :class:`TrainSection`, with the defaults of quantization-aware training.

    A model that works already is moved a little, taught by the float model alone.
    """

    epochs: int = Field(2, ge=0)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "onecycle", "step", "plateau", "constant"] = "cosine"
    distill: float = Field(1.0, ge=0, le=1)
    temperature: float = Field(1.0, gt=0)

    @field_validator("precision")
    @classmethod
    def _fine_enough(cls, value: str) -> str:
        if value != "fp32":
            raise ValueError("bf16 is too coarse for the 256 steps that are trained here: leave it fp32")
        return value


class PruneSection(Section):
    """``[prune]``: structured pruning.

    Attributes:
        method: A member of ``edgekit/pruners``, or the path of the user's own ``.py``.
        ratio: Share of the channels of every free group to remove.
        round_to: The widths that ``ratio`` leaves are rounded to a multiple of it, in groups of four times as many
            channels or more: kernels work on blocks of channels. 1: not at all.
        scope: ``local``: the same share of each group; ``global``: the weakest anywhere; ``sensitivity``: to the same
            size, from each group as much as the outputs bear, and whole residual branches, measured on the calibration
            data. ``auto``: the method's own; else by sensitivity towards a goal where there are calibration data, else
            local.
        ratios: Ratio by layer name (``fnmatch`` patterns).
        protect: Layers that stay whole (``fnmatch`` patterns).
        target_macs, target_parameters: A goal instead of a ratio: a share of the original's, 0 to 1. Of several all are
            kept.
        target_speedup: A goal measured on the target at the precision that ships.
        iterations: Prune in that many steps.
    """

    method: str = "magnitude"
    ratio: float = Field(0.3, ge=0, lt=1)
    round_to: int = Field(4, ge=1)
    scope: Literal["auto", "local", "global", "sensitivity"] = "auto"
    ratios: dict[str, float] = Field(default_factory=dict)
    protect: tuple[str, ...] = ()
    target_macs: float | None = Field(None, gt=0, le=1)
    target_parameters: float | None = Field(None, gt=0, le=1)
    target_speedup: float | None = Field(None, gt=1)
    iterations: int = Field(1, ge=1)


class QuantizeSection(Section):
    """``[quantize]``: the scheme is the target's; this says how ranges and weights are found.

    Attributes:
        method: A member of ``edgekit/quantizers``, or ``auto``.
        calibration: How ranges are found: ``auto``, ``minmax``, ``average``, ``percentile``, ``entropy``, ``mse``.
        samples: Calibration samples at most.
        max_drop: Limit on the metric's drop; layers that cost most go back to float until it holds.
        bits: Of a weight, for ``weight_only`` (4 or 8) and ``binary`` (1, or 2 for ternary).
        block: Values of a weight that share a scale, for ``weight_only``.
        clusters: Values that a weight may take, for ``clustered``.
        layers: Only these layers (``fnmatch`` patterns), for ``clustered`` and ``binary``.
        finetune: Train the quantized graph, as ``train`` says; None: with ``qat`` alone. For ``static``, ``clustered``
            and ``binary`` too.
        train: How that is done.
    """

    method: str = "auto"
    calibration: Literal["auto", "minmax", "average", "percentile", "entropy", "mse"] = "auto"
    samples: int = Field(512, ge=1)
    max_drop: float | None = Field(None, ge=0)
    bits: Literal[1, 2, 4, 8] | None = None
    block: Literal[16, 32, 64, 128, 256] = 32
    clusters: int = Field(16, ge=2, le=256)
    layers: tuple[str, ...] = ()
    finetune: bool | None = None
    train: FinetuneSection = FinetuneSection()

    @property
    def trained(self) -> bool:
        """Whether the quantized graph is trained."""
        return self.method == "qat" if self.finetune is None else self.finetune

    @property
    def training_kind(self) -> Literal["qat", "codebook"]:
        """Of :class:`edgekit.training.TrainJob`: of weights of few values, which are noise before, or of Q/DQ."""
        return "codebook" if self.method in ("clustered", "binary") else "qat"

    @field_validator("method")
    @classmethod
    def _as_the_file_is_named(cls, value: str) -> str:
        return value if value.endswith(".py") else value.replace("-", "_")

    @model_validator(mode="after")
    def _can_be_trained(self) -> QuantizeSection:
        if self.finetune and self.method in ("dynamic", "weight_only", "fp16", "bf16"):
            raise ValueError(f"finetune = true: what '{self.method}' makes can't be trained")
        return self


class Preprocess(Section):
    """Preprocessing folded into the graph: the device feeds raw uint8.

    ``x = (raw * scale - mean) / std`` along the channel axis, before the model's first input.

    Attributes:
        scale: Factor on the raw values, 1/255 for images.
        mean, std: One value, or one for each channel.
        layout: ``nchw``, or ``nhwc`` where the device feeds channels last.
        input: The input it concerns; empty: the model's only one.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"
    input: str = ""

    @model_validator(mode="after")
    def _divides(self) -> Preprocess:
        if not self.scale or not all(self.std) or not self.mean or not self.std:
            raise ValueError("scale and std can't be zero, and mean and std need one value at least")
        return self


class ExportSection(Section):
    """``[export]``: torch to ONNX.

    Attributes:
        opset: ONNX operator set, 18 or above.
        dynamic_batch: Whether the batch stays free.
        dynamic_axes: Further free sizes: input name → axis → name.
        shapes: Fixed shapes by input name, for targets that need them.
        sizes: What to count and try for free sizes of an ONNX file, by their names; the batch needs none.
        simplify: Whether onnxsim runs.
        preprocess: Folded into the graph.
    """

    opset: int = Field(18, ge=18, le=25)
    dynamic_batch: bool = True
    dynamic_axes: dict[str, dict[str, str]] = Field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    sizes: dict[str, int] = Field(default_factory=dict)
    simplify: bool = True
    preprocess: Preprocess | None = None


class MeasureSection(Section):
    """``[measure]``: how long to measure, and how precisely.

    Attributes:
        pairs: Fresh process pairs at least; under 8 the exact interval does not exist. max_pairs: at most.
        budget_s: Seconds for one target's rows at most.
        precision: Half-width of the ratio's exact interval at which to stop, a fraction.
    """

    pairs: int = Field(8, ge=2)
    max_pairs: int = Field(40, ge=2)
    budget_s: float = Field(120.0, gt=0)
    precision: float = Field(0.025, gt=0)


class Limits(Section):
    """Limits that a row must keep. A drop is in the metric's own units; ratios are against the reference."""

    min_metric: float | None = None
    max_metric_drop: float | None = Field(None, ge=0)
    max_size_bytes: int | None = Field(None, gt=0)
    max_size_ratio: float | None = Field(None, gt=0)
    max_latency_ms: float | None = Field(None, gt=0)
    min_speedup: float | None = Field(None, gt=0)
    max_memory_bytes: int | None = Field(None, gt=0)
    max_macs: int | None = Field(None, gt=0)
    min_int8_macs_share: float | None = Field(None, ge=0, le=1)


class Rule(Limits):
    """``[[gate.rule]]``: limits for some rows only (``fnmatch`` patterns)."""

    variant: str = "*"
    target: str = "*"


class BaselineSection(Section):
    """``[gate.baseline]``: how far a row may fall behind the same row of a baseline (``edgekit gate --baseline``).

    Attributes:
        max_metric_drop: In the metric's own units, with its confidence interval.
        max_slowdown: Its time over the baseline's; of recorded numbers: of the speed-ups over the reference.
        max_size_ratio, max_memory_ratio, max_macs_ratio: This over the baseline's.
        max_int8_share_drop: Of the share of int8 multiply-adds.
    """

    max_metric_drop: float = Field(0.01, ge=0)
    max_slowdown: float = Field(1.05, ge=1)
    max_size_ratio: float = Field(1.01, gt=0)
    max_memory_ratio: float = Field(1.10, gt=0)
    max_macs_ratio: float = Field(1.0, gt=0)
    max_int8_share_drop: float = Field(0.01, ge=0, le=1)


class GateSection(Limits):
    """``[gate]``: limits for every row but the reference, and ``[[gate.rule]]`` for some.

    Attributes:
        on_inconclusive: Whether what can't be told fails (exit code 5) or passes (0).
        rule: Limits for some rows; they override those for all, later ones earlier ones.
        baseline: Limits against a baseline, where one is given.
    """

    on_inconclusive: Literal["pass", "fail"] = "fail"
    rule: tuple[Rule, ...] = ()
    baseline: BaselineSection = BaselineSection()


class Variant(Section):
    """``[[variant]]``: one route through the line.

    Each stage is switched on with true, off with false, or given a table that overrides the
    recipe's section; ``quantize`` also takes a method's name.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    prune: bool | dict[str, Any] = False
    recover: bool | dict[str, Any] | None = None
    quantize: bool | str | dict[str, Any] = False
    targets: tuple[str, ...] = ()


class Recipe(Section):
    """The whole job. From Python, live objects stand in place of entries."""

    recipe_version: Literal[1] = 1
    seed: int = Field(0, ge=0, lt=2**31)
    model: ModelSection
    data: DataSection = DataSection()
    metric: MetricSection = MetricSection()
    prune: PruneSection = PruneSection()
    recover: TrainSection = TrainSection()
    export: ExportSection = ExportSection()
    quantize: QuantizeSection = QuantizeSection()
    targets: tuple[str, ...] = ("x86-cpu",)
    measure: MeasureSection = MeasureSection()
    gate: GateSection = GateSection()
    variant: tuple[Variant, ...] = ()
    base: Path = Field(Path(), exclude=True)

    @model_validator(mode="after")
    def _variants_are_told_apart(self) -> Recipe:
        names = [v.name for v in self.variant]
        if twice := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"two variants are named {sorted(twice)[0]!r}")
        return self

    @field_validator("targets")
    @classmethod
    def _some_target(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("no target is named")
        if len(set(value)) < len(value):
            raise ValueError("a target is named twice")
        return value


def load_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: The TOML file; relative paths in it start at its folder.
        overrides: Dotted keys and values, as ``--set key=value`` gives them.

    Raises:
        InputError: With the file, line and key, and the nearest known key.
    """
    file = Path(path)
    data = read_toml(file)
    if "base" in data:
        raise InputError("unknown key 'base'", where=str(file), remedy="remove it")
    for dotted, value in (overrides or {}).items():
        section = data
        *parents, last = dotted.split(".")
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value
    return checked(Recipe, {**data, "base": file.resolve().parent}, file)
