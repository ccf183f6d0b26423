"""Structured pruning beside torch-pruning: coverage over a zoo, and accuracy after equal recovery.

    python benchmarks/pruning.py                       the coverage table, over every architecture below
    python benchmarks/pruning.py resnet50 swin_t       over some of them
    python benchmarks/pruning.py --onnx bert unet      and the exported ONNX against the pruned module
    python benchmarks/pruning.py --timm 0 40           one model of each of timm's families, a slice of them
    python benchmarks/pruning.py --accuracy 3          ResNet-20 on CIFAR-10, 3 epochs of recovery each

Weights are random (coverage does not depend on them), every zero-initialized one redrawn so that no output hides an
error. Each architecture runs in a process of its own. torch-pruning runs as its README says: MagnitudeImportance,
BasePruner, the classifier ignored. Needs torchvision, timm and transformers where their models are named.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("EDGEKIT_TEST_DATA", ROOT.parent / "shared" / "data")).parent
RATIO = 0.3
LIMIT_S = 900

TORCHVISION = """
    resnet18 mobilenet_v2 mobilenet_v3_small densenet121 shufflenet_v2_x1_0 squeezenet1_1 googlenet efficientnet_b0
    regnet_y_400mf convnext_tiny swin_t vit_b_16 resnet50
""".split()  # noqa: SIM905
TIMM = """
    deit_tiny_patch16_224 mobilevit_xxs efficientformer_l1 edgenext_xx_small fastvit_t8 mixer_s32_224 res2net50_26w_4s
    coat_lite_tiny poolformer_s12 tinynet_e levit_128s hrnet_w18_small xcit_nano_12_p16_224 convit_tiny crossvit_9_240
    mvitv2_tiny resnest14d skresnet18
""".split()  # noqa: SIM905


# ── small models of other kinds ──────────────────────────────────────────────────────────


class UNet(nn.Module):
    """Encoder, decoder, skips by concatenation."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [self.block(3, width), self.block(width, 2 * width), self.block(2 * width, 4 * width)]
        )
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        self.join = nn.ModuleList([self.block(4 * width, 2 * width), self.block(2 * width, width)])
        self.head = nn.Conv2d(width, 2, 1)

    def block(self, a: int, b: int) -> nn.Module:
        """Two convolutions."""
        return nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        a = self.down[0](x)
        b = self.down[1](F.max_pool2d(a, 2))
        c = self.down[2](F.max_pool2d(b, 2))
        b = self.join[0](torch.cat([b, self.up[0](c)], 1))
        return self.head(self.join[1](torch.cat([a, self.up[1](b)], 1)))


