"""The verbs of the line: run, plan, init, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit import console
from edgekit.cli._options import FAILED, GATE_NO, INCONCLUSIVE, JSON, OK, OUT


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@OUT
@click.option("--target", "targets", multiple=True, help="Only this target of the recipe (repeatable).")
@click.option("--only", multiple=True, metavar="VARIANT", help="Only this variant, and the untouched one (repeatable).")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key, as 'prune.ratio=0.5'."
)
@click.option("--remeasure", is_flag=True, help="Measure again, even what was measured on this machine before.")
@click.option("--locked", is_flag=True, help="Refuse to run on other inputs than those of the record in --out.")
@click.option("--on-inconclusive", type=click.Choice(["pass", "fail"]), help="What an inconclusive gate exits with.")
@JSON
def run(
    recipe: Path, out: Path, overrides: tuple[str, ...], as_json: bool, on_inconclusive: str | None, **options: Any
) -> int:
    """Run a recipe: every variant on every target, measured and judged."""
    from edgekit.recipe import load_recipe

    loaded = load_recipe(recipe, _overrides(overrides))
    return _run(loaded, out, as_json, on_inconclusive or loaded.gate.on_inconclusive, **options)


def _run(recipe: Any, out: Path, as_json: bool, on_inconclusive: str, **options: Any) -> int:
    from edgekit import pipeline

    results = pipeline.run(recipe, out, **options)
    if as_json:
        console.out_json(results)
    else:
        _show(results, out)
    return exit_code(results, on_inconclusive)


def exit_code(results: dict[str, Any], on_inconclusive: str) -> int:
    """The exit code of a record: a failed row before the gate's no before its don't-know."""
    if any(v["status"] == "failed" for v in results["variants"]):
        return FAILED
    passed = results["gate"]["passed"]
    if passed is None and results["gate"]["checks"]:
        return INCONCLUSIVE if on_inconclusive == "fail" else OK
    return GATE_NO if passed is False else OK


def _show(results: dict[str, Any], out: Path) -> None:
    from edgekit import report

    console.stdout().print(report.terminal_table(results))
    console.out(report.summary_sentence(results))
    for sentence in report.bad_news(results):
        console.out(f"▼ {sentence}")
    for check in results["gate"]["checks"]:
        if check["passed"] is not True:
            console.out(f"gate: {check.get('sentence') or check['name']}")
    console.out(f"report: {out / 'report.html'}")


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, help="Only this target (repeatable).")
@click.option("--only", multiple=True, metavar="VARIANT", help="Only this variant (repeatable).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key.")
@JSON
def plan(recipe: Path, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Say what would run, what is cached, and what can't run and why."""
    from edgekit import pipeline
    from edgekit.recipe import load_recipe

    rows = pipeline.plan(load_recipe(recipe, _overrides(overrides)), **options)
    if as_json:
        return console.out_json({"rows": rows})
    for row in rows:
        console.out(f"{row['id']}: {row['availability']}" + (f", {row['reason']}" if row["reason"] else ""))
        if row["availability"] != "unavailable":
            console.out("    " + " → ".join(s["name"] + (" (cached)" if s["cached"] else "") for s in row["stages"]))
    return None


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--entry", default="model.py:build", show_default=True, help="The function that returns your model.")
@click.option("--path", help="Instead: a .pt2 or .onnx file.")
@click.option("--data", default="model.py:data", show_default=True, help="The function that returns your data.")
@click.option("--target", default="x86-cpu", show_default=True, help="The device.")
def init(folder: Path, entry: str, path: str | None, data: str, target: str) -> None:
    """Write a commented recipe.toml for your model."""
    from edgekit.errors import InputError
    from edgekit.store import write_text
    from edgekit.target import load_target

    recipe = folder / "recipe.toml"
    if recipe.exists():
        raise InputError("this recipe exists", where=str(recipe), remedy="edit it, or name another folder")
    load_target(target, base=folder)
    model = f"path = {_toml(path)}" if path else f"entry = {_toml(entry)}          # returns (module, example inputs)"
    text = (Path(__file__).parent.parent / "template.toml").read_text()
    for mark, value in (('"@TARGET@"', _toml(target)), ("@MODEL@", model), ('"@DATA@"', _toml(data))):
        text = text.replace(mark, value)
    write_text(recipe, text)
    console.out(f"{recipe}: edit it, then: edgekit run {recipe}")


def _toml(value: str) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string


@click.command()
@OUT
@JSON
def demo(out: Path, as_json: bool) -> int:
    """Train a small CNN on real data and take it down the whole line."""
    from edgekit import demo as demonstration
    from edgekit.recipe import load_recipe

    recipe = load_recipe(demonstration.prepare(out))
    return _run(recipe, out, as_json, recipe.gate.on_inconclusive)


def _overrides(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` pairs, the value read as TOML where it is TOML, else as text."""
    import tomllib

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set {pair!r}: write it as key=value, for example prune.ratio=0.5")
        try:
            values[key.strip()] = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values
