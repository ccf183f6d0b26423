"""Run one function in a process of its own: foreign native code can abort, hang or leak.

    call("edgekit.backends.onnxruntime:compile_model", model="a.onnx", ..., timeout_s=600)

Arguments and result are JSON. The child's environment is scrubbed (telemetry off), its
output drained and capped, and it dies with its parent. An :class:`EdgekitError` raised in
the child is raised again here, its warnings are said here; a crash, a time-out or any other exception becomes a
:class:`StageError` that says what happened.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from edgekit import errors
from edgekit.console import PROGRESS_FILE, Relay, warn, warnings
from edgekit.store import write_error, write_json

KEPT_OUTPUT = 64 * 1024  # bytes of the child's output that are kept: its end
TIMEOUT_S = 3600.0
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What would phone home, or print where nobody reads, is off in every child.
SCRUBBED = {
    "ORT_DISABLE_TELEMETRY": "1",
    "ORT_TELEMETRY_DISABLED": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONFAULTHANDLER": "1",
    "OMP_WAIT_POLICY": "passive",  # spinning threads make training crawl beside any other program
}


def call(
    function: str,
    /,
    *,
    timeout_s: float = TIMEOUT_S,
    threads: int | None = None,
    env: dict[str, str] | None = None,
    **arguments: Any,
) -> Any:
    """Call ``"module:function"`` with JSON arguments in a child process and return its JSON result.

    Args:
        function: A module-level function, ``package.module:name``.
        timeout_s: Seconds after which the child and all it started are killed.
        threads: If given, the thread count of OpenMP and BLAS pools in the child.
        env: Further environment variables.
        **arguments: Passed to the function; JSON values only (paths as str).

    Raises:
        EdgekitError: As raised by the function.
        StageError: The child crashed, hung or raised something else.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        job, answer, progress = (Path(folder) / name for name in ("job.json", "answer.json", "progress.json"))
        write_json(job, {"function": function, "arguments": arguments, "answer": str(answer)})
        environment = child_environment(threads, {PROGRESS_FILE: str(progress), **(env or {})})
        code, output = run([sys.executable, "-m", "edgekit.child", str(job)], environment, timeout_s, progress)
        if not answer.exists():
            raise _died(function, code, output, timeout_s)
        reply = json.loads(answer.read_text())
    for text in reply["warnings"]:
        warn(text)
    if "error" in reply:
        raise errors.from_dict(reply["error"])
    return reply["result"]


def child_environment(threads: int | None = None, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The scrubbed environment of a child process."""
    environment = {**os.environ, **SCRUBBED, **(extra or {})}
    home = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (home, environment.get("PYTHONPATH"))))
    if threads:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment.update(dict.fromkeys(names, str(threads)))
    return environment


def run(
    command: list[str], environment: dict[str, str], timeout_s: float, progress: Path | None = None
) -> tuple[int, str]:
    """Run a command in a session of its own; return its exit code and the end of what it printed.

    The exit code is that of :mod:`subprocess` (negative: a signal); a time-out kills the whole
    process group and reads as ``-9``.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    tail = bytearray()
    reader = threading.Thread(target=_drain, args=(process, tail), daemon=True)
    reader.start()
    relay = Relay(progress) if progress else None
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                if relay:
                    relay.poll()
                if time.monotonic() > deadline:
                    break
    finally:
        if relay:
            relay.close()
        _kill_group(process)  # also what a finished child left running
    reader.join(5)
    return process.returncode, tail.decode(errors="replace")


def _drain(process: subprocess.Popen[bytes], tail: bytearray) -> None:
    assert process.stdout is not None
    with process.stdout:
        while chunk := os.read(process.stdout.fileno(), 65536):
            tail += chunk
            del tail[:-KEPT_OUTPUT]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _died(function: str, code: int, output: str, timeout_s: float) -> errors.StageError:
    name = function.replace("edgekit.", "")
    if code == -signal.SIGKILL:
        what = f"{name} was killed: it ran past its limit of {timeout_s:.0f} s, or the machine ran out of memory"
        remedy = "use a smaller model, batch or data set, or a machine with more memory"
    elif code < 0:
        what = f"{name} crashed with {signal.Signals(-code).name} in native code"
        remedy = "the other rows go on; run again with -v for the last lines it printed, or try another version"
    else:
        what = f"{name} ended with exit code {code} before it gave a result"
        remedy = "run again with -v for the last lines it printed"
    return errors.StageError(what, remedy=remedy, details=output[-4000:])


def die_with_parent() -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies."""
    import ctypes

    pr_set_pdeathsig = 1
    try:
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    except (OSError, AttributeError):
        return  # not Linux: the time limit still holds


def _told(name: str, error: Exception) -> errors.StageError:
    """What to say of an error that is none of edgekit's own."""
    if isinstance(error, MemoryError):
        return errors.StageError(f"{name} ran out of memory", remedy="use a smaller batch, model or data set")
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return write_error(Path(error.filename or tempfile.gettempdir()), error)
    return errors.StageError(
        f"{name} failed: {type(error).__name__}: {str(error).strip()[:600]}",
        remedy="run again with -v for the whole message",
        details="".join(traceback.format_exception(error))[-6000:],
    )


def main(job_path: str) -> None:
    """The child's side: read the job, call the function, write the answer."""
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    job = json.loads(Path(job_path).read_text())
    module, _, name = job["function"].partition(":")
    try:
        reply = {"result": getattr(importlib.import_module(module), name)(**job["arguments"])}
    except errors.EdgekitError as error:
        reply = {"error": error.to_dict()}
    except Exception as error:
        reply = {"error": _told(name, error).to_dict()}
    write_json(Path(job["answer"]), {**reply, "warnings": warnings()})


if __name__ == "__main__":
    main(sys.argv[1])
