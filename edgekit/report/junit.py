"""The gate's verdict as JUnit XML: the subset that Jenkins, GitLab, GitHub and Azure all read.

A suite for each target, a case for each check: broken is ``failure``, what crashed ``error``,
what can't be told ``skipped`` with its sentence. Where a limit stands is said in what each of them reads: the file as
``classname``, file and line under the sentence (the schema that Jenkins checks has no attributes for them).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as Xml

# What XML 1.0 can't hold, not even escaped: layer names and messages come from foreign files.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Placed = tuple[dict[str, Any], tuple[str, int] | None]  # a check, and where its limit stands


def render(verdict: dict[str, Any], places: Sequence[tuple[str, int] | None] = ()) -> str:
    """The XML document of a verdict of :func:`edgekit.gating.judge`.

    Args:
        verdict: The verdict. places: The file and line of each check's limit, where they are known.
    """
    checks = verdict["checks"]
    groups: dict[str, list[Placed]] = {}
    for check, place in zip(checks, places or [None] * len(checks), strict=True):
        groups.setdefault(check.get("target") or "run", []).append((check, place))
    root = Xml.Element("testsuites", {"name": "edgekit gate", **_counts(checks)})
    for target, placed in groups.items():
        _suite(root, target, placed)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _suite(root: Xml.Element, target: str, placed: list[Placed]) -> None:
    checks = [check for check, _ in placed]
    skipped = str(sum(check["passed"] is None for check in checks))
    suite = Xml.SubElement(root, "testsuite", {"name": clean(target), **_counts(checks), "skipped": skipped})
    for check, place in placed:
        name = clean(f"{check['variant'] or 'run'}: {check['name']}")
        holder = clean(place[0] if place else f"edgekit.{target}")
        case = Xml.SubElement(suite, "testcase", {"classname": holder, "name": name, "time": "0"})
        sentence = clean(check["sentence"])
        whole = f"{sentence}\nat {holder}:{place[1]}" if place else sentence
        if check["passed"] is None:
            Xml.SubElement(case, "skipped", {"message": sentence}).text = whole
        elif check["passed"] is False:
            kind = "error" if _crashed(check) else "failure"
            Xml.SubElement(case, kind, {"message": sentence, "type": clean(check["name"])}).text = whole
        else:
            Xml.SubElement(case, "system-out").text = sentence


def _counts(checks: list[dict[str, Any]]) -> dict[str, str]:
    crashed = sum(_crashed(check) for check in checks)
    broken = sum(check["passed"] is False for check in checks)
    return {"tests": str(len(checks)), "failures": str(broken - crashed), "errors": str(crashed), "time": "0"}


def _crashed(check: dict[str, Any]) -> bool:
    return check["name"] == "status"


def clean(text: str) -> str:
    """Text without the characters that XML can't hold."""
    return _ILLEGAL.sub("\ufffd", text)
