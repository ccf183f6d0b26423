"""The pictures: Vega-Lite by Altair, drawn by vl-convert to SVG without a browser or network.

Each function returns the text of one ``<svg>`` that stands in the page itself: it needs no
script, prints, carries a label for screen readers on every mark, and takes its colours from
the page's style sheet (which overrides the few below), so that it follows light and dark.
Colours are Okabe and Ito's; shape, sign or a written label always says the same.
"""

from __future__ import annotations

import html
from typing import Any

from edgekit.errors import UnavailableError, missing_package

INK, SOFT, GRID, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#ffffff"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
ROW_LINK = "https://row.invalid/#v-"  # Vega insists on absolute links; cut to the page's own afterwards
WIDTH = 460  # pixels of a whole picture, so that letters look the same in all
LETTER = 6.7  # pixels of one letter at the labels' 12 px, on the wide side


def require() -> None:
    """Check that pictures can be drawn.

    Raises:
        UnavailableError: Altair or vl-convert is not installed.
    """
    for package in ("altair", "vl_convert"):
        try:
            __import__(package)
        except ImportError as error:
            raise missing_package(package, "report", "to draw the report's charts") from error


def available() -> bool:
    """Whether pictures can be drawn here."""
    try:
        require()
    except UnavailableError:
        return False
    return True


def svg(chart: Any, label: str) -> str:
    """Draw an Altair chart; ``label`` is what a screen reader says of the whole."""
    import altair as alt
    import vl_convert

    colours = {"labelColor": SOFT, "titleColor": INK, "gridColor": GRID, "tickColor": GRID, "domainColor": SOFT}
    styled = (
        chart.properties(width=WIDTH, background="transparent", padding={"left": 8, "right": 12, "top": 8, "bottom": 4})
        .properties(autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
        .configure(font="Arial, 'Liberation Sans', Helvetica, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight=600, labelLimit=190, **colours)
    )
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    text: str = vl_convert.vegalite_to_svg(styled.to_dict(validate=False), vl_version=version)
    text = text.replace(f' xlink:href="{ROW_LINK}', ' href="#v-')
    opening = f'<svg role="graphics-document" aria-label="{html.escape(label)}" '
    return opening + text.removeprefix("<svg ")


def values(items: list[dict[str, Any]]) -> Any:
    """Chart data that stands in the specification itself."""
    import altair as alt

    return alt.Data(values=items)


def top_title(title: str, **options: Any) -> Any:
    """A vertical axis whose title lies flat above it, where it can be read."""
    import altair as alt

    flat = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleX": -30, "titleY": -14}
    return alt.Axis(title=title, **flat, **options)
