#!/usr/bin/env python3
# ruff: noqa: B905, E402, UP006, UP035, UP045  (a board may have Python 3.8)
"""Check, time and run the model in this folder. Needs Python 3.8 or newer, numpy and the model's runtime.

    python edgekit_runner.py check                 hashes, then the golden outputs
    python edgekit_runner.py bench                 latency and memory on this machine
    python edgekit_runner.py run input.npy         one inference; --out results.npz keeps the outputs

Exit codes: 0 done · 2 the bundle or the input is wrong · 3 the model failed, or its outputs differ ·
4 the runtime is missing or can't run this model here.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

sys.dont_write_bytecode = True  # leave no __pycache__ in the bundle
from edgekit_board import (  # type: ignore[import-not-found]
    BundleError,
    device,
    peak_above,
    reset_peak,
    state,
    stranger,
    summary,
    timed,
)

HERE = Path(__file__).resolve().parent
SCHEMA = "edgekit.bundle/1"
MAX_MANIFEST = 10_000_000
DETAIL = 400

Feeds = Dict[str, Any]
Run = Callable[[Feeds], List[Any]]


# ── the bundle ────────────────────────────────────────────────────────────────────────────────────


def read_manifest(folder: Path) -> Dict[str, Any]:
    """The bundle's manifest."""
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise ValueError("too large")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(2, f"manifest.json can't be read: {str(error)[:DETAIL]}", "copy the bundle again") from error
    if schema != SCHEMA:
        raise BundleError(
            2, f"this bundle is '{schema}', this runner reads '{SCHEMA}'", "use the runner that came with it"
        )
    return manifest


def check_files(folder: Path, manifest: Dict[str, Any]) -> int:
    """Compare every file with its hash; return how many there are."""
    for name, facts in sorted(manifest["files"].items()):
        if name.startswith("/") or ".." in Path(name).parts:
            raise BundleError(2, f"the manifest names '{name}', outside of the bundle", "make the bundle again")
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise BundleError(2, f"{name} is missing", "copy the bundle again")
        if sha256(path) != facts["sha256"]:
            raise BundleError(2, f"{name} is not the file that was bundled (its hash differs)", "copy the bundle again")
    known = set(manifest["files"]) | {"manifest.json"}
    for path in folder.iterdir():
        if path.is_file() and path.name not in known and path.suffix in (".onnx", ".data", ".bin", ".xml", ".engine"):
            raise BundleError(2, f"{path.name} does not belong to the bundle; a runtime might load it", "remove it")
    return len(manifest["files"])


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def golden(folder: Path, manifest: Dict[str, Any]) -> Tuple[Feeds, List[Any]]:
    """The recorded inputs by name, and the outputs they gave."""
    import numpy as np

    try:
        with np.load(folder / manifest["golden"]["file"], allow_pickle=False) as file:
            inputs = {port["name"]: file["in:" + port["name"]] for port in manifest["inputs"]}
            outputs = [file["out:" + port["name"]] for port in manifest["outputs"]]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(
            2, f"the golden data can't be read: {str(error)[:DETAIL]}", "copy the bundle again"
        ) from error
    return inputs, outputs


# ── the model ──────────────────────────────────────────────────────────────────────────────────


def open_model(folder: Path, manifest: Dict[str, Any]) -> Run:
    """Load the model as it was measured: the same threads, provider, precision."""
    backend, path = manifest["backend"], folder / manifest["model"]
    try:
        module = importlib.import_module("edgekit_" + backend)
        return module.open_model(path, manifest["run"])
    except BundleError:
        raise
    except ImportError as error:
        what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load: {error}"
        raise BundleError(4, f"the Python package '{error.name or backend}' {what}", install(manifest)) from error
    except Exception as error:
        raise BundleError(
            4, f"{backend} can't load this model: {type(error).__name__}: {str(error)[:DETAIL]}", install(manifest)
        ) from error


def preload(manifest: Dict[str, Any]) -> None:
    """Load the runtime itself: its time and memory are not the model's."""
    with contextlib.suppress(ImportError):  # told when the model is opened
        importlib.import_module(manifest["backend"])


def install(manifest: Dict[str, Any]) -> str:
    """What to install, at the version that the bundle was made with."""
    name = manifest["backend"]
    version = manifest["versions"].get(name)
    wanted = f"{name}=={version}" if version else name
    return f"the bundle was made with {wanted}: pip install numpy {wanted} (or a newer one)"


