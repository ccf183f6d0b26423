"""Writes the report's files beside the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit import store
from edgekit.report import words
from edgekit.report.markdown import markdown
from edgekit.report.page import page
from edgekit.report.rows import rows_of
from edgekit.report.table import csv_text


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``report.csv`` into ``folder``.

    Args:
        results: The record (``edgekit.results/1``), validated.
        folder: Where it lies, so that links and the files of raw samples are found.

    Returns:
        The files written, the HTML page first.

    Raises:
        StageError: The folder can't be written; what was there before is intact.
    """
    tidied = words.tidy(results)
    texts = {
        "report.html": page(tidied, folder),
        "report.md": markdown(tidied),
        "report.csv": csv_text(rows_of(tidied)),
    }
    for name, text in texts.items():
        store.write_text(folder / name, text)
    return [folder / name for name in texts]
