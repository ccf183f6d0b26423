"""Models of every form go down the same line: files, several inputs, integers, raw pixels, regression."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.errors import InputError
from edgekit.recipe import DataSection, ExportSection, MetricSection, ModelSection, Recipe, TrainSection, Variant

RNG = np.random.default_rng(0)
SHORT: dict[str, Any] = {
    "measure": {"pairs": 2, "max_pairs": 2},
    "recover": TrainSection(epochs=1, optimizer="adam", learning_rate=1e-3),
}


class Encoder(nn.Module):
    """A small transformer encoder over token ids with a mask: integer and float inputs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.1)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.body(self.words(ids)) * mask[..., None]
        return self.head(states.sum(1) / mask.sum(1, keepdim=True))


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def _mlp(inputs: int, outputs: int) -> nn.Module:
    """A plain MLP as textbooks write it."""
    torch.manual_seed(0)
    sizes = [inputs, 64, 32, 16]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, outputs))


def _splits(make: Any, **counts: int) -> dict[str, list[Any]]:
    return {name: [make() for _ in range(count)] for name, count in counts.items()}


def _run(tmp_path: Path, **sections: Any) -> dict[str, dict[str, Any]]:
    results = edgekit.run(Recipe(**{**SHORT, **sections}), tmp_path / "out")
    for row in results["variants"]:
        assert row["status"] == "ok", row["reason"]
    return {row["variant"]: row for row in results["variants"]}


def _tokens() -> Any:
    ids = RNG.integers(0, 50, (16, 12))
    mask = (np.arange(12) < RNG.integers(4, 12, (16, 1))).astype(np.float32)
    return {"ids": ids, "mask": mask}, (ids[:, 0] > 24).astype(np.int64)


def test_a_transformer_with_named_integer_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = {"ids": torch.zeros(2, 12, dtype=torch.int64), "mask": torch.ones(2, 12)}
    rows = _run(
        tmp_path,
        model=ModelSection(entry=(Encoder(), example)),
        data=DataSection(entry=_splits(_tokens, train=8, calibration=4, test=8)),
        variant=(
            Variant(name="small", prune=True, quantize="static"),
            Variant(name="dynamic", quantize="dynamic"),
        ),
    )
    assert rows["small"]["macs"] < 0.8 * rows["fp32"]["macs"]
    assert rows["small"]["metric"]["samples"] == 128
    assert rows["dynamic"]["vs_reference"]["agreement"] > 0.9


def _images() -> Any:
    return RNG.integers(0, 256, (16, 3, 8, 8), dtype=np.uint8), RNG.integers(0, 4, 16)


def test_preprocessing_is_folded_in_and_the_device_feeds_raw_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    preprocess = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    rows = _run(
        tmp_path,
        model=ModelSection(entry=(Pixels(), torch.zeros(2, 3, 8, 8))),
        data=DataSection(entry=_splits(_images, calibration=4, test=4)),
        export=ExportSection(preprocess=preprocess),
        variant=(Variant(name="int8", quantize="static"),),
    )
    assert rows["int8"]["vs_reference"]["agreement"] > 0.95
    import onnxruntime as ort

    session = ort.InferenceSession(str(tmp_path / "out" / rows["fp32"]["artifact"]["path"]))
    assert session.get_inputs()[0].type == "tensor(uint8)"
    x, _ = _images()
    torch.manual_seed(0)
    mean, std = (np.array(preprocess[k], np.float32).reshape(1, 3, 1, 1) for k in ("mean", "std"))
    want = Pixels()(torch.from_numpy((x / np.float32(255) - mean) / std)).detach().numpy()
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x})[0], want, atol=1e-4)


def test_a_textbook_mlp_with_a_sigmoid(tmp_path: Path) -> None:
    def batch() -> Any:
        x = RNG.normal(size=(50, 20)).astype(np.float32)
        return x, (x[:, :3].sum(1) > 0).astype(np.float32)[:, None]

    rows = _run(
        tmp_path,
        model=ModelSection(entry=(nn.Sequential(_mlp(20, 1), nn.Sigmoid()), torch.zeros(2, 20))),
        data=DataSection(entry=_splits(batch, train=20, calibration=4, validation=2, test=6)),
        recover=TrainSection(epochs=4, optimizer="adam", learning_rate=3e-3, distill=0.0),
        metric=MetricSection(name="auc"),
        variant=(Variant(name="small", prune=True, quantize="static"),),
    )
    assert rows["fp32"]["metric"]["value"] < 0.8  # untrained
    assert rows["small"]["metric"]["value"] > 0.85