def run_batched(run: Run, feeds: Feeds, batch: Optional[int]) -> List[Any]:
    """Run any number of samples, in pieces where the model's batch is fixed (the last one is filled up)."""
    import numpy as np

    total = len(next(iter(feeds.values())))
    if batch is None or batch == total:
        return [np.array(output) for output in run(feeds)]
    pieces = []
    for start in range(0, total, batch):
        rows = [min(row, total - 1) for row in range(start, start + batch)]
        kept = min(batch, total - start)
        pieces.append([np.array(out)[:kept] for out in run({name: value[rows] for name, value in feeds.items()})])
    return [np.concatenate(parts) for parts in zip(*pieces)]


def fixed_batch(manifest: Dict[str, Any]) -> Optional[int]:
    """The model's only batch size; None where it is free."""
    sizes = {port["shape"][0] for port in manifest["inputs"] if port["shape"]}
    return sizes.pop() if len(sizes) == 1 else None


# ── the commands ──────────────────────────────────────────────────────────────────────────────────


def check(folder: Path, manifest: Dict[str, Any]) -> Dict[str, Any]:
    """Hashes, then the golden outputs within the recorded tolerance."""
    count, here = check_files(folder, manifest), device()
    inputs, expected = golden(folder, manifest)
    found = run_model(open_model(folder, manifest), inputs, fixed_batch(manifest))
    limit = manifest["golden"]["tolerance"]
    names = [port["name"] for port in manifest["outputs"]]
    gaps = {name: gap(a, b) for name, a, b in zip(names, found, expected)}
    worst = max(gaps, key=lambda name: gaps[name])
    report = {
        "command": "check",
        "files": count,
        "samples": manifest["golden"]["samples"],
        "difference": min(gaps[worst], sys.float_info.max),
        "tolerance": limit,
        "output": worst,
        "device": here,
        "numerics_only": stranger(manifest, here),
    }
    if not gaps[worst] <= limit:
        error = BundleError(
            3,
            f"output '{worst}' differs by {gaps[worst]:.3g} of its greatest value; {limit:.3g} is allowed",
            "use the runtime version in manifest.json; if it still differs, this processor's kernels compute "
            "something else (8-bit products that overflow, reduced precision): make a bundle for its own target",
        )
        error.report = report
        raise error
    return report


def run_model(run: Run, feeds: Feeds, batch: Optional[int]) -> List[Any]:
    """Run, with the runtime's own exception told as trouble."""
    try:
        return run_batched(run, feeds, batch)
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(
            3, f"the model failed: {type(error).__name__}: {str(error)[:DETAIL]}", "check the runtime's version"
        ) from error


def gap(found: Any, expected: Any) -> float:
    """Greatest difference as a share of the greatest golden value; of integers the share that differs."""
    import numpy as np

    if found.shape != expected.shape:
        return math.inf
    if expected.dtype.kind not in "fc":
        return float((found != expected).mean()) if expected.size else 0.0
    one, other = found.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return math.inf
    finite = np.isfinite(other)
    scale = float(np.abs(other[finite]).max()) if finite.any() else 0.0
    most = float(np.abs(one[finite] - other[finite]).max()) if finite.any() else 0.0
    return most / scale if scale else (0.0 if most == 0 else math.inf)


def bench(folder: Path, manifest: Dict[str, Any], seconds: float) -> Dict[str, Any]:
    """Latency and memory; on an emulated processor neither, for they would be the emulator's."""
    check_files(folder, manifest)
    here, before = device(), state()
    inputs, _ = golden(folder, manifest)
    batch = fixed_batch(manifest) or manifest["run"]["batch"]
    feeds = {name: value[[row % len(value) for row in range(batch)]] for name, value in inputs.items()}
    preload(manifest)
    base = reset_peak()
    clock = time.perf_counter
    start = clock()
    run = open_model(folder, manifest)
    loaded = clock()
    run_model(run, feeds, None)
    first = clock()
    report = {"command": "bench", "device": here, "batch": batch, "latency_ms": None, "first_inference_ms": None}
    report.update(load_ms=None, peak_rss_bytes=None, before=before, numerics_only=stranger(manifest, here))
    if here["emulated"]:
        return report
    own = getattr(getattr(run, "__self__", None), "times_ms", None)  # a tool that has its own clock
    times = own(feeds, seconds) if own else [1000 * one for one in timed(lambda: run(feeds), seconds)]
    report.update(
        latency_ms=summary(times),
        load_ms=(loaded - start) * 1000,
        first_inference_ms=None if own else (first - loaded) * 1000,
        peak_rss_bytes=None if own else peak_above(base),
        after=state(),
    )
    return report


