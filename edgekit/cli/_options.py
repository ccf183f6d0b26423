"""What the verbs share: exit codes and options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgekit import console

OK, GATE_NO, INPUT, FAILED, INCONCLUSIVE = 0, 1, 2, 3, 5
OUT = click.option(
    "--out", type=click.Path(path_type=Path), default="out", show_default=True, help="Folder for the record."
)


def _quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        console.configure(quiet=True)


def _verbose(context: click.Context, parameter: click.Parameter, value: int) -> None:
    if value:
        console.configure(verbosity=value)


def common(verb: Callable[..., Any]) -> Callable[..., Any]:
    """``--quiet`` and ``-v``, before or after the verb's name."""
    verb = click.option("-v", "--verbose", count=True, expose_value=False, callback=_verbose, help="More detail.")(verb)
    return click.option(
        "--quiet", "-q", is_flag=True, expose_value=False, callback=_quiet, help="Only warnings and errors."
    )(verb)


def JSON(verb: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802 (a decorator like OUT)
    """``--json``, and what every verb has."""
    told = "One JSON document on stdout, and nothing else there."
    return click.option("--json", "as_json", is_flag=True, callback=_json, help=told)(common(verb))


def _json(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value:
        console.configure(plain=True)
    return value
