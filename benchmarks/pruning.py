"""Structured pruning beside torch-pruning: coverage over a zoo, and accuracy after equal recovery.

    python benchmarks/pruning.py                       the coverage table, over every architecture of the zoo
    python benchmarks/pruning.py resnet50 swin_t       over some of them
    python benchmarks/pruning.py --onnx bert unet      and the exported ONNX against the pruned module
    python benchmarks/pruning.py --timm 0 40           one model of each of timm's families, a slice of them
    python benchmarks/pruning.py --branches resnet50   residual branches out whole, all of them and every second one
    python benchmarks/pruning.py --accuracy            three small models by both tools, the ResNet-20 by edgekit
        --seeds 0 --epochs 30 --precision bf16 --parameters 0.45  (the ResNet-20 alone, otherwise)
        --seeds 0 --epochs 30 --precision bf16 --speedup 1.1      (chosen for int8 kernels, pruned and quantized; the
                                                                   two together, where both are given)
    python benchmarks/pruning.py --speed x86-openvino  target_speedup on the ResNet-20: asked for and measured
    python benchmarks/pruning.py --widths x86-cpu      what a convolution takes by its number of channels
    python benchmarks/pruning.py --equal int8          its accuracy beside uniform pruning's at the same measured speed

Weights of the zoo are random (coverage does not depend on them), every zero-initialized one redrawn so that no output
hides an error. Each architecture runs in a process of its own. torch-pruning runs as its README says:
MagnitudeImportance, BasePruner, the classifier ignored. Needs torchvision, timm and transformers where their models are
named. The ResNet-20 is the CIFAR one with its images, from the folder in EDGEKIT_TEST_DATA. About 15 minutes for
the coverage table on two cores, 20 for --accuracy, 10 for --speed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import _pruning_accuracy, _pruning_resnet20  # noqa: E402
from benchmarks import _pruning_zoo as zoo  # noqa: E402

RATIO = 0.3
LIMIT_S = 900
PRELOAD = ["torchvision", "timm", "transformers", "onnxruntime", "onnxscript", "torch_pruning", "edgekit.pruners._run"]


def call(model: nn.Module, example: Any) -> Tensor:
    """The model's first output tensor."""
    output = model(**example) if isinstance(example, dict) else model(example)
    return torch.utils._pytree.tree_leaves(dict(output) if hasattr(output, "items") else output)[0]


def ours(name: str, onnx: bool) -> dict[str, Any]:
    """Prune with edgekit; what came out."""
    import edgekit

    model, example = zoo.build(name)
    start = time.process_time()
    result = edgekit.prune(model, example, ratio=RATIO)
    seconds = time.process_time() - start
    with torch.no_grad():
        same = call(result.model, example).shape == call(model, example).shape
    left = Counter(k["reason"] for k in result.kept if "output of the model" not in k["reason"])
    if faults := [why for why in left if "please report" in why or "not be proved" in why]:
        raise RuntimeError(faults[0])
    row = {
        "macs": result.macs[1] / max(result.macs[0], 1),
        "parameters": result.parameters[1] / result.parameters[0],
        "parity": result.parity,
        "seconds": seconds,
        "shape": same,
        "kept": left.total(),
        "why": left.most_common(1)[0][0] if left else "",
    }
    return row | ({"onnx": onnx_difference(result)} if onnx else {})


def branches(name: str) -> dict[str, Any]:
    """Take all residual branches out whole, and every second one beside channels; what came out."""
    from edgekit import rooms
    from edgekit.exported import capture
    from edgekit.pruners._plan import Choice, Plan, Wish, chosen, prune_once

    model, example = zoo.build(name)
    row: dict[str, Any] = {}
    for every, ratio in ((1, 0.0), (2, RATIO)):
        offered: list[int] = []

        def choose(plan: Plan, wish: Wish, every: int = every, offered: list[int] = offered) -> Choice:
            offered.append(len(plan.branches))
            gone = chosen(plan, wish)
            gone[plan.solved.count :: every] = True
            return Choice(gone)

        rank = rooms.load("pruners", "magnitude").rank
        outcome = prune_once(capture(model, example), Wish(ratio=ratio), rank, None, choose)
        row["offered"] = offered[0]
        row[every] = (len(outcome.cut.branches), outcome.plan.macs(outcome.cut) / outcome.plan.macs(), outcome.parity)
    return row


