"""The verbs about devices and artifacts: targets, doctor, inspect, bundle, deploy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgekit import console
from edgekit.cli._options import JSON, OK


@click.command()
@click.argument("names", nargs=-1)
@JSON
def targets(names: tuple[str, ...], as_json: bool) -> None:
    """List the devices (or check your own FILE.toml): what runs here, what can be built for, what can't and why."""
    from edgekit import target

    rows = target.targets(names)
    if as_json:
        return console.out_json({"targets": rows})
    return _table(("target", "here", "title", "because", "what to do"), [_target_cells(row) for row in rows])


def _target_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A target for people; of one that runs here, what is to be minded."""
    because = row["reason"].removeprefix("not available here, because ") or row["warning"]
    return row["name"], row["status"], row["title"], because, row["remedy"]


@click.command()
@click.option("--host", "hosts", multiple=True, help="Instead: what this device is and has, over ssh (repeatable).")
@JSON
def doctor(hosts: tuple[str, ...], as_json: bool) -> int:
    """Prove each runtime by running a one-operator model."""
    if hosts:
        return _examine(hosts, as_json)
    from edgekit import doctor as doctors

    rows = doctors.doctor()
    if as_json:
        console.out_json({"backends": rows})
    else:
        _table(("backend", "works", "what", "fix"), [doctors.cells(r) for r in rows])
    return OK


def _examine(hosts: tuple[str, ...], as_json: bool) -> int:
    from edgekit import deploy

    devices = deploy.examine(hosts)
    if as_json:
        console.out_json({"devices": [device.to_dict() for device in devices]})
    else:
        rows = [(device.host, *pair) for device in devices for pair in device.found]
        rows += [(d.host, "could be", ", ".join(d.targets) or "no packaged target") for d in devices if d.found]
        rows += [(d.host, d.status, f"{d.reason}; fix: {d.remedy}") for d in devices if not d.found]
        _table(("device", "what", "found"), rows)
    return min((device.exit_code for device in devices if device.exit_code), default=OK)


@click.command()
@click.argument("model")
@click.option("--target", help="The target it is for; default: one thread on this machine.")
@click.option("--profile", is_flag=True, help="Run it: time by operator and layer, and why it is slow.")
@click.option(
    "--prune", "ratio", type=float, help="Of a 'model.py:entry': what would go at this ratio, and what stays."
)
@click.option(
    "--fix",
    type=click.Path(path_type=Path),
    help="Write the Q/DQ file without the pairs that cost more than they bring, each kind measured.",
)
@JSON
def inspect(
    model: str, target: str | None, profile: bool, ratio: float | None, fix: Path | None, as_json: bool
) -> None:
    """Describe a model file or artifact; or say what pruning 'model.py:entry' would do."""
    from edgekit import inspection

    if fix:
        report = inspection.fix(Path(model), fix, target=target)
        text = inspection.fix_text(report)
    elif ":" in model and not Path(model).exists():
        report = inspection.inspect_entry(model, ratio)
        text = inspection.entry_text(report)
    else:
        report = inspection.inspect(Path(model), target=target, profile=profile)
        text = inspection.text(report)
    return console.out_json(report) if as_json else console.out(text)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="Whose artifact to bundle.")
@click.option("--variant", help="Default: the fastest that kept the metric.")
@click.option("--out", type=click.Path(path_type=Path), help="What to write; default: TARGET-bundle, or .zip.")
@click.option("--zip", "zipped", is_flag=True, help="Write one archive instead of a folder.")
@JSON
def bundle(folder: Path, target: str, variant: str | None, out: Path | None, zipped: bool, as_json: bool) -> None:
    """Make the folder that goes to the device: it runs there with the runtime and numpy alone."""
    from edgekit import bundle as bundles

    place = out or Path(f"{target}-bundle{'.zip' if zipped else ''}")
    written = bundles.bundle(folder, target, variant, place, zip=zipped)
    return console.out_json({"bundle": str(written)}) if as_json else console.out(str(written))


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE…", type=click.Path(path_type=Path))
@click.option("--host", "hosts", multiple=True, required=True, help="A device, as ssh takes it (repeatable).")
@click.option("--install", is_flag=True, help="Put the runtime into an environment of its own there, from wheels.")
@click.option("--wheels", "wheel_folder", type=click.Path(path_type=Path), help="Where those wheels lie.")
@click.option("--results", type=click.Path(path_type=Path), help="The record that gets the device's numbers.")
@click.option("--seconds", type=float, help="How long each process measures; default: 3, of several bundles 1.")
@click.option("--ephemeral", is_flag=True, help="Remove from the device all that was put there.")
@JSON
def deploy(bundles: tuple[Path, ...], hosts: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Copy bundles to devices over ssh, check and measure them there, and bring the numbers back.

    Several bundles are measured in turns, and compared with the first.
    """
    from dataclasses import asdict

    from edgekit import deploy as deploying

    outcomes = deploying.deploy(bundles, hosts, **options)
    if as_json:
        console.out_json({"devices": [asdict(outcome) for outcome in outcomes]})
    else:
        _table(("device", "what", "found", "good"), list(deploying.table(outcomes)))
        for outcome in outcomes:
            if outcome.remedy:
                console.out(f"{outcome.host}: {outcome.reason}\n  fix: {outcome.remedy}")
    return min((outcome.exit_code for outcome in outcomes if outcome.exit_code), default=OK)  # 2 before 3 before 4


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.stdout().print(table)
