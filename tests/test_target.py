"""Device profiles: what a file may say, how a wrong one is told, and whether a device can be used here."""

from __future__ import annotations

import platform
import textwrap
from pathlib import Path
from typing import Any

import pytest

from edgekit import child, console, machine
from edgekit import target as targets
from edgekit.errors import InputError, StageError, UnavailableError
from edgekit.target import Target, availability, load_target, names, read_target

REQUIRED = (
    *("x86-cpu", "x86-cpu-avx2", "x86-openvino", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano"),
    *("jetson-agx-orin", "nvidia-gpu", "nvidia-gpu-onnxruntime", "intel-npu", "intel-igpu", "x86-embedded-2core"),
)


def test_every_device_of_the_contract_is_there() -> None:
    assert set(REQUIRED) <= set(names())


@pytest.mark.parametrize("name", names())
def test_every_target_file_is_whole(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.title
    assert "://" in target.source or target.evidence == "measured"
    assert target.device.arch in ("x86_64", "aarch64")
    assert target.run.threads <= (target.device.cores or 64)
    assert not set(target.device.isa) & set(target.device.isa_absent)
    if target.compile_on_device:
        assert target.cross, "what is compiled on the device can be prepared anywhere"


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Write a target file; each of its lines is what a test may break."""

    def write(text: str, name: str = "board.toml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text).strip() + "\n")
        return path

    return write


WHOLE = """
title = "My board"
source = "its maker"
backend = "onnxruntime"

[device]
arch = "aarch64"
cores = 4

[run]
threads = 4

[options]
spinning = true
"""


def test_a_users_own_file_works_by_path_and_beside_the_recipe(file: Any) -> None:
    path = file(WHOLE)
    assert load_target(str(path)).run.threads == 4
    assert load_target("board.toml", base=path.parent).name == "board"
    (path.parent / "targets").mkdir()
    path.rename(path.parent / "targets" / "x86-cpu.toml")
    assert load_target("x86-cpu", base=path.parent).title == "My board", "the user's own comes first"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("threads = 4", "thread = 4", 10, "unknown key 'run.thread'; did you mean 'threads'"),
        ("threads = 4", 'threads = "four"', 10, "'run.threads' is wrong"),
        ("threads = 4", "threads = 0", 10, "greater than or equal to 1"),
        ("spinning", "spining", 13, "unknown key 'options.spining'; did you mean 'spinning'"),
        ("spinning = true", 'format = "tflite"', 13, "'options.format' is wrong"),
        ('arch = "aarch64"', "", None, "the key 'device.arch' is missing"),
        ('"onnxruntime"', '"onnxruntimes"', None, "no backend named 'onnxruntimes'; did you mean 'onnxruntime'"),
        ("[device]", "[device", 5, "not valid TOML"),
    ],
)
def test_a_wrong_file_is_told_with_line_key_and_the_nearest(
    file: Any, old: str, new: str, line: int | None, words: str
) -> None:
    path = file(WHOLE.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_target(path)
    assert words in caught.value.problem, caught.value.problem
    assert str(path) in caught.value.where
    if line:
        told = caught.value.where + caught.value.problem
        assert f":{line}" in told or f"line {line}" in told
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff\xfe\x00", "not UTF-8"), (b"x = 1\n" * 300_000, "no settings file"), (b"", "is missing")],
)
def test_a_file_that_is_no_settings_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_target(path)
    with pytest.raises(InputError, match="can't read"):
        read_target(tmp_path / "missing.toml")


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'raspberry-pi-5'"):
        load_target("rasberry-pi-5")


def profile(**changes: Any) -> Target:
    device = {"arch": platform.machine(), **changes.pop("device", {})}
    document = {"name": "t", "title": "", "source": "", "backend": "onnxruntime", "device": device}
    return Target.model_validate({**document, **changes})


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Backends asked to prove themselves; they all succeed at once."""
    asked: list[str] = []

    def prove(backend: str, options: str) -> dict[str, str]:
        asked.append(backend)
        return {"version": "1"}

    monkeypatch.setattr(targets, "_proved", prove)
    return asked


OTHER_ARCH = "aarch64" if platform.machine() == "x86_64" else "x86_64"


def test_a_target_of_this_machine_runs(proofs: list[str]) -> None:
    can = availability(profile())
    assert (can.status, can.reason, can.facts) == ("runs", "", {"version": "1"})


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ({"arch": OTHER_ARCH}, f"the device is {OTHER_ARCH}"),
        ({"isa": ["avx2", "no_such_flag"]}, "this CPU lacks"),
        ({"cpu": "Raspberry Pi 99"}, "the device is 'Raspberry Pi 99'"),
    ],
)
def test_another_device_is_built_for_or_not_here(proofs: list[str], device: dict[str, Any], words: str) -> None:
    can = availability(profile(device=device, cross=True))
    assert can.status == "cross"
    assert words in can.reason
    gone = availability(profile(device=device))
    assert gone.status == "unavailable"
    assert gone.reason.startswith("not available here, because ")
    assert words in gone.reason
    assert gone.remedy


