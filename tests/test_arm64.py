"""Bundles in an ARM64 Linux under user-mode emulation: complete, and right; never a word on speed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import record_maker as make
import ssh_servers

from edgekit import bundle, deploy, result, target

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
    env = {"PYTHONPATH": str(Path(FOLDER) / "site"), "PATH": os.environ["PATH"]}
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


@pytest.mark.skipif(shutil.which("ssh") is None, reason="the OpenSSH client is not installed")
def test_deployed_over_ssh_it_proves_numerics_and_no_number_is_recorded(
    bundles: dict[str, Path],
    tmp_path: Path,
) -> None:
    """A device whose Python is an ARM64 one: preflight, transfer, check and bench all run inside the emulator."""
    (tmp_path / "keys").mkdir()
    keys = ssh_servers.keys(tmp_path / "keys")
    device = ssh_servers.device(tmp_path, None)
    root = Path(FOLDER) / "root"
    for name, text in {
        "python3": f'PYTHONPATH={FOLDER}/site exec {QEMU} -L {root} {root}/usr/bin/python3.11 "$@"',
        "uname": '[ "$1" = -m ] && echo aarch64 || echo 6.6.0',
    }.items():
        (device.path / name).unlink(missing_ok=True)
        (device.path / name).write_text(f"#!/bin/sh\n{text}\n")
        (device.path / name).chmod(0o755)
    server = ssh_servers.Asyncssh(device, keys)
    rec = shutil.copytree(bundles["int8"].parent / "rec", tmp_path / "rec")
    try:
        settings = ssh_servers.config(tmp_path, keys, server.port)
        (outcome,) = deploy.deploy(bundles["int8"], ["device"], ssh_config=settings, seconds=0.1, results=rec)
    finally:
        server.stop()
    assert (outcome.status, outcome.reason) == ("ok", "")
    assert outcome.check is not None
    assert outcome.check["device"]["arch"] == "aarch64"
    assert outcome.check["difference"] <= outcome.check["tolerance"]
    row = result.load_results(rec)["variants"][1]
    assert (row["status"], row["latency_ms"]) == ("built", None)
    assert row["devices"][0]["numerics_only"] == "this processor is emulated"
