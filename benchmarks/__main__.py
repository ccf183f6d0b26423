"""All benchmarks: what each asks, how long it takes, and one command that runs them.

    python -m benchmarks                         list them
    python -m benchmarks all --data DIR          run all, one after the other
    python -m benchmarks overhead verbs          run some

DIR holds cifar10-train.tar, cifar10-test.tar and resnet20-cifar10.pt; a benchmark that needs them is left out without
it. Peers that are not installed are lines that say so (``quantization --peer-python nncf=PYTHON`` says which Python has
one). Options behind ``--`` go to each script that is named. One that fails stops no other.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Script:
    """A benchmark, as its own docstring tells it."""

    path: Path
    asks: str
    takes: str
    data: bool

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return self.path.stem


def scripts() -> list[Script]:
    """A file here without an underscore is one; it is read, not imported."""
    paths = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("_"))
    return [_script(path, ast.get_docstring(ast.parse(path.read_text())) or "") for path in paths]


def _script(path: Path, text: str) -> Script:
    takes = re.search(r"[Aa]bout ([^.]*(?:minute|hour)[^.]*)", text.replace("\n", " "))
    return Script(
        path, text.partition("\n")[0], f"about {takes[1]}" if takes else "nobody said how long", "--data DIR" in text
    )


def main() -> int:
    """List or run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; 'all' for all; none: list them")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("EDGEKIT_TEST_DATA"), help="the shared data's folder"
    )
    arguments, behind = sys.argv[1:], []
    if "--" in arguments:
        arguments, behind = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    options = parser.parse_args(arguments)
    known = {script.name: script for script in scripts()}
    if not options.names:
        for script in known.values():
            print(f"{script.name:13} {script.asks}\n{'':13} {script.takes}{'; needs --data' * script.data}")
        return 0
    wanted = list(known) if "all" in options.names else options.names
    if strangers := sorted(set(wanted) - set(known)):
        parser.error(f"no benchmark {', '.join(strangers)}; there are {', '.join(known)}")
    codes = [_run(known[name], options.data, behind) for name in wanted]
    return max(codes)


def _run(script: Script, data: Path | None, behind: list[str]) -> int:
    """Run one, its output as it comes; 0 where it went well or was left out."""
    if script.data and data is None:
        print(f"== {script.name}: left out, it needs --data DIR", flush=True)
        return 0
    print(f"== {script.name}: {script.asks} ({script.takes})", flush=True)
    given = ["--data", str(data)] if script.data else []
    start = time.monotonic()
    code = subprocess.run([sys.executable, str(script.path), *given, *behind], check=False).returncode
    ended = f"failed ({code})" if code else "done"
    print(f"== {script.name}: {ended} in {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