def test_a_cpu_that_has_more_runs_other_kernels(proofs: list[str]) -> None:
    flag = sorted(machine.cpu_flags())[0]
    can = availability(profile(device={"isa_absent": [flag]}, cross=True))
    assert can.status == "cross"
    assert "runs other kernels" in can.reason


def test_more_threads_than_cores_is_another_device(proofs: list[str]) -> None:
    can = availability(profile(run={"threads": 4096}))
    assert can.status == "unavailable"
    assert "4096 threads" in can.reason


def test_what_compiles_on_the_device_needs_no_runtime_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def prove(backend: str, options: str) -> dict[str, str]:
        raise UnavailableError("not available here, because it is not installed", remedy="install it")

    monkeypatch.setattr(targets, "_proved", prove)
    jetson = profile(backend="tensorrt", device={"arch": OTHER_ARCH}, cross=True, compile_on_device=True)
    assert availability(jetson).status == "cross"
    assert availability(profile(device={"arch": OTHER_ARCH}, cross=True)).status == "unavailable"
    assert availability(profile()).reason == "not available here, because it is not installed"


def test_a_runtime_that_crashes_makes_its_target_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any, **__: Any) -> Any:
        raise StageError("backends:prove_job crashed with SIGILL in native code", remedy="another build")

    monkeypatch.setattr(child, "call", crash)
    targets._proved.cache_clear()
    can = availability(profile(options={"arena": False}))
    assert can.status == "unavailable"
    assert "SIGILL" in can.reason


def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\nmodel name : A CPU\nflags : {flags}\n")
    monkeypatch.setenv(machine.SYSROOT, str(tmp_path))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="VNNI is x86's")
def test_without_vnni_x86_cpu_runs_with_a_warning(
    proofs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu(monkeypatch, tmp_path, "fpu avx avx2 fma")
    console.clear_warnings()
    can = availability(load_target("x86-cpu"))
    assert can.status == "runs"
    assert "no VNNI" in can.warning
    assert console.warnings() == [f"x86-cpu: {can.warning}"]
    avx2 = availability(load_target("x86-cpu-avx2"))
    assert (avx2.status, avx2.warning) == ("runs", ""), "the target for such a CPU"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="VNNI is x86's")
def test_with_vnni_the_avx2_target_is_built_not_measured(
    proofs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu(monkeypatch, tmp_path, "fpu avx avx2 fma avx_vnni")
    assert availability(load_target("x86-cpu")).warning == ""
    avx2 = availability(load_target("x86-cpu-avx2"))
    assert avx2.status == "cross"
    assert "avx_vnni" in avx2.reason


def test_a_board_is_known_by_its_name(proofs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("Features : fp asimd evtstrm asimddp\nCPU part : 0xd0b\n")
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    monkeypatch.setenv(machine.SYSROOT, str(tmp_path))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(machine, "usable_threads", lambda: 4)
    assert availability(load_target("raspberry-pi-5")).status == "runs"
    four = availability(load_target("raspberry-pi-4"))
    assert (four.status, "Raspberry Pi 4" in four.reason) == ("cross", True)


def test_the_list_has_every_target_with_its_reason() -> None:
    rows = targets.targets()
    assert [row["name"] for row in rows] == names()
    for row in rows:
        assert row["status"] in ("runs", "cross", "unavailable")
        assert bool(row["reason"]) == (row["status"] != "runs")
        assert row["source"]
    (one,) = targets.targets(["x86-openvino"])
    assert one["backend"] == "openvino"


def test_a_digest_is_of_all_that_the_file_says() -> None:
    assert profile().digest() == profile().digest()
    assert profile().digest() != profile(options={"spinning": True}).digest()
