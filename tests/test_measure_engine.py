"""Measuring with real processes: a fake runtime that sleeps, crashes or hangs, and real ONNX Runtime and OpenVINO."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import edgekit
from edgekit import machine
from edgekit import measure as measure_package
from edgekit.errors import InconclusiveError, InputError, UnavailableError
from edgekit.measure import Measured, Row, benchmark, each_once, energy, exit_code, measure_rows, table
from edgekit.measure.bench import rows_of
from edgekit.measure.lock import machine_lock
from edgekit.recipe import MeasureSection
from edgekit.store import sha256_file
from edgekit.target import Target, load_target

# A runtime of a few lines: the model's file says what it does.
FAKE = """
import json, os, time
from pathlib import Path
import numpy as np
from edgekit.backends import Port
from edgekit.errors import UnavailableError

EXTRA = "none"

def probe():
    return {"version": "1.0"}

class Session:
    inputs = (Port(name="x", dtype="float32", shape=(None, 4)),)
    outputs = (Port(name="y", dtype="float32", shape=(None, 4)),)

    def __init__(self, does):
        self.does, self.calls = does, 0
        self.held = np.ones(does.get("megabytes", 0) * 131072)

    def run(self, feeds):
        self.calls += 1
        end = time.perf_counter() + self.does.get("ms", 0.5) / 1000
        while time.perf_counter() < end:
            pass
        if self.calls == 30 and self.does.get("abort"):
            os.abort()
        y = feeds["x"] * 2
        if self.does.get("random"):
            y = y + np.random.standard_normal(y.shape).astype("float32")
        if self.does.get("nan"):
            y = y * np.float32("nan")
        return [y]

def open_model(artifact, target):
    does = json.loads(Path(artifact).read_text())
    if does.get("hang"):
        time.sleep(600)
    if does.get("unavailable"):
        raise UnavailableError("no such device here", remedy="plug it in")
    counter = Path(str(artifact) + ".count")
    count = int(counter.read_text()) + 1 if counter.exists() else 1
    counter.write_text(str(count))
    if does.get("abort_at") == count:
        does["abort"] = True
    return Session(does)
"""
SHORT = MeasureSection(pairs=2, max_pairs=2, budget_s=60)


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no other benchmark of this machine."""
    monkeypatch.setattr("edgekit.measure.lock.default_path", lambda: tmp_path / "lock")


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    """Make a row of the fake runtime."""
    (tmp_path / "fake.py").write_text(FAKE)

    def row(name: str, **does: Any) -> Row:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(does))
        return Row(id=name, artifact=path, backend=str(tmp_path / "fake.py"))

    return row


@pytest.fixture
def one_thread() -> Target:
    return load_target("x86-cpu")


def test_times_memory_and_ratio_are_what_the_runtime_does(fake: Any, one_thread: Target, tmp_path: Path) -> None:
    rows = [fake("slow", ms=1.0), fake("fast", ms=0.5, megabytes=64)]
    slow, fast = measure_rows(rows, one_thread, SHORT, samples=tmp_path / "samples")
    for measured, least in ((slow, 1.0), (fast, 0.5)):
        assert measured.status == "ok"
        assert measured.latency_ms is not None
        assert measured.latency_ms["median"] >= least  # a busy loop can't be shorter
        assert measured.latency_ms["median"] <= measured.latency_ms["p90"] <= measured.latency_ms["p99"]
        assert measured.latency_ms["runs"] == 2
        assert measured.cpu_ms is not None
        assert measured.cpu_ms > 0
        assert measured.runtime == "1.0"
    assert slow.ratio == 1.0
    assert fast.ratio is not None
    assert fast.ratio < 0.9
    assert fast.different is None  # two pairs prove nothing
    assert any("too few runs" in w for w in fast.warnings)
    assert fast.peak_rss_bytes is not None
    assert 64e6 < fast.peak_rss_bytes < 100e6
    assert slow.peak_rss_bytes is not None
    assert slow.peak_rss_bytes < 20e6
    json.dumps(fast.to_json(), allow_nan=False)


def test_raw_times_lie_in_a_hashed_file(fake: Any, one_thread: Target, tmp_path: Path) -> None:
    measured = measure_rows([fake("a", ms=0.2)], one_thread, SHORT, samples=tmp_path / "samples")[0]
    assert measured.samples is not None
    path = tmp_path / "samples" / measured.samples["path"]
    assert sha256_file(path) == measured.samples["sha256"]
    raw = json.loads(path.read_text())
    assert [run["valid"] for run in raw["runs"]] == [True, True]
    assert all(len(run["samples_ns"]) >= 30 and min(run["samples_ns"]) >= 200_000 for run in raw["runs"])


