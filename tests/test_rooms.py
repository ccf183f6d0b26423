"""The user's own files: imported, and left alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekit import rooms


@pytest.mark.parametrize("entry", ["model.py:build", "package.model:build"])
def test_nothing_is_left_beside_the_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "package").mkdir()
    for folder in (tmp_path, tmp_path / "package"):
        (folder / "model.py").write_text("from beside import build\n")
    (tmp_path / "beside.py").write_text("def build(): return 1\n")
    assert rooms.load_entry(entry, tmp_path)() == 1
    assert not list(tmp_path.rglob("__pycache__"))
    assert sys.dont_write_bytecode is False
    del sys.modules["beside"]