def onnx_difference(result: Any) -> float:
    """The greatest relative difference of the exported ONNX file, in ONNX Runtime, from the pruned module."""
    import onnxruntime

    from edgekit import exported

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "m.onnx")
        torch.onnx.export(exported.program(result.model), (), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feeds = exported.signature(result.model).example
        names = [i.name for i in session.get_inputs()]
        values = list(feeds.values())
        found = session.run(None, {n: v.numpy() for n, v in zip(names, values, strict=True)})
    with torch.no_grad():
        expected = exported.run(result.model, feeds)
    return max(
        float((torch.as_tensor(a) - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    )


def theirs(name: str) -> dict[str, Any]:
    """Prune with torch-pruning as its README says."""
    import torch_pruning as tp

    model, example = zoo.build(name)
    with torch.no_grad():  # some models keep what they compute, and torch-pruning could not copy it with gradients
        before = call(model, example).shape
    heads = [m for name, m in model.named_modules() if _is_head(name, m, before)]
    macs, _ = tp.utils.count_ops_and_params(model, example)
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.MagnitudeImportance(), pruning_ratio=RATIO, ignored_layers=heads
    )
    pruner.step()
    after = call(model, example).shape
    less, _ = tp.utils.count_ops_and_params(model, example)
    return {"macs": less / macs, "shape": after == before}


def _is_head(name: str, module: nn.Module, output: tuple[int, ...]) -> bool:
    """Whether a layer makes the output, as far as its size or its name tells."""
    if isinstance(module, nn.Linear):
        return module.out_features == output[-1]
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return name.startswith("heads.") or module.out_channels == output[1]
    return False


def one(name: str, tool: str, onnx: bool, answer: Connection) -> None:
    """One architecture with one tool, in this process; sends what came out."""
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (as long as this process lives)
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        tools = {
            "edgekit": lambda: ours(name, onnx),
            "torch-pruning": lambda: theirs(name),
            "branches": lambda: branches(name),
        }
        answer.send(tools[tool]())
    except Exception as error:
        answer.send({"error": f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"})


def apart(name: str, tool: str, onnx: bool = False) -> dict[str, Any]:
    """The same in a process of its own, forked from one that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    answer, sends = context.Pipe(duplex=False)
    child = context.Process(target=one, args=(name, tool, onnx, sends))
    child.start()
    sends.close()
    try:
        return answer.recv() if answer.poll(LIMIT_S) else {"error": f"not done after {LIMIT_S} s"}
    except EOFError:
        return {"error": "its process died"}
    finally:
        child.kill()
        child.join()


def coverage(names: list[str], onnx: bool, compare: bool) -> None:
    """Print the table, a line as soon as it is known."""
    columns = ["model", "MACs left", "parameters left", "differs from the zeroed original"]
    columns += [*(["ONNX differs"] if onnx else []), "CPU s", "layers kept whole, and why"]
    columns += ["torch-pruning"] if compare else []
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    works = others = 0
    for name in names:
        row = apart(name, "edgekit", onnx)
        other = apart(name, "torch-pruning") if compare else {}
        fine = "error" not in row and row["shape"] and row["parity"] < 1e-4 and row["macs"] <= 0.8
        works += fine
        others += "error" not in other and bool(other.get("shape"))
        print(f"| {name} | {_cells(row, onnx)} |{f' {_other(other)} |' if compare else ''}", flush=True)
    share = f"{works} of {len(names)}" + (f" ({works / len(names):.0%})" if names else "")
    print(f"\n{share} lost at least 20 % of their multiply-adds, proved.")
    if compare:
        print(f"torch-pruning runs on {others} of {len(names)}.")


def whole_branches(names: list[str]) -> None:
    """Print the table of residual branches, a line as soon as it is known."""
    print(
        "| model | residual branches | all out: MACs left | differs | every second, and channels: MACs left | differs |"
    )
    print("|---" * 6 + "|")
    works = offering = 0
    for name in names:
        row = apart(name, "branches")
        if "error" in row:
            print(f"| {name} | {row['error']} | | | | |", flush=True)
            offering += 1
            continue
        each = [f"{macs:.3f} | {parity:.0e}" for _, macs, parity in (row[1], row[2])]
        offering += bool(row["offered"])
        works += row["offered"] > 0 and (row[1][0], row[2][0]) == (row["offered"], -(-row["offered"] // 2))
        print(f"| {name} | {row['offered']} | {' | '.join(each)} |", flush=True)
    print(
        f"\nOf {offering} of {len(names)} with such branches, {works} were proved without all of them and without half."
    )


def _cells(row: dict[str, Any], onnx: bool) -> str:
    if "error" in row:
        return f"{row['error']} | | |{' |' if onnx else ''} | "
    extra = f" {row['onnx']:.0e} |" if onnx else ""
    kept = f"{row['kept']}, mostly: {row['why']}" if row["kept"] else "—"
    return f"{row['macs']:.3f} | {row['parameters']:.3f} | {row['parity']:.0e} |{extra} {row['seconds']:.1f} | {kept}"


def _other(row: dict[str, Any]) -> str:
    if not row:
        return ""
    if "error" in row:
        return row["error"].replace("|", "/")
    return f"{row['macs']:.3f}" + ("" if row["shape"] else ", another output shape")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--alone", action="store_true", help="without torch-pruning")
    parser.add_argument("--timm", nargs=2, type=int, metavar=("FROM", "TO"))
    parser.add_argument("--branches", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of the ResNet-20's recovery")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the ResNet-20's recovery")
    parser.add_argument("--parameters", type=float, help="of the ResNet-20 that stay; else 1/1.98 of its multiply-adds")
    parser.add_argument("--speedup", type=float, help="of the ResNet-20 at int8 over the unpruned int8 one")
    parser.add_argument("--speed", nargs="?", const="x86-cpu", metavar="TARGET")
    parser.add_argument("--widths", nargs="?", const="x86-cpu", metavar="TARGET")
    parser.add_argument("--equal", nargs="?", const="fp32", choices=("fp32", "int8"))
    options = parser.parse_args()
    if options.accuracy:
        if options.seeds:
            _pruning_accuracy.table(options.seeds)
        epochs = 10 if options.epochs is None else options.epochs
        _pruning_resnet20.accuracy(epochs, options.precision, options.parameters, options.speedup)
    elif options.speed:
        _pruning_resnet20.speed(options.speed)
    elif options.widths:
        _pruning_resnet20.widths(options.widths)
    elif options.equal:
        _pruning_resnet20.equal_speed(1 if options.epochs is None else options.epochs, options.precision, options.equal)
    else:
        names = options.names or [*zoo.TORCHVISION, *zoo.TIMM, *zoo.OTHERS]
        if options.timm:
            names = zoo.families()[slice(*options.timm)]
        if options.branches:
            whole_branches(names)
        else:
            coverage(names, options.onnx, not options.alone)


if __name__ == "__main__":
    main()
