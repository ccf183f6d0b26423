"""The verdict: recorded numbers against limits, and against a baseline.

    edgekit gate results.json --baseline baseline.json --junit gate.xml --markdown gate.md

Three answers: pass, fail, or inconclusive where the run can't tell. ``edgekit.gate(...)`` is the
same from Python.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.errors import InputError
from edgekit.gating.baseline import Slowdowns, check_baseline
from edgekit.gating.check import Check, broken
from edgekit.gating.limits import asked, check_rows, ordered
from edgekit.recipe import GateSection

__all__ = ["asked", "exit_code", "gate", "judge", "run_gate", "text"]

PASS, FAIL, INCONCLUSIVE = 0, 1, 5


def judge(
    results: dict[str, Any],
    settings: GateSection | None,
    baseline: dict[str, Any] | None = None,
    slowdowns: Slowdowns | None = None,
) -> dict[str, Any]:
    """Judge a record's numbers.

    Args:
        results: A record (``edgekit.results/1``).
        settings: The limits; None: none.
        baseline: An earlier record of the same model and data.
        slowdowns: Times measured again, by row (see :mod:`edgekit.gating.remeasure`).

    Returns:
        ``passed`` (True, False, None: inconclusive, or None without checks where no limit was set),
        ``checks`` (worst first; see :class:`edgekit.gating.check.Check`), ``notes`` (what was not checked, and why).

    Raises:
        InputError: The baseline is of another model or data set.
    """
    limits = settings or GateSection()
    if not asked(limits) and baseline is None:
        return {"passed": None, "checks": [], "notes": ["no limit was set"]}
    checks, notes = check_rows(results, limits)
    if baseline is not None:
        more, said = check_baseline(results, baseline, limits.baseline, slowdowns)
        checks += [c for c in more if c not in checks]
        notes += said
    if not checks:
        checks = [_nothing("limits were set, but no row could be checked")]
    return {
        "passed": _passed(checks),
        "checks": [check.to_dict() for check in ordered(checks)],
        "notes": notes,
    }


def _passed(checks: list[Check]) -> bool | None:
    answers = {check.passed for check in checks}
    return False if False in answers else None if None in answers else True


def _nothing(why: str) -> Check:
    return broken("checks", None, None, "at least one", "none", f"{why}: a gate with nothing to check does not pass")


def exit_code(verdict: dict[str, Any], on_inconclusive: str = "fail") -> int:
    """0 passed, 1 failed, 5 inconclusive (0 where ``on_inconclusive`` is ``pass``)."""
    if verdict["passed"] is None:
        return PASS if on_inconclusive == "pass" else INCONCLUSIVE
    return PASS if verdict["passed"] else FAIL


def gate(
    results: dict[str, Any] | str | Path,
    baseline: dict[str, Any] | str | Path | None = None,
    *,
    settings: GateSection | None = None,
) -> dict[str, Any]:
    """Judge a record against limits and, if given, a baseline; no artifact is needed.

    Args:
        results: A record, or the path of a ``results.json`` or its folder.
        baseline: The same, of an earlier run.
        settings: The limits; None: those of the record's own recipe.

    Returns:
        ``passed``, ``checks``, ``notes`` (see :func:`judge`); with nothing to check it has not passed.

    Raises:
        InputError: A record can't be read or is not valid, or the baseline is of another model or data set.
    """
    now, then = _record(results), _record(baseline) if baseline is not None else None
    limits = settings or limits_of(now)
    return _strict(judge(now, limits, then))


def run_gate(
    results: str | Path,
    baseline: str | Path | None = None,
    *,
    junit: str | Path | None = None,
    markdown: str | Path | None = None,
    update_baseline: bool = False,
    remeasure: bool = False,
    on_inconclusive: str | None = None,
    recipe: str | Path | None = None,
    settings: GateSection | None = None,
    tell: Callable[[dict[str, Any]], object] = lambda verdict: None,
) -> tuple[dict[str, Any], int]:
    """What ``edgekit gate`` does: judge, tell, write what CI wants to have, and give the exit code.

    Args:
        results: A ``results.json`` or its folder.
        baseline: The same, of an earlier run. With ``update_baseline`` the file to write.
        junit: Where to write JUnit XML. markdown: Where to write a pull-request comment.
        update_baseline: Make these results the baseline, once they keep the limits that need none.
        remeasure: Run the baseline's artifacts and these again, interleaved.
        on_inconclusive: ``pass`` or ``fail``; None: as the recipe says.
        recipe: The file that annotations and JUnit point into; None: ``recipe.toml`` here or beside the record, if any.
        settings: The limits; None: those of the record's own recipe.
        tell: Is given the verdict ahead of the writing, so that a file that can't be written does not hide it.

    Returns:
        The verdict of :func:`judge`, and the exit code: 0 passed, 1 failed, 5 inconclusive.

    Raises:
        InputError: A record is not valid, options that don't go together, or a baseline of another model.
        StageError: A file that was asked for can't be written.
    """
    from edgekit.gating import outputs, places

    if recipe and not Path(recipe).is_file():
        raise InputError("no such recipe", where=str(recipe), remedy="check the path")
    now = _record(results)
    limits = settings or limits_of(now)
    if (update_baseline or remeasure) and baseline is None:
        raise InputError(
            f"{'--update-baseline' if update_baseline else '--remeasure'} needs a baseline",
            remedy="name its file with --baseline FILE",
        )
    if update_baseline:
        assert baseline is not None
        verdict = _updated(now, limits, Path(results), Path(baseline))
    else:
        then = _baseline(baseline) if baseline is not None else None
        slowdowns = None
        if remeasure and then is not None and baseline is not None:
            from edgekit.gating.remeasure import measured_again

            slowdowns = measured_again(now, _folder(results), then, _folder(baseline), limits.baseline)
        verdict = _strict(judge(now, limits, then, slowdowns))
    verdict["notes"] += _edited(now, str(results))
    tell(verdict)
    place = Path(recipe) if recipe else places.recipe_near(Path(results))
    outputs.write(verdict, junit=junit, markdown=markdown, recipe=place)
    return verdict, exit_code(verdict, on_inconclusive or limits.on_inconclusive)


def limits_of(results: dict[str, Any]) -> GateSection:
    """The limits in a record's own recipe.

    Raises:
        InputError: They are none that this version knows.
    """
    from pydantic import ValidationError

    try:
        return GateSection.model_validate((results.get("recipe") or {}).get("gate") or {})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"the record's [gate] is wrong: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            where="recipe.gate",
            remedy="run the recipe again with this version of edgekit",
        ) from error


def text(verdict: dict[str, Any]) -> str:
    """The verdict for a terminal: one line for each limit that is broken or can't be told, then the sum."""
    checks = verdict["checks"]
    words = {False: "FAIL", None: "can't tell"}
    lines = [f"{words[c['passed']]}: {c['sentence']}" for c in checks if c["passed"] is not True]
    lines += [f"note: {note}" for note in verdict["notes"]]
    return "\n".join([*lines, summary(verdict)])


