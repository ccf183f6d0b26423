"""What people read: one self-contained HTML page, Markdown, CSV, the terminal's table.

    write(results, folder)      report.html, report.md and report.csv beside results.json
    compare([a, b, …])          what changed between runs, as text, Markdown or HTML
    terminal_table(results)     the short table that closes a run
    summary_sentence(results)   the verdict in one sentence
    bad_news(results)           what must not be missed, a sentence each

All of them take the record (``edgekit.results/1``) as it was read, need no torch, no runtime
and no network, and treat every name in it as text that an attacker may have chosen.
"""

from __future__ import annotations

from edgekit.report.compare import Comparison, compare
from edgekit.report.findings import bad_news, summary_sentence
from edgekit.report.terminal import terminal_table
from edgekit.report.write import write

__all__ = ["Comparison", "bad_news", "compare", "summary_sentence", "terminal_table", "write"]
