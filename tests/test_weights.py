"""Weights come from files without running anything in them, and misfits are told by name."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgekit.errors import InputError
from edgekit.workload.weights import load_weights


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(1)
    module = net()
    module(torch.rand(8, 3))  # moves the batch statistics
    return module


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "legacy", "checkpoint", "wrong-name"])
def test_weights_of_each_kind_load(tmp_path: Path, trained: nn.Module, kind: str) -> None:
    path = tmp_path / {"safetensors": "w.safetensors", "wrong-name": "w.pt"}.get(kind, "w.pt")
    state = trained.state_dict()
    if kind in ("safetensors", "wrong-name"):
        save_file(state, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"epoch": 3, "state_dict": state} if kind == "checkpoint" else state, path)
    module = net()
    assert not same(module, trained)
    load_weights(module, path)
    assert same(module, trained)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "w.pt"
    if writer == "torch":
        torch.save({"w": Payload(canary)}, path)
    else:
        path.write_bytes(pickle.dumps({"w": Payload(canary)}))
    with pytest.raises(InputError, match=r"system") as error:
        load_weights(net(), path)
    assert "state_dict" in error.value.remedy
    assert not canary.exists()


def test_a_whole_module_is_told_how_to_be_saved(tmp_path: Path, trained: nn.Module) -> None:
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.container\.Sequential") as error:
        load_weights(net(), tmp_path / "w.pt")
    assert "torch.save(model.state_dict()" in error.value.remedy


def test_misfits_are_listed_five_at_a_time(tmp_path: Path, trained: nn.Module) -> None:
    state = trained.state_dict()
    state["0.weight"] = torch.zeros(9, 3)
    del state["2.bias"]
    state.update({f"extra.{i}": torch.zeros(1) for i in range(8)})
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError) as error:
        load_weights(net(), tmp_path / "w.pt")
    assert "1 missing: '2.bias'" in error.value.problem
    assert "8 unexpected: 'extra.0', 'extra.1', 'extra.2', 'extra.3', 'extra.4' and 3 more" in error.value.problem
    assert "0.weight is [9, 3], the model has [4, 3]" in error.value.problem


def test_a_wrappers_prefix_is_recognized(tmp_path: Path, trained: nn.Module) -> None:
    torch.save(nn.DataParallel(trained).state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError) as error:
        load_weights(net(), tmp_path / "w.pt")
    assert "begins with 'module.'" in error.value.remedy


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_weights_are_refused(tmp_path: Path, trained: nn.Module, bad: float) -> None:
    state = trained.state_dict()
    state["2.weight"][0, 0] = bad
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"NaN or infinite in '2\.weight'"):
        load_weights(net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, trained: nn.Module, kind: str, share: float) -> None:
    path = tmp_path / "w"
    if kind == "pt":
        torch.save(trained.state_dict(), path)
    else:
        save_file(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError):
        load_weights(net(), path)


@pytest.mark.parametrize("content", [[1, 2], {"lr": 0.1}, {}, "text"])
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match="no state dict"):
        load_weights(net(), tmp_path / "w.pt")


def test_a_model_file_is_no_weights_file(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(net().eval(), (torch.rand(2, 3),)), tmp_path / "m.pt2")
    with pytest.raises(InputError, match="exported program"):
        load_weights(net(), tmp_path / "m.pt2")
