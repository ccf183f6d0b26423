"""Loads the tables of rules: one small function for each operation, in the files ``_rules_*.py``."""

from __future__ import annotations


def load() -> None:
    """Fill the tables (once: importing is what registers)."""
    from edgekit.pruners import _rules_layers, _rules_math, _rules_move, _rules_size

    assert _rules_layers, (_rules_math, _rules_move, _rules_size)
