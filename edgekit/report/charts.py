"""The pictures: Vega-Lite charts, drawn by vl-convert to SVG without a browser or network.

Each function returns the text of one ``<svg>`` that stands in the page itself: it needs no
script, prints, carries a label for screen readers on every mark, and takes its colours from
the page's style sheet (which overrides the few below), so that it follows light and dark.
Colours are Okabe and Ito's; shape, sign or a written label always says the same.
"""

from __future__ import annotations

import html
import importlib.util
import json
import math
from typing import Any

from edgekit.console import warn

VERSION = "6.1"  # of Vega-Lite, one that vl-convert holds
INK, SOFT, GRID, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#ffffff"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
ROW_LINK = "https://row.invalid/#v-"  # Vega insists on absolute links; cut to the page's own afterwards
WIDTH = 460  # pixels of a whole picture, so that letters look the same in all
LETTER = 6.7  # pixels of one letter at the labels' 12 px, on the wide side


_NOWHERE: Any = ()  # the addresses that a drawing may load from


def available() -> bool:
    """Whether pictures can be drawn here: vl-convert, which brings Vega-Lite, is installed."""
    return importlib.util.find_spec("vl_convert") is not None


def svg(chart: dict[str, Any], label: str) -> str:
    """Draw a Vega-Lite specification; ``label`` is what a screen reader says of the whole.

    Empty, with a warning, where it can't be drawn: no name or number may cost the whole report.

    The specification is written out rather than made by Altair: its copies and checks of the same
    JSON cost more than the drawing (a report of 200 variants took 8 s, not 2).
    """
    import vl_convert

    try:
        text: str = vl_convert.vegalite_to_svg(
            json.dumps({**_LOOKS, **chart}), vl_version=VERSION, allowed_base_urls=_NOWHERE
        )
    except ValueError as error:
        warn(f"the picture '{label}' can't be drawn; its table stands alone ({str(error).strip().splitlines()[-1]})")
        return ""
    text = text.replace(f' xlink:href="{ROW_LINK}', ' href="#v-')
    opening = f'<svg role="graphics-document" aria-label="{html.escape(label)}" '
    return opening + text.removeprefix("<svg ")


_LOOKS: dict[str, Any] = {
    "$schema": f"https://vega.github.io/schema/vega-lite/v{VERSION}.json",
    "background": "transparent",
    "padding": {"left": 8, "right": 12, "top": 8, "bottom": 4},
    "width": WIDTH,
    "autosize": {"type": "fit-x", "contains": "padding"},
    "config": {
        "font": "Arial, 'Liberation Sans', Helvetica, sans-serif",
        "view": {"stroke": None},
        "axis": {
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 600,
            "labelLimit": 0,  # names are cut before: Vega would cut through a pair of surrogates
            "labelColor": SOFT,
            "titleColor": INK,
            "gridColor": GRID,
            "tickColor": GRID,
            "domainColor": SOFT,
        },
    },
}


def values(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Chart data that stands in the specification itself."""
    return {"values": items}


def number(field: str, **options: Any) -> dict[str, Any]:
    """A quantitative channel."""
    return {"field": field, "type": "quantitative", **options}


def name(field: str, **options: Any) -> dict[str, Any]:
    """A channel of names, in the data's own order."""
    return {"field": field, "type": "nominal", "sort": None, **options}


def mark(kind: str, *, aria: bool = False, **looks: Any) -> dict[str, Any]:
    """A mark; only those with a description of their own speak to a screen reader."""
    return {"type": kind, "aria": aria, **looks}


def layer(drawn: dict[str, Any], data: dict[str, Any] | None = None, **encoding: Any) -> dict[str, Any]:
    """One layer: a mark and its channels, and data of its own where it has some."""
    return {"mark": drawn, "encoding": encoding, **({"data": data} if data else {})}


def top_title(title: str, **options: Any) -> dict[str, Any]:
    """A vertical axis whose title lies flat above it, where it can be read."""
    flat = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": -30, "titleY": -14}
    return {"title": title, **flat, **options}


def row_names() -> dict[str, Any]:
    """The axis of a bar chart's names."""
    return {"domain": False, "ticks": False, "title": None, "labelColor": INK}


def key(**options: Any) -> dict[str, Any]:
    """A legend under the picture."""
    looks = {"labelFontSize": 12, "labelColor": INK, "labelLimit": 0, "symbolType": "square", "offset": 8}
    return {"title": None, "orient": "bottom", "columns": 3, **looks, **options}


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each decade; only at 1 where those were too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    found = [tick for tick in found if low <= tick <= high]
    return found if len(found) <= 9 else [tick for tick in found if math.log10(tick).is_integer()]
