"""How long does a person wait? Whole commands in fresh processes: help, gate, report, a bundle's check, a compile.

    python benchmarks/verbs.py [--repeats 9] [--out benchmarks/verbs.md]

The records are the tests' sample, and the same with its rows repeated. ``check`` is told besides the import of the
runtime and numpy, which any program on the device pays: the difference of both medians, run in turn. About 1 minute.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import record_maker  # noqa: E402
from report_sample import many, sample  # noqa: E402

from edgekit import bundle, child, machine  # noqa: E402
from edgekit.store import Store  # noqa: E402
from edgekit.target import Target, load_target  # noqa: E402

EDGEKIT = [sys.executable, "-m", "edgekit"]
WIDTH = 88  # channels of the bundled CNN: about 300 KB of fp32 weights


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("verbs.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, repeats = Path(name), options.repeats
        lines = [*verbs(folder, repeats), "", *checking(folder, repeats), "", *compiling(folder, repeats)]
    facts = machine.describe()
    head = f"On {facts['cpu']}, {facts['cores']['available']} cores, load {machine.load()}"
    text = "\n".join(
        ["# What a person waits for", "", f"{head}; written by `python benchmarks/verbs.py`.", "", *lines, ""]
    )
    print(text)
    options.out.write_text(text)


def verbs(folder: Path, repeats: int) -> list[str]:
    """Wall and CPU time of whole commands, each repeated in turn with the others."""
    few, lots = folder / "few.json", folder / "results.json"
    few.write_text(json.dumps(sample()))
    lots.write_text(json.dumps(many(200)))
    count = len(sample()["variants"])
    commands = {
        "edgekit --help": ([*EDGEKIT, "--help"], "under 0.3 s"),
        f"edgekit gate, {count} variants and a baseline": ([*EDGEKIT, "gate", few, "--baseline", few], "under 0.5 s"),
        "edgekit gate, 200 variants and a baseline": ([*EDGEKIT, "gate", lots, "--baseline", lots], "–"),
        f"edgekit report, {count} variants": ([*EDGEKIT, "report", few], "–"),
        "edgekit report, 200 variants": ([*EDGEKIT, "report", lots], "under 2 s"),
    }
    for command, _ in commands.values():
        timed(command)  # byte code and file cache
    times = [{name: timed(command) for name, (command, _) in commands.items()} for _ in range(repeats)]
    rows = ["| command | median | least | CPU, median | promised |", "| --- | --- | --- | --- | --- |"]
    for name, (_, limit) in commands.items():
        wall, cpu = ([turn[name][k] for turn in times] for k in (0, 1))
        middle = statistics.median(wall)
        rows.append(f"| `{name}` | {middle:.2f} s | {min(wall):.2f} s | {statistics.median(cpu):.2f} s | {limit} |")
    return rows


def checking(folder: Path, repeats: int) -> list[str]:
    """What ``check`` of a bundle takes besides the runtime's import."""
    rows = [
        "| bundle of a CNN | size | without golden data | `check` | the imports alone | besides them | promised |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for target, runtime in (("x86-cpu", "onnxruntime"), ("x86-openvino", "openvino")):
        root, place = folder / target, folder / f"{target}-bundle"
        root.mkdir()
        data = record_maker.images(folder / f"{target}-data")
        model = record_maker.model(folder / f"{target}.onnx", width=WIDTH)
        record_maker.record(root, [record_maker.row(root, "fp32", load_target(target), model)], data)
        bundle.bundle(root, target, out=place)
        check = [sys.executable, str(place / "edgekit_runner.py"), "check"]
        imports = [sys.executable, "-c", f"import numpy, {runtime}"]
        timed(check)
        both = [(timed(check)[0], timed(imports)[0]) for _ in range(repeats)]
        whole, bare = (statistics.median(times) for times in zip(*both, strict=True))
        sizes = {path.name: path.stat().st_size for path in place.iterdir()}
        total, lean = sum(sizes.values()), sum(size for name, size in sizes.items() if name != "golden.npz")
        rows.append(
            f"| {runtime} | {total / 1e3:.0f} kB | {lean / 1e3:.0f} kB | {whole:.2f} s | {bare:.2f} s "
            f"| {whole - bare:.2f} s | under 2 s, 400 kB |"
        )
    return rows


def compiling(folder: Path, repeats: int) -> list[str]:
    """A compile stage that is made, and one that the store has: found by its key, every byte hashed again."""
    rows = ["| compiling a CNN of 300 kB | cold | warm | warm / cold | promised |", "| --- | --- | --- | --- | --- |"]
    model = record_maker.model(folder / "compiled.onnx", width=WIDTH)
    for name in ("x86-cpu", "x86-openvino"):
        target = load_target(name)

        def make(out: Path, _: Path, aim: Target = target) -> dict[str, Any]:
            return child.call(
                "edgekit.backends:compile_job", model=str(model), target=aim.model_dump(mode="json"), out=str(out)
            )

        shelf, times = Store(folder / f"{name}-store"), []
        for turn in range(repeats):
            key = {"stage": "compile", "target": target.digest(), "turn": turn}
            for _ in range(2):
                start = time.perf_counter()
                shelf.build(key, make)
                times.append(time.perf_counter() - start)
        cold, warm = statistics.median(times[::2]), statistics.median(times[1::2])
        rows.append(f"| {target.backend} | {cold:.2f} s | {warm * 1e3:.1f} ms | {warm / cold:.2%} | under 10 % |")
    return rows


def timed(command: Sequence[str | Path]) -> tuple[float, float]:
    """Wall and CPU seconds of one run of a command that must succeed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
