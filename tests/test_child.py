"""Child processes: the parent survives whatever happens in them, and says what it was."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit import child, console
from edgekit.errors import InputError, StageError

HERE = {"PYTHONPATH": str(Path(__file__).parent)}


# What the children are asked to do: this module is imported there under its own name.
def add(a: int, b: int) -> int:
    return a + b


def refuse() -> None:
    raise InputError("bad file", remedy="mend it", where="a.onnx")


def mutter() -> int:
    console.warn("the child has seen something")
    return 1


def abort() -> None:
    os.abort()


def segfault() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(7)


def hang(log: str) -> None:
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(3); open({log!r}, 'w').write('orphan')"])
    time.sleep(60)


def flood() -> str:
    for _ in range(200):
        os.write(1, b"x" * 100_000)
        os.write(2, b"y" * 100_000)
    return "done"


def fill() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/model.onnx")


def eat() -> int:
    return len(bytearray(1 << 60))


def environment() -> dict[str, str]:
    return {key: os.environ.get(key, "") for key in (*child.SCRUBBED, "OMP_NUM_THREADS")}


def advance() -> int:
    return sum(1 for _ in console.track(_slowly(5), "working", total=5))


def _slowly(count: int) -> Any:
    for number in range(count):
        time.sleep(0.15)
        yield number


def sleep_and_tell(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def call(name: str, **arguments: Any) -> Any:
    return child.call(f"test_child:{name}", env=HERE, **arguments)


def test_what_a_child_warns_of_is_said_here() -> None:
    console.clear_warnings()
    assert call("mutter") == 1
    assert console.warnings() == ["the child has seen something"]


def test_a_result_comes_back() -> None:
    assert call("add", a=1, b=2) == 3


def test_an_error_of_ours_is_raised_again() -> None:
    with pytest.raises(InputError, match=r"a\.onnx: bad file") as caught:
        call("refuse")
    assert caught.value.remedy == "mend it"


@pytest.mark.parametrize(("name", "said"), [("abort", "SIGABRT"), ("segfault", "SIGSEGV"), ("leave", "exit code 7")])
def test_a_crash_is_told_by_name(name: str, said: str) -> None:
    with pytest.raises(StageError, match=said):
        call(name)


def test_a_hanging_child_is_killed_with_all_it_started(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="ran past its limit"):
        call("hang", log=str(tmp_path / "log"), timeout_s=1.0)
    time.sleep(3)
    assert not (tmp_path / "log").exists()


def test_a_flood_of_output_is_drained_and_capped() -> None:
    assert call("flood") == "done"


def test_out_of_memory_is_told() -> None:
    with pytest.raises(StageError, match="out of memory"):
        call("eat")


def test_a_full_disk_is_named() -> None:
    with pytest.raises(StageError, match=r"model\.onnx: can't write this file: No space left on device"):
        call("fill")


def test_the_environment_is_scrubbed() -> None:
    seen = call("environment", threads=1)
    assert seen == {**child.SCRUBBED, "OMP_NUM_THREADS": "1"}


def test_progress_reaches_the_parent() -> None:
    seen: list[tuple[str, int, int]] = []
    with console.reporting(lambda *event: seen.append(event)):
        assert call("advance") == 5
    assert ("working", 5, 5) in seen or any(done > 0 for _, done, _ in seen)


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"from edgekit import child; child.call('test_child:sleep_and_tell', env={HERE!r}, path={str(note)!r})"
    parent = subprocess.Popen([sys.executable, "-c", script])
    for _ in range(200):
        if note.exists() and note.read_text():
            break
        time.sleep(0.1)
    pid = int(note.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(50):
        if not _alive(pid):
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_no_pipe_is_left_open() -> None:
    """``python -W error`` would tell of it on every call."""
    script = "from edgekit import child; child.call('os:getpid'); import gc; gc.collect()"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert "ResourceWarning" not in done.stderr
