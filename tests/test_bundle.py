"""Bundles, made through the real backends and run where there is no edgekit and no torch."""

from __future__ import annotations

import ast
import copy
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import record_maker as make
from click.testing import CliRunner

from edgekit import backends, bundle, result, runner, target
from edgekit.cli import cli
from edgekit.errors import InputError, StageError, UnavailableError
from edgekit.pipeline import golden
from edgekit.quantizers import quantize_job

RUNNER = Path(runner.__file__).parent


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record with float and int8 rows for three targets and one that compiles on the device."""
    folder = tmp_path_factory.mktemp("record")
    work = tmp_path_factory.mktemp("work")
    data = make.images(work / "data")
    net = make.model(work / "net.onnx")
    int8 = make.quantized(net, work / "int8.onnx", data)
    rows = []
    for name in ("x86-cpu", "x86-openvino", "raspberry-pi-5", "jetson-orin-nano"):
        aim = target.load_target(name)
        scheme = aim.quantize.model_dump(mode="json")
        rows.append(make.row(folder, "fp32", aim, net))
        rows.append(
            make.row(folder, "int8", aim, int8, scheme=scheme, vs_reference=make.against(f"fp32@{name}", -0.002))
        )
    make.record(folder, rows, data)
    return folder


@pytest.fixture(scope="session")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bare")
    return {
        "onnxruntime": make.bare(folder / "ort", "numpy", "onnxruntime"),
        "openvino": make.bare(folder / "ov", "numpy", "openvino"),
        "numpy": make.bare(folder / "numpy", "numpy"),
    }


def run(
    python: Path, place: Path, *arguments: str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **env}
    command = [str(python), str(place / "edgekit_runner.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd or "/", timeout=120)


@pytest.fixture(scope="session")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.bundle(root, "x86-cpu", "int8", tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture
def made(whole: Path, tmp_path: Path) -> Path:
    """A bundle that the test may break."""
    return shutil.copytree(whole, tmp_path / "bundle")


@pytest.mark.parametrize(("options", "name"), [([], "x86-cpu-bundle"), (["--zip"], "x86-cpu-bundle.zip")])
def test_without_out_the_target_names_the_bundle(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["bundle", str(root), "--target", "x86-cpu", "--variant", "int8", *options])
    assert (done.exit_code, done.stdout.strip()) == (0, name)
    assert (tmp_path / name).exists()


def test_the_environment_is_bare(pythons: dict[str, Path]) -> None:
    for absent in ("torch", "edgekit", "onnx"):
        command = [pythons["onnxruntime"], "-c", f"import {absent}"]
        code = subprocess.run(command, capture_output=True, cwd="/", env={}).returncode
        assert code == 1, absent


@pytest.mark.parametrize("variant", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["x86-cpu", "x86-openvino", "raspberry-pi-5"])
def test_check_passes_from_any_folder(
    root: Path, tmp_path: Path, pythons: dict[str, Path], name: str, variant: str
) -> None:
    place = bundle.bundle(root, name, variant, tmp_path / "a folder with späces")
    assert {"manifest.json", "edgekit_runner.py"} <= {path.name for path in place.iterdir()}
    done = run(pythons[target.load_target(name).backend], place, "check", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["difference"] <= report["tolerance"] <= 0.02
    assert report["samples"] == golden.SAMPLES
    assert bool(report["numerics_only"]) is (name == "raspberry-pi-5")
    said = run(pythons[target.load_target(name).backend], place, "check")
    assert ("numerics only" in said.stdout) is (name == "raspberry-pi-5")
    assert not (place / "__pycache__").exists()


def test_the_manifest_says_what_a_device_must_know(made: Path, root: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["inputs"] == [{"name": "image", "dtype": "float32", "shape": [None, 3, 16, 16], "layout": "NCHW"}]
    assert manifest["outputs"][0]["name"] == "logits"
    assert manifest["licence"] == "Apache-2.0"
    assert manifest["scheme"]["activations"] == "uint8"
    assert manifest["versions"]["onnxruntime"] == "1.32.0"
    assert manifest["target"]["device"]["arch"] == "x86_64"
    assert manifest["run"]["threads"] == 1
    assert manifest["golden"]["origin"] == "test data"
    assert manifest["record"] == result.load_results(root)["digest"]
    assert set(manifest["files"]) == {p.name for p in made.iterdir()} - {"manifest.json"}


def test_preprocessing_and_layout_are_told(root: Path, tmp_path: Path) -> None:
    results = copy.deepcopy(result.load_results(root))
    results["recipe"]["export"] = {"preprocess": {"scale": 1.0, "mean": [0], "std": [1], "layout": "nhwc", "input": ""}}
    shutil.copytree(root, tmp_path / "r")
    result.write_results(results, tmp_path / "r" / "results.json")
    place = bundle.bundle(tmp_path / "r", "x86-cpu", "fp32", tmp_path / "b")
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["inputs"][0]["layout"] == "NHWC"
    assert manifest["preprocessing"]["scale"] == 1.0


def test_bench_measures(made: Path, pythons: dict[str, Path]) -> None:
    done = run(pythons["onnxruntime"], made, "bench", "--json", "--seconds", "0.2")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    times = report["latency_ms"]
    assert 0 < times["ci95"][0] <= times["median"] <= times["ci95"][1]
    assert times["median"] <= times["p90"]
    assert times["runs"] >= 100
    assert (times["p99"] is None) is (times["runs"] < 662)
    assert report["first_inference_ms"] > 0
    assert report["peak_rss_bytes"] > 0
    assert report["batch"] == 1
    assert set(report["before"]) == set(report["after"])


def test_an_emulated_processor_never_gets_a_latency(made: Path, pythons: dict[str, Path]) -> None:
    done = run(pythons["onnxruntime"], made, "bench", "--json", EDGEKIT_EMULATED="1")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["latency_ms"] is None
    assert report["first_inference_ms"] is None
    assert report["peak_rss_bytes"] is None
    assert "emulated" in report["numerics_only"]
    assert "not measured (emulated)" in run(pythons["onnxruntime"], made, "bench", EDGEKIT_EMULATED="1").stdout


def test_state_is_read_from_the_system(made: Path, pythons: dict[str, Path], tmp_path: Path) -> None:
    """A Raspberry Pi's files: the hottest zone, the clock, the firmware's throttling bits, the board's name."""
    tree = tmp_path / "sysroot"
    for path, text in {
        "proc/cpuinfo": "processor : 0\nFeatures : fp asimd\nCPU part : 0xd0b\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "sys/class/thermal/thermal_zone0/temp": "48312\n",
        "sys/class/thermal/thermal_zone1/temp": "61000\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2400000\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
    }.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    report = json.loads(
        run(pythons["onnxruntime"], made, "bench", "--json", "--seconds", "0.1", EDGEKIT_SYSROOT=str(tree)).stdout
    )
    state = {"temperature_c": 61.0, "frequency_mhz": 2400.0, "governor": "ondemand", "throttled": "50000"}
    assert report["before"] == report["after"] == state
    assert report["device"]["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert report["device"]["flags"] == ["asimd", "fp"]


def test_run_gives_what_the_model_gives(made: Path, root: Path, pythons: dict[str, Path], tmp_path: Path) -> None:
    aim = target.load_target("x86-cpu")
    image = np.random.default_rng(3).normal(size=(3, 3, 16, 16)).astype("f")
    (expected,) = backends.load("onnxruntime").open_model(made / "model.onnx", aim).run({"image": image})
    np.save(tmp_path / "in.npy", image)
    np.savez(tmp_path / "in.npz", image=image)
    for name in ("in.npy", "in.npz"):
        done = run(pythons["onnxruntime"], made, "run", name, "--out", "o.npz", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "o.npz") as file:
            np.testing.assert_array_equal(file["logits"], expected)
        assert json.loads(done.stdout)["outputs"][0]["shape"] == [3, 10]
    np.save(tmp_path / "one.npy", image[0])  # one sample gets its batch axis
    done = run(pythons["onnxruntime"], made, "run", "one.npy", "--json", cwd=tmp_path)
    assert np.allclose(json.loads(done.stdout)["outputs"][0]["first"], expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((1, 3, 16, 16)), "wants float32, not float64"),
        (np.zeros((1, 3, 8, 16), "f"), "wants the shape"),
        (np.zeros((0, 3, 16, 16), "f"), "wants the shape"),
        (np.array([{}], dtype=object), "can't read the input"),
    ],
)
def test_run_refuses_what_does_not_fit(
    made: Path, pythons: dict[str, Path], tmp_path: Path, array: np.ndarray, problem: str
) -> None:
    np.save(tmp_path / "in.npy", array, allow_pickle=True)
    done = run(pythons["onnxruntime"], made, "run", "in.npy", cwd=tmp_path)
    assert done.returncode == 2
    assert problem in done.stderr
    assert "fix:" in done.stderr
    assert done.stdout == ""


