"""A record made by hand through the real backends, for tests of what is done with records."""

from __future__ import annotations

import platform
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit import backends, result, store, target
from edgekit.pipeline import golden
from edgekit.workload import spool

CLASSES = 10
WIDTH = 24


def model(path: Path, seed: int = 0, batch: str | int = "N", width: int = WIDTH) -> Path:
    """A small CNN: two convolutions, a mean, a classifier."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype("f"), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1, 1, 1, 1], name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], name="conv2"),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3"], ["logits"], transB=1, name="head"),
    ]
    weights = [weight("w1", width, 3, 3, 3), weight("w2", width, width, 3, 3), weight("w3", CLASSES, width)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def quantized(float_model: Path, path: Path, data: spool.Spool, activations: str = "QUInt8") -> Path:
    """The same in Q/DQ, by ONNX Runtime's own quantizer."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = data.feeds()

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    quantize_static(
        str(float_model),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return path


def images(folder: Path, n: int = 32) -> spool.Spool:
    """Seeded pictures and labels."""
    rng = np.random.default_rng(1)
    return spool.write([({"image": rng.normal(size=(n, 3, 16, 16)).astype("f")}, rng.integers(0, CLASSES, n))], folder)


def compiled(onnx_file: Path, aim: target.Target, folder: Path) -> list[Path]:
    """What the target's backend makes of an ONNX file; the file itself where the device compiles."""
    folder.mkdir(parents=True)
    if aim.compile_on_device:
        (folder / "model.onnx").write_bytes(onnx_file.read_bytes())
        return [folder / "model.onnx"]
    made = backends.compile_job(str(onnx_file), aim.model_dump(mode="json"), str(folder))
    return sorted(folder.iterdir(), key=lambda path: path.name != made["path"])


def row(root: Path, variant: str, aim: target.Target, onnx_file: Path, **changes: Any) -> dict[str, Any]:
    """A finished row of the record, its artifact in place."""
    name = f"{variant}@{aim.name}"
    paths = compiled(onnx_file, aim, root / "artifacts" / name)
    files = [
        {"path": str(p.relative_to(root)), "sha256": store.sha256_file(p), "size_bytes": p.stat().st_size}
        for p in paths
    ]
    here = aim.device.arch == platform.machine() and not aim.device.cpu
    full: dict[str, Any] = {
        "id": name,
        "variant": variant,
        "target": aim.name,
        "backend": aim.backend,
        "status": "ok" if here else "built",
        "reason": "",
        "stages": [],
        "artifact": {"path": files[0]["path"], "sha256": files[0]["sha256"], "files": files},
        "size_bytes": sum(file["size_bytes"] for file in files),
        "parameters": 6000,
        "macs": 1_000_000,
        "int8_macs_share": 0.0,
        "metric": {"name": "accuracy", "value": 0.9, "ci95": [0.8, 0.95], "samples": 100, "higher_is_better": True},
        "latency_ms": {"median": 1.0, "p90": 1.1, "p99": None, "ci95": [0.9, 1.1], "runs": 100} if here else None,
        "first_inference_ms": 2.0 if here else None,
        "peak_rss_bytes": 10**6 if here else None,
        "vs_reference": None,
        "pareto": True,
        "scheme": None,
        "profile": aim.model_dump(mode="json"),
    }
    return {**full, **changes}


def against(reference: str, delta: float) -> dict[str, Any]:
    """A row's comparison with the reference."""
    empty = {"metric_delta_ci95": None, "size_ratio": None, "speedup": None, "speedup_ci95": None}
    return {"id": reference, "metric_delta": delta, **empty}


def record(root: Path, rows: list[dict[str, Any]], data: spool.Spool | None = None, **recipe: Any) -> dict[str, Any]:
    """Write ``results.json`` over these rows into ``root``."""
    results: dict[str, Any] = {
        "schema": result.SCHEMA,
        "recipe": {"recipe_version": 1, "model": {"licence": "Apache-2.0"}, **recipe},
        "environment": {},
        "seed": 0,
        "lock": {"versions": {"onnxruntime": "1.32.0", "numpy": "2.4.6"}},
        "reference": rows[0]["id"],
        "variants": rows,
        "gate": {"passed": None, "checks": []},
    }
    if data:
        results["golden"] = golden.keep(data, root)
    return result.write_results(results, root / result.RESULTS)


def bare(folder: Path, *packages: str) -> Path:
    """A Python with nothing but these packages, as a device has it; they are this environment's own."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    here = Path(np.__file__).parent.parent
    for package in packages:
        for path in (here / package, here / f"{package}.libs", *here.glob(f"{package}-*.dist-info")):
            if path.exists():
                (site / path.name).symlink_to(path)
    return folder / "bin" / "python"
