"""The doctor: works, missing, broken, no device, too old and wrong are told apart, each with its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit import doctor, rooms

HEAD = """
import ctypes, os, signal
import numpy as np
from edgekit.backends import Port
from edgekit.errors import UnavailableError
from pydantic import BaseModel
EXTRA, PACKAGE, TESTED, DEVICES = "fake", "", ("1.2", "1.9"), {"one": {}, "two": {"device": "two"}}
class Options(BaseModel, extra="forbid"):
    device: str = "one"
def version(): return "1.5.1"
def probe(): return {"version": "1.5.1", "devices": "one"}
def compile_model(model, target, out):
    (out / "m").write_bytes(model.read_bytes())
    return out / "m"
class Session:
    inputs = outputs = ()
    def run(self, feeds): return [feeds["x"] @ np.arange(1, 9, dtype=np.float32).reshape(4, 2)]
def open_model(artifact, target): return Session()
"""


def examined(tmp_path: Path, change: str) -> dict[str, object]:
    file = tmp_path / "fake.py"
    file.write_text(HEAD + change)
    row = doctor.examine(str(file))
    json.dumps(row)
    assert row["works"] == (row["status"] == "works")
    if not row["works"]:
        assert row["reason"]
        assert row["remedy"]
    return row


def test_a_runtime_works_when_it_computed_something(tmp_path: Path) -> None:
    row = examined(tmp_path, "")
    assert row["works"]
    assert [device["device"] for device in row["devices"]] == ["one", "two"]  # type: ignore[attr-defined]
    assert doctor.cells(row)[1:3] == ("yes", "1.5.1: one works; two works")


BROKEN = {
    "missing": ("PACKAGE = 'no_such_package_here'", "missing", "edgekit-compiler[fake]"),
    "library": ("def version(): raise UnavailableError('libx.so does not load', remedy='mend')", "broken", "libx.so"),
    "illegal instruction": (
        "def version(): os.kill(os.getpid(), signal.SIGILL)",
        "broken",
        "instruction that this CPU",
    ),
    "no device": ("def probe(): raise UnavailableError('no GPU is found', remedy='add one')", "no device", "no GPU"),
    "old device": ("def probe(): raise UnavailableError('the GPU is too old', remedy='a newer one')", "too old", "GPU"),
    "wrong": ("Session.run = lambda self, feeds: [np.zeros((1, 2))]", "wrong", "computes a product"),
    "crash": ("def open_model(artifact, target): ctypes.string_at(0)", "broken", "SIGSEGV"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_faults_are_told_apart(tmp_path: Path, fault: str) -> None:
    change, status, words = BROKEN[fault]
    row = examined(tmp_path, change)
    assert row["status"] == status
    assert words in f"{row['reason']} {row['remedy']}"
    assert doctor.cells(row)[1] == status


def test_one_device_is_enough(tmp_path: Path) -> None:
    change = """
def open_model(artifact, target):
    if target.options.get("device") != "two":
        raise UnavailableError("not available here, because there is no device 'one'", remedy="use two")
    return Session()
"""
    row = examined(tmp_path, change)
    assert row["works"]
    assert "one: no device; two works" in doctor.cells(row)[2]


@pytest.mark.parametrize(
    ("version", "tested"),
    [("1.22.0", True), ("1.32.1", True), ("1.21.9", False), ("1.33.0", False), ("2.0", False), ("1.9+cpu", False)],
)
def test_versions_outside_the_tested_range_are_told(version: str, tested: bool) -> None:
    warning = doctor.untested(version, ("1.22", "1.32"))
    assert (warning == "") == tested
    if not tested:
        assert "1.22 to 1.32" in warning


def test_every_backend_has_its_row() -> None:
    rows = doctor.doctor()
    assert [row["name"] for row in rows] == rooms.members("backends")
    assert next(row for row in rows if row["name"] == "onnxruntime")["works"]
    for row in rows:
        assert all(doctor.cells(row)[:3])
        if not row["works"]:
            assert row["remedy"]