def dcgan() -> nn.Module:
    """Radford et al. 2016: transposed convolutions from a vector to an image."""
    layers: list[nn.Module] = []
    widths = (100, 512, 256, 128, 64)
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [
            nn.ConvTranspose2d(a, b, 4, 1 if i == 0 else 2, 0 if i == 0 else 1, bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())


class Detector(nn.Module):
    """YOLO-like: cross-stage blocks with splits and concatenations, a pyramid, two heads in one output."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = self.conv(3, width, 2)
        self.stage1, self.cross1 = self.conv(width, 2 * width, 2), self.cross(2 * width)
        self.stage2, self.cross2 = self.conv(2 * width, 4 * width, 2), self.cross(4 * width)
        self.merge = self.conv(6 * width, 2 * width, 1)
        self.heads = nn.ModuleList([nn.Conv2d(2 * width, 18, 1), nn.Conv2d(4 * width, 18, 1)])

    def conv(self, a: int, b: int, stride: int) -> nn.Module:
        """Convolution, norm, activation."""
        return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())

    def cross(self, width: int) -> nn.ModuleDict:
        """The layers of a cross-stage block."""
        half = width // 2
        return nn.ModuleDict(
            {"a": self.conv(half, half, 1), "b": self.conv(half, half, 1), "join": self.conv(width + half, width, 1)}
        )

    def through(self, cross: Any, x: Tensor) -> Tensor:
        """Run a cross-stage block."""
        left, right = x.chunk(2, 1)
        deep = right + cross["b"](cross["a"](right))
        return cross["join"](torch.cat([left, right, deep], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        near = self.through(self.cross1, self.stage1(self.stem(x)))
        far = self.through(self.cross2, self.stage2(near))
        near = self.merge(torch.cat([near, F.interpolate(far, scale_factor=2.0)], 1))
        outputs = [h(f).flatten(2) for h, f in zip(self.heads, (near, far), strict=True)]
        return torch.cat(outputs, 2).view(x.shape[0], 3, 6, -1).transpose(2, 3)


class Recurrent(nn.Module):
    """Embedding, two recurrent layers, a classifier on the last step."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.cell = kind(64, 128, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        y, _ = self.cell(self.embed(x))
        return self.head(y[:, -1])


def transformer(name: str) -> tuple[nn.Module, Any]:
    """BERT, DistilBERT, GPT-2 and ViT as the transformers library builds them, small."""
    shim()
    import transformers as hf

    tokens = torch.randint(0, 1000, (1, 16))
    size = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
    if name == "bert":
        return hf.BertForSequenceClassification(hf.BertConfig(vocab_size=1000, **size)), {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
        }
    if name == "distilbert":
        config = hf.DistilBertConfig(vocab_size=1000, dim=128, n_layers=3, n_heads=4, hidden_dim=256)
        return hf.DistilBertForSequenceClassification(config), {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
        }
    if name == "gpt2":
        config = hf.GPT2Config(vocab_size=1000, n_embd=128, n_layer=3, n_head=4, n_positions=64, use_cache=False)
        return hf.GPT2LMHeadModel(config), {"input_ids": tokens}
    return hf.ViTForImageClassification(hf.ViTConfig(image_size=64, patch_size=16, **size)), {
        "pixel_values": torch.randn(1, 3, 64, 64)
    }


def cifar_resnet20() -> tuple[nn.Module, Any]:
    """The shared ResNet-20 with zero-padded shortcuts."""
    sys.path.insert(0, str(SHARED / "tools"))
    return importlib.import_module("cifar10").resnet20(), torch.randn(1, 3, 32, 32)


OTHERS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "cifar_resnet20": cifar_resnet20,
    "bert": lambda: transformer("bert"),
    "gpt2": lambda: transformer("gpt2"),
    "distilbert": lambda: transformer("distilbert"),
    "vit_hf": lambda: transformer("vit"),
    "unet": lambda: (UNet(), torch.randn(1, 3, 64, 64)),
    "dcgan": lambda: (dcgan(), torch.randn(1, 100, 1, 1)),
    "detector": lambda: (Detector(), torch.randn(1, 3, 64, 64)),
    "lstm": lambda: (Recurrent(nn.LSTM), torch.randint(0, 1000, (1, 12))),
    "gru": lambda: (Recurrent(nn.GRU), torch.randint(0, 1000, (1, 12))),
}


def build(name: str) -> tuple[nn.Module, Any]:
    """A model with random weights, and example inputs."""
    torch.manual_seed(0)
    if name in OTHERS:
        model, example = OTHERS[name]()
    elif name in TORCHVISION:
        shim()
        zoo = importlib.import_module("torchvision.models")
        options = {"init_weights": True} if name == "googlenet" else {}
        model, example = getattr(zoo, name)(weights=None, **options), torch.randn(1, 3, 224, 224)
    else:
        shim()
        model = importlib.import_module("timm").create_model(name, pretrained=False)
        example = torch.randn(1, *model.default_cfg["input_size"])
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval(), example


def shim() -> None:
    """Where torchvision's compiled operators are missing, declare them, so that its models import."""
    tools = SHARED / "tools"
    if (tools / "zoo_shim.py").is_file() and "zoo_shim" not in sys.modules:
        sys.path.insert(0, str(tools))
        importlib.import_module("zoo_shim")