def test_a_fixed_batch_is_filled_up(tmp_path: Path, pythons: dict[str, Path]) -> None:
    """Golden data of 8 samples and a user's 3 through a model that takes batches of 4 alone."""
    net = make.model(tmp_path / "n.onnx", batch=4)
    rec = tmp_path / "rec"
    rec.mkdir()
    make.record(rec, [make.row(rec, "fp32", target.load_target("x86-cpu"), net)], make.images(tmp_path / "d"))
    place = bundle.bundle(rec, "x86-cpu", out=tmp_path / "b")
    assert run(pythons["onnxruntime"], place, "check").returncode == 0
    np.save(tmp_path / "in.npy", np.ones((3, 3, 16, 16), "f"))
    done = run(pythons["onnxruntime"], place, "run", "in.npy", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["outputs"][0]["shape"] == [3, 10]
    report = json.loads(run(pythons["onnxruntime"], place, "bench", "--json", "--seconds", "0.1").stdout)
    assert report["batch"] == 4


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "edgekit_board.py", "edgekit_onnxruntime.py"])
def test_one_flipped_byte_is_found(made: Path, pythons: dict[str, Path], name: str) -> None:
    data = bytearray((made / name).read_bytes())
    data[-3] ^= 4
    (made / name).write_bytes(data)
    if name.startswith("edgekit"):  # code: found by whoever reads the bundle; a comment's byte may even run
        data[-3] ^= 4
        (made / name).write_bytes(bytes(data) + b"#")
    done = run(pythons["onnxruntime"], made, "check", "--json")
    assert done.returncode == 2
    assert f"{name} is not the file that was bundled" in json.loads(done.stdout)["error"]
    with pytest.raises(InputError, match="changed"):
        bundle.read_bundle(made)


