"""The report in a real browser: opened from disk, clicked, touched, printed; it may neither complain nor call out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from report_sample import NAMES, mixed, sample

from edgekit import report
from edgekit.report import charts

pytestmark = pytest.mark.skipif(
    browser.find() is None or not charts.available(), reason="no Chromium, or vl-convert is not installed"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(sample(), tmp_path_factory.mktemp("report"))[0]


@pytest.fixture(scope="module")
def running() -> Iterator[browser.Browser]:
    one = browser.Browser()
    yield one
    one.close()


@pytest.fixture
def opened(running: browser.Browser, page: Path) -> Iterator[browser.Browser]:
    """The report, just opened at a desk's width; afterwards the console must be silent and the network unused."""
    running.look(width=1280)
    running.open(page)
    yield running
    assert running.complaints() == []
    assert running.requests() == [page.resolve().as_uri()]


def column(opened: browser.Browser, index: int) -> list[str]:
    """The values of a column's visible cells."""
    rows = "[...document.querySelectorAll('#variants-table tbody tr:not([hidden])')]"
    return list(opened.eval(f"{rows}.map(r => r.cells[{index}].dataset.sort)"))


def middle(opened: browser.Browser, query: str) -> tuple[float, float]:
    """Bring the first element that ``query`` finds into view; where its middle is, in pixels."""
    element = f"document.querySelector({json.dumps(query)})"
    opened.eval(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    box = opened.eval(f"(b => [b.left + b.width / 2, b.top + b.height / 2])({element}.getBoundingClientRect())")
    return box[0], box[1]


def press(opened: browser.Browser, query: str) -> None:
    """Click the middle of the first element that ``query`` finds, with a real mouse."""
    opened.click(*middle(opened, query))


def test_it_opens_from_disk_without_a_word_or_a_request(opened: browser.Browser) -> None:
    assert "Gate passed" in opened.eval("document.querySelector('h1').textContent")
    assert opened.eval("document.querySelectorAll('.chart svg').length") >= 15
    assert opened.eval("document.querySelector('.controls').hidden") is False
    # Drawn, not only there: a policy that blocked the style would leave them unstyled.
    assert opened.eval("getComputedStyle(document.querySelector('.verdict')).display") == "flex"


def test_at_a_desks_width_no_column_is_cut(opened: browser.Browser) -> None:
    box = "document.querySelector('#variants .scroll')"
    assert opened.eval(f"{box}.scrollWidth") <= opened.eval(f"{box}.clientWidth")


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(opened: browser.Browser) -> None:
    latency = 5
    press(opened, f"#variants-table th:nth-child({latency + 1}) button")
    values = column(opened, latency)
    known = [float(v) for v in values if v]
    assert known == sorted(known)
    assert values[len(known) :] == [""] * 10  # what was not measured stands last
    heading = f"document.querySelector('#variants-table th:nth-child({latency + 1})').getAttribute('aria-sort')"
    assert opened.eval(heading) == "ascending"
    press(opened, f"#variants-table th:nth-child({latency + 1}) button")
    values = column(opened, latency)
    assert [float(v) for v in values if v] == sorted(known, reverse=True)
    assert values[len(known) :] == [""] * 10
    assert opened.eval(heading) == "descending"


def test_the_first_click_on_the_metric_shows_the_best_first(opened: browser.Browser) -> None:
    press(opened, "#variants-table th:nth-child(4) button")
    known = [float(v) for v in column(opened, 3) if v]
    assert known == sorted(known, reverse=True)


def test_sorting_works_by_keyboard_alone(opened: browser.Browser) -> None:
    opened.eval("document.querySelector('#variants-table th:nth-child(8) button').focus()")
    opened.key("Enter")
    known = [float(v) for v in column(opened, 7) if v]
    assert known == sorted(known)


def test_filters_narrow_table_pictures_and_details_together(opened: browser.Browser) -> None:
    press(opened, 'button[data-filter="target"][data-value="x86-openvino"]')
    assert set(column(opened, 1)) == {"x86-openvino"}
    assert opened.eval("document.getElementById('shown').textContent") == "5 shown"
    others = "[...document.querySelectorAll('figure[data-target], #details > details')]"
    assert set(opened.eval(f"{others}.filter(e => !e.hidden).map(e => e.dataset.target)")) == {"x86-openvino"}
    press(opened, 'button[data-filter="target"][data-value=""]')
    press(opened, 'button[data-filter="status"][data-value="built"]')
    assert set(column(opened, 2)) == {"built"}
    opened.eval("document.getElementById('find').value = 'QAT'")
    opened.eval("document.getElementById('find').dispatchEvent(new Event('input'))")
    assert column(opened, 0) == ["pruned-int8-qat"]


def test_a_touched_point_tells_all_and_a_click_opens_its_row(opened: browser.Browser) -> None:
    box = middle(opened, '.chart a[href="#v-3"]')
    opened.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    told = opened.eval("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")
    assert told.startswith("int8 on x86-cpu\naccuracy 97.11 %")
    assert "speed-up 1.94× [1.89, 1.99]" in told
    opened.click(*box)
    opened.eval("new Promise(done => setTimeout(done, 50))")  # the event of the changed address comes later
    assert opened.eval("location.hash") == "#v-3"
    assert opened.eval("document.getElementById('v-3').open") is True


def test_points_are_reached_by_arrow_keys(opened: browser.Browser) -> None:
    opened.eval("document.querySelector('.chart svg a').focus()")
    first = opened.eval("document.getElementById('tip').textContent")
    opened.key("ArrowRight")
    second = opened.eval("document.getElementById('tip').textContent")
    assert first != second
    assert opened.eval("document.activeElement.tagName.toLowerCase()") == "a"
    assert (
        opened.eval(
            "document.querySelectorAll('.chart svg:first-of-type')[0].querySelectorAll('[tabindex=\"0\"]').length"
        )
        == 1
    )
    opened.key("Escape")
    assert opened.eval("document.getElementById('tip').hidden") is True


def test_dark_changes_page_and_charts_alike(opened: browser.Browser) -> None:
    queries = {"body": "backgroundColor", ".chart svg text": "fill", '.chart svg [fill="#0072b2"]': "fill"}
    colours = [f"getComputedStyle(document.querySelector({json.dumps(q)})).{kind}" for q, kind in queries.items()]
    light = [opened.eval(colour) for colour in colours]
    opened.look(width=1280, dark=True)
    assert all(opened.eval(colour) != before for colour, before in zip(colours, light, strict=True))


def test_on_a_phone_no_label_of_a_card_is_squeezed(opened: browser.Browser, page: Path) -> None:
    """A cell's label stands in one line, whatever its value says."""
    opened.look(width=390, phone=True)
    opened.open(page)
    heights = """[...document.querySelectorAll('#variants-table tbody td')]
      .filter(cell => cell.offsetParent && cell.firstChild)
      .map(cell => [cell.dataset.label, parseFloat(getComputedStyle(cell, '::before').height),
                    parseFloat(getComputedStyle(cell).lineHeight)])"""
    found = opened.eval(heights)
    assert {label for label, _, _ in found} >= {"Status", "Change", "Speed-up"}
    assert [label for label, height, line in found if height > 1.2 * line] == []
    opened.look(width=1280)


@pytest.mark.parametrize("dark", [False, True])
def test_the_colours_of_a_picture_stay_apart(opened: browser.Browser, page: Path, dark: bool) -> None:
    """Light and dark paint some of them anew; no two that a picture tells apart may become one."""
    opened.look(width=1280, dark=dark)
    opened.open(page)
    painted = """[...document.querySelectorAll('#time svg')].map(svg => {
      const seen = {};
      svg.querySelectorAll('.mark-symbol [fill]').forEach(mark => {
        const fill = mark.getAttribute('fill');
        if (fill.startsWith('#')) seen[fill] = getComputedStyle(mark).fill;
      });
      return Object.values(seen);
    })"""
    found = opened.eval(painted)
    assert max(len(colours) for colours in found) >= 5
    assert all(len(set(colours)) == len(colours) for colours in found)


NAMED = {"button", "link", "searchbox", "textbox", "combobox", "table", "region", "image", "graphics-document"}


def test_everything_that_a_screen_reader_stops_at_has_a_name(opened: browser.Browser) -> None:
    """By the browser's own accessibility tree, which is what a screen reader is given."""
    opened.eval("document.querySelectorAll('details').forEach(part => part.open = true)")
    opened.call("Accessibility.enable")
    nodes = opened.call("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in nodes if "role" in node]
    roles = {role for role, _ in found}
    assert roles >= {"main", "banner", "contentinfo", "table", "button", "searchbox", "columnheader", "rowheader"}
    assert [role for role, name in found if role in NAMED and not name] == []
    assert sum(role == "main" for role, _ in found) == 1


def test_headings_go_down_step_by_step_and_no_id_comes_twice(opened: browser.Browser) -> None:
    levels = opened.eval("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = opened.eval("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)
    links = "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href'))"
    broken = f"{links}.filter(to => !document.getElementById(to.slice(1)))"
    assert opened.eval(broken) == []
    assert opened.eval("document.documentElement.lang") == "en"


# Every text against what lies behind it, by WCAG 2.2's contrast formula; signs beside a word may have 3.
CONTRAST = """
(() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const part = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const seen = node.data.trim() && element.getClientRects().length && element.tagName !== "SCRIPT";
    const inPicture = element.namespaceURI.endsWith("svg");
    if (!seen) continue;
    const style = getComputedStyle(element);
    const [b, a] = [light(parse(inPicture ? style.fill : style.color)), light(behind(element))].sort((x, y) => x - y);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (element.ariaHidden === "true" ? 3 : 4.5)) poor.push([node.data.trim().slice(0, 40), ratio]);
  }
  return poor;
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_a_contrast_of_four_and_a_half(opened: browser.Browser, dark: bool) -> None:
    opened.look(width=1280, dark=dark)
    opened.eval("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert opened.eval(CONTRAST) == []


@pytest.mark.parametrize("width", [320, 390, 760])
def test_a_phone_never_scrolls_sideways_and_sorts_by_a_menu(opened: browser.Browser, width: int) -> None:
    opened.look(width=width, phone=True)
    assert opened.eval("document.documentElement.scrollWidth") <= width
    assert opened.eval("getComputedStyle(document.querySelector('.sorter')).display") != "none"
    opened.eval(
        "(() => { const s = document.getElementById('sort'); s.value = '7'; s.dispatchEvent(new Event('change')); })()"
    )
    known = [float(v) for v in column(opened, 7) if v]
    assert known == sorted(known)


def test_a_finger_first_shows_a_point_and_only_then_follows_it(opened: browser.Browser) -> None:
    opened.look(width=390, phone=True)
    point = '.chart a[href="#v-3"]'
    opened.eval(f"document.querySelector('{point}').scrollIntoView({{block: 'center'}})")
    opened.eval(
        f"(() => {{ const p = document.querySelector('{point}');"
        " p.dispatchEvent(new PointerEvent('pointerdown', {pointerType: 'touch', bubbles: true}));"
        " p.dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true})); })()"
    )
    assert opened.eval("document.getElementById('tip').hidden") is False
    assert opened.eval("location.hash") == ""


def test_it_prints_whole_with_folded_parts_open(opened: browser.Browser) -> None:
    opened.eval("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.eval("document.querySelectorAll('details:not([open]):not(.aside)').length") == 0
    assert opened.eval("document.querySelectorAll('#details > details[open]').length") == 20
    opened.look(width=800, media="print")
    for left_out in (".controls", "details.aside"):
        assert opened.eval(f"getComputedStyle(document.querySelector('{left_out}')).display") == "none"
    assert opened.eval("getComputedStyle(document.querySelector('#variants-table tr')).display") == "table-row"
    opened.eval("window.dispatchEvent(new Event('afterprint'))")
    assert opened.eval("document.querySelectorAll('details[open]').length") == 0
    assert opened.pdf().startswith(b"%PDF")


def test_it_reads_whole_without_its_script(running: browser.Browser, page: Path) -> None:
    running.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        running.look(width=1280)
        running.open(page)
        assert running.eval("document.querySelector('.controls').hidden") is True
        assert running.eval("document.querySelectorAll('#variants-table tbody tr').length") == 20
        assert running.eval("document.querySelectorAll('.chart svg').length") >= 15
    finally:
        running.call("Emulation.setScriptExecutionDisabled", value=False)


def test_names_of_an_attacker_run_nothing(running: browser.Browser, tmp_path: Path) -> None:
    hostile = report.write(mixed(NAMES), tmp_path)[0]
    running.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.hacked = true; };")
    running.look(width=1280)
    running.open(hostile)
    for query in ("#variants-table th:nth-child(1) button", "#variants-table th:nth-child(2) button"):
        press(running, query)
    marks = "document.querySelectorAll('.chart [aria-label]')"
    running.eval(f"{marks}.forEach(m => m.dispatchEvent(new PointerEvent('pointerenter')))")
    assert running.eval("window.hacked") is None
    assert running.complaints() == []
    assert running.requests() == [hostile.resolve().as_uri()]


def test_a_comparison_opens_as_silently(running: browser.Browser, tmp_path: Path) -> None:
    other: dict[str, Any] = sample()
    other["recipe"]["prune"]["ratio"] = 0.4
    path = tmp_path / "compare.html"
    path.write_text(report.compare([sample(), other], ["main", "pull request"]).html())
    running.look(width=1280)
    running.open(path)
    assert "pull request against main" in running.eval("document.querySelector('h1').textContent")
    assert running.complaints() == []
    assert running.requests() == [path.resolve().as_uri()]
