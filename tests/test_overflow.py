"""A CPU whose 8-bit kernels overflow must not pass ``check``: the real ResNet-20 on an emulated one without VNNI."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import record_maker as make
import torch

from edgekit import bundle, target
from edgekit.workload import spool

QEMU = shutil.which("qemu-x86_64-static")


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64-static (Debian's qemu-user-static) is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_check_finds_overflowing_products(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uint8 activations with int8 weights, added in pairs in 16 bits: float passes there, int8 does not."""
    monkeypatch.syspath_prepend(str(shared_data.parent / "tools"))
    import cifar10

    images, labels = cifar10.images("test")
    data = spool.write([({"image": cifar10.normalize(images[:32])}, labels[:32])], tmp_path / "data")
    net = tmp_path / "net.onnx"
    axes = {"image": {0: "N"}, "logits": {0: "N"}}
    torch.onnx.export(cifar10.resnet20(), (torch.zeros(2, 3, 32, 32),), net, dynamo=False, dynamic_axes=axes,
                      input_names=["image"], output_names=["logits"])  # fmt: skip
    rec = tmp_path / "rec"
    rec.mkdir()
    aim = target.load_target("x86-cpu")
    int8 = make.quantized(net, tmp_path / "int8.onnx", data)
    scheme = aim.quantize.model_dump(mode="json")
    make.record(rec, [make.row(rec, "fp32", aim, net), make.row(rec, "int8", aim, int8, scheme=scheme)], data)
    python = make.bare(tmp_path / "env", "numpy", "onnxruntime")
    codes = {}
    for variant in ("fp32", "int8"):
        place = bundle.bundle(rec, aim.name, variant, tmp_path / variant)
        command = [str(QEMU), "-cpu", "Haswell-noTSX", str(python), str(place / "edgekit_runner.py"), "check", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, timeout=300)
        codes[variant] = done.returncode
        report = json.loads(done.stdout)
    assert codes == {"fp32": 0, "int8": 3}
    assert report["difference"] > 0.05 > report["tolerance"]
    assert report["numerics_only"] == "this processor is emulated"
