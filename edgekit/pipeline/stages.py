"""The stages of the line: what each one's result depends on, and the job that makes it.

A stage is a function of the workshop (what a run shares), a route (what is asked for) and
the artifact before it. It returns the next artifact, or None where the route leaves it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit import child, machine, training, workload
from edgekit.console import warn
from edgekit.errors import InputError
from edgekit.pipeline.routes import Route
from edgekit.pipeline.workshop import ONNX, TORCH, Artifact, Workshop, own_code, versions
from edgekit.pruners import measured_on
from edgekit.recipe import Recipe, TrainSection
from edgekit.training import Kind

WEIGHTS_ALONE = ("magnitude", "l2", "bn_scale", "lamp")  # pruners that read no data


def takes_part(name: str, route: Route, recipe: Recipe) -> bool:
    """Whether a stage has something to do on a route."""
    return {
        "prune": route.prune is not None,
        "recover": route.recover is not None,
        "simplify": recipe.export.simplify,
        "quantize": route.quantize is not None,
        "finetune": route.quantize is not None and route.quantize.trained,
    }.get(name, True)


def prune(shop: Workshop, route: Route, before: Artifact) -> Artifact | None:
    """Remove channels (torch → torch)."""
    if route.prune is None:
        return None
    settings = route.prune.model_dump(mode="json")
    calibration = shop.split("calibration")
    code = own_code(shop.recipe.base, settings["method"])
    inputs: dict[str, Any] = {"before": before.entry.key, "settings": settings, "code": code}
    arguments: dict[str, Any] = {"calibration": str(calibration.folder) if calibration else None}
    reads_data = settings["method"] not in WEIGHTS_ALONE or route.prune.scope in ("auto", "sensitivity")
    if calibration and (reads_data or route.prune.target_speedup):
        inputs["data"] = calibration.digest
    if route.prune.target_speedup:
        arguments["latency"] = measured_on(route.target, route.availability, "int8" if route.quantize else "fp32")
        inputs |= {**arguments["latency"], "machine": machine.fingerprint()}

    def work(folder: Path, _: Path) -> dict[str, Any]:
        report = child.call(
            "edgekit.pruners:prune_job",
            model=str(before.path),
            settings=settings,
            out=str(folder / "model.pt2"),
            base=str(shop.recipe.base),
            **arguments,
        )
        return {**report, "parity": {"max_rel": report["parity"]}}

    return shop.make("prune", inputs, "model.pt2", TORCH, work)


def recover(shop: Workshop, route: Route, before: Artifact) -> Artifact | None:
    """Fine-tune the pruned model, taught by the original (torch → torch)."""
    if route.recover is None:
        return None
    return _train(shop, "recover", route.recover, before)


def export(shop: Workshop, route: Route, before: Artifact) -> Artifact | None:
    """Torch to ONNX; an ONNX model passes."""
    if before.form == ONNX:
        return None
    settings = shop.recipe.export.model_dump(mode="json")
    inputs = {"before": before.entry.key, "settings": settings, "versions": versions("torch", "onnx", "onnxscript")}
    return shop.make(
        "export",
        inputs,
        "model.onnx",
        ONNX,
        lambda folder, _: child.call(
            "edgekit.exporting:export_job", model=str(before.path), settings=settings, out=str(folder / "model.onnx")
        ),
    )


def simplify(shop: Workshop, route: Route, before: Artifact) -> Artifact | None:
    """Let onnxsim fold and fuse what it can (ONNX → ONNX)."""
    if not shop.recipe.export.simplify:
        return None
    return shop.make(
        "simplify",
        {"before": before.entry.key, "versions": versions("onnx", "onnxsim")},
        "model.onnx",
        ONNX,
        lambda folder, _: child.call(
            "edgekit.exporting:simplify_job", model=str(before.path), out=str(folder / "model.onnx")
        ),
    )


def quantize(shop: Workshop, route: Route, before: Artifact) -> Artifact | None:
    """Put Q/DQ in by the target's scheme (ONNX → ONNX)."""
    if route.quantize is None:
        return None
    calibration = shop.split("calibration")
    without_data = ("dynamic", "weight_only", "fp16", "bf16", "clustered", "binary")
    if calibration is None and route.quantize.method not in without_data:
        raise InputError(
            f"the variant '{route.variant}' quantizes, but [data] gives no 'calibration' split",
            where="[data] entry",
            remedy="return one: a few hundred samples of real inputs, kept apart from 'test'",
        )
    settings = route.quantize.model_dump(mode="json")
    if settings["method"] == "qat":
        settings["method"] = "static"
    training_settings = settings.pop("train")
    settings["finetune"] = None  # a stage of its own, below
    draft = route.quantize.trained and route.quantize.training_kind == "codebook"
    target = route.target.model_dump(mode="json")
    validation = shop.split("validation")
    metric = shop.recipe.metric.model_dump(mode="json") if validation and validation.labelled else None
    inputs = {
        "before": before.entry.key,
        "settings": settings,
        "backend": target["backend"],
        "scheme": target["quantize"],
        "options": target["options"],
        "device": target["device"],
        "machine": _where_timed(route),
        "data": calibration.digest if calibration else None,
        "validation": [validation.digest, metric] if metric and validation else None,
        "code": own_code(shop.recipe.base, settings["method"], shop.recipe.metric.name),
        "versions": versions("onnx", "onnxruntime"),
    }
    return shop.make(
        "quantize",
        inputs,
        "model.onnx",
        ONNX,
        lambda folder, _: child.call(
            "edgekit.quantizers:quantize_job",
            model=str(before.path),
            out=str(folder / "model.onnx"),
            calibration=str(calibration.folder) if calibration else None,
            target=target,
            settings={**settings, "train": training_settings},
            metric=metric,
            validation=str(validation.folder) if metric and validation else None,
            base=str(shop.recipe.base),
            draft=draft,
        ),
    )


