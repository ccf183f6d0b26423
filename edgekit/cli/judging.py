"""The verbs that measure and judge: bench, gate, report, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit import console
from edgekit.cli._options import INPUT, JSON, OK


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", default="x86-cpu", show_default=True, help="A target's name or file.")
@click.option("--budget", "budget_s", type=float, default=60.0, show_default=True, help="Seconds at most.")
@click.option("--inputs", type=click.Path(path_type=Path), help="An .npz with an array for each input.")
@click.option("--scenario", "scenarios", multiple=True, help="Also: batches, threads, paced, single-stream, …")
@JSON
def bench(models: tuple[Path, ...], target: str, as_json: bool, **options: Any) -> int:
    """Measure models against the first one, interleaved."""
    from edgekit import measure

    measured = measure.benchmark(list(models), target=target, **options)
    if as_json:
        console.out_json({"measurements": [m.to_json() for m in measured]})
    else:
        console.stdout().print(measure.table(measured))
    return measure.exit_code(measured)


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--baseline", type=click.Path(path_type=Path), help="An earlier results.json to compare with.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a Markdown comment.")
@click.option("--update-baseline", is_flag=True, help="Make these results the baseline.")
@click.option("--remeasure", is_flag=True, help="Run the baseline's artifacts and today's again, interleaved.")
@click.option("--on-inconclusive", type=click.Choice(["pass", "fail"]), help="What an inconclusive gate exits with.")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="The file that annotations and JUnit point into; default: recipe.toml, here or beside the results.",
)
@JSON
def gate(results: Path, as_json: bool, **options: Any) -> int:
    """Judge recorded numbers against limits; exit 1 where one is broken."""
    from edgekit import gating as gates

    def tell(verdict: dict[str, Any]) -> None:
        console.out_json(verdict) if as_json else console.out(gates.text(verdict))

    return gates.run_gate(results, tell=tell, **options)[1]


@click.command()
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


@click.command()
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
