"""The architectures that pruning is tried on: by name, with random weights and example inputs."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("EDGEKIT_TEST_DATA", ROOT.parent / "shared" / "data")).parent

TORCHVISION = """
    resnet18 mobilenet_v2 mobilenet_v3_small densenet121 shufflenet_v2_x1_0 squeezenet1_1 googlenet efficientnet_b0
    regnet_y_400mf convnext_tiny swin_t vit_b_16 resnet50
""".split()  # noqa: SIM905
TIMM = """
    deit_tiny_patch16_224 mobilevit_xxs efficientformer_l1 edgenext_xx_small fastvit_t8 mixer_s32_224 res2net50_26w_4s
    coat_lite_tiny poolformer_s12 tinynet_e levit_128s hrnet_w18_small xcit_nano_12_p16_224 convit_tiny crossvit_9_240
    mvitv2_tiny resnest14d skresnet18
""".split()  # noqa: SIM905


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
        zoo = importlib.import_module("torchvision.models")
        options = {"init_weights": True} if name == "googlenet" else {}
        model, example = getattr(zoo, name)(weights=None, **options), torch.randn(1, 3, 224, 224)
    else:
        model = importlib.import_module("timm").create_model(name, pretrained=False)
        example = torch.randn(1, *image_size(model.default_cfg))
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval(), example


def image_size(config: dict[str, Any]) -> tuple[int, int, int]:
    """The sizes that timm names for a model, at most 256 pixels where it takes any."""
    if "min_input_size" in config:
        return config["min_input_size"]
    channels, height, width = config["input_size"]
    most = max(height, width) if config.get("fixed_input_size") else 256
    return channels, min(height, most), min(width, most)


def families() -> list[str]:
    """The model with the fewest parameters of each of timm's families, timm's own test models apart."""
    timm = importlib.import_module("timm")
    found: dict[str, tuple[int, str]] = {}
    for name in timm.list_models(exclude_filters="test_*"):
        with torch.device("meta"):
            size = sum(p.numel() for p in timm.create_model(name).parameters())
        family = timm.models.model_entrypoint(name).__module__
        found[family] = min((size, name), found.get(family, (size, name)))
    return [found[family][1] for family in sorted(found)]
