"""The gate's verdict as JUnit XML: the subset that Jenkins, GitLab, GitHub and Azure all read.

A suite for each target, a case for each check: broken is ``failure``, what crashed ``error``,
what can't be told ``skipped`` with its sentence.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as Xml

# What XML 1.0 can't hold, not even escaped: layer names and messages come from foreign files.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(verdict: dict[str, Any]) -> str:
    """The XML document of a verdict of :func:`edgekit.gating.judge`."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for check in verdict["checks"]:
        groups.setdefault(check.get("target") or "run", []).append(check)
    root = Xml.Element("testsuites", {"name": "edgekit gate", **_counts(verdict["checks"])})
    for target, checks in groups.items():
        _suite(root, target, checks)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _suite(root: Xml.Element, target: str, checks: list[dict[str, Any]]) -> None:
    skipped = str(sum(check["passed"] is None for check in checks))
    suite = Xml.SubElement(root, "testsuite", {"name": clean(target), **_counts(checks), "skipped": skipped})
    for check in checks:
        name = clean(f"{check['variant'] or 'run'}: {check['name']}")
        case = Xml.SubElement(suite, "testcase", {"classname": f"edgekit.{clean(target)}", "name": name, "time": "0"})
        sentence = clean(check["sentence"])
        if check["passed"] is None:
            Xml.SubElement(case, "skipped", {"message": sentence})
        elif check["passed"] is False:
            kind = "error" if _crashed(check) else "failure"
            Xml.SubElement(case, kind, {"message": sentence, "type": clean(check["name"])}).text = sentence
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
