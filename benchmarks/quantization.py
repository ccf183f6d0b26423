"""How do edgekit's quantizers compare with their peers, on the same models, samples and threads? About 40 minutes.

    python benchmarks/quantization.py --data DIR [--draws 5] [--kind vit …] [--onnx NAME=MODEL.onnx,SPOOL …]

DIR holds the shared data: cifar10-train.tar, cifar10-test.tar, resnet20-cifar10.pt, spoken-digits.tar.xz, sst2-*.tsv.
The ResNet-20 comes with its weights; a depthwise CNN, a DS-CNN, a ViT and a BERT-like encoder are trained first
(``_small_models.py``). Further ONNX models with a spool of samples (``edgekit.workload.spool``) have no labels here, so
they are judged by signal-to-noise alone. Every quantizer runs in a process of its own, which is timed and whose peak
memory is read. With ``--draws`` it also runs with other samples, and accuracy and signal-to-noise are means ± standard
deviations over these; all else is of the first. Latencies are of one thread, in turns, by the processor's time: other
programs lengthen that least. A peer that is not installed is a line that says so.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgekit.workload import spool  # noqa: E402

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
ROUNDS, ROUND_S = 40, 0.03

ORT = """
import sys
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from edgekit.workload import spool
class Reader(CalibrationDataReader):
    def __init__(self, folder): self.batches = iter(spool.read(folder).feeds())
    def get_next(self): return next(self.batches, None)
model, samples, out, method = sys.argv[1:5]
quant_pre_process(model, out + ".pre", skip_symbolic_shape=True)
quantize_static(out + ".pre", out, Reader(samples), per_channel=True, activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod[method])
"""
ORT_DYNAMIC = """
import sys
from onnxruntime.quantization import QuantType, quantize_dynamic
quantize_dynamic(sys.argv[1], sys.argv[3], per_channel=True, weight_type=QuantType.QInt8)
"""
NNCF = """
import sys, nncf, onnx
from edgekit.workload import spool
batches = list(spool.read(sys.argv[2]).feeds())
feeds = [{n: v[i:i + 1] for n, v in f.items()} for f in batches for i in range(len(next(iter(f.values()))))]
done = nncf.quantize(onnx.load(sys.argv[1]), nncf.Dataset(feeds), subset_size=len(feeds),
                     target_device=nncf.TargetDevice.CPU, fast_bias_correction=sys.argv[4] == "fast")
onnx.save(done, sys.argv[3])
"""
TORCHAO = """
import sys, torch
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
from edgekit.workload import spool
batches = [torch.from_numpy(next(iter(feeds.values()))) for feeds in spool.read(sys.argv[2]).feeds()]
quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
module = prepare_pt2e(torch.export.load(sys.argv[1] + ".pt2").module(), quantizer)
for batch in batches:
    module(batch)
torch.onnx.export(convert_pt2e(module), (batches[0],), sys.argv[3], dynamo=True, dynamic_shapes=({0: "batch"},),
                  input_names=list(next(spool.read(sys.argv[2]).feeds())), external_data=False)
"""
OLIVE = """
import os, shutil, sys, tempfile
os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
import torch
from pathlib import Path
from olive.data.registry import Registry
from olive.workflows import run
from edgekit.workload import spool
class Samples(torch.utils.data.Dataset):
    items = [{n: torch.from_numpy(v[i]) for n, v in feeds.items()} for feeds in spool.read(sys.argv[2]).feeds()
             for i in range(len(next(iter(feeds.values()))))]
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i], 0
Registry.register_dataset("samples_of_ours")(lambda **_: Samples())
steps = {"load_dataset_config": {"type": "samples_of_ours"}, "dataloader_config": {"batch_size": 1},
         **{f"{when}_process_data_config": {"type": f"skip_{when}_process"} for when in ("pre", "post")}}
with tempfile.TemporaryDirectory() as folder:
    run({"input_model": {"type": "OnnxModel", "model_path": sys.argv[1]},
         "data_configs": [{"name": "samples", **steps}],
         "passes": {"int8": {"type": "OnnxStaticQuantization", "data_config": "samples", "per_channel": True,
                             "precision": "int8", "activation_type": "uint8"}},
         "evaluate_input_model": False, "output_dir": folder + "/out", "cache_dir": folder + "/cache"})
    shutil.copy(next(Path(folder, "out").rglob("*.onnx")), sys.argv[3])
