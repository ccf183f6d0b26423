"""The store: whole or absent, one builder at a time, corruption found, killed runs resumable."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit import console
from edgekit.errors import InputError, StageError
from edgekit.store import Store, sha256_json, write_json, write_text


def _make(folder: Path, scratch: Path) -> dict[str, int]:
    (folder / "a.txt").write_text("hello")
    return {"answer": 42}


def test_an_entry_is_built_once_and_then_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.build({"x": 1}, _make)
    again = store.build({"x": 1}, lambda folder, scratch: pytest.fail("built twice"))
    assert (first.cached, again.cached) == (False, True)
    assert again.meta == {"answer": 42}
    assert again.path("a.txt").read_text() == "hello"
    assert store.find({"x": 2}) is None


def test_a_warning_is_said_again_when_the_entry_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def make(folder: Path, scratch: Path) -> dict[str, int]:
        console.warn("dropout is lost")
        return {}

    console.clear_warnings()
    console.warn("said of something else")
    store.build({"x": 1}, make)
    console.clear_warnings()
    store.build({"x": 1}, make)
    assert console.warnings() == ["dropout is lost"]


def test_a_failing_builder_leaves_nothing_but_its_scratch(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path, scratch: Path) -> dict[str, int]:
        (folder / "half.bin").write_text("half")
        (scratch / "checkpoint").write_text("epoch 1")
        raise StageError("no", remedy="none")

    with pytest.raises(StageError):
        store.build({"x": 1}, fail)
    assert store.find({"x": 1}) is None
    assert not list((tmp_path / "building").iterdir())

    def resume(folder: Path, scratch: Path) -> dict[str, str]:
        return {"from": (scratch / "checkpoint").read_text()}

    assert store.build({"x": 1}, resume).meta == {"from": "epoch 1"}
    assert not (tmp_path / "scratch" / sha256_json({"x": 1})).exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "delete", "manifest"])
def test_a_damaged_entry_is_set_aside_and_made_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    entry = store.build({"x": 1}, _make)
    file = entry.path("manifest.json" if damage == "manifest" else "a.txt")
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes({"truncate": b"hel", "flip": b"hallo", "empty": b"", "manifest": b"{"}[damage])
    console.clear_warnings()
    again = store.build({"x": 1}, _make)
    assert not again.cached
    assert again.path("a.txt").read_text() == "hello"
    assert "damaged" in console.warnings()[0]
    assert list((tmp_path / "quarantine").iterdir())


def _build_slowly(root: str, log: str) -> None:
    def make(folder: Path, scratch: Path) -> dict[str, int]:
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        (folder / "a.bin").write_bytes(b"x" * 100_000)
        return {}

    Store(Path(root)).build({"same": "key"}, make)


def test_many_processes_with_one_key_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    workers = [context.Process(target=_build_slowly, args=(str(tmp_path / "cache"), str(log))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(log.read_text().splitlines()) == 1
    found = Store(tmp_path / "cache").find({"same": "key"})
    assert found is not None
    assert found.path("a.bin").stat().st_size == 100_000


def test_a_killed_builder_frees_its_lock(tmp_path: Path) -> None:
    script = (
        "import time, pathlib, sys\nfrom edgekit.store import Store\n"
        "def make(folder, scratch):\n    (folder / 'a').write_text('x'); print('in', flush=True); time.sleep(60)\n"
        "Store(pathlib.Path(sys.argv[1])).build({'x': 1}, make)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(tmp_path)
    assert store.find({"x": 1}) is None
    assert store.build({"x": 1}, _make).meta == {"answer": 42}


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": True})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StageError, match="can't write this file"):
            write_text(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="EDGEKIT_CACHE_DIR"):
        Store(tmp_path / "file" / "cache")
