"""The line: load → prune → recover → export → simplify → quantize → fine-tune → compile, then judge.

One straight line for each row (a variant on a target); every stage's artifact is cached by
what went into it, so rows share what they can and a killed run goes on where it was. Then
all rows of a target are judged together, because a fair measurement is interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit import board, console
from edgekit.errors import EdgekitError, InputError, UnavailableError
from edgekit.pipeline import judge, record, stages
from edgekit.pipeline.routes import Route, routes_of
from edgekit.pipeline.workshop import Artifact, NotMadeYet, Workshop, open_workshop
from edgekit.recipe import Recipe, load_recipe
from edgekit.store import Store

# Each takes what the one before it made; one that a route leaves out hands it on.
LINE: tuple[tuple[str, Callable[[Workshop, Route, Artifact], Artifact | None]], ...] = (
    ("prune", stages.prune),
    ("recover", stages.recover),
    ("export", stages.export),
    ("simplify", stages.simplify),
    ("quantize", stages.quantize),
    ("finetune", stages.finetune),
    ("compile", stages.compile_model),
)


@dataclass
class Row:
    """One variant on one target, and what became of it.

    Attributes:
        route: What was asked for.
        status: ``ok``, ``built``, ``unavailable`` or ``failed``; ``reason`` says why.
        stages: The finished artifacts with their stage's name, in order.
        error: What stopped it.
        measured: What the measuring engine said; None where nothing was measured.
        feeds: The inputs that it was measured on, an ``.npz``.
    """

    route: Route
    status: str = "ok"
    reason: str = ""
    stages: list[tuple[str, Artifact]] = field(default_factory=list)
    error: EdgekitError | None = None
    measured: dict[str, Any] | None = None
    feeds: Path | None = None

    @property
    def artifact(self) -> Artifact | None:
        """The last artifact that was made."""
        return self.stages[-1][1] if self.stages else None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do for it."""
        built = bool(self.stages) and self.stages[-1][0] == LINE[-1][0]
        return {"ok": self.measured is not None, "built": built}.get(self.status, True)


def run(
    recipe: Recipe | str | Path,
    out: str | Path = "out",
    *,
    targets: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    remeasure: bool = False,
    locked: bool = False,
    progress: console.Progress | None = None,
) -> dict[str, Any]:
    """Run a recipe; write ``OUT/results.json``, the artifacts and the report.

    Args:
        recipe: A recipe, or the path of one.
        out: The folder for the record; it may hold an earlier run of the same recipe.
        targets: Only these of the recipe's targets. only: Only these variants (and the reference).
        remeasure: Measure again although there are measurements of the same artifacts on this machine.
        locked: Refuse to run on other inputs than those that ``OUT/results.json`` locks.
        progress: Called as ``progress(label, done, total)``.

    Returns:
        The record, as written to ``OUT/results.json`` (schema ``edgekit.results/1``).

    Raises:
        InputError: The recipe, model or data are wrong, or the lock does not hold.
        UnavailableError: None of the targets can run or be built for here.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    with console.reporting(progress):
        console.clear_warnings()
        folder = record.prepare_folder(Path(out))
        routes = routes_of(recipe, targets, only)
        with board.showing(route.id for route in routes):
            shop = open_workshop(recipe, Store(), routes)
            lock = record.lock(shop)
            if locked:
                record.check_lock(folder, lock)
            rows = [Row(route) for route in routes]
            try:
                for row in rows:
                    build(shop, row)
                if all(row.status == "unavailable" for row in rows):
                    raise UnavailableError(
                        "none of the recipe's targets can be used here: " + "; ".join(sorted({r.reason for r in rows})),
                        remedy="install a runtime (see: edgekit doctor), or name another target",
                    )
                judge.measure(shop, rows, remeasure=remeasure)
            except KeyboardInterrupt:
                _keep_finished(shop, rows, lock, folder)
                raise
            return record.write(shop, rows, lock, folder)


def _keep_finished(shop: Workshop, rows: list[Row], lock: dict[str, Any], folder: Path) -> None:
    """Interrupted: write what there is, marked as a part, unless a whole record would be lost for it."""
    if record.is_whole(folder):
        return
    console.note(f"interrupted: writing what is finished to {folder} (again: stop at once)")
    for row in rows:
        if not row.finished:
            row.status, row.reason = "failed", "interrupted before it was finished"
    record.write(shop, rows, lock, folder, interrupted=True)


def build(shop: Workshop, row: Row) -> None:
    """Take one row down the line; a stage that fails ends this row and no other."""
    route = row.route
    if route.availability.status == "unavailable":
        row.status, row.reason = "unavailable", route.availability.reason
        console.note(f"{route.id}: unavailable: {row.reason}")
        board.at(route.id, "", row.status)
        return
    if route.availability.warning:
        console.warn(f"{route.target.name}: {route.availability.warning}")
    if route.availability.status != "runs":
        row.status, row.reason = "built", f"built here, not measured: {route.availability.reason}"
    artifact = shop.loaded
    row.stages.append(("load", artifact))
    for name, stage in LINE:
        start = time.monotonic()
        board.at(route.id, name)
        try:
            made = stage(shop, route, artifact)
            if made is not None and made is not artifact:
                artifact = shop.assess(made, name, route, artifact)
                row.stages.append((name, artifact))
                took = "cached" if artifact.entry.cached else f"{time.monotonic() - start:.1f} s"
                board.done(route.id, name, took)
        except InputError as error:
            error.where = error.where or f"{route.id}: {name}"
            raise
        except EdgekitError as error:
            row.status = "unavailable" if isinstance(error, UnavailableError) else "failed"
            row.error, row.reason = error, f"{name}: {error.problem}"
            console.warn(f"{route.id}: {name} {row.status}: {error}")
            board.at(route.id, name, row.status)
            return
    board.at(route.id, row.stages[-1][0], row.status)


def plan(
    recipe: Recipe | str | Path, *, targets: tuple[str, ...] = (), only: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """What :func:`run` would do: each row's stages, which of them are cached, and which rows can't run and why.

    Raises:
        InputError: The recipe, the model or the data are wrong.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    routes = routes_of(recipe, targets, only)
    try:
        shop = open_workshop(recipe, Store(), routes, planning=True)
    except NotMadeYet:
        shop = None  # the model itself was never loaded: nothing is cached
    return [
        {
            "id": route.id,
            "variant": route.variant,
            "target": route.target.name,
            "stages": _planned(shop, route, recipe),
            "availability": route.availability.status,
            "reason": route.availability.reason,
        }
        for route in routes
    ]


def _planned(shop: Workshop | None, route: Route, recipe: Recipe) -> list[dict[str, Any]]:
    """The stages of a route, each with whether it is cached; nothing is made."""
    artifact = shop.loaded if shop else None
    planned = [{"name": "load", "cached": artifact is not None}]
    for name, stage in LINE:
        if not stages.takes_part(name, route, recipe):
            continue
        if shop and artifact:
            try:
                made = stage(shop, route, artifact)
            except (NotMadeYet, EdgekitError):
                artifact = None  # and so is nothing that comes after it
            else:
                artifact = replace(made, before=artifact) if made else artifact
        planned.append({"name": name, "cached": artifact is not None})
    return planned