"""
EDGEKIT = """
import json, sys
from edgekit.quantizers import quantize_job
from edgekit.target import load_target
settings = {"samples": 4096, **json.loads(sys.argv[5])}
report = quantize_job(model=sys.argv[1], calibration=sys.argv[2], out=sys.argv[3], settings=settings,
                      target=load_target(sys.argv[4]).model_dump(mode="json"))
print(json.dumps({"corrections": report.get("corrections"), "calibration": report.get("calibration")}))
"""
# A launcher of its own: a child's peak memory starts at that of the process that forks it.
LAUNCH = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
cpu = usage.ru_utime + usage.ru_stime
print(json.dumps([status, time.perf_counter() - started, cpu, usage.ru_maxrss / 1024]))
"""
QUANTIZERS: dict[str, tuple[str, list[str]]] = {
    "edgekit, x86-cpu, auto": (EDGEKIT, ["x86-cpu", '{"method": "static"}']),
    "edgekit, x86-cpu, minmax": (EDGEKIT, ["x86-cpu", '{"method": "static", "calibration": "minmax"}']),
    "edgekit, x86-cpu, average": (EDGEKIT, ["x86-cpu", '{"method": "static", "calibration": "average"}']),
    "edgekit, x86-cpu, percentile": (EDGEKIT, ["x86-cpu", '{"method": "static", "calibration": "percentile"}']),
    "edgekit, x86-cpu, entropy": (EDGEKIT, ["x86-cpu", '{"method": "static", "calibration": "entropy"}']),
    "edgekit, x86-cpu, mse": (EDGEKIT, ["x86-cpu", '{"method": "static", "calibration": "mse"}']),
    "edgekit, x86-cpu, QAT": (EDGEKIT, ["x86-cpu", '{"method": "qat", "samples": 512, "train": {"epochs": 1}}']),
    "edgekit, x86-openvino, auto": (EDGEKIT, ["x86-openvino", '{"method": "static"}']),
    "edgekit, dynamic": (EDGEKIT, ["x86-cpu", '{"method": "dynamic"}']),
    "onnxruntime, MinMax": (ORT, ["MinMax"]),
    "onnxruntime, Entropy": (ORT, ["Entropy"]),
    "onnxruntime, Percentile": (ORT, ["Percentile"]),
    "onnxruntime, dynamic": (ORT_DYNAMIC, []),
    "nncf": (NNCF, ["fast"]),
    "torchao, PT2E": (TORCHAO, []),
    "olive": (OLIVE, []),
}


@dataclass
class Row:
    """One quantizer's result on one model; accuracy and signal-to-noise by runtime, of every draw of samples."""

    name: str
    path: Path
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    note: str = ""
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    sqnr: dict[str, list[float]] = field(default_factory=dict)
    speedup: dict[str, float] = field(default_factory=dict)


def quantize(name: str, model: Path, samples: Path, folder: Path, pythons: dict[str, str]) -> Row:
    """Run one quantizer in a process of its own."""
    code, arguments = QUANTIZERS[name]
    row = Row(name, folder / f"{name.replace(' ', '_').replace(',', '')}.onnx")
    command = [
        next((python for part, python in pythons.items() if part in name), sys.executable),
        "-c",
        code,
        str(model),
        str(samples),
        str(row.path),
        *arguments,
    ]
    with (folder / "log").open("w") as log:
        launched = subprocess.run(
            [sys.executable, "-c", LAUNCH, *command],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=False,
        )
    status, row.seconds, row.cpu_seconds, row.peak_mib = json.loads(launched.stdout)
    if status or not row.path.exists():
        row.note = (
            (folder / "log").read_text().strip().splitlines()[-1][:90] if (folder / "log").stat().st_size else "failed"
        )
    return row


def onnxruntime_session(path: Path) -> Callable[[dict[str, Any]], list[Any]]:
    """One thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def openvino_session(path: Path) -> Callable[[dict[str, Any]], list[Any]]:
    """One thread; fp32, not the CPU's bf16; compiled for the shapes that come: with free ones int8 may be wrong."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    core, requests = ov.Core(), {}
    model = core.read_model(str(path))

    def run(feeds: dict[str, Any]) -> list[Any]:
        shapes = tuple(value.shape for value in feeds.values())
        if shapes not in requests:
            model.reshape(dict(zip(feeds, shapes, strict=True)))
            requests[shapes] = core.compile_model(model, "CPU", settings).create_infer_request()
        return list(requests[shapes].infer(feeds).values())

    return run


