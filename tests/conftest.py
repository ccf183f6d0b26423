"""What every test shares: real data where it is at hand, and a cache of the test run's own."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with CIFAR-10, the ResNet-20 and the other real data; skips where it is not at hand."""
    folder = Path(os.environ.get("EDGEKIT_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10-test.tar").is_file():
        pytest.skip("the shared test data are not here (set EDGEKIT_TEST_DATA to their folder)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests; ``EDGEKIT_TEST_CACHE`` names one to start from."""
    os.environ["EDGEKIT_CACHE_DIR"] = os.environ.get("EDGEKIT_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["EDGEKIT_CACHE_DIR"]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run jobs in this process: the same code, without the seconds that each child needs to import torch."""
    from edgekit import child

    def call(function: str, /, *, timeout_s: float = 0, **arguments: Any) -> Any:
        module, _, name = function.partition(":")
        return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**arguments), allow_nan=False))

    monkeypatch.setattr(child, "call", call)
