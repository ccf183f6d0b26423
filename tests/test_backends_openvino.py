"""OpenVINO's own matters: precision, static batch, devices."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest

from edgekit import console
from edgekit.backends import _ov_graph, openvino
from edgekit.backends._ov_graph import Layer
from edgekit.errors import UnavailableError
from edgekit.target import Target


def target(batch: int = 1, **options: Any) -> Target:
    document = {"name": "t", "title": "", "source": "", "backend": "openvino", "device": {"arch": platform.machine()}}
    return Target.model_validate({**document, "run": {"batch": batch}, "options": options})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_models.conv_net(tmp_path_factory.mktemp("models") / "float.onnx")


def test_fp32_is_computed_in_fp32(model: Path) -> None:
    """A CPU with bf16 would run it in bf16 if not told otherwise."""
    compiled = openvino.open_model(model, target()).compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("PERFORMANCE_HINT") == "LATENCY"
    assert "CACHE_DIR" not in openvino._properties(target(), openvino.Options()), "no model cache while measuring"


def test_options_reach_openvino(model: Path, tmp_path: Path) -> None:
    aim = target(performance_hint="throughput", cache_dir=str(tmp_path), properties={"ENABLE_CPU_PINNING": False})
    compiled = openvino.open_model(model, aim).compiled
    assert compiled.get_property("PERFORMANCE_HINT") == "THROUGHPUT"
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert list(tmp_path.iterdir()), "the compiled blob is kept"


def test_the_file_holds_weights_as_integers_and_nothing_that_follows_from_constants(
    model: Path, tmp_path: Path
) -> None:
    quantized = onnx_models.quantized(model, tmp_path / "int8.onnx")
    artifact = openvino.compile_model(quantized, target(), tmp_path)
    text = artifact.read_text()
    assert 'type="Convolution"' in text
    assert not {kind for kind in ("ShapeOf", "Broadcast") if f'type="{kind}"' in text}, "made of every bias, by reading"
    assert artifact.with_suffix(".bin").stat().st_size < 0.6 * model.stat().st_size
    x = onnx_models.samples(2)
    read, folded = (openvino.open_model(file, target()).run({"x": x})[0] for file in (quantized, artifact))
    np.testing.assert_allclose(read, folded, atol=1e-5)


def damaged(blob: Path) -> None:
    """Zero 1 KiB of the weights: OpenVINO 2026.4 loads it without a word and is off by 4.7."""
    data = bytearray(blob.read_bytes())
    start = len(data) // 5
    data[start : start + 1024] = bytes(1024)
    blob.write_bytes(data)


@pytest.mark.parametrize("harm", [damaged, lambda blob: blob.write_bytes(blob.read_bytes()[:-100]), Path.touch])
def test_a_blob_that_was_damaged_is_not_computed_with(harm: Any, model: Path, tmp_path: Path) -> None:
    aim, x = target(cache_dir=str(tmp_path)), {"x": onnx_models.samples(1)}
    (right,) = openvino.open_model(model, aim).run(x)
    (blob,) = (tmp_path / "edgekit").glob("*.blob")
    whole = blob.read_bytes()
    harm(blob)
    changed = blob.read_bytes() != whole
    console.clear_warnings()
    (found,) = openvino.open_model(model, aim).run(x)
    np.testing.assert_array_equal(found, right)
    assert any("compiled again" in warning for warning in console.warnings()) is changed
    assert [b.name for b in blob.parent.glob("*.blob")] == [blob.name]


def test_an_unfinished_blob_is_made_again(model: Path, tmp_path: Path) -> None:
    aim = target(cache_dir=str(tmp_path))
    openvino.open_model(model, aim)
    (seal,) = (tmp_path / "edgekit").glob("*.sha256")
    seal.unlink()
    openvino.open_model(model, aim)
    assert seal.is_file()


def test_specialized_for_one_batch_and_right_for_all(model: Path, tmp_path: Path) -> None:
    artifact = openvino.compile_model(model, target(), tmp_path)
    session, free = openvino.open_model(artifact, target()), openvino.open_model(artifact, target(specialize=False))
    assert session.inputs[0].shape == (None, 3, 16, 16)
    assert session.compiled.inputs[0].get_partial_shape()[0].get_length() == 1
    for count in (1, 4, 1):
        x = onnx_models.samples(count)
        np.testing.assert_allclose(session.run({"x": x})[0], free.run({"x": x})[0], atol=1e-5)


def test_an_array_that_comes_again_is_read_again(model: Path) -> None:
    """Handed over once, shared from then on: a camera writes into one buffer."""
    session, x = openvino.open_model(model, target()), np.array(onnx_models.samples(1))
    other = np.array(onnx_models.samples(1)[:, :, ::-1])
    (first,) = session.run({"x": x})
    (again,) = session.run({"x": x})
    np.testing.assert_array_equal(again, first)
    kept = first.copy()
    x[...] = other
    (written,) = session.run({"x": x})
    (fresh,) = session.run({"x": other})
    np.testing.assert_array_equal(written, fresh)
    np.testing.assert_array_equal(first, kept)  # what was given out is nobody's buffer
    assert np.abs(written - first).max() > 1e-4


@pytest.mark.parametrize(
    "odd",
    [
        lambda x: np.asfortranarray(x),
        lambda x: x.astype(np.float64),
        lambda x: np.broadcast_to(x, x.shape),  # may not be written to
        lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    ],
)
def test_arrays_that_cannot_be_shared_are_copied(odd: Any, model: Path) -> None:
    session, x = openvino.open_model(model, target()), np.array(onnx_models.samples(1))
    (right,) = session.run({"x": x})
    strange = odd(x)
    for feed in (strange, x, strange, x):
        np.testing.assert_allclose(session.run({"x": feed})[0], right, atol=1e-6)


def test_static_batch_stands_in_the_artifact(model: Path, tmp_path: Path) -> None:
    aim = target(batch=2, static_batch=True)
    artifact = openvino.compile_model(model, aim, tmp_path)
    assert openvino.open_model(artifact, aim).inputs[0].shape == (2, 3, 16, 16)


def test_a_device_that_is_not_here_is_named(model: Path) -> None:
    with pytest.raises(UnavailableError, match="no device 'NPU'"):
        openvino.open_model(model, target(device="NPU"))


def test_combining_devices_are_left_to_openvino(model: Path) -> None:
    (y,) = openvino.open_model(model, target(device="AUTO")).run({"x": onnx_models.samples(1)})
    assert y.shape == (1, 10)


def layer(kind: str, output: tuple[int, ...], *inputs: tuple[int, ...]) -> Layer:
    fed = ("f32",) * len(inputs)
    return Layer("l", kind, "fp32", inputs, output, fed, original=("l",), microseconds=0.0, constant=False)


@pytest.mark.parametrize(
    ("found", "macs"),
    [
        (layer("Convolution", (2, 16, 8, 8), (2, 3, 8, 8), (16, 3, 3, 3)), 2 * 16 * 64 * 27),
        (layer("Convolution", (1, 16, 8, 8), (1, 16, 8, 8), (16, 1, 1, 3, 3)), 16 * 64 * 9),
        (layer("Deconvolution", (1, 4, 8, 8), (1, 8, 4, 4), (8, 4, 2, 2)), 8 * 16 * 4 * 4),
        (layer("FullyConnected", (2, 10), (2, 32), (10, 32)), 640),
        (layer("MatMul", (1, 2, 5, 5), (1, 2, 5, 8), (1, 2, 8, 5)), 2 * 25 * 8),
        (layer("Eltwise", (1, 4), (1, 4), (1, 4)), 0),
    ],
)
def test_multiply_adds_of_an_inference(found: Layer, macs: int) -> None:
    assert _ov_graph.macs_of(found) == macs


def test_every_set_of_shapes_has_its_own_model_and_the_oldest_is_forgotten(model: Path) -> None:
    session = openvino.open_model(model, target())
    for count in range(1, openvino.MOST_SHAPES + 3):
        (y,) = session.run({"x": onnx_models.samples(count)})
        assert y.shape == (count, 10)
    assert len(session._infers) == openvino.MOST_SHAPES
    assert ((1, 3, 16, 16),) not in session._infers
    (again,) = session.run({"x": onnx_models.samples(1)})
    np.testing.assert_allclose(again, openvino.open_model(model, target()).run({"x": onnx_models.samples(1)})[0])