def test_damaged_bundles_are_refused(made: Path, pythons: dict[str, Path], tmp_path: Path) -> None:
    python = pythons["onnxruntime"]
    (made / "model.onnx.data").write_bytes(b"foreign weights")
    assert "does not belong to the bundle" in run(python, made, "check").stderr
    with pytest.raises(InputError, match="does not belong"):
        bundle.read_bundle(made)
    (made / "model.onnx.data").unlink()
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "golden.npz").rename(tmp_path / "golden.npz")
    assert "golden.npz is missing" in run(python, made, "check").stderr
    with pytest.raises(InputError, match="is missing"):
        bundle.read_bundle(made)
    for text in ("", "{", "[]", json.dumps({**manifest, "schema": "edgekit.bundle/9"}), "[" * 100_000):
        (made / "manifest.json").write_text(text)
        done = run(python, made, "check")
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), text[:20]
        with pytest.raises(InputError):
            bundle.read_bundle(made)
    files = {**manifest["files"], "../outside": {"sha256": "0" * 64, "size_bytes": 1}}
    (made / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    assert "outside of the bundle" in run(python, made, "check").stderr
    with pytest.raises(InputError, match="not inside of the bundle"):
        bundle.read_bundle(made)


def regolden(place: Path, change: Any) -> None:
    """Rewrite a bundle's golden outputs, its manifest's hash too: what a wrong kernel on the device looks like."""
    with np.load(place / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["out:logits"] = change(arrays["out:logits"])
    golden.write(arrays, place / "golden.npz")
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"]["golden.npz"] = bundle._facts(place / "golden.npz")
    (place / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda x: x, 0),
        (lambda x: x + 0.01 * np.abs(x).max(), 0),
        (lambda x: x * 0.95, 3),
        (lambda x: x[:, ::-1].copy(), 3),
        (lambda x: x[:, :5].copy(), 3),
        (lambda x: np.where(x == x.max(), np.nan, x), 3),
    ],
)
def test_check_judges_the_outputs(made: Path, pythons: dict[str, Path], change: Any, code: int) -> None:
    regolden(made, change)
    done = run(pythons["onnxruntime"], made, "check", "--json")
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["exit"] == code
    if code:
        assert "output 'logits' differs" in done.stderr


