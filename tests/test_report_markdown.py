"""Markdown that shows every name as it is, checked by rendering it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from report_sample import NAMES, hostile, sample

from edgekit.report import words
from edgekit.report.markdown import escape, markdown, table


def test_the_report_has_its_verdict_findings_table_stages_and_environment() -> None:
    text = markdown(words.tidy(sample()))
    assert text.startswith("## ✅ Gate passed: all 15 limits hold\n")
    for part in ("### Variants", "### Accuracy after each stage", "### Where it was measured", "- ▼ pruned on"):
        assert part in text
    assert "| int8 | x86-cpu | ok | 97.11 % | −0.22 pt \\[−1.02, +0.48\\] | 44.4 µs |" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_a_table_has_the_same_number_of_cells(name: str) -> None:
    block: list[int] = []
    for line in markdown(words.tidy(hostile(name))).splitlines():
        if line.startswith("|"):
            block.append(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(set(block)) <= 1
            block = []


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_by_a_markdown_renderer(name: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    renderer = markdown_it.MarkdownIt("gfm-like", {"linkify": False, "html": True})
    shown = " ".join(words.clean(name).split())
    paragraph = _Tags(renderer.render(escape(words.clean(name))))
    assert set(paragraph.found) <= {"p"}
    assert paragraph.words.strip() == shown
    cells = _Tags(renderer.render(table(["a", "b"], [[words.clean(name), "z"]])))
    assert set(cells.found) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert shown in cells.words


@pytest.mark.parametrize(
    "text", ["@someone", "see #12", "http://evil.example", "www.evil.example", ":smile:", "a@b.example"]
)
def test_nothing_is_linked_or_mentioned_by_itself(text: str) -> None:
    assert not re.search(r"@\w|#\d|:(?=\S)|www\.", re.sub(r"&#\d+;", "", escape(text)))


def test_everyday_text_stays_readable() -> None:
    plain = "int8 on x86-cpu is 1.94× as fast (0.29× its size); accuracy 97.11 %, because: fine"
    assert escape(plain) == plain