# ── coverage ─────────────────────────────────────────────────────────────────────────────


def call(model: nn.Module, example: Any) -> Tensor:
    """The model's first output tensor."""
    output = model(**example) if isinstance(example, dict) else model(example)
    return torch.utils._pytree.tree_leaves(dict(output) if hasattr(output, "items") else output)[0]


def ours(name: str, onnx: bool) -> dict[str, Any]:
    """Prune with edgekit; what came out."""
    import edgekit

    model, example = build(name)
    start = time.perf_counter()
    result = edgekit.prune(model, example, ratio=RATIO)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        same = call(result.model, example).shape == call(model, example).shape
    left = [k for k in result.kept if "output of the model" not in k["reason"]]
    row = {
        "macs": result.macs[1] / max(result.macs[0], 1),
        "parameters": result.parameters[1] / result.parameters[0],
        "parity": result.parity,
        "seconds": seconds,
        "shape": same,
        "kept": len(left),
        "why": left[0]["reason"] if left else "",
    }
    return row | ({"onnx": onnx_difference(result)} if onnx else {})


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

    model, example = build(name)
    before = call(model, example).shape
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == before[-1]]
    macs, _ = tp.utils.count_ops_and_params(model, example)
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.MagnitudeImportance(), pruning_ratio=RATIO, ignored_layers=heads
    )
    pruner.step()
    after = call(model, example).shape
    less, _ = tp.utils.count_ops_and_params(model, example)
    return {"macs": less / macs, "shape": after == before}


def one(name: str, tool: str, onnx: bool) -> None:
    """One architecture with one tool, in this process; prints JSON on its last line."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        row = ours(name, onnx) if tool == "edgekit" else theirs(name)
    except Exception as error:
        row = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"}
    print("\n" + json.dumps(row))


def apart(name: str, tool: str, onnx: bool = False) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", name, tool, *(["--onnx"] if onnx else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return {"error": type(error).__name__}


def coverage(names: list[str], onnx: bool, compare: bool) -> None:
    """Print the table, a line as soon as it is known."""
    columns = ["model", "MACs left", "parameters left", "differs from the zeroed original"]
    columns += [*(["ONNX differs"] if onnx else []), "s", "layers kept whole, and why"]
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
    print(f"\n{works} of {len(names)} lost at least 20 % of their multiply-adds, proved.")
    if compare:
        print(f"torch-pruning runs on {others} of {len(names)}.")


def _cells(row: dict[str, Any], onnx: bool) -> str:
    if "error" in row:
        return f"{row['error']} | | |{' |' if onnx else ''} | "
    extra = f" {row['onnx']:.0e} |" if onnx else ""
    kept = f"{row['kept']}: {row['why']}" if row["kept"] else "—"
    return f"{row['macs']:.3f} | {row['parameters']:.3f} | {row['parity']:.0e} |{extra} {row['seconds']:.1f} | {kept}"


def _other(row: dict[str, Any]) -> str:
    if not row:
        return ""
    if "error" in row:
        return row["error"].replace("|", "/")
    return f"{row['macs']:.3f}" + ("" if row["shape"] else ", another output shape")


def families() -> list[str]:
    """The smallest-named model of each of timm's families that takes images of at most 256 pixels."""
    shim()
    timm = importlib.import_module("timm")
    found = {}
    for name in timm.list_models():
        module = timm.models.model_entrypoint(name).__module__
        config = timm.get_pretrained_cfg(name)
        if config is not None and max(config.input_size) <= 256 and module not in found:
            found[module] = name
    return sorted(found.values())


# ── accuracy ─────────────────────────────────────────────────────────────────────────────


