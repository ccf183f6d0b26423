"""What all rows of a run share: the loaded model, the data on disk, and the store they build in."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import edgekit
from edgekit import child, evaluate, machine, workload
from edgekit.agree import bisection
from edgekit.console import warn
from edgekit.errors import EdgekitError, InputError
from edgekit.pipeline.routes import Route
from edgekit.recipe import Recipe
from edgekit.store import MANIFEST, Entry, Store, sha256_file, sha256_json
from edgekit.workload.spool import Spool
from edgekit.workload.spool import read as read_spool

ONNX, TORCH = "onnx", "torch"


def versions(*packages: str) -> dict[str, str]:
    """The versions of the packages that a stage's result depends on, as far as they are installed."""
    installed = machine.versions()
    return {name: installed[name] for name in packages if name in installed}


def own_code(base: Path, *names: Any) -> dict[str, str]:
    """The hashes of the user's own files among ``names`` (``metric.py``, ``loss.py:function``): part of a key."""
    files = {name.partition(":")[0] for name in names if isinstance(name, str)}
    return {
        name: sha256_file(base / name) for name in sorted(files) if name.endswith(".py") and (base / name).is_file()
    }


@dataclass(frozen=True)
class Artifact:
    """What a stage made.

    Attributes:
        path: Its main file. form: ``torch`` (.pt2), ``onnx`` or a backend's name.
        entry: Where it lies in the store; ``entry.meta`` has the stage's report.
        metric: The task metric after this stage, as :func:`edgekit.evaluate.judge` gives it; None without test data.
        outputs: The outputs on the test split, for comparisons on the same samples.
        parity: How it agrees with the artifact before it.
        before: The artifact that it was made from; None for the loaded model.
    """

    path: Path
    form: str
    entry: Entry
    metric: dict[str, Any] | None = None
    outputs: Path | None = None
    parity: dict[str, Any] | None = None
    before: Artifact | None = None

    @property
    def files(self) -> list[Path]:
        """Every file of it."""
        names = self.entry.meta.get("files")
        if names:
            return [self.entry.path(name) for name in names]
        return sorted(p for p in self.entry.folder.rglob("*") if p.is_file() and p.name != MANIFEST)

    @property
    def size_bytes(self) -> int:
        """Size of all its files."""
        return sum(p.stat().st_size for p in self.files)


class NotMadeYet(Exception):  # noqa: N818 (no error: a plan asks)
    """In a plan: this artifact is not in the store."""


@dataclass
class Workshop:
    """What all rows of a run share.

    Attributes:
        recipe: What is asked for. store: Where artifacts are built and found.
        model: What the model is (:func:`edgekit.workload.fingerprint_job`).
        data: What each split is (:func:`edgekit.workload.digest_job`); None where it is not given.
        loaded: The loaded model, where every route starts.
        spools: The splits on disk, a folder each.
        failures: By key, so that no row tries again what failed for another.
        planning: Only look up what is there: what is not raises :class:`NotMadeYet`.
    """

    recipe: Recipe
    store: Store
    model: dict[str, str]
    data: dict[str, Any]
    loaded: Artifact = None  # type: ignore[assignment]  # set as soon as the model is loaded
    spools: Entry | None = None
    failures: dict[str, EdgekitError] = field(default_factory=dict)
    planning: bool = False

    def job(self, function: str, /, **arguments: Any) -> Any:
        """Call a job in a child process; one that gets live objects runs here instead."""
        model = arguments.get("model")
        entries = [arguments.get("data"), model.get("entry") if isinstance(model, dict) else None]
        if not any(map(workload.is_live, entries)):
            return child.call(function, **arguments)
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(**arguments)

    def make(
        self, stage: str, inputs: dict[str, Any], main: str, form: str, work: Callable[[Path, Path], dict[str, Any]]
    ) -> Artifact:
        """Build or find a stage's artifact; a failure is remembered, so that no row tries it twice.

        Args:
            stage: The stage's name. inputs: Everything that the result depends on.
            main: The main file's name. form: The artifact's form.
            work: ``work(folder, scratch) -> report``.
        """
        key = _key(stage, inputs)
        if known := self.failures.get(sha256_json(key)):
            raise known
        if self.planning and self.store.find(key) is None:
            raise NotMadeYet(stage)

        try:
            entry = self.store.build(key, work)
        except EdgekitError as error:
            self.failures[sha256_json(key)] = error
            raise
        return Artifact(entry.path(entry.meta.get("path", main)), form, entry, parity=entry.meta.get("parity"))

    def stored(self, key: dict[str, Any] | None) -> Entry:
        """What a job in another process built."""
        entry = self.store.find(key) if key else None
        if entry is None:
            raise NotMadeYet("model or data")
        return entry

    def forget(self, stage: str, inputs: dict[str, Any]) -> None:
        """Remove a stage's artifact from the store, so that it is made again."""
        self.store.discard(_key(stage, inputs))

    def split(self, name: str) -> Spool | None:
        """A split of the data on disk; None where the user gives no such split."""
        folder = self.spools.path(name) if self.spools else None
        return read_spool(folder) if folder and folder.is_dir() else None

    def assess(self, artifact: Artifact, stage: str, route: Route, before: Artifact | None) -> Artifact:
        """Measure the task metric of an artifact, and how it agrees with the one before it.

        Raises:
            StageError: Its outputs are NaN, constant or otherwise no model's.
        """
        test = self.split("test")
        if test is None or not test.labelled:
            return replace(artifact, before=before)
        on_target = artifact.form not in (ONNX, TORCH)
        target = route.target.model_dump(mode="json") if on_target else None
        inputs = {
            "artifact": artifact.entry.key,
            "data": test.digest,
            "form": artifact.form,
            "target": target,
            "versions": versions("torch")
            if artifact.form == TORCH
            else versions("onnxruntime", "openvino", "tensorrt"),
        }
        made = self.make(
            "outputs",
            inputs,
            "outputs.npz",
            "outputs",
            lambda folder, _: child.call(
                "edgekit.evaluate:outputs_job",
                artifact=str(artifact.path),
                backend=artifact.form,
                target=target,
                data=str(test.folder),
                out=str(folder / "outputs.npz"),
            ),
        )
        metric = self.recipe.metric.model_dump(mode="json")
        reference = before.outputs if before else None
        judged = evaluate.judge(made.path, test, metric, self.recipe.base, reference=reference)
        parity = artifact.parity
        if stage in ("recover", "quantize", "finetune"):
            parity = {"agreement": judged.get("agreement"), "metric_delta": judged.get("delta")}
        elif stage == "compile" and before and before.outputs:
            parity = evaluate.difference(made.path, before.outputs)
            bisection.check_compiled(parity, before.path, artifact.path, test.folder, precision=_precision(route))
        return replace(artifact, metric=judged, outputs=made.path, parity=parity, before=before)


