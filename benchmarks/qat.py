"""Quantization-aware training of the graph that ships, on the CIFAR ResNet-20: accuracy, agreement, cost.

    python benchmarks/qat.py --data DIR [--epochs 2] [--images 24000] [--only static] [--out benchmarks/qat.md]

DIR holds cifar10-train.tar, cifar10-test.tar and resnet20-cifar10.pt. The Q/DQ file is trained with 8-bit weights, and
with its weights cut down to multiples of 16 first (what 4-bit rounding costs), with the scales as they are and
learned; so are weights of few values (16 for each layer; signs, or −1, 0 and 1, in the last ten convolutions); always
taught by the float model alone, without labels. Accuracy is ONNX Runtime's on the 10,000 test images;
"agreement" is the share of them for which the torch run that was trained gives the same class. About 40 minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.quantization import cifar, resnet20, spooled  # noqa: E402
from edgekit import child, store  # noqa: E402
from edgekit.quantizers._torch_graph import open_graph  # noqa: E402
from edgekit.recipe import FinetuneSection, MetricSection  # noqa: E402
from edgekit.target import load_target  # noqa: E402
from edgekit.training import Kind, TrainJob, train  # noqa: E402
from edgekit.workload import spool  # noqa: E402

HEAD = "| model | accuracy | points below float | agreement | kB | training, s |\n| --- | --- | --- | --- | --- | --- |"
FEW: dict[str, dict[str, Any]] = {
    "16 values": {"method": "clustered", "clusters": 16},
    "binary": {"method": "binary", "bits": 1},
    "ternary": {"method": "binary", "bits": 2},
}


def main() -> None:
    """Train each variant and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("EDGEKIT_TEST_DATA"), required=False)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--only", default="", help="a part of a variant's name: what is trained")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("qat.md"))
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of the data with --data")
    with tempfile.TemporaryDirectory() as name:
        rows = run(Path(options.data), Path(name), options.epochs, options.images, options.only)
    text = f"# QAT of the graph that ships, ResNet-20\n\nMade by `benchmarks/qat.py`, {options.epochs} epochs over "
    text += f"{options.images} images.\n\n{HEAD}\n" + "\n".join(rows) + "\n"
    print(text)
    store.write_text(options.out, text)


def run(data: Path, folder: Path, epochs: int, images: int, only: str) -> list[str]:
    """One line of the table for each variant."""
    model = resnet20(data, folder / "float.onnx")
    train_set = dict(enumerate(cifar(data, "train")))
    order = np.random.default_rng(0).permutation(len(train_set))
    parts = {"train": order[:images], "validation": order[-1000:], "calibration": order[:512]}
    for split, rows in parts.items():
        spooled([train_set[int(i)] for i in rows], folder / split)
    test = spool.read(spooled(list(cifar(data, "test")), folder / "test"))
    static = quantized(model, folder / "static.onnx", {"method": "static"})
    rough = cut(static, folder / "rough.onnx", 16)
    reference = judge(model, test)[0]
    table = [line("float", model, test, reference)]
    for student in (static, rough):
        table.append(line(student.stem, student, test, reference))
        for learn_scales in (False, True):
            title = f"{student.stem} + QAT{', scales learned' if learn_scales else ''}"
            if only not in title:
                continue
            start = time.monotonic()
            out = finetuned(student, model, folder, epochs, learn_scales)
            seconds = time.monotonic() - start
            table.append(line(title, out, test, reference, seconds))
            print(table[-1], flush=True)
    convolutions = [node.name for node in onnx.load(model).graph.node if node.op_type == "Conv"]
    for title, settings in FEW.items():
        if only not in title:
            continue
        chosen = {} if settings["method"] == "clustered" else {"layers": convolutions[-10:]}
        student = quantized(model, folder / f"{title}.onnx", {**settings, **chosen})
        start = time.monotonic()
        out = finetuned(student, model, folder, epochs, False, "codebook")
        seconds = time.monotonic() - start
        table += [line(title, student, test, reference), line(f"{title}, trained", out, test, reference, seconds)]
        print(*table[-2:], sep="\n", flush=True)
    return table


def quantized(model: Path, out: Path, settings: dict[str, Any]) -> Path:
    """The model, quantized as the recipe's line does ahead of training."""
    child.call(
        "edgekit.quantizers:quantize_job",
        model=str(model),
        out=str(out),
        calibration=str(model.parent / "calibration"),
        target=load_target("x86-cpu").model_dump(mode="json"),
        settings=settings,
        draft=True,
    )
    return out


def cut(model: Path, out: Path, step: int) -> Path:
    """The same file with int8 weights rounded to multiples of ``step``."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.int8 and array.ndim > 1:
            rounded = (np.rint(array / step) * step).clip(-127, 127).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    onnx.save(proto, out)
    return out


def finetuned(student: Path, teacher: Path, folder: Path, epochs: int, learn_scales: bool, kind: Kind = "qat") -> Path:
    """Train a quantized file as the recipe's line does, in processes of its own."""
    out = folder / f"{student.stem}-{learn_scales}.onnx"
    job = TrainJob(
        kind=kind,
        student=str(student),
        teacher=str(teacher),
        weights=str(teacher),
        out=str(out),
        scratch=str(folder / f"scratch-{out.stem}"),
        data={"spool": {"train": str(folder / "train"), "validation": str(folder / "validation")}},
        settings=FinetuneSection(epochs=epochs, learn_scales=learn_scales),
        metric=MetricSection(),
    )
    train(job)
    return out


def judge(model: Path, test: spool.Spool) -> tuple[float, float]:
    """Accuracy in ONNX Runtime, and the share of images on which the torch run agrees with it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    graph: Any = open_graph(model).eval()
    right = same = 0
    with torch.no_grad():
        for feeds, labels in test:
            theirs = session.run(None, feeds)[0].argmax(1)
            ours = graph({name: torch.from_numpy(value) for name, value in feeds.items()})[0].argmax(1).numpy()
            right += int((theirs == labels).sum())
            same += int((theirs == ours).sum())
    return right / test.samples, same / test.samples


def line(title: str, model: Path, test: spool.Spool, reference: float, seconds: float | None = None) -> str:
    """A row of the table."""
    accuracy, agreement = judge(model, test)
    took = "" if seconds is None else f"{seconds:.0f}"
    size = model.stat().st_size / 1000
    return f"| {title} | {accuracy:.4f} | {100 * (reference - accuracy):+.2f} | {agreement:.4f} | {size:.0f} | {took} |"


if __name__ == "__main__":
    main()