def test_a_runtime_that_crashes_midway_costs_its_row_and_its_samples_are_marked(
    fake: Any, one_thread: Target, tmp_path: Path
) -> None:
    rows = [fake("reference", ms=0.3), fake("crashes", ms=0.3, abort_at=2), fake("fine", ms=0.3)]
    reference, crashed, fine = measure_rows(rows, one_thread, SHORT, samples=tmp_path)
    assert (reference.status, crashed.status, fine.status) == ("ok", "failed", "ok")
    assert "SIGABRT" in crashed.reason
    assert crashed.latency_ms is None
    assert fine.pairs == 2
    raw = json.loads((tmp_path / "crashes.json").read_text()) if (tmp_path / "crashes.json").exists() else None
    assert raw is not None
    assert crashed.samples is not None
    assert [run["valid"] for run in raw["runs"]] == [False]


def test_a_runtime_that_hangs_is_ended(fake: Any, one_thread: Target) -> None:
    rows = [fake("reference", ms=0.3), fake("hangs", hang=True)]
    reference, hung = measure_rows(rows, one_thread, SHORT, timeout_s=12)  # a busy machine takes seconds to import
    assert (reference.status, hung.status) == ("ok", "failed")
    assert "limit of 12 s" in hung.reason


def test_what_can_not_run_is_unavailable_with_its_reason(fake: Any, one_thread: Target) -> None:
    rows = [fake("reference", ms=0.3), fake("other", unavailable=True)]
    other = measure_rows(rows, one_thread, SHORT)[1]
    assert (other.status, other.reason) == ("unavailable", "no such device here; fix: plug it in")


def test_a_failed_reference_leaves_the_others_measured_and_says_so(fake: Any, one_thread: Target) -> None:
    rows = [fake("reference", abort=True), fake("fine", ms=0.3)]
    reference, fine = measure_rows(rows, one_thread, SHORT)
    assert reference.status == "failed"
    assert fine.status == "ok"
    assert fine.ratio is None
    assert "could not be measured" in fine.verdict


def test_outputs_that_differ_or_are_not_numbers_are_warned_of(fake: Any, one_thread: Target) -> None:
    rows = [fake("steady", ms=0.2), fake("random", ms=0.2, random=True), fake("nan", ms=0.2, nan=True)]
    steady, wild, nan = measure_rows(rows, one_thread, SHORT)
    assert not any("different outputs" in w or "NaN" in w for w in steady.warnings)
    assert any("different outputs for the same input" in w for w in wild.warnings)
    assert any("NaN" in w for w in nan.warnings)


def test_a_warning_that_all_rows_share_is_said_once() -> None:
    rows = {"a": ["busy", "restless"], "b": ["busy"]}
    assert each_once(rows, common="x86-cpu") == ["x86-cpu: busy", "a: restless"]
    assert each_once(rows) == ["busy", "a: restless"]


def test_threads_beyond_the_machine_are_clamped_and_stated(fake: Any) -> None:
    wide = load_target("x86-cpu")
    wide = wide.model_copy(update={"run": wide.run.model_copy(update={"threads": 999})})
    measured = measure_rows([fake("a", ms=0.2)], wide, SHORT)[0]
    assert measured.threads == machine.usable_threads()
    assert any("asks for 999 threads" in w for w in measured.warnings)


