"""The work on the device: ``check``, then ``bench``, in a process that outlives the connection.

Several bundles are measured in turns: each round holds one fresh process of each, every second round backwards, as
:mod:`edgekit.measure.rounds` does it here. One job at a time on a device: it waits for the one before it. What it says
is bounded and checked before any of it is believed.
"""

from __future__ import annotations

import json
import math
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgekit.deploy._remote import MAX_OUTPUT, Remote
from edgekit.errors import StageError

MAX_REPORT, MAX_WORDS = 200_000, 4_000  # bytes of one report, and of what was said on stderr
WAIT_S = 1800  # how long a job waits for the one before it

_RUN = """
trap "" HUP
cd || exit 1
echo $$ >{job}/pid
waited=0
nameless=0
while ! mkdir {lock} 2>/dev/null; do
  holder=$(cat {lock}/pid 2>/dev/null)
  [ -n "$holder" ] && nameless=0 || nameless=$((nameless + 1))
  if [ $nameless -gt 5 ] || {{ [ -n "$holder" ] && ! kill -0 "$holder" 2>/dev/null; }}; then
    mv {lock} {lock}.$$ && rm -rf {lock}.$$  # its holder was killed
    nameless=0
  fi
  waited=$((waited + 1))
  [ $waited -gt {wait_s} ] && exit 1
  sleep 1
done
echo $$ >{lock}/pid
python={python}
{cache}
step() {{
  [ -f {job}/bad-$1 ] && return
  bundle=$1; name=$2; place=$3; shift 3
  "$python" $place/edgekit_runner.py "$@" >{job}/$name.out 2>{job}/$name.err </dev/null
  code=$?
  echo $code >{job}/$name.code
  [ $code = 0 ] || touch {job}/bad-$bundle
}}
{steps}
rm -rf {lock}
echo done >{job}/done.new && mv {job}/done.new {job}/done
"""

_START = """
cd || exit 1
if [ -f {job}/pid ] && kill -0 "$(cat {job}/pid)" 2>/dev/null; then exit 0; fi  # the answer to its start was lost
rm -rf {job} && mkdir -p {job} || exit 1
cat >{job}/run.sh <<'edgekit-script'
{run}
edgekit-script
if command -v setsid >/dev/null 2>&1; then detach=setsid; else detach=nohup; fi
$detach sh {job}/run.sh >/dev/null 2>&1 </dev/null &
"""

_FETCH = """
cd && [ -f {job}/done ] || exit 3
for name in {names}; do
  for kind in code err out; do
    echo "{mark} $name.$kind"
    if [ $kind = err ]; then cut="tail -c {words}"; else cut="head -c {limit}"; fi
    $cut {job}/$name.$kind 2>/dev/null
    echo
  done
done
"""


@dataclass(frozen=True)
class Work:
    """What a job is to do.

    Attributes:
        folder: The job's own. lock: The folder that says that a device is at work.
        places: The bundles' folders. rounds: Processes that measure each. seconds: How long each measures.
        cache: The folder where the runner keeps what it builds (an engine); empty: the device's usual one.
    """

    folder: str
    lock: str
    places: tuple[str, ...]
    rounds: int
    seconds: float
    cache: str

    def steps(self) -> Iterator[tuple[int, str, str]]:
        """Bundle, name and arguments of every step: all checks, then the rounds, forth and back."""
        for bundle in range(len(self.places)):
            yield bundle, f"check-{bundle}", "check --json"
        for number in range(self.rounds):
            order = range(len(self.places))
            for bundle in order if number % 2 == 0 else reversed(order):
                yield bundle, f"bench-{bundle}-{number}", f"bench --json --seconds {float(self.seconds)}"


@dataclass(frozen=True)
class Step:
    """How a step ended: its exit code (3 where it never ran), its report (None: not to be believed), its last words."""

    code: int
    report: dict[str, Any] | None
    errors: str


@dataclass(frozen=True)
class Finished:
    """What a job left of one bundle: its check, and each round's measurement."""

    check: Step
    benches: tuple[Step, ...]

    def steps(self) -> Iterator[Step]:
        """The steps in order, up to the first that failed."""
        for step in (self.check, *self.benches):
            yield step
            if step.code != 0:
                return


def start(remote: Remote, work: Work, python: str) -> None:
    """Start the job and leave it alone.

    Args:
        remote: The device. work: What is to be done. python: The Python that has the runtime.
    """
    steps = "\n".join(f"step {bundle} {name} {work.places[bundle]} {rest}" for bundle, name, rest in work.steps())
    run = _RUN.format(
        job=work.folder,
        lock=work.lock,
        python=_quoted(python),
        cache=f"export XDG_CACHE_HOME=$HOME/{work.cache}" if work.cache else "",
        steps=steps,
        wait_s=WAIT_S,
    )
    answer = remote.script(_START.format(job=work.folder, run=run))
    if answer.code:
        raise StageError(
            "the job did not start on the device", where=remote.host, remedy="log in and see ~/.cache/edgekit"
        )