def test_any_terminal_will_do(made: Path, pythons: dict[str, Path]) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    text = json.dumps({**manifest, "schema": "größer/9 \x1b[31m"}, ensure_ascii=False)
    (made / "manifest.json").write_text(text, encoding="utf-8")
    done = run(pythons["numpy"], made, "check", PYTHONIOENCODING="ascii", LANG="C", TERM="dumb")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "gr\\xf6\\xdfer" in done.stderr


def test_a_missing_runtime_is_told_with_its_version(made: Path, pythons: dict[str, Path]) -> None:
    for command in ("check", "bench"):
        done = run(pythons["numpy"], made, command)
        assert done.returncode == 4
        assert "'onnxruntime' is not installed" in done.stderr
        assert "onnxruntime==1.32.0" in done.stderr


def test_a_model_that_the_runtime_refuses(made: Path, pythons: dict[str, Path]) -> None:
    (made / "model.onnx").write_bytes(b"\x08\x09nonsense")
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = bundle._facts(made / "model.onnx")
    (made / "manifest.json").write_text(json.dumps(manifest))
    done = run(pythons["onnxruntime"], made, "check")
    assert done.returncode == 4
    assert "can't load this model" in done.stderr


def test_the_same_record_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    one, two = (bundle.bundle(root, "x86-openvino", "fp32", tmp_path / n) for n in ("one", "two"))
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}
    archives = [bundle.bundle(root, "x86-openvino", "fp32", tmp_path / n, zip=True) for n in ("a", "b.zip")]
    assert [a.name for a in archives] == ["a.zip", "b.zip"]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with bundle.opened(archives[0]) as (folder, manifest):
        assert manifest == bundle.read_bundle(one)
        assert {p.name for p in folder.iterdir()} == {p.name for p in one.iterdir()}


def test_a_small_model_makes_a_small_bundle(tmp_path: Path) -> None:
    net = make.model(tmp_path / "n.onnx", width=90)
    rec = tmp_path / "rec"
    rec.mkdir()
    make.record(rec, [make.row(rec, "fp32", target.load_target("x86-cpu"), net)])
    place = bundle.bundle(rec, "x86-cpu", out=tmp_path / "b")
    sizes = {p.name: p.stat().st_size for p in place.iterdir()}
    assert 290_000 < sizes["model.onnx"] < 330_000
    assert sum(size for name, size in sizes.items() if name != "golden.npz") < 400_000
    assert json.loads((place / "manifest.json").read_text())["golden"]["origin"] == "seeded noise"


def test_the_device_compiles_where_it_must(root: Path, tmp_path: Path) -> None:
    place = bundle.bundle(root, "jetson-orin-nano", "int8", tmp_path / "b")
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["model"] == "model.onnx"
    assert manifest["target"]["compile_on_device"] is True
    assert manifest["run"]["options"]["workspace_mb"] == 2048
    assert manifest["golden"]["tolerance"] == golden.TOLERANCE[True, True]
    assert (place / "edgekit_tensorrt.py").is_file()


def test_a_model_in_bfloat16_has_golden_outputs_too(tmp_path: Path) -> None:
    """ONNX Runtime's CPU kernels know no bfloat16: a float copy of the model gives them."""
    net = make.model(tmp_path / "n.onnx")
    half = tmp_path / "half.onnx"
    aim = target.load_target("jetson-orin-nano")
    quantize_job(str(net), str(half), None, aim.model_dump(mode="json"), {"method": "bf16"})
    rec = tmp_path / "rec"
    rec.mkdir()
    make.record(rec, [make.row(rec, "bf16", aim, half)])
    place = bundle.bundle(rec, "jetson-orin-nano", out=tmp_path / "b")
    assert (place / "model.onnx").read_bytes() == half.read_bytes()
    assert [path.name for path in place.glob("*.onnx")] == ["model.onnx"]  # the copy does not travel
    with np.load(place / "golden.npz") as file:
        (given,) = [file[key] for key in file if key.startswith("in:")]
        (found,) = [file[key] for key in file if key.startswith("out:")]
    (exact,) = onnxruntime.InferenceSession(str(net)).run(None, {"image": given})
    np.testing.assert_allclose(found, exact, atol=0.02 * np.abs(exact).max())
    assert not np.array_equal(found, exact)