def test_throttling_that_begins_midway_makes_the_verdict_unknown(
    fake: Any, one_thread: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sysroot's throttle counter grows while the model runs, as the fake runtime's file tells it."""
    root = tmp_path / "root"
    counter = root / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    counter.parent.mkdir(parents=True)
    counter.write_text("7\n")
    (tmp_path / "fake.py").write_text(
        FAKE.replace("self.calls += 1\n", f"self.calls += 1\n        grow({str(counter)!r})\n")
        + "\ndef grow(path):\n    Path(path).write_text(str(time.monotonic_ns()))\n"
    )
    monkeypatch.setenv(machine.SYSROOT, str(root))
    rows = [fake("a", ms=0.2), fake("b", ms=0.4)]
    measured = measure_rows(rows, one_thread, SHORT)[1]
    assert not measured.trusted
    assert "slowed itself down" in measured.verdict
    assert measured.verdict.startswith("can't tell")


def test_a_second_benchmark_waits_for_the_first(tmp_path: Path) -> None:
    lock, order = tmp_path / "lock", []

    def second() -> None:
        with machine_lock(lock, poll_s=0.01):
            order.append("second")

    with machine_lock(lock):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_the_lock_gives_up_after_its_time_and_is_freed_by_death(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from edgekit.measure.lock import machine_lock\n"
        "with machine_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InconclusiveError, match="another edgekit benchmark"), machine_lock(lock, wait_s=0, poll_s=0.01):
        pass
    holder.kill()
    holder.wait()
    with machine_lock(lock, wait_s=5, poll_s=0.01):
        pass


def test_the_lock_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="can't open the lock"), machine_lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


# ── real runtimes ────────────────────────────────────────────────────────────────────────────────


def cnn(path: Path, channels: int, layers: int = 3, *, free_size: bool = False) -> Path:
    """A small CNN as an ONNX file."""
    onnx, numpy = pytest.importorskip("onnx"), pytest.importorskip("numpy")
    from onnx import TensorProto, helper, numpy_helper

    draw, nodes, weights, last, width = numpy.random.default_rng(0), [], [], "image", 3
    for i in range(layers):
        kernel = draw.standard_normal((channels, width, 3, 3)).astype("float32") * 0.1
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last, width = f"r{i}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    size = "height" if free_size else 32
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, size, 32])
    pooled = helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", channels, 1, 1])
    graph = helper.make_graph(nodes, "cnn", [image], [pooled], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


@pytest.mark.parametrize(("runtime", "pairs"), [("onnxruntime", 8), ("openvino", 2)])
def test_a_model_of_four_times_the_work_is_proved_slower(runtime: str, pairs: int, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    small, large = cnn(tmp_path / "small.onnx", 8), cnn(tmp_path / "large.onnx", 32)
    name = {"onnxruntime": "x86-cpu", "openvino": "x86-openvino"}[runtime]
    first, second = edgekit.benchmark([small, large], target=name, budget_s=300, pairs=pairs, max_pairs=pairs)
    assert second.different is (True if pairs >= 8 else None)
    assert second.ratio is not None
    assert second.ratio > 1.5
    assert second.verdict.startswith("slower" if pairs >= 8 else "can't tell")
    for measured in (first, second):
        assert measured.first_inference_ms is not None
        assert measured.load_ms is not None
        assert measured.peak_rss_bytes is not None
        assert measured.peak_rss_bytes > 100_000
        assert measured.size_bytes == (small if measured is first else large).stat().st_size
        assert measured.shipped_bytes is not None
        assert 0 < measured.shipped_bytes <= measured.size_bytes + 100
    assert "large.onnx" in str(_text(table([first, second])))


def _text(shown: Any) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(shown)
    return console.export_text()


def test_example_inputs_fix_a_free_size_and_their_lack_is_explained(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import numpy as np

    model = cnn(tmp_path / "free.onnx", 4, free_size=True)
    failed = benchmark([model], pairs=2, max_pairs=2)[0]
    assert failed.status == "failed"
    assert "free size" in failed.reason
    np.savez(tmp_path / "inputs.npz", image=np.zeros((1, 3, 16, 32), "float32"))
    assert benchmark([model], inputs=tmp_path / "inputs.npz", pairs=2, max_pairs=2)[0].status == "ok"
    np.savez(tmp_path / "wrong.npz", other=np.zeros((1, 3, 16, 32), "float32"), more=np.zeros(1))
    wrong = benchmark([model], inputs=tmp_path / "wrong.npz", pairs=2, max_pairs=2)[0]
    assert wrong.status == "failed"
    assert "has an input 'image'" in wrong.reason
    assert exit_code([wrong]) == 2  # what the user gave is wrong, not the model


def test_rows_of_files_are_named_apart_and_run_by_what_reads_them(tmp_path: Path) -> None:
    onnx, xml = tmp_path / "m.onnx", tmp_path / "m.xml"
    deep = [tmp_path / folder / "k.onnx" for folder in ("a/x", "b/x", "c")]
    for file in (onnx, xml, *deep):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    rows = rows_of([onnx, onnx, xml], load_target("x86-cpu"), None)
    assert [row.id for row in rows] == ["m.onnx", "m.onnx (2)", "m.xml"]
    assert [row.id for row in rows_of(deep, load_target("x86-cpu"), None)] == ["a/x/k.onnx", "b/x/k.onnx", "c/k.onnx"]
    assert [row.backend for row in rows] == ["onnxruntime", "onnxruntime", "openvino"]
    assert rows[2].target is not None
    assert rows[2].target.options == {}  # those of ONNX Runtime are not OpenVINO's


@pytest.fixture(scope="module")
def unsound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that call themselves ONNX models."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("unsound")
    whole = cnn(folder / "good.onnx", 4).read_bytes()
    model = onnx.load_from_string(whole)
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    model.opset_import[0].version = 99
    onnx.save(model, str(folder / "future.onnx"))
    model.opset_import[0].version = 18
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    (folder / "outside.onnx").write_bytes(model.SerializeToString())
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "empty"),
        ("cut", "cut off"),
        ("future", "operator set 99 is newer"),
        ("outside", "outside the model's folder"),
    ],
)
def test_an_unsound_file_is_refused_before_any_runtime_sees_it(
    unsound: Path, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.measure.bench.measure_rows", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(InputError) as refused:
        benchmark([unsound / f"{name}.onnx"])
    assert said in str(refused.value)
    assert f"{name}.onnx" in refused.value.where


def test_another_kind_of_device_is_not_measured_here(unsound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a number for a board that is not here; that it has fewer cores is told, and no reason."""
    monkeypatch.setattr("edgekit.measure.bench.measure_rows", lambda *_, **__: pytest.fail("measured"))
    other = "raspberry-pi-5" if platform.machine() == "x86_64" else "x86-cpu"
    with pytest.raises(UnavailableError, match="its times can't be measured here"):
        benchmark([unsound / "good.onnx"], target=other)


@pytest.mark.parametrize("asked", [{"budget_s": -1.0}, {"budget_s": float("nan")}, {"pairs": 1}, {"precision": 0.0}])
def test_settings_out_of_range_are_refused(unsound: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"measure.{next(iter(asked))}"):
        benchmark([unsound / "good.onnx"], **asked)


def test_a_file_that_kills_its_parser_is_wrong_input(unsound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.backends.CHECK_S", 0.0)  # killed at once, as by the system
    with pytest.raises(InputError, match="can't be read: backends:check_source_job was killed"):
        benchmark([unsound / "good.onnx"])


def test_a_model_that_cannot_run_costs_itself_and_decides_the_exit_code(unsound: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(unsound / "good.onnx"))
    model.graph.node[0].domain = "my.operators"
    model.opset_import.add(domain="my.operators", version=1)
    onnx.save(model, str(tmp_path / "strange.onnx"))
    damaged = tmp_path / "damaged.ort"
    damaged.write_bytes(bytes(100))
    good, strange, bad = benchmark([unsound / "good.onnx", tmp_path / "strange.onnx", damaged], pairs=2, max_pairs=2)
    assert [one.status for one in (good, strange, bad)] == ["ok", "unavailable", "failed"]
    assert "my.operators" in strange.reason
    crashed = Measured(id="x", status="failed", exit_code=3)
    for rows, code in (([good], 0), ([good, strange], 4), ([strange, crashed], 3), ([crashed, bad, strange], 2)):
        assert exit_code(rows) == code
    with pytest.raises(InputError, match="no such file"):
        benchmark([tmp_path / "absent.onnx"])
    with pytest.raises(InputError, match="no model"):
        benchmark([])


def test_scenarios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from edgekit.measure import scenarios

    for name, value in (("RUNS", 1), ("FRAMES", 5), ("STREAM_S", 0.2), ("BATCHES", (1, 4)), ("INTERVAL_MS", 10.0)):
        monkeypatch.setattr(scenarios, name, value)
    model = cnn(tmp_path / "m.onnx", 4)
    names = ("batches", "threads", "paced", "single-stream", "offline", "energy")
    measured = benchmark([model], pairs=2, max_pairs=2, scenarios=names)
    found = measured[0].scenarios
    said = _text(table(measured))
    assert "m.onnx: batches: Batch 4, " in said
    assert "m.onnx: paced: Interval 10.0 ms, Inferences 5, Median " in said
    assert "{" not in said
    assert [p["batch"] for p in found["batches"]["points"]] == [1, 4]
    assert all(p["samples_per_s"] > 0 for p in found["batches"]["points"])
    assert found["threads"]["points"][0]["speedup"] == 1.0
    assert found["paced"]["inferences"] == 5
    stream = found["single-stream"]
    assert stream["p90_bound_ms"] >= stream["median_ms"]
    assert not stream["rules_met"]
    assert stream["note"].startswith("no MLPerf score")
    assert found["offline"]["samples"] % found["offline"]["batch"] == 0
    assert not found["offline"]["rules_met"]
    assert "unavailable" in found["energy"] or found["energy"]["joules"] >= 0
    with pytest.raises(InputError, match="did you mean 'paced'"):
        benchmark([model], pairs=2, max_pairs=2, scenarios=["pace"])


def test_energy_counters_wrap_and_only_packages_count() -> None:
    before = {"package-0": (900, 1000), "core": (5, 1000)}
    assert machine.joules(before, {"package-0": (100, 1000), "core": (905, 1000)}) == pytest.approx(200 / 1e6)
    assert machine.joules({"psys": (0, 10)}, {"psys": (4, 10)}) == pytest.approx(4 / 1e6)


def test_a_jetsons_rails_are_integrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "sys/class/hwmon/hwmon3"
    base.mkdir(parents=True)
    for name, text in {
        "name": "ina3221",
        "in1_label": "VDD_IN",
        "in1_input": "5000",
        "curr1_input": "800",
        "in2_label": "VDD_CPU",
        "in2_input": "900",
        "curr2_input": "1000",
    }.items():
        (base / name).write_text(text + "\n")
    monkeypatch.setenv(machine.SYSROOT, str(tmp_path))
    assert machine.power_rails() == {"VDD_IN": 4.0, "VDD_CPU": 0.9}
    meter = energy.Meter()
    read = meter.stop()
    assert read is not None
    assert read.joules == pytest.approx(4.0 * read.seconds, abs=0.1)  # the rail that feeds the others counts alone
    assert "VDD_IN" in read.sensor
    assert energy.integral([(0.0, 2.0), (1.0, 4.0), (3.0, 4.0)]) == 11.0
    assert machine.total_watts({"a": 1.0, "b": 2.0}) == 3.0


def test_without_a_sensor_there_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.SYSROOT, str(tmp_path))
    assert energy.Meter().stop() is None


def test_energy_for_one_inference(
    fake: Any, one_thread: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counter that grows by a joule with every inference, and by nothing at rest."""
    from edgekit.measure import scenarios

    zone = tmp_path / "root/sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "262143328850"), ("energy_uj", "5000000")):
        (zone / name).write_text(text)
    counter = str(zone / "energy_uj")
    grow = f"Path({counter!r}).write_text(str(int(Path({counter!r}).read_text()) + 1_000_000))"
    (tmp_path / "fake.py").write_text(FAKE.replace("self.calls += 1\n", f"self.calls += 1\n        {grow}\n"))
    monkeypatch.setenv(machine.SYSROOT, str(tmp_path / "root"))
    monkeypatch.setattr(scenarios, "IDLE_S", 0.0)
    monkeypatch.setattr(scenarios, "STREAM_S", 0.1)
    here = scenarios.setting(fake("a", ms=1.0), one_thread, timeout_s=60, base=None)
    found = scenarios.explore(["energy"], here)["energy"]
    assert found["joules"] == pytest.approx(1.0, rel=0.05)
    assert found["idle_watts"] == 0
    assert found["sensor"].startswith("RAPL: package-0")


def test_only_monotonic_clocks_are_read() -> None:
    """A clock that is set back an hour in the middle of a run must change nothing."""
    for path in Path(measure_package.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert "time.time(" not in text, path
        assert "datetime" not in text, path


def test_bench_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = cnn(tmp_path / "m.onnx", 4)
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'openvino', 'scipy'): sys.modules[name] = None\n"
        "import edgekit\n"
        "print(edgekit.benchmark([sys.argv[1]], pairs=2, max_pairs=2)[0].status)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert run.stdout.strip() == "ok"


def test_measured_is_what_the_contract_says() -> None:
    empty = Measured(id="x", status="failed", reason="why").to_json()
    assert {"latency_ms", "first_inference_ms", "load_ms", "peak_rss_bytes", "cpu_ms", "mde", "verdict"} <= set(empty)
    assert empty["warnings"] == []
