"""Which routes a recipe asks for: every variant on every target, with its settings resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from edgekit import rooms
from edgekit.errors import InputError, UnavailableError
from edgekit.recipe import PruneSection, QuantizeSection, Recipe, Section, TrainSection, Variant
from edgekit.rooms import did_you_mean
from edgekit.target import Availability, Target, availability, load_target

S = TypeVar("S", bound=Section)

DEFAULT_VARIANTS = (
    Variant(name="fp32"),
    Variant(name="pruned", prune=True),
    Variant(name="int8", quantize=True),
    Variant(name="pruned-int8", prune=True, quantize=True),
    Variant(name="pruned-int8-qat", prune=True, quantize="qat"),
)


@dataclass(frozen=True, kw_only=True)
class Route:
    """One variant on one target; a stage whose settings are None is left out.

    Attributes:
        variant: Its name. target: The device profile. availability: Whether that can run here.
        prune, recover, quantize: The settings of the stages, resolved.
        reference: Whether this is the untouched model, against which the others are told.
    """

    variant: str
    target: Target
    availability: Availability
    prune: PruneSection | None
    recover: TrainSection | None
    quantize: QuantizeSection | None

    @property
    def id(self) -> str:
        """``variant@target``, as the record has it."""
        return f"{self.variant}@{self.target.name}"

    @property
    def reference(self) -> bool:
        """Whether the model goes through unchanged."""
        return self.prune is None and self.quantize is None and self.recover is None

    @property
    def trains(self) -> bool:
        """Whether any of its stages needs training data."""
        return self.recover is not None or (self.quantize is not None and self.quantize.trained)


def routes_of(recipe: Recipe, targets: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> list[Route]:
    """Every variant on every target, the untouched model first on each.

    Args:
        recipe: What is asked for.
        targets: Only these of its targets. only: Only these variants, besides the untouched one.

    Raises:
        InputError: A target or variant that is not there; the nearest is offered.
        UnavailableError: A target named in ``targets`` can't be used here.
    """
    chosen = tuple(_one_of(name, recipe.targets, "target") for name in targets) or recipe.targets
    variants = _variants(recipe, only)
    routes = []
    for name in chosen:
        target = load_target(name, base=recipe.base)
        can = availability(target)
        if can.status == "unavailable" and targets:
            raise UnavailableError(can.reason, where=f"target {name}", remedy=can.remedy)
        routes += [
            _route(recipe, variant, target, can) for variant in variants if name in (variant.targets or recipe.targets)
        ]
    return routes


def _variants(recipe: Recipe, only: tuple[str, ...]) -> list[Variant]:
    """The recipe's variants, or the default ones, with an untouched one in front."""
    variants = list(recipe.variant)
    if not variants:
        trains = recipe.data.entry is not None and recipe.recover.epochs > 0
        torch = recipe.model.path is None or not recipe.model.path.endswith(".onnx")
        variants = [v for v in DEFAULT_VARIANTS if (torch or not v.prune) and (trains or v.quantize != "qat")]
    names = [v.name for v in variants]
    if wanted := [_one_of(name, names, "variant") for name in only]:
        variants = [v for v in variants if v.name in wanted or _untouched(v)]
    untouched = [v for v in variants if _untouched(v)] or [Variant(name="fp32" if "fp32" not in names else "original")]
    return [untouched[0], *(v for v in variants if v is not untouched[0])]


def _untouched(variant: Variant) -> bool:
    return not variant.prune and not variant.quantize and not variant.recover


def _route(recipe: Recipe, variant: Variant, target: Target, can: Availability) -> Route:
    where = f"[[variant]] {variant.name}"
    prune = _resolve(recipe.prune, variant.prune, f"{where} prune")
    asked = variant.recover if variant.recover is not None else (prune is not None and recipe.recover.epochs > 0)
    if asked is not False and recipe.data.entry is None and variant.recover is None:
        asked = False  # pruned without data: the default leaves recovery out
    quantize = variant.quantize
    if isinstance(quantize, str):
        quantize = {"method": quantize}
    resolved = _resolve(recipe.quantize, quantize, f"{where} quantize")
    if resolved and resolved.method not in ("auto", *rooms.members("quantizers")) and ".py" not in resolved.method:
        rooms.load("quantizers", resolved.method)
    return Route(
        variant=variant.name,
        target=target,
        availability=can,
        prune=prune,
        recover=_resolve(recipe.recover, asked, f"{where} recover"),
        quantize=resolved,
    )


def _resolve(section: S, switch: bool | Mapping[str, Any], where: str) -> S | None:
    """The recipe's section, switched off, on, or overridden key by key."""
    if switch is False:
        return None
    if switch is True:
        return section
    known = type(section).model_fields
    for key in switch:
        if key not in known:
            nearest = did_you_mean(key, known)
            raise InputError(f"unknown key '{key}'{nearest}", where=where, remedy=f"known keys: {', '.join(known)}")
    try:
        return type(section).model_validate({**section.model_dump(), **switch})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"'{key}' is wrong: {first['msg']}", where=where, remedy="mend that value") from error


def _one_of(name: str, known: tuple[str, ...] | list[str], what: str) -> str:
    if name not in known:
        raise InputError(
            f"the recipe has no {what} '{name}'{did_you_mean(name, known)}", remedy=f"choose one of {', '.join(known)}"
        )
    return name
