"""Time by operator and sensitivity by layer, from the keys that a row may have beyond the contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgekit.report import words
from edgekit.report.rows import number_in, part, text


def by_operator(raw: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of one inference by kind of operator, the slowest first; empty where none were recorded.

    Args:
        raw: A variant of the record. Its ``operators`` are objects with ``operator`` and ``milliseconds``,
            one for each operator or each layer: equal kinds are added up.
    """
    total: dict[str, float] = {}
    for entry in objects(raw.get("operators")):
        spent = number_in(entry, "milliseconds")
        if spent is not None and spent >= 0:
            kind = text(entry, "operator") or "?"
            total[kind] = total.get(kind, 0.0) + spent
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def grown_most(raw: dict[str, Any], reference: dict[str, Any]) -> str:
    """The operator that costs most more time than in the reference, in words; empty where none does."""
    mine, before = by_operator(raw), by_operator(reference)
    if not mine or not before:
        return ""
    grown = {kind: spent - before.get(kind, 0.0) for kind, spent in mine.items()}
    kind = max(grown, key=lambda k: grown[k])
    if grown[kind] <= 0:
        return ""
    then = f"{words.milliseconds(before[kind])} before" if kind in before else "not in the original"
    return f"{kind} takes {words.milliseconds(mine[kind])} ({then})"


@dataclass(frozen=True)
class Layer:
    """A layer's sensitivity: its value and the text for people."""

    name: str
    value: float
    shown: str


@dataclass(frozen=True)
class Sensitivity:
    """Layers, the most sensitive first, and what the number means."""

    title: str
    meaning: str
    layers: tuple[Layer, ...]


def sensitivity(raw: dict[str, Any]) -> Sensitivity | None:
    """How much each layer minds quantization; None where it was not recorded.

    Args:
        raw: A variant of the record. Its ``sensitivity`` (or that of its quantize stage's report) is a list of
            objects with ``layer`` and one of ``sqnr_db`` (with only this layer quantized), ``metric_drop`` (the same)
            or ``metric_or_sqnr`` (decibels gained by leaving only this layer in float), and maybe ``kept_float``.
    """
    listed = raw.get("sensitivity") or part(part(raw, "reports"), "quantize").get("sensitivity")
    entries = [(text(e, "layer") or text(e, "name"), e) for e in objects(listed)]
    gains = [
        (name + (" (kept in float)" if e.get("kept_float") is True else ""), v)
        for name, e in entries
        if (v := number_in(e, "metric_or_sqnr")) is not None
    ]
    if gains:
        worst = sorted(gains, key=lambda item: -item[1])
        layers = tuple(Layer(name, value, f"{words.digits(value)} dB") for name, value in worst)
        meaning = "What the whole model's signal to noise gains when only this layer stays in float: higher is worse."
        return Sensitivity("Signal to noise gained, dB", meaning, layers)
    noise = [(name, v) for name, e in entries if (v := number_in(e, "sqnr_db")) is not None]
    drops = [(name, v) for name, e in entries if (v := number_in(e, "metric_drop")) is not None]
    if drops:
        worst = sorted(drops, key=lambda item: -item[1])
        layers = tuple(Layer(name, value, words.digits(value)) for name, value in worst)
        return Sensitivity("Metric lost", "The metric lost with only this layer quantized: higher is worse.", layers)
    if noise:
        worst = sorted(noise, key=lambda item: item[1])
        layers = tuple(Layer(name, value, f"{words.digits(value)} dB") for name, value in worst)
        meaning = "Signal over quantization noise with only this layer quantized: lower is worse."
        return Sensitivity("Signal to noise, dB", meaning, layers)
    return None


def pruning_sensitivity(raw: dict[str, Any]) -> Sensitivity | None:
    """How much each layer minds pruning, from its stage's report; None where it was not measured."""
    entries = objects(part(part(raw, "reports"), "prune").get("sensitivity"))
    known = [(text(e, "layer"), v) for e in entries if (v := number_in(e, "lost")) is not None]
    if not known:
        return None
    layers = tuple(Layer(name, value, words.percent(value)) for name, value in sorted(known, key=lambda item: -item[1]))
    meaning = "What the outputs lose where half of the layer's channels, or a residual branch, goes alone, untrained."
    return Sensitivity("Share of the outputs lost", meaning, layers)


def kept_float(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers that cost multiply-adds and do not run in int8, the costliest first: objects of ``layers``."""
    layers = [e for e in objects(raw.get("layers")) if (number_in(e, "macs") or 0) > 0]
    floating = [e for e in layers if text(e, "precision") not in ("int8", "uint8", "int4")]
    return sorted(floating, key=lambda e: -(number_in(e, "macs") or 0))


def objects(value: Any) -> Iterable[dict[str, Any]]:
    """The objects of a list; nothing where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
