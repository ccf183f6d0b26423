"""The whole line on a real model: the CIFAR ResNet-20, pruned, recovered, quantized and measured from one recipe.

    python benchmarks/line.py --data DIR --epochs 2 [--out FOLDER]

DIR holds cifar10-train.tar, cifar10-test.tar and resnet20-cifar10.pt (as in ``benchmarks/quantization.py``). Writes the
recipe and the model beside the record and prints the record's table. About 2 minutes, and 1 to 2 more for each epoch
on two cores; a second call takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RECIPE = """recipe_version = 1
targets = ["x86-cpu", "x86-openvino"]
[model]
path = "resnet20.pt2"
[data]
entry = "data.py:data"
[prune]
target_macs = 0.5
[recover]
epochs = {epochs}
distill = 0.9
[quantize.train]
epochs = 1
[[variant]]
name = "fp32"
[[variant]]
name = "int8"
quantize = "static"
[[variant]]
name = "pruned"
prune = true
[[variant]]
name = "pruned-int8"
prune = true
quantize = "static"
"""
DATA = '''"""CIFAR-10 for the recipe: real images, shifted and mirrored for training."""
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {root!r})
from benchmarks.quantization import cifar

class Split:
    def __init__(self, x, y, training=False):
        self.x, self.y, self.training = x, y, training
    def __len__(self):
        return -(-len(self.x) // 128)
    def __iter__(self):
        order = np.random.permutation(len(self.x)) if self.training else np.arange(len(self.x))
        for start in range(0, len(order), 128):
            rows = order[start : start + 128]
            x = self.x[rows]
            if self.training:
                padded = np.pad(x, ((0, 0), (0, 0), (4, 4), (4, 4)))
                top, left = np.random.randint(0, 9, 2)
                x = padded[:, :, top : top + 32, left : left + 32]
                mirrored = np.random.rand(len(x)) < 0.5
                x[mirrored] = x[mirrored][..., ::-1]
            yield np.ascontiguousarray(x), self.y[rows]

def data():
    def read(split):
        pairs = list(cifar(Path({data!r}), split))
        return np.stack([x for x, _ in pairs]).astype(np.float32), np.array([y for _, y in pairs])
    x, y = read("train")
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return {{"train": Split(x[:23500], y[:23500], True), "calibration": Split(x[23500:24000], y[23500:24000]),
            "validation": Split(x[24000:], y[24000:]), "test": Split(*read("test"))}}
'''


def main() -> None:
    """Run the recipe and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("resnet20-line"))
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    import torch

    import edgekit
    from benchmarks.quantization import resnet20_module
    from edgekit import console, exported, report

    console.configure()
    exported.save(
        exported.capture(resnet20_module(options.data), torch.zeros(2, 3, 32, 32)), options.out / "resnet20.pt2"
    )
    (options.out / "recipe.toml").write_text(RECIPE.format(epochs=options.epochs))
    (options.out / "data.py").write_text(DATA.format(root=str(ROOT), data=str(options.data.resolve())))
    results = edgekit.run(options.out / "recipe.toml", options.out)
    console.stdout().print(report.terminal_table(results))
    print((options.out / "report.md").read_text())


if __name__ == "__main__":
    main()