def test_a_regression(tmp_path: Path) -> None:
    def batch() -> Any:
        x = RNG.normal(size=(50, 10)).astype(np.float32)
        return x, x[:, :1] * 2 + x[:, 1:2]

    rows = _run(
        tmp_path,
        model=ModelSection(entry=(_mlp(10, 1), torch.zeros(2, 10))),
        data=DataSection(entry=_splits(batch, train=20, calibration=4, test=4)),
        metric=MetricSection(name="rmse"),
        recover=TrainSection(epochs=6, optimizer="adam", learning_rate=3e-3, distill=0.0),
        variant=(Variant(name="trained", recover=True),),
    )
    assert rows["trained"]["metric"]["higher_is_better"] is False
    assert rows["trained"]["metric"]["value"] < 0.7 * rows["fp32"]["metric"]["value"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model = _mlp(6, 3).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.zeros(2, 6),), dynamic_shapes={"input": {0: batch}})
    torch.export.save(program, folder / "model.pt2")
    torch.onnx.export(program, (), folder / "model.onnx", verbose=False)
    return folder


def _points() -> Any:
    x = RNG.normal(size=(20, 6)).astype(np.float32)
    return x, x[:, :3].argmax(1)


def test_an_exported_program_goes_the_whole_way(files: Path, tmp_path: Path) -> None:
    rows = _run(
        tmp_path,
        base=files,
        model=ModelSection(path="model.pt2"),
        data=DataSection(entry=_splits(_points, train=4, calibration=2, test=4)),
        variant=(Variant(name="small", prune={"ratio": 0.5}, quantize="static"),),
    )
    assert rows["small"]["macs"] < rows["fp32"]["macs"]


def test_a_goal_out_of_reach_names_the_variant_and_the_key(files: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"target_macs = 0\.001 can't be reached: at least") as caught:
        _run(
            tmp_path,
            base=files,
            model=ModelSection(path="model.pt2"),
            data=DataSection(entry=_splits(_points, train=4, calibration=2, test=4)),
            variant=(Variant(name="tiny", prune={"target_macs": 0.001}),),
        )
    assert caught.value.where == "tiny@x86-cpu: prune"


def test_half_floats_run_where_a_runtime_computes_them(files: Path, tmp_path: Path) -> None:
    """ONNX Runtime's CPU kernels know no bfloat16: that costs its own row alone, and a device's is judged by a copy.

    fp16 agrees to single roundings.
    """
    pytest.importorskip("openvino")
    results = edgekit.run(
        Recipe(
            **SHORT,
            base=files,
            model=ModelSection(path="model.onnx"),
            data=DataSection(entry=_splits(_points, calibration=2, test=4)),
            targets=("x86-cpu", "x86-openvino", "jetson-orin-nano"),
            variant=(Variant(name="fp16", quantize="fp16"), Variant(name="bf16", quantize="bf16")),
        ),
        tmp_path / "out",
    )
    rows = {row["id"]: row for row in results["variants"]}
    assert "lacks an operator" in rows["bf16@x86-cpu"]["reason"]
    others = {row["target"]: row["status"] for name, row in rows.items() if name != "bf16@x86-cpu"}
    assert others == {"x86-cpu": "ok", "x86-openvino": "ok", "jetson-orin-nano": "built"}
    for target in ("x86-openvino", "jetson-orin-nano"):
        row = rows[f"bf16@{target}"]
        assert row["metric"]["value"] == pytest.approx(rows["fp32@x86-cpu"]["metric"]["value"], abs=0.1)
        assert row["scheme"] == {"method": "bf16"}
    assert row["metric_from"] == "a float32 copy in this machine's runtime"
    for target in ("x86-cpu", "x86-openvino"):
        assert rows[f"fp16@{target}"]["stages"][-1]["parity"]["max_rel"] < 4 * 2**-11


def test_an_onnx_file_is_quantized_and_trained_but_not_pruned(files: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "base": files,
        "model": ModelSection(path="model.onnx"),
        "data": DataSection(entry=_splits(_points, train=4, calibration=2, test=4)),
    }
    rows = _run(
        tmp_path, **sections, variant=(Variant(name="int8", quantize="static"), Variant(name="qat", quantize="qat"))
    )
    assert rows["qat"]["int8_macs_share"] > 0.5
    with pytest.raises(
        InputError, match="the variant 'small' prunes or trains in torch, but the model is an ONNX file"
    ):
        _run(tmp_path, **sections, variant=(Variant(name="small", prune=True),))
