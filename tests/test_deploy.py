"""Deploy through the real ``ssh`` client to a server on loopback: connection, disk and keys fail on purpose."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_maker as make
import ssh_servers
from ssh_servers import Asyncssh, Device, OpenSSH, Proxy, Server, config

from edgekit import bundle, console, deploy, result, target
from edgekit.deploy import _examine, _job, _outcome, _preflight, _remote, _transfer, _wheels
from edgekit.deploy._remote import DroppedError, Remote, patiently
from edgekit.errors import InputError, UnavailableError
from edgekit.gating import limits
from edgekit.pipeline import golden

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
pytestmark = [
    pytest.mark.skipif(shutil.which("ssh") is None, reason="the OpenSSH client is not installed"),
    pytest.mark.filterwarnings("ignore:coroutine 'Queue.join' was never awaited"),  # asyncssh's, when a client is cut
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _ask_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "POLL_S", 0.1)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ssh_servers.keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.bare(tmp_path_factory.mktemp("device") / "env", "numpy", "onnxruntime")


@pytest.fixture(scope="session")
def rec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record with two measured rows and one for a device of another kind."""
    folder = tmp_path_factory.mktemp("record")
    work = tmp_path_factory.mktemp("work")
    cpu, pi = target.load_target("x86-cpu"), target.load_target("raspberry-pi-5")
    net, slim = make.model(work / "net.onnx", width=64), make.model(work / "slim.onnx")
    nothing = dict.fromkeys(("latency_ms", "first_inference_ms", "peak_rss_bytes"))
    unmeasured: dict[str, Any] = {"status": "built", **nothing}
    rows = [
        make.row(folder, "fp32", cpu, net, **unmeasured),
        make.row(folder, "slim", cpu, slim, **unmeasured, vs_reference=make.against("fp32@x86-cpu", 0.0)),
        make.row(folder, "fp32", pi, net),
    ]  # fmt: skip
    make.record(folder, rows, make.images(work / "data"))
    return folder