def run_files(folder: Path, manifest: Dict[str, Any], paths: List[str], out: Optional[str]) -> Dict[str, Any]:
    """One inference on the user's arrays."""
    import numpy as np

    check_files(folder, manifest)
    feeds = {port["name"]: fitted(port, value) for port, value in read_inputs(manifest, paths)}
    outputs = run_model(open_model(folder, manifest), feeds, fixed_batch(manifest))
    names = [port["name"] for port in manifest["outputs"]]
    if out:
        np.savez(out, **dict(zip(names, outputs)))
    told = [
        {"name": name, "shape": list(value.shape), "dtype": str(value.dtype), "first": value.reshape(-1)[:10].tolist()}
        for name, value in zip(names, outputs)
    ]
    return {"command": "run", "outputs": told, "saved": out}


def read_inputs(manifest: Dict[str, Any], paths: List[str]) -> List[Tuple[Dict[str, Any], Any]]:
    """The arrays for each input: one .npz by name, or .npy files in the inputs' order."""
    import numpy as np

    ports = manifest["inputs"]
    try:
        if len(paths) == 1 and paths[0].endswith(".npz"):
            with np.load(paths[0], allow_pickle=False) as file:
                return [(port, file[port["name"]]) for port in ports]
        arrays = [np.load(path, allow_pickle=False) for path in paths]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(2, f"can't read the input: {str(error)[:DETAIL]}", "give .npy files, or one .npz") from error
    if len(arrays) != len(ports):
        names = ", ".join(port["name"] for port in ports)
        raise BundleError(
            2, f"{len(arrays)} files for {len(ports)} inputs ({names})", "give one .npy for each, in order"
        )
    return list(zip(ports, arrays))


def fitted(port: Dict[str, Any], value: Any) -> Any:
    """The array if it fits the input; one sample gets its batch axis."""
    shape = port["shape"]
    if value.ndim == len(shape) - 1:
        value = value[None]
    if str(value.dtype) != port["dtype"]:
        raise BundleError(2, f"'{port['name']}' wants {port['dtype']}, not {value.dtype}", "convert it with astype")
    wrong = value.ndim != len(shape) or any(w not in (None, g) for w, g in zip(shape[1:], value.shape[1:]))
    if wrong or value.shape[:1] == (0,):
        want = ["any" if size is None else size for size in shape]
        raise BundleError(2, f"'{port['name']}' wants the shape {want}, not {list(value.shape)}", "reshape the input")
    return value


# ── the command line ──────────────────────────────────────────────────────────────────────────────


def words(report: Dict[str, Any]) -> str:
    """A report for people."""
    lines = []
    if report["command"] == "check":
        lines.append(
            f"ok: {report['files']} files intact; golden outputs of {report['samples']} samples within "
            f"{report['difference']:.2g} of {report['tolerance']:.2g}"
        )
    elif report["command"] == "bench":
        times = report["latency_ms"]
        if times is None:
            lines.append("latency: not measured (emulated)")
        else:
            lines.append(f"latency: median {times['median']:.3f} ms, p90 {times['p90']:.3f} ms, {times['runs']} runs")
            if report["first_inference_ms"] is not None:
                lines.append(f"first inference {report['first_inference_ms']:.2f} ms, load {report['load_ms']:.1f} ms")
    else:
        lines += [f"{o['name']} {o['dtype']} {o['shape']}: {o['first']}" for o in report["outputs"]]
    if report.get("numerics_only"):
        lines.append(f"numerics only: {report['numerics_only']}; this says nothing of speed on the target")
    return "\n".join(lines)


def parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="edgekit_runner.py", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="check | bench | run")
    commands.required = True
    for name in ("check", "bench", "run"):
        command = commands.add_parser(name)
        command.add_argument("--json", action="store_true", help="one JSON document on stdout")
        if name == "bench":
            command.add_argument("--seconds", type=float, default=3.0, help="how long to measure (3)")
        if name == "run":
            command.add_argument("inputs", nargs="+", help=".npy files in the inputs' order, or one .npz by name")
            command.add_argument("--out", help="keep the outputs in this .npz")
    return parser.parse_args(arguments)


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one command; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a console without UTF-8 gets escapes, no traceback
    chosen = parse(arguments)
    try:
        manifest = read_manifest(HERE)
        if chosen.command == "check":
            report = check(HERE, manifest)
        elif chosen.command == "bench":
            report = bench(HERE, manifest, chosen.seconds)
        else:
            report = run_files(HERE, manifest, chosen.inputs, chosen.out)
    except BundleError as trouble:
        told = {"error": trouble.problem, "remedy": trouble.remedy, "exit": trouble.code}
        told.update(getattr(trouble, "report", {}))
        sys.stderr.write(f"error: {trouble.problem}\n  fix: {trouble.remedy}\n")
        if chosen.json:
            sys.stdout.write(json.dumps(told) + "\n")
        return trouble.code
    sys.stdout.write((json.dumps({**report, "exit": 0}) if chosen.json else words(report)) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