def _where_timed(route: Route) -> str | None:
    """Part of the key of what may be timed, or fitted to this CPU, where it is made: a target that runs here."""
    return machine.fingerprint() if route.availability.status == "runs" else None


def finetune(shop: Workshop, route: Route, before: Artifact) -> Artifact | None:
    """Quantization-aware training of the very graph that ships (ONNX → ONNX, of the same form)."""
    if route.quantize is None or not route.quantize.trained:
        return None
    return _train(shop, route.quantize.training_kind, route.quantize.train, before)


def compile_model(shop: Workshop, route: Route, before: Artifact) -> Artifact | None:
    """Compile for the target's runtime (ONNX → engine)."""
    target = route.target
    settings = target.model_dump(mode="json")
    inputs = {
        "before": before.entry.key,
        "target": target.digest(),
        "runtime": route.availability.facts,
        "machine": _where_timed(route),
    }
    return shop.make(
        "compile",
        inputs,
        "model",
        ONNX if target.compile_on_device and route.availability.status != "runs" else target.backend,
        lambda folder, _: child.call(
            "edgekit.backends:compile_job", model=str(before.path), target=settings, out=str(folder)
        ),
    )


def _train(shop: Workshop, kind: Kind, settings: TrainSection, before: Artifact) -> Artifact:
    """Train ``before``, taught by the original; without a training split, on the calibration data."""
    recipe = shop.recipe
    recover = kind == "recover"
    data, live, digests = _training_data(shop)
    metric = recipe.metric if shop.data.get("validation") and shop.data["validation"]["labelled"] else None
    inputs = {
        "before": before.entry.key,
        "teacher": shop.loaded.entry.key,
        "settings": {**settings.model_dump(mode="json", exclude={"loss"}), "loss": _named(settings.loss)},
        "code": own_code(recipe.base, settings.loss, recipe.metric.name),
        "data": digests,
        "metric": metric.model_dump(mode="json") if metric else None,
        "seed": recipe.seed,
        "versions": versions("torch", "accelerate"),
    }
    main = "model.pt2" if recover else "model.onnx"
    loss = settings.loss if callable(settings.loss) else None

    def work(folder: Path, scratch: Path) -> dict[str, Any]:
        job = training.TrainJob(
            kind=kind,
            student=str(before.path),
            teacher=str(shop.loaded.path),
            out=str(folder / main),
            scratch=str(scratch),
            data=data,
            settings=settings.model_copy(update={"loss": "auto"}) if loss else settings,
            metric=metric,
            seed=recipe.seed,
            base=str(recipe.base),
            weights=str(before.before.path) if before.before and not recover else None,
        )
        return {"training": training.train(job, data=live, loss=loss)}

    return shop.make("recover" if recover else "finetune", inputs, main, TORCH if recover else ONNX, work)


def _named(loss: Any) -> str:
    """A loss as part of a key: its name, or that of the function that was given."""
    return loss if isinstance(loss, str) else f"{loss.__module__}.{loss.__qualname__}"


def _training_data(shop: Workshop) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Where training reads from: the user's entry, live objects, or the calibration split on disk."""
    entry, base = shop.recipe.data.entry, str(shop.recipe.base)
    digests = {name: shop.data[name]["digest"] for name in ("train", "validation") if shop.data.get(name)}
    if shop.data.get("train"):
        if not workload.is_live(entry):
            return {"entry": entry, "base": base}, None, digests
        return {}, workload.obtain_data(entry, base, shop.recipe.seed), digests
    spools = {"train": shop.split("calibration"), "validation": shop.split("validation")}
    if spools["train"] is None:
        raise InputError(
            "this variant trains, but [data] gives neither a 'train' nor a 'calibration' split",
            where="[data] entry",
            remedy="return one, or switch recover and qat off",
        )
    warn("no 'train' split: training uses the calibration data, taught by the original model")
    folders = {name: str(split.folder) for name, split in spools.items() if split}
    return {"spool": folders}, None, {"calibration": shop.data["calibration"]["digest"], **digests}
