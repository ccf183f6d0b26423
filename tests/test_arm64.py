"""Bundles in an ARM64 Linux under user-mode emulation: complete, and right; never a word on speed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import record_maker as make

from edgekit import bundle, target

FOLDER = os.environ.get("EDGEKIT_TEST_ARM64", "")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="no ARM64 Linux here (make one with tests/arm64.sh, set EDGEKIT_TEST_ARM64)"),
    pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed"),
]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("work")
    rec = work / "rec"
    rec.mkdir()
    data = make.images(work / "data")
    net = make.model(work / "net.onnx")
    aim = target.load_target("raspberry-pi-5")
    scheme = aim.quantize.model_dump(mode="json")
    int8 = make.quantized(net, work / "int8.onnx", data, activations="QInt8")
    rows = [make.row(rec, "fp32", aim, net), make.row(rec, "int8", aim, int8, scheme=scheme)]
    make.record(rec, rows, data)
    return {variant: bundle.bundle(rec, aim.name, variant, work / variant) for variant in ("fp32", "int8")}


def run(place: Path, *arguments: str) -> dict[str, object]:
    root = Path(FOLDER) / "root"
    command = [str(QEMU), "-L", str(root), str(root / "usr/bin/python3.11"), str(place / "edgekit_runner.py")]
    env = {"PYTHONPATH": str(root / "site"), "PATH": os.environ["PATH"]}
    done = subprocess.run([*command, *arguments, "--json"], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_golden_outputs_hold_on_arm(bundles: dict[str, Path], variant: str) -> None:
    report = run(bundles[variant], "check")
    assert report["device"]["arch"] == "aarch64"  # type: ignore[index]
    assert report["difference"] <= report["tolerance"]  # type: ignore[operator]
    assert report["numerics_only"] == "this processor is emulated"


def test_no_latency_is_told(bundles: dict[str, Path]) -> None:
    report = run(bundles["int8"], "bench", "--seconds", "0.1")
    assert report["latency_ms"] is None
    assert report["first_inference_ms"] is None