def _precision(route: Route) -> str:
    """What a route's compiled model computes in, as :data:`edgekit.agree.bisection.COMPILED` names it."""
    if route.quantize is None:
        return "fp32"
    return "half" if route.quantize.method in ("fp16", "bf16") else "integer"


def _key(stage: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"stage": stage, "edgekit": edgekit.__version__, **inputs}


def open_workshop(recipe: Recipe, store: Store, routes: list[Route], *, planning: bool = False) -> Workshop:
    """Load the model and the data: what every row starts from.

    Raises:
        InputError: The model or the data are wrong.
        NotMadeYet: In a plan: the model or the data were never loaded.
    """
    shop = Workshop(recipe, store, {}, {}, planning=planning)
    found = shop.job(
        "edgekit.workload.opening:open_job",
        model=recipe.model.model_dump(),
        data=recipe.data.entry,
        base=str(recipe.base),
        seed=recipe.seed,
        export=recipe.export.model_dump(mode="json"),
        limits=_limits(recipe, routes),
        key=_key("load", {"versions": versions("torch", "onnx")}),
        store=str(store.root),
        planning=planning,
        metric=recipe.metric.model_dump(mode="json"),
        own=_own_names(routes),
    )
    shop.model, shop.data = found["model"], found["data"]
    if shop.model["kind"] == ONNX and (torch_only := [r for r in routes if r.prune or r.recover]):
        raise InputError(
            f"the variant '{torch_only[0].variant}' prunes or trains in torch, but the model is an ONNX file",
            where="[model] path",
            remedy="give the torch model as [model] entry, or switch prune and recover off in that variant",
        )
    for text in shop.data.pop("overlaps", []):
        warn(text)
    loaded = replace(shop.stored(found["loaded"]), cached=found["cached"])
    form = shop.model["kind"]
    shop.loaded = Artifact(loaded.path(loaded.meta["path"]), form, loaded, parity=loaded.meta.get("parity"))
    if recipe.data.entry is not None:
        shop.spools = shop.stored(found["spools"])
    if not planning:
        shop.loaded = shop.assess(shop.loaded, "load", routes[0], None)
    return shop


def _own_names(routes: list[Route]) -> list[str]:
    """The user's own methods and losses that the routes name (``mine.py``, ``mine.py:function``)."""
    sections = [section for route in routes for section in (route.prune, route.quantize) if section]
    trains = [section for r in routes for section in (r.recover, r.quantize and r.quantize.train) if section]
    names = [section.method for section in sections if section.method.endswith(".py")]
    return sorted({*names, *(s.loss for s in trains if isinstance(s.loss, str) and ":" in s.loss)})


def _limits(recipe: Recipe, routes: list[Route]) -> dict[str, int | None]:
    """The splits that this run needs, each with how many samples at most."""
    limits: dict[str, int | None] = {"test": None}
    if any(r.quantize or r.prune for r in routes):
        limits |= {"calibration": recipe.quantize.samples, "validation": None}
    if any(r.trains for r in routes):
        limits |= {"train": None, "validation": None}
    return limits