def summary(verdict: dict[str, Any]) -> str:
    """``gate passed: 12 checks``."""
    counts = [sum(c["passed"] is answer for c in verdict["checks"]) for answer in (True, False, None)]
    word = {True: "passed", False: "failed", None: "inconclusive"}[verdict["passed"]]
    said = [f"{n} {name}" for n, name in zip(counts, ("passed", "failed", "can't be told"), strict=True) if n]
    return f"gate {word}: {', '.join(said) or 'nothing was checked'}"


def _strict(verdict: dict[str, Any]) -> dict[str, Any]:
    """A gate that was called for and has nothing to check does not pass."""
    if verdict["checks"]:
        return verdict
    return {
        "passed": False,
        "checks": [_nothing("no limit is set in [gate], and no baseline was given").to_dict()],
        "notes": [],
    }


def _updated(now: dict[str, Any], limits: GateSection, results: Path, baseline: Path) -> dict[str, Any]:
    from edgekit.gating.keep import keep_baseline

    verdict = judge(now, limits)
    if failed := [row["id"] for row in now["variants"] if row["status"] == "failed"]:
        raise InputError(
            f"results with failed rows make no baseline: {', '.join(failed)}", remedy="mend them and run again"
        )
    if verdict["passed"] is False:
        verdict["notes"].append(
            f"the baseline was not updated, because these results break their own limits: {baseline}"
        )
        return verdict
    verdict["notes"] += keep_baseline(now, _folder(results), baseline)
    return verdict if verdict["checks"] else {**verdict, "passed": True}


def _record(source: dict[str, Any] | str | Path) -> dict[str, Any]:
    from edgekit import result

    if isinstance(source, dict):
        result.validate(source, "results")
        return source
    return result.load_results(source)


def _baseline(source: str | Path) -> dict[str, Any]:
    if not Path(source).exists():
        raise InputError(
            "there is no baseline", where=str(source), remedy="check the path, or make one with --update-baseline"
        )
    return _record(source)


def _folder(path: str | Path) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _edited(results: dict[str, Any], where: str) -> list[str]:
    from edgekit import console, result

    if results.get("digest") in (None, result.digest(results)):
        return []
    says = f"{where} was changed after it was written: these are not the numbers that were measured"
    console.warn(says)
    return [says]
