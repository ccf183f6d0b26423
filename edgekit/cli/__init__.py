"""The verbs: parse, call, print, exit. What a verb needs is imported when it is called.

Exit codes: 0 done · 1 the gate says no · 2 the user's input is wrong · 3 a stage failed ·
4 not available here · 5 inconclusive · 130 interrupted · 141, 143 as the shell has them.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import click

import edgekit
from edgekit import console
from edgekit.cli import devices, judging, line
from edgekit.cli._options import INPUT, common
from edgekit.errors import EdgekitError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgekit.__version__, "--version", prog_name="edgekit")
@common
def cli() -> None:
    """Compress, compile and measure trained models for edge devices."""


for verb in (
    *(line.run, line.plan, line.init, line.demo),
    *(judging.bench, judging.gate, judging.report, judging.verify),
    *(devices.targets, devices.doctor, devices.inspect, devices.bundle, devices.deploy),
):
    cli.add_command(verb)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is: children are ended, what is finished is kept."""


def main() -> None:
    """Entry point of ``edgekit``: the only place that turns errors into exit codes."""

    def terminate(number: int, frame: Any) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    console.configure()
    try:
        code = cli.main(standalone_mode=False)
    except EdgekitError as error:
        code = _fail(error)
    except click.ClickException as error:
        error.show()
        code = INPUT
    except (click.Abort, KeyboardInterrupt, _Terminated) as stop:
        console.warn("interrupted; the same command goes on where it was")
        code = 143 if isinstance(stop, _Terminated) or isinstance(stop.__cause__, _Terminated) else 130  # click's Abort
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
