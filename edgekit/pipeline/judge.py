"""Judging: all rows of a target measured together, because a fair measurement is interleaved."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import board, console, machine
from edgekit.measure import Row as Measurable
from edgekit.measure import each_once, measure_rows
from edgekit.pipeline.workshop import Artifact, Workshop, versions

if TYPE_CHECKING:
    from edgekit.pipeline import Row


def measure(shop: Workshop, rows: list[Row], *, remeasure: bool = False) -> None:
    """Measure what runs here, target by target, and note in each row what came out.

    Measurements of the same artifacts on the same machine are taken from the store unless
    ``remeasure`` is set. A row whose runtime crashes while it is measured becomes ``failed``.
    """
    for _, group in groupby(rows, key=lambda row: row.route.target.name):
        ready = [row for row in group if row.status == "ok"]
        if not ready or not ready[0].route.reference:
            continue  # nothing to compare with: the untouched model itself failed
        for row in ready:
            board.at(row.route.id, "measure")
        made = _measured(shop, ready, remeasure)
        feeds = made.entry.path("feeds.npz")
        for row, answer in zip(ready, _answers(made), strict=True):
            row.measured, row.feeds = answer, feeds if feeds.is_file() else None
            if answer["status"] != "ok":
                row.status, row.reason = answer["status"], f"measure: {answer['reason']}"
            board.at(row.route.id, "measure", answer["status"])
        ran = {row.route.id: row.measured["warnings"] for row in ready if row.measured and row.status == "ok"}
        for line in each_once(ran, common=ready[0].route.target.name):
            console.warn(line)


def _measured(shop: Workshop, rows: list[Row], remeasure: bool) -> Artifact:
    target = rows[0].route.target
    inputs = {
        "artifacts": [row.artifact.entry.key for row in rows if row.artifact],
        "settings": shop.recipe.measure.model_dump(mode="json"),
        "target": target.model_dump(mode="json"),
        "machine": machine.fingerprint(),
        "versions": versions("onnxruntime", "openvino", "tensorrt"),
    }
    if remeasure:
        shop.forget("measure", inputs)

    def work(folder: Path, _: Path) -> dict[str, Any]:
        feeds = _example(shop, target.run.batch, folder)
        measurable = [_measurable(row.route.id, row.artifact, feeds) for row in rows if row.artifact]
        measured = measure_rows(
            measurable,
            target,
            shop.recipe.measure,
            samples=folder / "samples",
            seed=shop.recipe.seed,
            base=shop.recipe.base,
        )
        return {"rows": [asdict(one) for one in measured]}

    return shop.make("measure", inputs, "samples", "measurement", work)


def _answers(made: Artifact) -> list[dict[str, Any]]:
    """What was measured, row by row, with the raw times' place in the store."""
    answers: list[dict[str, Any]] = made.entry.meta["rows"]
    for answer in answers:
        if answer.get("samples"):
            answer["samples"] = {
                **answer["samples"],
                "path": str(made.entry.path("samples") / Path(answer["samples"]["path"]).name),
            }
    return answers


def _measurable(name: str, artifact: Artifact, feeds: Path | None) -> Measurable:
    return Measurable(id=name, artifact=artifact.path, backend=artifact.form, feeds=feeds)


def _example(shop: Workshop, batch: int, folder: Path) -> Path | None:
    """The first ``batch`` real samples as an ``.npz``; None where the recipe gives no data."""
    import numpy as np

    data = shop.split("test") or shop.split("calibration")
    if data is None:
        return None
    feeds, _ = next(iter(data))
    path = folder / "feeds.npz"
    np.savez(path, **{name: value[:batch] for name, value in feeds.items()})  # type: ignore[arg-type]
    return path