@pytest.fixture(scope="session")
def bundles(rec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if platform.machine() != "x86_64":
        pytest.skip("these bundles are for x86-64")
    folder = tmp_path_factory.mktemp("bundles")
    made = {v: bundle.bundle(rec, "x86-cpu", v, folder / v) for v in ("fp32", "slim")}
    return {**made, "pi": bundle.bundle(rec, "raspberry-pi-5", "fp32", folder / "pi")}


@pytest.fixture(params=[Asyncssh, OpenSSH])
def serve(request: pytest.FixtureRequest, keys: Path) -> Iterator[Callable[[Device], Server]]:
    """Starts servers for devices, and stops them when the test is over."""
    if request.param is OpenSSH and ssh_servers.SSHD is None:
        pytest.skip("OpenSSH's server (sshd) is not installed")
    with ExitStack() as stack:

        def start(device: Device) -> Server:
            server = request.param(device, keys)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def server(serve: Callable[[Device], Server], python: Path, tmp_path: Path) -> Server:
    return serve(ssh_servers.device(tmp_path, python))


def go(bundle_path: Any, config_path: Path, *hosts: str, **options: Any) -> list[deploy.Deployed]:
    return deploy.deploy(bundle_path, hosts or ("device",), ssh_config=config_path, seconds=0.05, **options)


def altered(sound: Path, into: Path) -> Path:
    """A bundle whose golden outputs are twice what the model gives; its hashes are right."""
    broken = Path(shutil.copytree(sound, into))
    with np.load(broken / "golden.npz") as file:
        arrays = {name: file[name] * (2 if name.startswith("out:") else 1) for name in file.files}
    golden.write(arrays, broken / "golden.npz")
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["files"]["golden.npz"] = bundle._facts(broken / "golden.npz")
    (broken / "manifest.json").write_text(json.dumps(manifest))
    return broken


def place(server: Server) -> list[str]:
    folder = server.device.home / ".cache" / "edgekit" / "bundles"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_numbers_come_home(rec: Path, bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path) -> None:
    """Both variants, one after the other, into the record: latency, device, state, speed-up, and it validates."""
    root = shutil.copytree(rec, tmp_path / "rec")
    settings = config(tmp_path, keys, server.port)
    for variant in ("fp32", "slim"):
        (outcome,) = go(bundles[variant], settings, results=root)
        assert (outcome.status, outcome.exit_code, outcome.reason) == ("ok", 0, "")
        assert outcome.check is not None
        assert outcome.check["difference"] <= outcome.check["tolerance"]
        assert all(check.ok for check in outcome.preflight)
    record = result.load_results(root)
    fp32, slim, pi = record["variants"]
    for row in (fp32, slim):
        assert row["status"] == "ok"
        assert row["latency_ms"]["median"] > 0
        assert row["latency_ms"]["runs"] >= 100
        assert row["measured_on"]["host"] == "device"
        assert row["measured_on"]["device"]["arch"] == "x86_64"
        assert set(row["measured_on"]["before"]) == {"temperature_c", "frequency_mhz", "governor", "throttled"}
    assert slim["vs_reference"]["speedup"] == fp32["latency_ms"]["median"] / slim["latency_ms"]["median"]
    assert slim["vs_reference"]["speedup_ci95"] is None
    assert pi["latency_ms"] is None
    assert result.verify(root) == []
    left = place(server)
    assert len(left) == 2
    assert not any(name.endswith((".part", ".job")) for name in left)
    assert not (server.device.home / ".cache/edgekit/busy").exists()
    assert any(row[1] == "latency of slim@x86-cpu" for row in deploy.table([outcome]))


def test_bundles_in_turns_are_compared_exactly(
    rec: Path, bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of seven times the work against a small one, process by process on the device, into the record."""
    monkeypatch.setattr(deploy, "ROUNDS", 8)
    root = shutil.copytree(rec, tmp_path / "rec")
    fp32, slim = go([bundles["fp32"], bundles["slim"]], config(tmp_path, keys, server.port), results=root)
    assert [one.status for one in (fp32, slim)] == ["ok", "ok"]
    assert [one.id for one in (fp32, slim)] == ["fp32@x86-cpu", "slim@x86-cpu"]
    assert fp32.compared is None
    assert slim.compared is not None
    assert slim.compared["pairs"] == 8
    assert slim.compared["different"] is True
    assert slim.compared["speedup_ci99"][0] > 1
    record = result.load_results(root)
    row = record["variants"][1]
    assert row["vs_reference"]["speedup"] == slim.compared["speedup"]
    assert row["vs_reference"]["speedup_ci95"] == slim.compared["speedup_ci95"]
    assert row["latency_ms"]["runs"] == 8
    assert limits._min_speedup(row, 1.01).passed is True  # type: ignore[union-attr]
    shown = {what: (told, good) for _, what, told, good in deploy.table([fp32, slim])}
    assert shown["speed of slim@x86-cpu"][0].endswith("]")
    assert shown["speed of slim@x86-cpu"][1] == "proved"
    assert [what for _, what, _, _ in deploy.table([fp32, slim])].count("processor") == 1


def test_rounds_run_forth_and_back() -> None:
    work = _job.Work("job", "lock", ("a", "b"), rounds=3, seconds=1.0, cache="")
    names = [name for _, name, _ in work.steps()]
    assert names[:2] == ["check-0", "check-1"]
    assert names[2:] == ["bench-0-0", "bench-1-0", "bench-1-1", "bench-0-1", "bench-0-2", "bench-1-2"]


def test_a_bundle_that_fails_on_the_device_costs_itself(
    bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "ROUNDS", 2)
    broken = altered(bundles["slim"], tmp_path / "b")
    good, bad = go([bundles["slim"], broken], config(tmp_path, keys, server.port))
    assert (good.status, bad.status) == ("ok", "failed")
    assert (good.id, bad.id) == ("slim@x86-cpu in slim", "slim@x86-cpu in b")  # one row, two bundles
    assert "differs by" in bad.reason
    assert good.bench is not None
    assert bad.compared is None


def test_bundles_that_do_not_belong_together(
    bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path
) -> None:
    settings = config(tmp_path, keys, server.port)
    for together, said in (
        ([bundles["fp32"], bundles["pi"]], "for raspberry-pi-5 and x86-cpu"),
        ([bundles["fp32"], bundles["fp32"]], "named twice"),
        ([], "no bundle is named"),
    ):
        with pytest.raises(InputError, match=said):
            go(together, settings)
    assert server.device.commands == []


def test_ephemeral_leaves_nothing_not_even_of_what_failed(
    bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path
) -> None:
    sent = altered(bundles["slim"], tmp_path / "b")
    (outcome,) = go(sent, config(tmp_path, keys, server.port), ephemeral=True)
    assert outcome.status == "failed"
    assert "differs by" in outcome.reason
    assert [path for path in server.device.home.rglob("*") if path.is_file()] == []


def test_ephemeral_leaves_a_job_at_work_alone_and_says_so(
    bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is lost while it measures: what is there is needed still; the next call fetches it, and tidies up."""
    monkeypatch.setattr(deploy, "LOST_S", 0.5)
    console.clear_warnings()
    start = _job.start
    proxy = Proxy(server.port)

    def start_then_cut(*arguments: Any) -> None:
        start(*arguments)
        proxy.cut()

    monkeypatch.setattr(_job, "start", start_then_cut)
    (outcome,) = go(bundles["slim"], config(tmp_path, keys, proxy.port), ephemeral=True)
    assert outcome.status == "unavailable"
    assert any("what was sent is still there" in warning for warning in console.warnings())
    (outcome,) = go(bundles["slim"], config(tmp_path, keys, server.port), ephemeral=True)
    assert (outcome.status, outcome.resumed) == ("ok", True)
    assert [path for path in server.device.home.rglob("*") if path.is_file()] == []


def test_what_is_there_is_not_sent_again(bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path) -> None:
    proxy = Proxy(server.port)
    settings = config(tmp_path, keys, proxy.port)
    size = sum(p.stat().st_size for p in bundles["fp32"].iterdir())
    assert go(bundles["fp32"], settings)[0].status == "ok"
    first = proxy.sent
    assert go(bundles["fp32"], settings)[0].status == "ok"
    assert first > size
    assert proxy.sent - first < size / 4


@pytest.mark.parametrize(
    ("change", "problem", "remedy"),
    [
        ({"key": "stranger"}, "refused the login", "ssh device"),
        ({"known": "other_host"}, "not the one that is known", "ssh-keygen -R device"),
        ({"known": None}, "never accepts one on its own", "fingerprint"),
        ({"name": "no-such-host.invalid"}, "no such host name", "ssh/config"),
        ({"port": 1}, "no ssh server listens", "port"),
    ],
)
def test_each_failure_to_connect_is_told_apart(
    bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path, change: Any, problem: str, remedy: str
) -> None:
    settings = config(tmp_path, keys, **{"port": server.port, **change})
    known = (tmp_path / "known_hosts").read_bytes()
    (outcome,) = go(bundles["slim"], settings)
    assert (outcome.status, outcome.exit_code) == ("unavailable", 4)
    assert problem in outcome.reason
    assert remedy in outcome.remedy
    assert (tmp_path / "known_hosts").read_bytes() == known  # nothing was accepted
    assert server.device.commands == []


def test_a_device_without_python(
    bundles: dict[str, Path], serve: Callable[[Device], Server], keys: Path, tmp_path: Path
) -> None:
    bare = serve(ssh_servers.device(tmp_path, python=None))
    (outcome,) = go(bundles["slim"], config(tmp_path, keys, bare.port))
    assert outcome.status == "unavailable"
    assert outcome.reason == "Python: none"
    assert "apt install python3" in outcome.remedy
    assert place(bare) == []
    assert next(check.name for check in outcome.preflight if not check.ok) == "Python"


def test_a_runtime_that_is_missing(
    bundles: dict[str, Path], serve: Callable[[Device], Server], keys: Path, tmp_path: Path
) -> None:
    server = serve(ssh_servers.device(tmp_path, make.bare(tmp_path / "env", "numpy")))
    (outcome,) = go(bundles["slim"], config(tmp_path, keys, server.port))
    assert outcome.reason == "onnxruntime: not installed"
    assert "--install" in outcome.remedy
    assert "onnxruntime==1.32.0" in outcome.remedy
    assert place(server) == []


def test_a_device_is_examined_and_nothing_is_left(server: Server, keys: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, keys, server.port)
    here, gone = deploy.examine(["device", "no-such-host.invalid"], ssh_config=settings)
    found = dict(here.found)
    assert found["processor"] == platform.machine()
    assert found["Python"] == platform.python_version()
    assert "onnxruntime 1." in found["runtimes"]
    assert found["at work"] == "no"
    assert found["can measure"].startswith("latency, memory, ")
    assert (gone.status, gone.exit_code) == ("unavailable", 4)
    assert "no such host name" in gone.reason
    assert [path for path in server.device.home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("facts", "fits"),
    [
        ({"arch": "aarch64", "board": "Raspberry Pi 5 Model B Rev 1.0", "features": "fp asimd asimddp", "cores": "4"},
         {"raspberry-pi-5"}),
        ({"arch": "aarch64", "board": "Raspberry Pi 4 Model B Rev 1.4", "features": "fp asimd", "cores": "4"},
         {"raspberry-pi-4"}),
        ({"arch": "x86_64", "cpu": "Some CPU", "features": "avx2", "cores": "1"},
         {"x86-cpu", "x86-cpu-avx2", "x86-openvino"}),
        ({"arch": "aarch64", "board": "NVIDIA Jetson Orin Nano", "features": "asimd asimddp", "cores": "6"},
         {"jetson-orin-nano"}),
        ({"arch": "riscv64", "cores": "4"}, set()),
        ({}, set()),
    ],
)  # fmt: skip
def test_targets_that_a_device_could_be(facts: dict[str, str], fits: set[str]) -> None:
    assert set(_examine.fitting(facts)) == fits


def test_a_bundle_for_another_processor(bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path) -> None:
    (outcome,) = go(bundles["pi"], config(tmp_path, keys, server.port))
    assert outcome.reason == "processor: x86_64"
    assert "aarch64" in outcome.remedy


def test_a_full_disk(bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path) -> None:
    """Writing fails in the middle of the model; nothing is run, and with room again it goes on."""
    server.device.before.write_text("ulimit -f 64")  # files of 32 KiB at most
    settings = config(tmp_path, keys, server.port)
    (outcome,) = go(bundles["fp32"], settings)
    assert (outcome.status, outcome.exit_code) == ("unavailable", 4)
    assert "can't store the bundle" in outcome.reason
    assert all(name.endswith(".part") for name in place(server))
    server.device.before.write_text("")
    assert go(bundles["fp32"], settings)[0].status == "ok"


def test_a_disk_that_is_full_before_anything_is_sent(bundles: dict[str, Path], keys: Path, tmp_path: Path) -> None:
    facts = {"arch": "x86_64", "python_version": "3.11.2", "free_kb": "900", "writable": "yes"}
    checks = _preflight.judge(facts, bundle.read_bundle(bundles["slim"]), 10**6, install=False)
    (disk,) = [check for check in checks if check.name == "free disk"]
    assert not disk.ok
    assert "free 21 MiB" in disk.remedy


def test_a_real_full_file_system(
    bundles: dict[str, Path], serve: Callable[[Device], Server], keys: Path, python: Path, tmp_path: Path
) -> None:
    """A tmpfs of 64 KiB as the home folder, where this user may mount one."""
    home = tmp_path / "tiny"
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(home)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    try:
        settings = config(tmp_path, keys, serve(ssh_servers.device(tmp_path, python, home)).port)
        (outcome,) = go(bundles["fp32"], settings)
        assert outcome.reason.startswith("free disk: 0 MiB")
        with pytest.raises(UnavailableError, match="No space left on device"):
            _transfer.send(Remote("device", settings), {"model.onnx": bundles["fp32"] / "model.onnx"}, "x")
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_cut_connection_goes_on_where_it_broke(
    bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path
) -> None:
    proxy = Proxy(server.port)
    settings = config(tmp_path, keys, proxy.port)
    remote = Remote("device", settings)
    model = bundles["fp32"] / "model.onnx"
    big = tmp_path / "big.bin"
    big.write_bytes(np.random.default_rng(0).bytes(12_000_000))
    proxy.budget = 9_000_000
    _transfer.send(remote, {"big.bin": big, "model.onnx": model}, "there/files")
    assert proxy.cuts == 1
    assert (server.device.home / "there/files/big.bin").read_bytes() == big.read_bytes()
    assert not (server.device.home / "there/files.part").exists()
    assert proxy.sent < 17_000_000  # not 21 million: it went on (what was on the way when it broke is sent again)


def test_a_connection_that_stays_broken_leaves_no_bundle(
    bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_remote.time, "sleep", lambda seconds: None)
    proxy = Proxy(server.port)
    settings = config(tmp_path, keys, proxy.port)
    appended = Remote.append
    monkeypatch.setattr(Remote, "append", lambda self, *a: (setattr(proxy, "budget", 20_000), appended(self, *a)))
    (outcome,) = go(bundles["fp32"], settings)
    assert outcome.status == "unavailable"
    assert "broke 4 times" in outcome.reason
    assert all(name.endswith(".part") for name in place(server))
    monkeypatch.setattr(Remote, "append", appended)
    proxy.budget = None
    assert go(bundles["fp32"], settings)[0].status == "ok"


def test_damage_on_the_way_is_mended(bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path) -> None:
    """A wrong file of full length and a foreign one lie in the half-copied folder."""
    remote = Remote("device", config(tmp_path, keys, server.port))
    part = server.device.home / "there.part"
    part.mkdir()
    data = (bundles["slim"] / "model.onnx").read_bytes()
    (part / "model.onnx").write_bytes(b"x" * len(data))
    (part / "foreign.bin").write_bytes(b"?")
    _transfer.send(remote, {"model.onnx": bundles["slim"] / "model.onnx"}, "there")
    assert {p.name: p.read_bytes() for p in (server.device.home / "there").iterdir()} == {"model.onnx": data}
    (server.device.home / "there" / "model.onnx").write_bytes(b"later damage")
    _transfer.send(remote, {"model.onnx": bundles["slim"] / "model.onnx"}, "there")
    assert (server.device.home / "there" / "model.onnx").read_bytes() == data


def test_the_job_outlives_the_connection(
    bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is cut for good while the device measures: the next call fetches that run's results."""
    monkeypatch.setattr(deploy, "LOST_S", 1.0)
    proxy = Proxy(server.port)
    start = _job.start

    def start_then_cut(*arguments: Any) -> None:
        start(*arguments)
        proxy.cut()

    monkeypatch.setattr(_job, "start", start_then_cut)
    (outcome,) = go(bundles["slim"], config(tmp_path, keys, proxy.port))
    assert outcome.status == "unavailable"
    assert "while the device worked" in outcome.reason
    monkeypatch.setattr(_job, "start", lambda *a: pytest.fail("started again"))
    (outcome,) = go(bundles["slim"], config(tmp_path, keys, server.port))
    assert (outcome.status, outcome.resumed) == ("ok", True)
    assert outcome.bench is not None
    monkeypatch.setattr(_job, "start", start)
    (outcome,) = go(bundles["slim"], config(tmp_path, keys, server.port))
    assert (outcome.status, outcome.resumed) == ("ok", False)  # fetched once; a new call measures anew


def test_a_job_that_is_killed(
    bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = _job.start

    def start_then_kill(remote: Remote, work: _job.Work, python: str) -> None:
        start(remote, work, python)
        pid = server.device.home / work.folder / "pid"
        lock = server.device.home / ".cache/edgekit/busy"
        while not (pid.exists() and pid.read_text().strip() and lock.is_dir()):
            time.sleep(0.02)
        os.killpg(int(pid.read_text()), 9)

    monkeypatch.setattr(_job, "start", start_then_kill)
    (outcome,) = go(bundles["slim"], config(tmp_path, keys, server.port))
    assert outcome.status == "failed"
    assert "ended on the device without a result" in outcome.reason
    monkeypatch.setattr(_job, "start", start)
    assert go(bundles["slim"], config(tmp_path, keys, server.port))[0].status == "ok"  # its lock is broken


def test_a_remote_255_is_not_sshs(server: Server, keys: Path, tmp_path: Path) -> None:
    remote = Remote("device", config(tmp_path, keys, server.port))
    assert remote.script("echo hello; exit 255") == _remote.Answer(255, "hello\n")
    server.device.before.write_text("cat >/dev/null; exit 9")
    with pytest.raises(UnavailableError, match="ran no shell script") as caught:
        remote.script("echo hello")
    assert caught.value.exit_code == 4
    server.device.before.write_text("")
    proxy = Proxy(server.port)
    through = Remote("device", config(tmp_path, keys, proxy.port))
    threading.Timer(1.0, proxy.cut).start()
    with pytest.raises(DroppedError):
        through.script("sleep 20")


def test_login_noise_and_escapes_do_not_matter(server: Server, keys: Path, tmp_path: Path) -> None:
    server.device.before.write_text("echo 'Welcome! edgekit-begin'; printf '\\033[31mred\\033[0m\\n'")
    answer = Remote("device", config(tmp_path, keys, server.port)).script("printf 'a\\033[2Jb\\007\\r\\n'")
    assert answer.out == "ab\n"


def test_a_device_that_never_stops_talking(server: Server, keys: Path, tmp_path: Path) -> None:
    remote = Remote("device", config(tmp_path, keys, server.port))
    with pytest.raises(UnavailableError, match="more than 2000000 bytes"):  # asyncssh may break off first
        patiently(lambda: remote.script("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyy; done"), "device")


BENCH = {
    "latency_ms": {"median": 1.0, "p90": 1.0, "p99": None, "ci95": [1.0, 1.0], "runs": 9},
    "first_inference_ms": 1.0,
    "peak_rss_bytes": 5,
    "numerics_only": "",
    "device": {"arch": "x86_64"},
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[1]",
        "[" * 50_000,
        json.dumps({**BENCH, "latency_ms": {**BENCH["latency_ms"], "median": -1}}),  # type: ignore[dict-item]
        json.dumps({**BENCH, "latency_ms": {**BENCH["latency_ms"], "median": "fast"}}),  # type: ignore[dict-item]
        json.dumps({**BENCH, "latency_ms": {**BENCH["latency_ms"], "ci95": [1]}}),  # type: ignore[dict-item]
        json.dumps({**BENCH, "latency_ms": {**BENCH["latency_ms"], "runs": 1.5}}),  # type: ignore[dict-item]
        json.dumps({**BENCH, "latency_ms": {**BENCH["latency_ms"], "p90": float("inf")}}),  # type: ignore[dict-item]
    ],
)
def test_reports_that_are_none(text: str) -> None:
    assert _job._report("bench", text) is None


def test_reports_keep_nothing_but_what_is_known() -> None:
    told = _job._report("bench", json.dumps({**BENCH, "evil": "x" * 9, "peak_rss_bytes": "much", "before": [1]}))
    assert told is not None
    assert "evil" not in told
    assert told["peak_rss_bytes"] is None
    assert told["before"]["temperature_c"] is None
    long = _job._report("check", json.dumps({"difference": 0, "tolerance": 1, "samples": 1, "files": 1,
                                             "device": {"cpu": "y" * 999}}))  # fmt: skip
    assert long is not None
    assert len(long["device"]["cpu"]) == 200
    assert _job._report("check", '{"error": "no", "remedy": 5}') == {"error": "no", "remedy": "5"}


@pytest.mark.parametrize(
    ("codes", "check", "status", "code"),
    [
        ({"check": 0}, None, "unavailable", 4),  # it says that all is well, and gives no report
        ({"check": 3}, {"error": "differs", "remedy": "r"}, "failed", 3),
        ({"check": 4}, {"error": "no onnxruntime", "remedy": "r"}, "unavailable", 4),
        ({"check": 255}, None, "failed", 3),
        ({}, None, "failed", 3),
    ],
)
def test_outcomes_by_what_the_runner_says(
    codes: dict[str, int], check: dict[str, Any] | None, status: str, code: int
) -> None:
    step = _job.Step(codes.get("check", 3), check, "")
    (outcome,) = _outcome.judged("device", ["x"], [_job.Finished(step, (_job.Step(3, None, ""),))])
    assert (outcome.status, outcome.exit_code) == (status, code)
    assert outcome.reason
    assert outcome.remedy


def test_several_devices_at_once(
    rec: Path, bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path
) -> None:
    """Two names of one device, and one that is not there: the two wait for one another, the third stops nobody."""
    root = shutil.copytree(rec, tmp_path / "rec")
    settings = config(tmp_path, keys, server.port)
    outcomes = go(bundles["slim"], settings, "device", "no-such-host.invalid", results=root)
    assert [outcome.status for outcome in outcomes] == ["ok", "unavailable"]
    row = result.load_results(root)["variants"][1]
    assert [device["host"] for device in row["devices"]] == ["device", "no-such-host.invalid"]
    assert row["latency_ms"] == outcomes[0].bench["latency_ms"]  # type: ignore[index]


def test_wrong_outputs_on_the_device(bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path) -> None:
    broken = altered(bundles["slim"], tmp_path / "b")
    (outcome,) = go(broken, config(tmp_path, keys, server.port))
    assert (outcome.status, outcome.exit_code) == ("failed", 3)
    assert "differs by" in outcome.reason
    assert outcome.bench is None


def test_throttling_is_told() -> None:
    calm = {"temperature_c": 50.0, "frequency_mhz": 2400.0, "governor": "ondemand", "throttled": "0"}
    assert _outcome.slowed({"before": calm, "after": calm}) == ""
    assert "0 → 50000" in _outcome.slowed({"before": calm, "after": {**calm, "throttled": "50000"}})
    assert "2400 to 1500" in _outcome.slowed({"before": calm, "after": {**calm, "frequency_mhz": 1500.0}})
    unknown = dict.fromkeys(calm)
    assert _outcome.slowed({"before": unknown, "after": unknown}) == ""


def test_a_device_s_times_replace_all_that_was_measured_here(rec: Path) -> None:
    """A verdict of this machine, or its speed-up, must not stand beside a device's latency."""
    results = result.load_results(rec)
    reference, row = results["variants"][0], results["variants"][1]
    row["measured"] = {"different": True, "speedup_ci99": [1.9, 2.1], "trusted": True}
    row["vs_reference"] = {**make.against(reference["id"], 0.0), "speedup": 2.0, "speedup_ci95": [1.9, 2.1]}
    bench: dict[str, Any] = {**BENCH, "before": None, "after": None}
    fast = deploy.Deployed("pi", "ok", bench=bench, id=row["id"])
    alone = deploy.merge(results, [fast])
    assert alone["variants"][1]["measured"] is None
    assert alone["variants"][1]["vs_reference"]["speedup"] is None
    slow = {**bench, "latency_ms": {**bench["latency_ms"], "median": 3.0}}
    both = deploy.merge(alone, [deploy.Deployed("pi", "ok", bench=slow, id=reference["id"])])
    against = both["variants"][1]["vs_reference"]
    assert against["speedup"] == pytest.approx(3.0)
    assert against["speedup_ci95"] is None
    result.validate(both)
    told = limits._min_speedup(both["variants"][1], 1.5)
    assert "not measured in turns" in str(told)


def test_an_emulated_device_gives_no_number(rec: Path) -> None:
    bench = {**BENCH, "latency_ms": None, "numerics_only": "this processor is emulated", "before": None, "after": None}
    check = {"difference": 0.0, "tolerance": 1.0}
    outcome = deploy.Deployed("qemu", "ok", check=check, bench=bench, id="slim@x86-cpu")
    merged = deploy.merge(result.load_results(rec), [outcome])
    row = merged["variants"][1]
    assert row["status"] == "built"
    assert row["latency_ms"] is None
    assert row["devices"][0]["numerics_only"] == "this processor is emulated"
    result.validate(merged)


def test_nothing_is_sent_that_is_wrong_here(
    rec: Path, bundles: dict[str, Path], server: Server, keys: Path, tmp_path: Path
) -> None:
    settings = config(tmp_path, keys, server.port)
    broken = shutil.copytree(bundles["slim"], tmp_path / "b")
    data = bytearray((broken / "model.onnx").read_bytes())
    data[100] ^= 1
    (broken / "model.onnx").write_bytes(data)
    with pytest.raises(InputError, match="was changed"):
        go(broken, settings)
    other = shutil.copytree(rec, tmp_path / "rec")
    results = result.load_results(other)
    results["variants"][1]["artifact"]["sha256"] = "0" * 64
    result.write_results(results, other / "results.json")
    with pytest.raises(InputError, match="is not in this record"):
        go(bundles["slim"], settings, results=other)
    for options, said in (
        ({"wheel_folder": tmp_path}, "nothing is to be installed"),
        ({"wheel_folder": tmp_path / "none", "install": True}, "no such folder of wheels"),
        ({"seconds": 0.0}, "can't measure for 0.0 seconds"),
        ({"seconds": float("nan")}, "can't measure for nan seconds"),
    ):
        with pytest.raises(InputError, match=said):
            deploy.deploy(bundles["slim"], ["device"], ssh_config=settings, **options)
    with pytest.raises(InputError, match="no such bundle"):
        go(tmp_path / "none", settings)
    for hosts in ((), ("device", "device"), ("-oProxyCommand=touch${IFS}x",), ("a b",), ("x;reboot",)):
        with pytest.raises(InputError):
            deploy.deploy(bundles["slim"], hosts, ssh_config=settings)
    assert server.device.commands == []


def test_an_archive_is_deployed_as_a_folder_is(rec: Path, server: Server, keys: Path, tmp_path: Path) -> None:
    archive = bundle.bundle(rec, "x86-cpu", "slim", tmp_path / "b.zip", zip=True)
    assert go(archive, config(tmp_path, keys, server.port))[0].status == "ok"


def test_wheel_platforms_follow_the_c_library() -> None:
    newest = _wheels.platforms({"arch": "aarch64", "libc": "glibc 2.31"})
    assert newest[0] == "manylinux_2_31_aarch64"
    assert newest[-2:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert "manylinux_2_32_aarch64" not in newest


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts = {"arch": platform.machine(), "libc": "glibc 2.36", "python_version": platform.python_version(),
             "python_tag": f"cp{PYTHON.replace('.', '')}"}  # fmt: skip
    try:
        return _wheels.download(["numpy", "onnxruntime==1.32.0"], facts, tmp_path_factory.mktemp("wheels"))
    except UnavailableError as error:
        pytest.skip(f"no wheels: {error.problem[:100]}")


def test_install_puts_the_runtime_there(
    bundles: dict[str, Path], serve: Callable[[Device], Server], wheels: Path, keys: Path, tmp_path: Path
) -> None:
    """A device with a bare Python gets pip, numpy and ONNX Runtime as wheels, where an index can be reached."""
    server = serve(ssh_servers.device(tmp_path, Path(sys.base_prefix) / "bin" / f"python{PYTHON}"))
    settings = config(tmp_path, keys, server.port)
    for _ in range(2):  # the second finds the environment whole
        (outcome,) = go(bundles["slim"], settings, install=True, wheel_folder=wheels)
        assert outcome.status == "ok", outcome.reason
    assert outcome.bench is not None
    assert len(list((server.device.home / ".cache/edgekit/envs").iterdir())) == 1
