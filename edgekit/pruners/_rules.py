"""Loads the tables of rules: one small function for each operation, in the files ``_rules_*.py``."""

from __future__ import annotations

import importlib


def load() -> None:
    """Fill the tables (once: importing is what registers)."""
    for name in ("math", "view", "move", "layers", "recurrent", "size"):
        importlib.import_module(f"edgekit.pruners._rules_{name}")
