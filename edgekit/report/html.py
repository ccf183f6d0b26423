"""HTML built from elements, so that escaping cannot be forgotten.

A string is text and gets escaped; only an :class:`Html` is markup. There is no other way to
put something on the page.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

_NONE = range(0)
_VOID = {"br", "col", "hr", "input", "link", "meta"}


@dataclass(frozen=True)
class Html:
    """Markup that is already safe."""

    text: str

    def __str__(self) -> str:
        return self.text


Child: TypeAlias = "Html | str | Iterable[Child] | None"


def el(tag: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """One element.

    Args:
        tag: Its name.
        children: Text (escaped), elements, or iterables of them; None is nothing.
        attributes: ``class_`` and ``data_sort`` are written ``class`` and ``data-sort``; True is a
            bare attribute, False and None are left out.
    """
    parts = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        parts.append(label if value is True else f'{label}="{html.escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening if tag in _VOID else f"{opening}{markup(children)}</{tag}>")


def markup(child: Child) -> str:
    """The HTML text of a child."""
    if child is None:
        return ""
    if isinstance(child, Html):
        return child.text
    if isinstance(child, str):
        return html.escape(child, quote=False)
    return "".join(markup(item) for item in child)


def group(*children: Child) -> Html:
    """Several children without an element around them."""
    return Html(markup(children))


def table(caption: str, head: list[str], body: Iterable[list[Child]], *, numbers: range = _NONE) -> Html:
    """A plain table that scrolls by itself; the first cell heads its row, the columns of ``numbers`` stand right."""

    def cell(index: int, child: Child) -> Html:
        kind = "num" if index in numbers else None
        return el("th", child, scope="row") if index == 0 else el("td", child, class_=kind)

    titles = [el("th", title, scope="col", class_="num" if i in numbers else None) for i, title in enumerate(head)]
    return el(
        "div",
        el(
            "table",
            el("caption", caption),
            el("thead", el("tr", titles)),
            el("tbody", [el("tr", [cell(i, c) for i, c in enumerate(line)]) for line in body]),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )
