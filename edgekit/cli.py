"""The verbs: parse, call, print, exit. What a verb needs is imported when it is called.

Exit codes: 0 done · 1 the gate says no · 2 the user's input is wrong · 3 a stage failed ·
4 not available here · 5 inconclusive · 130 interrupted · 141, 143 as the shell has them.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

import edgekit
from edgekit import console
from edgekit.errors import EdgekitError

OK, GATE_NO, INPUT, FAILED, INCONCLUSIVE = 0, 1, 2, 3, 5
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, and nothing else there.")
OUT = click.option(
    "--out", type=click.Path(path_type=Path), default="out", show_default=True, help="Folder for the record."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgekit.__version__, "--version", prog_name="edgekit")
@click.option("--quiet", "-q", is_flag=True, help="Only warnings and errors.")
@click.option("-v", "--verbose", count=True, help="More detail; twice: everything.")
def cli(quiet: bool, verbose: int) -> None:
    """Compress, compile and measure trained models for edge devices."""
    console.configure(quiet=quiet, verbosity=verbose)


@cli.command()
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
    for check in results["gate"]["checks"]:
        if check["passed"] is not True:
            console.out(f"gate: {check.get('sentence') or check['name']}")
    console.out(f"report: {out / 'report.html'}")


@cli.command()
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


@cli.command()
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
    text = (Path(__file__).parent / "template.toml").read_text()
    for mark, value in (('"@TARGET@"', _toml(target)), ("@MODEL@", model), ('"@DATA@"', _toml(data))):
        text = text.replace(mark, value)
    write_text(recipe, text)
    console.out(f"{recipe}: edit it, then: edgekit run {recipe}")


def _toml(value: str) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string


@cli.command()
@OUT
@JSON
def demo(out: Path, as_json: bool) -> int:
    """Train a small CNN on real data and take it down the whole line."""
    from edgekit import demo as demonstration
    from edgekit.recipe import load_recipe

    recipe = load_recipe(demonstration.prepare(out))
    return _run(recipe, out, as_json, recipe.gate.on_inconclusive)


@cli.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", required=True, help="A target's name or file.")
@click.option("--budget", "budget_s", type=float, default=60.0, show_default=True, help="Seconds at most.")
@click.option("--inputs", type=click.Path(path_type=Path), help="An .npz with an array for each input.")
@click.option("--scenario", "scenarios", multiple=True, help="Also: batches, threads, paced, single-stream, …")
@JSON
def bench(models: tuple[Path, ...], target: str, as_json: bool, **options: Any) -> None:
    """Measure models against the first one, interleaved."""
    from edgekit import measure

    measured = measure.benchmark(list(models), target=target, **options)
    if as_json:
        return console.out_json({"measurements": [m.to_json() for m in measured]})
    console.stdout().print(measure.table(measured))
    return None


@cli.command()
@click.argument("model")
@click.option("--target", help="The target it is for; default: one thread on this machine.")
@click.option("--profile", is_flag=True, help="Run it: time by operator and layer, and why it is slow.")
@click.option(
    "--prune", "ratio", type=float, help="Of a 'model.py:entry': what would go at this ratio, and what stays."
)
@JSON
def inspect(model: str, target: str | None, profile: bool, ratio: float | None, as_json: bool) -> None:
    """Describe a model file or artifact; or say what pruning 'model.py:entry' would do."""
    from edgekit import inspection

    if ":" in model and not Path(model).exists():
        report = inspection.inspect_entry(model, ratio)
        text = inspection.entry_text(report)
    else:
        report = inspection.inspect(Path(model), target=target, profile=profile)
        text = inspection.text(report)
    return console.out_json(report) if as_json else console.out(text)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="Whose artifact to bundle.")
@click.option("--variant", help="Default: the fastest that kept the metric.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--zip", "zipped", is_flag=True, help="Write one archive instead.")
@JSON
def bundle(folder: Path, target: str, variant: str | None, out: Path, zipped: bool, as_json: bool) -> None:
    """Make the folder that goes to the device: it runs there with the runtime and numpy alone."""
    from edgekit import bundle as bundles

    written = bundles.bundle(folder, target, variant, out, zip=zipped)
    return console.out_json({"bundle": str(written)}) if as_json else console.out(str(written))


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", "hosts", multiple=True, required=True, help="A device, as ssh takes it (repeatable).")
@click.option("--install", is_flag=True, help="Put the runtime into an environment of its own there, from wheels.")
@click.option("--wheels", "wheel_folder", type=click.Path(path_type=Path), help="Where those wheels lie.")
@click.option("--results", type=click.Path(path_type=Path), help="The record that gets the device's numbers.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="How long to measure.")
@JSON
def deploy(bundle: Path, hosts: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Copy a bundle to devices over ssh, check and measure it there, and bring the numbers back."""
    from dataclasses import asdict

    from edgekit import deploy as deploying

    outcomes = deploying.deploy(bundle, hosts, **options)
    if as_json:
        console.out_json({"devices": [asdict(outcome) for outcome in outcomes]})
    else:
        for outcome in outcomes:
            console.out(f"{outcome.host}: {outcome.status}" + (f", {outcome.reason}" if outcome.reason else ""))
            if outcome.remedy:
                console.out(f"  fix: {outcome.remedy}")
    return max(outcome.exit_code for outcome in outcomes)