Session = Callable[[dict[str, Any]], list[Any]]
RUNTIMES: dict[str, Callable[[Path], Session]] = {"ONNX Runtime": onnxruntime_session, "OpenVINO": openvino_session}


def running(rows: list[Row], feeds: dict[str, Any], runtime: str) -> list[tuple[Row, Session]]:
    """The rows whose files run there, opened; the others are noted."""
    runs = []
    for row in rows:
        try:
            session = RUNTIMES[runtime](row.path)
            session(feeds)
            runs.append((row, session))
        except Exception as error:
            row.note = row.note or f"{runtime}: {str(error).splitlines()[0][-150:]}"
    return runs


def speedups(rows: list[Row], feeds: dict[str, Any], runtime: str) -> None:
    """Median over rounds of the ratio to the first row within the round; the order within a round is random.

    It is the processor's time: with one thread that is the latency on a core that nothing else wants.
    """
    runs = running(rows, feeds, runtime)
    started = time.perf_counter()
    runs[0][1](feeds)
    repeats = max(1, int(ROUND_S / (time.perf_counter() - started)))
    times = np.zeros((ROUNDS, len(runs)))
    for number in range(ROUNDS):
        for index in np.random.default_rng(number).permutation(len(runs)):
            started = time.process_time()
            for _ in range(repeats):
                runs[index][1](feeds)
            times[number, index] = time.process_time() - started
    for index, (row, _) in enumerate(runs):
        row.speedup[runtime] = float(np.median(times[:, 0] / times[:, index]))


def judge(rows: list[Row], test: spool.Spool, labelled: bool, runtime: str) -> None:
    """Accuracy (where there are labels) and signal-to-noise in decibels against the first row."""
    runs = running(rows, next(test.feeds()), runtime)
    hits, noise, signal, count = np.zeros(len(runs)), np.zeros(len(runs)), 0.0, 0
    for feeds, labels in test:
        outputs = [session(feeds)[0] for _, session in runs]
        count += len(outputs[0])
        signal += float((outputs[0] ** 2).sum())
        for index, output in enumerate(outputs):
            noise[index] += float(((output - outputs[0]) ** 2).sum())
            if labels is not None:
                hits[index] += int((output.argmax(axis=1) == labels).sum())
    for index, (row, _) in enumerate(runs):
        if labelled:
            row.accuracy.setdefault(runtime, []).append(hits[index] / count)
        if noise[index]:
            row.sqnr.setdefault(runtime, []).append(float(10 * np.log10(signal / noise[index])))