def pending(remote: Remote, job: str) -> bool:
    """Whether an earlier call's job is still there to be fetched, done or at work."""
    answer = remote.script(
        f'cd && [ -f {job}/run.sh ] || exit 1; [ -f {job}/done ] || kill -0 "$(cat {job}/pid 2>/dev/null)" 2>/dev/null'
    )
    return answer.code == 0


def fetch(remote: Remote, work: Work) -> list[Finished] | None:
    """What the job left, for each bundle; None while it is at work.

    Raises:
        StageError: It died without a result (the device was switched off, or killed it).
    """
    mark, job = f"edgekit-part-{secrets.token_hex(8)}", work.folder
    names = [name for _, name, _ in work.steps()]
    limit = min(MAX_REPORT, max(MAX_WORDS, MAX_OUTPUT * 3 // 4 // len(names) - 2 * MAX_WORDS))
    answer = remote.script(_FETCH.format(job=job, mark=mark, limit=limit, words=MAX_WORDS, names=" ".join(names)))
    if answer.code == 3:
        if pending(remote, job):
            return None
        raise StageError(
            "the job ended on the device without a result: it was killed, or the device restarted",
            where=remote.host,
            remedy="run the same command again; if it comes back, the device may lack memory",
        )
    parts = _parts(answer.out, mark)
    return [
        Finished(
            _step(parts, f"check-{bundle}"),
            tuple(_step(parts, f"bench-{bundle}-{number}") for number in range(work.rounds)),
        )
        for bundle in range(len(work.places))
    ]


def _step(parts: dict[str, str], name: str) -> Step:
    code = parts.get(f"{name}.code", "")
    report = _report(name.partition("-")[0], parts.get(f"{name}.out", ""))
    return Step(int(code) if code.isdigit() else 3, report, parts.get(f"{name}.err", ""))


def forget(remote: Remote, job: str) -> None:
    """Remove a job whose results are home."""
    remote.script(f"cd && rm -rf {job}")


def _parts(text: str, mark: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for block in text.split(f"{mark} ")[1:]:
        name, _, body = block.partition("\n")
        parts[name.strip()] = body.strip()
    return parts


def _report(name: str, text: str) -> dict[str, Any] | None:
    """The runner's report if it is one: right types, finite numbers, nothing but the known keys."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    if isinstance(found.get("error"), str):
        return {"error": found["error"], "remedy": str(found.get("remedy") or "")}
    return _checked_bench(found) if name == "bench" else _checked_check(found)


def _checked_check(found: dict[str, Any]) -> dict[str, Any] | None:
    told = {key: found.get(key) for key in ("difference", "tolerance", "samples", "files")}
    if not all(_number(value) for value in told.values()):
        return None
    return {**told, "device": _device(found.get("device")), "numerics_only": _text(found.get("numerics_only"))}


def _checked_bench(found: dict[str, Any]) -> dict[str, Any] | None:
    times = found.get("latency_ms")
    latency = None
    if isinstance(times, dict):
        latency = {key: times.get(key) for key in ("median", "p90", "p99", "ci95", "runs")}
        low_high = latency["ci95"]
        good = isinstance(low_high, list) and len(low_high) == 2 and all(_number(end) for end in low_high)
        good = good and all(_number(times.get(key)) and times[key] > 0 for key in ("median", "p90", "runs"))
        if not good or not (latency["p99"] is None or _number(latency["p99"])) or not isinstance(latency["runs"], int):
            return None
    peak, first = found.get("peak_rss_bytes"), found.get("first_inference_ms")
    return {
        "latency_ms": latency,
        "first_inference_ms": first if _number(first) else None,
        "peak_rss_bytes": peak if isinstance(peak, int) and _number(peak) else None,
        "batch": found.get("batch") if _number(found.get("batch")) else None,
        "device": _device(found.get("device")),
        "before": _state(found.get("before")),
        "after": _state(found.get("after")),
        "numerics_only": _text(found.get("numerics_only")),
    }


def _device(found: Any) -> dict[str, Any]:
    facts = found if isinstance(found, dict) else {}
    told: dict[str, Any] = {key: _text(facts.get(key)) for key in ("arch", "cpu", "board", "os", "python")}
    cores = facts.get("cores")
    return {**told, "cores": cores if _number(cores) else None, "emulated": facts.get("emulated") is True}


def _state(found: Any) -> dict[str, Any]:
    facts = found if isinstance(found, dict) else {}
    numbers = {key: facts.get(key) if _number(facts.get(key)) else None for key in ("temperature_c", "frequency_mhz")}
    return {**numbers, "governor": _text(facts.get("governor")), "throttled": _text(facts.get("throttled"))}


def _number(value: Any) -> bool:
    """A finite number, not negative (but for temperatures, which no desk has below zero)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value < 1e15


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _quoted(path: str) -> str:
    return path if path.startswith("$HOME/") else shlex.quote(path)