def rows(*triples: tuple[str, float, float | None, int]) -> dict[str, Any]:
    """A record of rows (variant, delta, latency, size) for choosing among."""
    made = []
    for variant, delta, latency, size in triples:
        metric = {"name": "m", "value": 0.9 + delta, "ci95": None, "samples": 9, "higher_is_better": True}
        times = {"median": latency, "ci95": [0.98 * latency, 1.02 * latency]} if latency else None
        against = make.against("fp32@t", delta)
        made.append(
            {
                "id": f"{variant}@t",
                "variant": variant,
                "target": "t",
                "status": "ok",
                "reason": "",
                "artifact": {"path": "x"},
                "metric": metric,
                "latency_ms": times,
                "size_bytes": size,
                "vs_reference": against,
            }
        )
    return {"variants": made, "recipe": {}}


def test_the_default_is_the_fastest_that_kept_the_metric() -> None:
    results = rows(("fp32", 0, 4.0, 100), ("pruned", -0.05, 1.0, 50), ("int8", -0.004, 2.0, 30), ("slow", 0.01, 3.0, 9))
    assert bundle.choose(results, "t")["variant"] == "int8"
    results["recipe"] = {"gate": {"max_metric_drop": 0.001}}
    assert bundle.choose(results, "t")["variant"] == "slow"
    results["recipe"] = {"gate": {"max_metric_drop": 0.001, "rule": [{"variant": "pru*", "max_metric_drop": 0.1}]}}
    assert bundle.choose(results, "t")["variant"] == "pruned"
    results["recipe"] = {"gate": {"min_metric": 0.905}}
    assert bundle.choose(results, "t")["variant"] == "slow"
    assert bundle.choose(results, "t", "pruned")["variant"] == "pruned"


def test_of_equally_fast_rows_the_better_metric_is_the_default_then_the_smaller() -> None:
    results = rows(("fp32", 0, 4.0, 100), ("quick", -0.004, 2.0, 30), ("better", -0.001, 2.05, 40), ("big", 0, 2.2, 30))
    assert bundle.choose(results, "t")["variant"] == "better"
    results["variants"][1]["metric"]["value"] = results["variants"][2]["metric"]["value"]
    assert bundle.choose(results, "t")["variant"] == "quick"


def test_without_latencies_the_smallest_stands_in_and_lower_may_be_better() -> None:
    results = rows(("fp32", 0, None, 100), ("int8", -0.004, None, 30), ("bad", -0.3, None, 10))
    assert bundle.choose(results, "t")["variant"] == "int8"
    for row in results["variants"]:
        row["metric"]["higher_is_better"] = False
    assert bundle.choose(results, "t")["variant"] == "bad"  # an error that fell


