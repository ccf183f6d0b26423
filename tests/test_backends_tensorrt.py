"""TensorRT: every name and signature that we call, against NVIDIA's real bindings; a real engine where a GPU is."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorrt_spy

from edgekit import child

BINDINGS = "EDGEKIT_TENSORRT_BINDINGS"  # folders with an unpacked tensorrt_cu12_bindings or tensorrt_cu13_bindings


def _bindings() -> list[tuple[str, str]]:
    """(label, folder) of each real binding at hand; "" is this environment's own."""
    folders = [folder for folder in os.environ.get(BINDINGS, "").split(os.pathsep) if folder]
    found = [(Path(folder).name, folder) for folder in folders]
    if importlib.util.find_spec("tensorrt_bindings"):
        found.append(("installed", ""))
    return found or [("none", "none")]


@pytest.fixture(scope="module", params=_bindings(), ids=lambda pair: pair[0])
def binding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A folder of stand-in libraries, and the folder of the binding that loads with them."""
    _, folder = request.param
    if folder == "none":
        pytest.skip("NVIDIA's Python bindings are not here (pip install --no-deps tensorrt_cu13_bindings)")
    if not shutil.which("gcc"):
        pytest.skip("no C compiler for the stand-in libraries")
    root = Path(folder) if folder else Path(importlib.util.find_spec("tensorrt_bindings").origin).parent.parent  # type: ignore[union-attr,arg-type]
    (facts,) = root.glob("tensorrt_cu*_bindings-*.dist-info")
    major = int(facts.name.split("-")[1].split(".")[0])
    libraries = tmp_path_factory.mktemp("stand-ins")
    tensorrt_spy.build_stand_ins(libraries, major)
    return str(libraries), folder


@pytest.fixture(scope="module")
def run(binding: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The result of a case in ``tensorrt_cases.py``; all of them run in one child process."""
    libraries, bindings = binding
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        folder = str(tmp_path_factory.mktemp("cases"))
        results = child.call("tensorrt_cases:every_case", libraries=libraries, bindings=bindings, folder=folder)
    return lambda name: results[name]


def test_engine_is_strongly_typed_with_profile_limits_and_timing_cache(run: Any) -> None:
    made = run("compile")
    assert made["content"] == "an engine"
    assert made["strongly_typed"]
    assert made["tf32_cleared"], "or fp32 rounds its factors"
    assert made["shapes"] == ["x", [1, 3, 8, 8], [1, 3, 8, 8], [8, 3, 8, 8]]
    assert made["level"] == 4
    assert made["workspace"] == 64 * 2**20
    assert made["timing_cache"] == ["", "tactics"], "the second build starts from what the first measured"
    assert json.loads(made["fingerprint"])["gpu"] == "Orin (8.7)"


def test_compatibility_flags_and_dla(run: Any) -> None:
    made = run("flags")
    assert made["flags"] == ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "GPU_FALLBACK"]
    assert made["hardware"]
    assert made["dla"] == [True, 1]
    fingerprint = json.loads(made["fingerprint"])
    assert fingerprint["gpu"] == "Ampere or newer"
    assert fingerprint["tensorrt"].endswith(".*")


def test_session_copies_runs_and_refuses_what_the_profile_lacks(run: Any) -> None:
    made = run("run")
    assert made["inputs"] == [["x", "float32", [None, 3, 8, 8]]]
    assert made["outputs"] == [[1, 2], [4, 2]]
    assert made["allocated"] == [4 * 3 * 8 * 8 * 4, 32], "buffers hold the profile's largest batch"
    assert made["copied"] == [768, 8, 3072, 32], "up, down; up, down"
    assert made["host_code_allowed"] == [False]
    assert made["stream"] == 1234
    assert "(5, 3, 8, 8)" in made["refused"]
    assert "max_batch" in made["refused"]


def test_layers_come_from_the_engine_inspector(run: Any) -> None:
    made = run("layers")
    convolution, conversion, product = made["layers"]
    assert convolution == ["conv + relu", "Convolution", 432 * 64, "int8", ""]
    assert conversion[1] == "Reformat"
    assert "conversion" in conversion[4]
    assert product[2:4] == [32, "fp16"]
    assert "quantize/dequantize" in product[4]
    assert made["totals"] == {"fc": 2.0}


def test_missing_operator_is_named(run: Any) -> None:
    refused = run("unsupported")
    assert refused["error"] == "UnavailableError"
    assert "Hardmax" in refused["text"]
    assert "head/hardmax" in refused["text"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("foreign", ("Orin (8.7)", "here Orin (8.9)")),
        ("damaged", ("damaged",)),
        ("unknown_origin", ("no fingerprint",)),
    ],
)
def test_an_engine_is_refused_before_tensorrt_reads_it(run: Any, name: str, words: tuple[str, ...]) -> None:
    refused = run(name)
    assert refused["error"] == "InputError"
    assert all(word in refused["text"] for word in words), refused["text"]
    assert "Runtime" not in refused["calls"]


def test_old_gpu_and_no_gpu_are_told_apart(run: Any) -> None:
    old, none = run("old_gpu"), run("no_gpu")
    assert (old["error"], none["error"]) == ("UnavailableError", "UnavailableError")
    assert "too old" in old["text"]
    assert "5.3" in old["text"]
    assert "no NVIDIA GPU" in none["text"]


def test_the_gpu_asked_for_is_used(run: Any) -> None:
    made = run("second_gpu")
    assert made["used"] == 1
    assert "no GPU number 2 (2 found)" in made["refused"]


def test_engine_of_an_onnx_file_is_kept_under_gpu_and_version(run: Any) -> None:
    assert run("onnx_is_built_once") == {"builds": 1, "other_gpu": 2}


def test_free_sizes_without_a_shape_are_asked_for(run: Any) -> None:
    refused = run("free_sizes")
    assert refused["error"] == "InputError"
    assert "[options.shapes]" in refused["text"]


def test_spy_refuses_what_the_api_lacks(binding: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The spies themselves: a wrong name, a wrong type and a missing argument fail."""
    libraries, bindings = binding
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    assert child.call("tensorrt_spy:self_check", libraries=libraries, bindings=bindings) == [
        "AttributeError",
        "AssertionError",
        "AssertionError",
        "AssertionError",
    ]


def test_real_engine(tmp_path: Path) -> None:
    """Build and run a real engine, where TensorRT and a GPU are at hand."""
    from edgekit.errors import UnavailableError

    try:
        facts = child.call("edgekit.backends:prove_job", backend="tensorrt", options={"max_batch": 1})
    except UnavailableError as error:
        pytest.skip(f"not run: {error.problem}")
    assert facts["version"]