@cli.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--baseline", type=click.Path(path_type=Path), help="An earlier results.json to compare with.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a Markdown comment.")
@click.option("--update-baseline", is_flag=True, help="Make these results the baseline.")
@click.option("--remeasure", is_flag=True, help="Run the baseline's artifacts and today's again, interleaved.")
@click.option("--on-inconclusive", type=click.Choice(["pass", "fail"]), help="What an inconclusive gate exits with.")
@JSON
def gate(results: Path, as_json: bool, **options: Any) -> int:
    """Judge recorded numbers against limits; exit 1 where one is broken."""
    from edgekit import gate as gates

    verdict, code = gates.run_gate(results, **options)
    if as_json:
        console.out_json(verdict)
    else:
        console.out(gates.text(verdict))
    return code


@cli.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report; default: beside the results.")
@JSON
def report(results: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write a record's report; of two or more records, say what changed."""
    from edgekit import report as reports
    from edgekit import result

    records = [result.load_results(_results_file(path)) for path in results]
    if len(records) > 1:
        return _compare(records, [str(path) for path in results], out, as_json)
    written = reports.write(records[0], out or _results_file(results[0]).parent)
    if as_json:
        return console.out_json({"files": [str(p) for p in written]})
    return console.out("\n".join(map(str, written)))


def _compare(records: list[dict[str, Any]], names: list[str], out: Path | None, as_json: bool) -> None:
    from edgekit.report import compare, compared
    from edgekit.store import write_text

    comparison = compare(records, names)
    if out:
        write_text(out / "comparison.html", compared.html(comparison))
        write_text(out / "comparison.md", compared.markdown(comparison))
    if as_json:
        return console.out_json(compared.to_dict(comparison))
    return console.out(compared.text(comparison))


@cli.command()
@JSON
def targets(as_json: bool) -> None:
    """List the devices: what runs here, what can be built for, and what can't and why."""
    from edgekit import target

    rows = target.targets()
    if as_json:
        return console.out_json({"targets": rows})
    return _table(
        ("target", "here", "title", "because"), [(r["name"], r["status"], r["title"], r["reason"]) for r in rows]
    )


@cli.command()
@JSON
def doctor(as_json: bool) -> int:
    """Prove each runtime by running a one-operator model."""
    from edgekit import doctor as doctors

    rows = doctors.doctor()
    if as_json:
        console.out_json({"backends": rows})
    else:
        _table(("backend", "works", "what", "fix"), [doctors.cells(r) for r in rows])
    return OK


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@JSON
def verify(folder: Path, as_json: bool) -> int:
    """Check every hash in a record's folder."""
    from edgekit import result

    problems = result.verify(folder)
    if as_json:
        console.out_json({"ok": not problems, "problems": problems})
    else:
        console.out("\n".join(problems) or f"every file of {folder} is as recorded")
    return INPUT if problems else OK


def _results_file(path: Path) -> Path:
    return path / "results.json" if path.is_dir() else path


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


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.stdout().print(table)


class _Terminated(BaseException):
    """SIGTERM, as an exception, so that children are ended and files closed on the way out."""


def main() -> None:
    """Entry point of ``edgekit``: the only place that turns errors into exit codes."""

    def terminate(number: int, frame: Any) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets "?", not a traceback
    try:
        code = cli.main(standalone_mode=False)
    except EdgekitError as error:
        code = _fail(error)
    except click.ClickException as error:
        error.show()
        code = INPUT
    except (click.Abort, KeyboardInterrupt, _Terminated) as stop:
        console.warn("interrupted; the same command goes on where it was")
        code = 143 if isinstance(stop, _Terminated) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code or 0)


def _fail(error: EdgekitError) -> int:
    text = console.stderr()
    text.print(f"error: {error}", style="red", markup=False)
    if error.details and console.verbosity():
        text.print(error.details, markup=False)
    return error.exit_code


if __name__ == "__main__":
    main()