@pytest.mark.parametrize("zipped", [False, True])
def test_a_place_that_can_not_be_written(root: Path, tmp_path: Path, zipped: bool) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "bundle", Path("/proc/bundle")):
        with pytest.raises(StageError, match="can't write this file"):
            bundle.bundle(root, "x86-cpu", out=place, zip=zipped)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_rows_that_cannot_be_bundled(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no target 'pi'"):
        bundle.bundle(root, "pi", out=tmp_path / "b")
    with pytest.raises(InputError, match="no variant 'int4'"):
        bundle.bundle(root, "x86-cpu", "int4", tmp_path / "b")
    results = rows(("fp32", 0, 1.0, 1))
    results["variants"][0] |= {"artifact": None, "status": "failed", "reason": "export: broke"}
    with pytest.raises(UnavailableError, match="export: broke"):
        bundle.choose(results, "t")
    assert not (tmp_path / "b").exists()


def test_a_changed_artifact_is_not_bundled(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "r")
    path = tmp_path / "r" / "artifacts" / "fp32@x86-cpu" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="not the one that the record names"):
        bundle.bundle(tmp_path / "r", "x86-cpu", "fp32", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_nothing_else_is_overwritten(root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        bundle.bundle(root, "x86-cpu", "fp32", mine)
    assert (mine / "thesis.txt").is_file()
    place = bundle.bundle(root, "x86-cpu", "fp32", tmp_path / "b")
    before = (place / "manifest.json").read_bytes()
    bundle.bundle(root, "x86-cpu", "int8", tmp_path / "b")  # an earlier bundle is replaced
    assert (place / "manifest.json").read_bytes() != before


def archive(path: Path, *members: tuple[str, bytes, int]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, data)
    return path


@pytest.mark.parametrize(
    "name", ["/etc/edgekit-test", "../outside", "a/../../outside", "sub/file", "..\\outside", "C:\\x", "a/"]
)
def test_archives_that_would_write_elsewhere(tmp_path: Path, name: str) -> None:
    bad = archive(tmp_path / "bad.zip", (name, b"x", 0o100644))
    (tmp_path / "into").mkdir()
    with pytest.raises(InputError):
        bundle.unpack(bad, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_archives_with_links_twins_or_damage(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    link = archive(tmp_path / "l.zip", ("model.onnx", b"/etc/passwd", stat.S_IFLNK | 0o777))
    with pytest.raises(InputError, match="no plain file"):
        bundle.unpack(link, into)
    with pytest.warns(UserWarning, match="Duplicate"):
        twins = archive(tmp_path / "t.zip", ("a", b"1", 0o100644), ("a", b"2", 0o100644))
    with pytest.raises(InputError, match="one name"):
        bundle.unpack(twins, into)
    good = archive(tmp_path / "g.zip", ("a", b"1" * 1000, 0o100644)).read_bytes()
    for broken in (good[:-30], good.replace(b"1" * 10, b"2" * 10, 1), b"", b"not a zip"):
        (tmp_path / "d.zip").write_bytes(broken)
        with pytest.raises(InputError, match="can't read this archive"):
            bundle.unpack(tmp_path / "d.zip", into)
        for left in into.iterdir():
            left.unlink()


def test_the_runner_sets_the_session_as_the_backend_does() -> None:
    """What was measured is what ships: every session entry and property, compared one by one."""
    import onnxruntime

    from edgekit.backends import onnxruntime as ort_room
    from edgekit.backends import openvino as ov_room

    sys.path.insert(0, str(RUNNER))
    try:
        import edgekit_onnxruntime
        import edgekit_openvino
    finally:
        sys.path.remove(str(RUNNER))
    for name in target.names():
        aim = target.load_target(name)
        room: Any = {"onnxruntime": ort_room, "openvino": ov_room}.get(aim.backend)
        if room is None:
            continue
        options = room.Options.model_validate(aim.options)
        facts = {"threads": aim.run.threads, "options": options.model_dump(mode="json")}
        if aim.backend == "openvino":
            assert edgekit_openvino.properties_of(facts) == ov_room._properties(aim, options), name
            continue
        mine, theirs = edgekit_onnxruntime.settings_of(onnxruntime, facts), ort_room._settings(aim, options, "all")
        for key in ("intra_op_num_threads", "inter_op_num_threads", "enable_cpu_mem_arena", "enable_mem_pattern",
                    "graph_optimization_level", "execution_mode"):  # fmt: skip
            assert getattr(mine, key) == getattr(theirs, key), (name, key)
        for key in ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning",
                    "session.set_denormal_as_zero", *options.session):  # fmt: skip
            assert mine.get_session_config_entry(key) == theirs.get_session_config_entry(key), (name, key)


def test_every_backend_has_its_runner_and_all_parse_in_python_3_8() -> None:
    from edgekit import rooms

    for name in rooms.members("backends"):
        assert (RUNNER / f"edgekit_{name}.py").is_file()
    for path in RUNNER.glob("edgekit_*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))


def test_the_runner_imports_nothing_but_the_runtime_and_numpy() -> None:
    allowed = {"edgekit_board", "numpy", "onnxruntime", "openvino", "tensorrt", *sys.stdlib_module_names}
    for path in RUNNER.glob("edgekit_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {n.split(".")[0] for n in names} <= allowed, path.name