def accuracy(epochs: int, seeds: int) -> None:
    """ResNet-20 at half its multiply-adds: recovered by the same loop, edgekit's and torch-pruning's."""
    import edgekit

    sys.path.insert(0, str(SHARED / "tools"))
    cifar = importlib.import_module("cifar10")
    train, test = [
        (torch.from_numpy(cifar.normalize(x)), torch.from_numpy(y)) for x, y in map(cifar.images, ("train", "test"))
    ]
    teacher = cifar.resnet20()
    print(f"original: {correct(teacher, test):.4f}")
    print("| seed | pruner | MACs left | before recovery | after |\n|---|---|---|---|---|")
    for seed in range(seeds):
        mine = edgekit.prune(teacher, torch.randn(1, 3, 32, 32), target_macs=0.505)
        other, left = torch_pruning_to(cifar.resnet20(), mine.macs[1] / mine.macs[0])
        for name, model, macs in (("edgekit", mine.model, mine.macs[1] / mine.macs[0]), ("torch-pruning", other, left)):
            before = correct(model.eval(), test)
            recover(model, teacher, train, epochs, seed)
            print(f"| {seed} | {name} | {macs:.3f} | {before:.4f} | {correct(model.eval(), test):.4f} |", flush=True)


def torch_pruning_to(model: nn.Module, share: float) -> tuple[nn.Module, float]:
    """torch-pruning at the same multiply-adds; the residual stream, which it can't take apart here, is ignored."""
    import copy

    import torch_pruning as tp

    example = torch.randn(1, 3, 32, 32)
    low, high = 0.0, 0.99
    for _ in range(8):
        ratio = (low + high) / 2
        trial = copy.deepcopy(model)
        ignored = [m for n, m in trial.named_modules() if n.endswith("conv2") or n in ("conv1", "linear")]
        macs, _ = tp.utils.count_ops_and_params(trial, example)
        tp.pruner.BasePruner(
            trial, example, importance=tp.importance.MagnitudeImportance(), pruning_ratio=ratio, ignored_layers=ignored
        ).step()
        less, _ = tp.utils.count_ops_and_params(trial, example)
        low, high = (ratio, high) if less / macs > share else (low, ratio)
    return trial, less / macs


def recover(model: nn.Module, teacher: nn.Module, data: tuple[Tensor, Tensor], epochs: int, seed: int) -> None:
    """SGD, one cycle at 0.05, distillation at temperature 4, mirrored and shifted images."""
    random = torch.Generator().manual_seed(seed)
    images, labels = data
    steps = epochs * (len(images) // 128)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps + 1)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=random)
        for start in range(0, len(images) // 128 * 128, 128):
            picked = order[start : start + 128]
            x, y = images[picked], labels[picked]
            x = x.flip(3) if torch.rand((), generator=random) < 0.5 else x
            dx, dy = (int(n) for n in torch.randint(0, 9, (2,), generator=random))
            x = F.pad(x, (4, 4, 4, 4))[:, :, dy : dy + 32, dx : dx + 32]
            with torch.no_grad():
                taught = teacher(x)
            output = model(x)
            soft = F.kl_div(F.log_softmax(output / 4, 1), F.softmax(taught / 4, 1), reduction="batchmean") * 16
            loss = 0.5 * F.cross_entropy(output, y) + 0.5 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def correct(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Accuracy, a fraction."""
    images, labels = data
    hits = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return float(sum(hits)) / len(labels)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "TOOL"))
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--alone", action="store_true", help="without torch-pruning")
    parser.add_argument("--timm", nargs=2, type=int, metavar=("FROM", "TO"))
    parser.add_argument("--accuracy", type=int, metavar="EPOCHS")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.one:
        one(*options.one, options.onnx)
    elif options.accuracy is not None:
        accuracy(options.accuracy, options.seeds)
    else:
        names = options.names or [*TORCHVISION, *TIMM, *OTHERS]
        if options.timm:
            names = families()[slice(*options.timm)]
        coverage(names, options.onnx, not options.alone)


if __name__ == "__main__":
    main()
