"""A record for the report's tests: invented values (no machine measured them), every kind of row."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).parent / "samples" / "results.json"

# What an attacker, or an unlucky exporter, may name a layer, a variant or a target (row 21 of the fault table).
NAMES = [
    "",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "a\x1b[31mred\x1b[0m",
    "nul\x00byte",
    "line\nbreak\r\nand tab\t",
    "::error file=a::owned",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1+1",
    "../../etc/passwd",
    "pipe | in | a | table",
    "`code` *bold* _it_ ~~no~~ [link](https://example.com) ![i](x)",
    "@someone #1 https://example.com www.example.com :smile: $x$ &amp;",
    "# heading",
    "- item",
    "1. item",
    "rtl \u202egnp.exe",
    "zero\u200bwidth\ufeff",
    "\ud800 lone surrogate",
    "emoji 🧨 and ünïcödé 漢字",
    "x" * 10_000,
    "{{template}} ${expression} %(format)s {0}",
    "datum.x;signal()",
    "\u2028line separator",
    "</style><style>*{display:none}",
    "<!-- comment -->",
    "]]>",
]


def sample() -> dict[str, Any]:
    """The record, fresh at every call."""
    record: dict[str, Any] = json.loads(SAMPLE.read_text())
    return record


def row(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The row with the id ``name``."""
    found: dict[str, Any] = next(v for v in record["variants"] if v["id"] == name)
    return found


def hostile(name: str) -> dict[str, Any]:
    """The record with ``name`` in every place that foreign text can reach."""
    record = sample()
    for number, variant in enumerate(record["variants"]):
        variant["variant"] = f"{name}{number}"
        variant["target"] = f"{name}{variant['target']}"
        variant["reason"] = name
        variant["explain"] = [name]
        for stage in variant["stages"]:
            stage["name"] += name
        for layer in [*variant.get("operators", []), *variant.get("sensitivity", [])]:
            layer.update({key: name for key in ("operator", "layer") if key in layer})
        variant["layers"] = [{"name": name, "operator": name, "precision": "fp32", "macs": 9, "reason": name}]
        if variant["metric"]:
            variant["metric"]["name"] = f"accuracy{name}"
    record["recipe"]["model"]["entry"] = name
    record["recipe"][name] = {name: [name]}
    record["environment"]["cpu"] = name
    record["environment"][name] = name
    record["lock"]["data"][name] = name
    record["warnings"] = [name]
    record["gate"]["checks"][0].update(variant=name, name=name, sentence=name, passed=False)
    record["gate"]["notes"] = [name]
    record["gate"]["passed"] = False
    return record


def mixed(names: list[str]) -> dict[str, Any]:
    """A record of one target with ``names`` spread over rows, stages, operators and layers: few pictures hold all."""
    record = many(len(names))
    spread = itertools.cycle(names)
    for number, (variant, name) in enumerate(zip(record["variants"], names, strict=True)):
        variant.update(variant=f"{name}{number}", target="x86-cpu", reason=name, explain=[name])
        for stage in variant["stages"]:
            stage["name"] += next(spread)
        for layer in [*variant["operators"], *variant.get("sensitivity", [])]:
            name = next(spread)
            layer.update({key: f"{layer[key]}{name}" for key in ("operator", "layer") if key in layer})
    return record


def many(count: int) -> dict[str, Any]:
    """The record with ``count`` measured rows on two targets."""
    record = sample()
    measured = [v for v in record["variants"] if v["latency_ms"]]
    rows = []
    for number in range(count):
        variant = copy.deepcopy(measured[number % len(measured)])
        turn = number // len(measured)
        if turn:
            variant["variant"] += f"-{turn}"
            variant["id"] = f"{variant['variant']}@{variant['target']}"
            variant["latency_ms"]["median"] *= 1 + 0.03 * turn
            variant["metric"]["value"] -= 0.001 * turn
            variant["size_bytes"] += 1000 * turn
        rows.append(variant)
    record["variants"] = rows
    record["gate"] = {"passed": True, "checks": []}
    return record