def table(title: str, rows: list[Row], failed: list[Row]) -> str:
    """Markdown."""
    columns = [column for runtime in RUNTIMES for column in (f"accuracy, {runtime}", "dB")]
    columns += ["file, kB", *(f"× fp32, {runtime}" for runtime in RUNTIMES), "CPU s", "peak, MiB"]
    lines = [f"## {title}", "", f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for row in rows:
        cells = [row.name]
        for runtime in RUNTIMES:
            cells += [_mean(row.accuracy.get(runtime, []), 4), _mean(row.sqnr.get(runtime, []), 1)]
        cells += [f"{row.path.stat().st_size / 1000:.0f}"]
        cells += [_number(row.speedup.get(runtime), 2) for runtime in RUNTIMES]
        cells += [_number(row.cpu_seconds or None, 1), _number(row.peak_mib or None, 0)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {row.name} | not run: {row.note} |{'  |' * (len(columns) - 1)}" for row in failed]
    lines += [f"\n{row.name} did not run everywhere: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, ""])


def _mean(values: list[float], digits: int) -> str:
    """The mean, with the standard deviation where there are several."""
    if len(values) < 2:
        return _number(values[0] if values else None, digits)
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def compare(
    title: str,
    model: Path,
    draws: list[Path],
    test: Path,
    names: list[str],
    pythons: dict[str, str],
    train: Path | None = None,
) -> str:
    """Every quantizer on one model, with each draw of calibration samples; QAT, once, with the training samples."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        splits = {each: (train if "QAT" in each else draws[0]) for each in names}
        made = [quantize(each, model, split, folder, pythons) for each, split in splits.items() if split]
        rows = [Row("fp32", model), *(row for row in made if row.path.exists())]
        feeds = {key: value[:1] for key, value in next(spool.read(draws[0]).feeds()).items()}
        for runtime in RUNTIMES:
            judge(rows, spool.read(test), test not in draws, runtime)
            speedups(rows, feeds, runtime)
        for samples in draws[1:]:
            again(rows, samples, test, pythons)
        return table(title, rows, [row for row in made if not row.path.exists()])


def again(rows: list[Row], samples: Path, test: Path, pythons: dict[str, str]) -> None:
    """Add to the rows what their quantizers reach with other samples."""
    with tempfile.TemporaryDirectory() as name:
        drawn = [rows[0]]
        for row in rows[1:]:
            if "QAT" not in row.name:
                other = quantize(row.name, rows[0].path, samples, Path(name), pythons)
                drawn.append(replace(row, path=other.path))  # its lists are the row's own
        for runtime in RUNTIMES:
            judge(drawn, spool.read(test), True, runtime)


def cifar(data: Path, split: str) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
    """Normalized images (3, 32, 32) and labels."""
    from PIL import Image

    with tarfile.open(data / f"cifar10-{split}.tar") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"), np.float32).transpose(2, 0, 1)
            yield (pixels / 255 - MEAN) / STD, CLASSES.index(member.name.split("/")[1])


def spooled(images: list[tuple[Any, int]], folder: Path, name: str = "x") -> Path:
    """Batches of 64 for the input of that name."""
    parts = [images[i : i + 64] for i in range(0, len(images), 64)]
    spool.write((({name: np.stack([x for x, _ in p])}, np.array([y for _, y in p])) for p in parts), folder)
    return folder


def calibrators(model: Path, few: Path, many: Path) -> str:
    """Peak memory with few and with many samples, and processor seconds with many, of every way to find ranges."""
    ours = [n for n, (code, _) in QUANTIZERS.items() if code is EDGEKIT and "dynamic" not in n and "QAT" not in n]
    ways = [*ours, "onnxruntime, MinMax"]  # its other two keep every activation: 8.7 GB at 4,096 samples
    lines = ["| | peak, MiB, at 64 | at 4,096 | ratio | CPU s at 4,096 |", "| --- | --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as name:
        for way in ways:
            one, other = (quantize(way, model, split, Path(name), {}) for split in (few, many))
            memory = f"{one.peak_mib:.0f} | {other.peak_mib:.0f} | {other.peak_mib / one.peak_mib:.2f}"
            lines.append(
                f"| {way} | {memory} | {other.cpu_seconds:.1f} |" if not other.note else f"| {way} | {other.note} |"
            )
    return "\n".join(["## Calibration by the number of samples, ResNet-20", "", *lines, ""])


def small_model(key: str, data: Path, folder: Path, names: list[str], options: Any) -> str:
    """Train one of the small models, then compare."""
    import torch

    from benchmarks import _small_models
    from edgekit import api, onnxfile

    kind = _small_models.KINDS[key]
    x, y, test, labels = kind.data(data)
    module, model = _small_models.trained(kind, (x, y, test, labels)), folder / f"{key}.onnx"
    api.export(module, torch.from_numpy(test[:2]), out=model)
    keep_program(module, torch.from_numpy(test[:2]), model)
    name = onnxfile.inputs(model)[0].name
    train_set = [(x[i], y[i]) for i in np.random.default_rng(0).permutation(len(x))]
    train = spooled(train_set, folder / f"{key}-train", name)
    draws = [spooled(part, folder / f"{key}-samples-{i}", name) for i, part in enumerate(chosen(train_set, options))]
    judged = spooled(list(zip(test, labels, strict=True)), folder / f"{key}-test", name)
    wanted = names if key in ("vit", "bert") else [n for n in names if "dynamic" not in n]
    return compare(f"{kind.title}, {options.samples} samples", model, draws, judged, wanted, options.pythons, train)


def chosen(samples: list[Any], options: Any) -> list[list[Any]]:
    """The calibration samples of each draw: no sample is in two."""
    count = options.samples
    return [samples[i * count : (i + 1) * count] for i in range(options.draws)]


def keep_program(module: Any, example: Any, model: Path) -> None:
    """Put the torch program beside its ONNX file, for who quantizes in torch."""
    import torch

    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, f"{model}.pt2")


def resnet20(data: Path, out: Path) -> Path:
    """:func:`resnet20_module`, exported and simplified."""
    import torch

    from edgekit import api

    api.export(resnet20_module(data), torch.zeros(2, 3, 32, 32), out=out)
    return out


def resnet20_module(data: Path) -> Any:
    """The CIFAR ResNet-20 (He et al. 2015, section 4.2) with the data's weights."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.pad = outputs // 4 if stride != 1 or inputs != outputs else 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.pad:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return F.relu(y + x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            for stage, (inputs, outputs) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
                first = Block(inputs, outputs, 1 if stage == 1 else 2)
                setattr(
                    self, f"layer{stage}", nn.Sequential(first, Block(outputs, outputs, 1), Block(outputs, outputs, 1))
                )
            self.linear = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
            return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))

    net = Net()
    net.load_state_dict(torch.load(data / "resnet20-cifar10.pt", weights_only=True))
    return net.eval()


def main() -> None:
    """Print one table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("EDGEKIT_TEST_DATA"))
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--draws", type=int, default=1, help="choices of the samples that accuracy is a mean over")
    parser.add_argument("--onnx", action="append", default=[], metavar="NAME=MODEL.onnx,SPOOL")
    parser.add_argument("--kind", action="append", help="resnet20, calibration, depthwise, dscnn, vit or bert; all")
    parser.add_argument("--only", action="append", default=[], help="a part of a quantizer's name")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="PEER=PYTHON", help="the Python that has a peer (nncf=…)"
    )
    options = parser.parse_args()
    options.pythons = dict(each.partition("=")[::2] for each in options.peer_python)
    names = [n for n in QUANTIZERS if not options.only or any(part in n for part in options.only)]
    print("# Post-training quantization, side by side\n")
    print(f"Made by `benchmarks/quantization.py`; {json.dumps(_facts())}\n", flush=True)
    kinds = options.kind or ["resnet20", "calibration", "dscnn", "bert", "depthwise", "vit"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.data and {"resnet20", "calibration"} & set(kinds):
            print(on_resnet20(Path(options.data), folder, names, options, kinds), flush=True)
        for key in kinds if options.data else []:
            if key not in ("resnet20", "calibration"):
                data = Path(options.data)
                print(small_model(key, data, folder, names, options), flush=True)
        for entry in options.onnx:
            title, _, rest = entry.partition("=")
            path, _, split = rest.partition(",")
            print(compare(title, Path(path), [Path(split)], Path(split), names, options.pythons), flush=True)


def on_resnet20(data: Path, folder: Path, names: list[str], options: Any, kinds: list[str]) -> str:
    """The tables of the ResNet-20."""
    import torch

    order = np.random.default_rng(0).permutation(25_000)
    train = list(cifar(data, "train"))
    model, tables = resnet20(data, folder / "resnet20.onnx"), []
    if "resnet20" in kinds:
        parts = enumerate(chosen([train[i] for i in order], options))
        draws = [spooled(part, folder / f"samples-{i}") for i, part in parts]
        test = spooled(list(cifar(data, "test")), folder / "test")
        keep_program(resnet20_module(data), torch.zeros(2, 3, 32, 32), model)
        title = f"ResNet-20, CIFAR-10, {options.samples} samples"
        static = [n for n in names if "dynamic" not in n]  # QAT of this one: qat.py
        tables.append(compare(title, model, draws, test, static, options.pythons))
    if "calibration" in kinds:
        few, many = (spooled([train[i] for i in order[:n]], folder / f"calibration-{n}") for n in (64, 4096))
        tables.append(calibrators(model, few, many))
    return "\n".join(tables)


def _facts() -> dict[str, Any]:
    from edgekit import machine

    packages = ("onnxruntime", "openvino", "numpy", "onnx")
    return {"cpu": machine.cpu_name(), "threads": 1, **{p: v for p, v in machine.versions().items() if p in packages}}


if __name__ == "__main__":
    main()
