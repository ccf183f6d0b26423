"""Numbers as people read them, and foreign text made safe to show.

Everything shown goes through here first: :func:`tidy` once for the whole record, then one
function per kind of number. What each sink must escape beyond that is the sink's own matter.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Any

MISSING = "–"
NO_INTERVAL = "[no interval]"
LONGEST = 4000  # characters of one string of the record; nothing a person reads is longer
Interval = tuple[float, float]

# Metrics whose values are fractions that the field reads as per cent.
_FRACTIONS = ("accuracy", "top", "precision", "recall", "f1", "auc", "balanced", "iou", "map")
_KEPT_CONTROLS = "\n\t"


def tidy(value: Any) -> Any:
    """The same JSON value with text that can be shown and numbers that can be drawn.

    Control and bidirectional-override characters and lone surrogates become U+FFFD (they could
    reorder, hide or break what is read), overlong text is cut, NaN and infinity become None.
    """
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean(str(key)): tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    return value


def clean(text: str) -> str:
    """Text without characters that a page, a terminal or a reader's eye would obey."""
    if text.isascii() and text.isprintable() and len(text) <= LONGEST:
        return text
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return "".join("\ufffd" if _harmful(char) else char for char in cut)


def _harmful(char: str) -> bool:
    if char in _KEPT_CONTROLS:
        return False
    # Cc: controls (ANSI escapes start with one), Cs: surrogates, Cn: noncharacters, Cf: bidi overrides, zero width.
    return unicodedata.category(char) in ("Cc", "Cs", "Cn", "Cf") or char in "\u2028\u2029"


def short(text: str, width: int = 60) -> str:
    """One line of at most ``width`` characters; the middle goes, since names differ at their ends."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    head = (width - 1) // 2
    return f"{line[:head]}…{line[head + 1 - width :]}"


def is_fraction(metric: str) -> bool:
    """Whether the metric of that name is read as per cent."""
    name = metric.lower()
    return name.startswith(_FRACTIONS)


def metric_text(value: float | None, metric: str) -> str:
    """A metric's value: ``91.23 %`` for fractions, four digits for others."""
    if value is None:
        return MISSING
    return f"{value * 100:.2f} %" if is_fraction(metric) else digits(value, 4)


def delta_text(value: float | None, metric: str) -> str:
    """A change of a metric, signed: ``−0.21 pt`` (percentage points), or in its own unit."""
    if value is None:
        return MISSING
    if not is_fraction(metric):
        return signed(value, digits(abs(value), 3))
    return signed(round(value * 100, 2), f"{abs(value) * 100:.2f}") + " pt"


def delta_interval(bounds: Interval | None, metric: str) -> str:
    """``[−0.40, −0.02]`` in the unit of :func:`delta_text`; empty where there is none."""
    if bounds is None:
        return ""
    return "[" + ", ".join(delta_text(bound, metric).removesuffix(" pt") for bound in bounds) + "]"


def signed(value: float, magnitude: str) -> str:
    """A magnitude with the sign of ``value``: a true minus, ``±`` for nothing at all."""
    sign = "−" if value < 0 else "+" if value > 0 else "±"
    return sign + magnitude


def digits(value: float | None, count: int = 3) -> str:
    """``count`` significant digits, without an exponent for everyday sizes."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -5 or size > 12:
        return f"{value:.{count - 1}e}".replace("-", "−")
    return f"{value:,.{max(0, count - 1 - size)}f}".replace(",", "\u202f").replace("-", "−")


def interval(bounds: Interval | None, count: int = 3) -> str:
    """``[0.52, 0.54]``; empty where there is none."""
    return f"[{digits(bounds[0], count)}, {digits(bounds[1], count)}]" if bounds else ""


def times(value: float | None) -> str:
    """A ratio: ``2.03×``; two decimals are what a ratio's interval is worth."""
    return MISSING if value is None else _ratio(value) + "×"


def ratio_interval(bounds: Interval | None) -> str:
    """``[1.98, 2.08]``; a third decimal where two would hide on which side of 1 a bound lies."""
    return f"[{_ratio(bounds[0])}, {_ratio(bounds[1])}]" if bounds else ""


def _ratio(value: float) -> str:
    if not 0.095 <= abs(value) < 9.995:
        return digits(value, 3 if abs(value) > 1 else 2)
    return f"{value:.3f}" if value != 1 and f"{value:.2f}" == "1.00" else f"{value:.2f}"


def milliseconds(value: float | None) -> str:
    """A time given in milliseconds, in the unit that reads best."""
    if value is None:
        return MISSING
    if 0 < abs(value) < 0.1:
        return f"{digits(value * 1000)} µs"
    return f"{digits(value / 1000)} s" if abs(value) >= 10_000 else f"{digits(value)} ms"


def milliseconds_with(value: float | None, bounds: Interval | None) -> str:
    """A time and its interval in one unit: ``31.5 µs [31.4, 31.8]``."""
    if value is None or bounds is None:
        return milliseconds(value)
    factor = 1000 if milliseconds(value).endswith("µs") else 0.001 if milliseconds(value).endswith(" s") else 1
    return f"{milliseconds(value)} {interval((bounds[0] * factor, bounds[1] * factor))}"


def seconds(value: float | None) -> str:
    """A time given in seconds: ``0.4 s``, ``3 min 20 s``."""
    if value is None:
        return MISSING
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def joules(value: float | None) -> str:
    """An energy: ``1.20 mJ``."""
    if value is None:
        return MISSING
    for factor, unit in ((1.0, "J"), (1e3, "mJ")):
        if abs(value) * factor >= 1:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value * 1e6)} µJ"


def time_unit(longest: float) -> tuple[float, str]:
    """The factor and unit in which an axis shows times given in milliseconds, up to ``longest``."""
    if longest < 0.5:
        return 1000.0, "µs"
    return (1.0, "ms") if longest < 5000 else (0.001, "s")


def size_unit(largest: float) -> tuple[float, str]:
    """The factor and unit in which an axis shows sizes given in bytes, up to ``largest``."""
    for factor, unit in ((1e-9, "GB"), (1e-6, "MB"), (1e-3, "kB")):
        if largest * factor >= 1.5:
            return factor, unit
    return 1.0, "bytes"


def plain(name: str) -> str:
    """A metric's name as words."""
    return short(name.replace("_", " "), 40) or "metric"


def title(name: str) -> str:
    """A metric's name as a heading."""
    words = plain(name)
    return words[:1].upper() + words[1:]


def joined(value: str, bounds: str) -> str:
    """A value and its interval, where it has one."""
    return value if value == MISSING or not bounds else f"{value} {bounds}"


def size(value: float | None) -> str:
    """Bytes in decimal units: ``369 kB``."""
    return MISSING if value is None else _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def count(value: float | None) -> str:
    """A count: ``41.0 M``."""
    return MISSING if value is None else _scaled(value, ("", "k", "M", "G", "T")).strip()


def share(value: float | None) -> str:
    """A share between 0 and 1 as whole per cent; 0 and 100 mean exactly that."""
    if value is None:
        return MISSING
    whole = round(value * 100)
    if whole == 100 and value < 1:
        return "> 99 %"
    if whole == 0 and value > 0:
        return "< 1 %"
    return f"{whole} %"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    amount = float(value)
    while abs(amount) >= 999.5 and step < len(units) - 1:
        amount /= 1000
        step += 1
    text = f"{amount:.0f}" if step == 0 else digits(amount)
    return f"{text} {units[step]}"


def percent(value: Any) -> str:
    """A small share with one decimal: ``2.1 %``."""
    return f"{value * 100:.1f} %" if isinstance(value, int | float) else MISSING


def because(reason: str) -> str:
    """A reason without the words that its place already says."""
    return reason.removeprefix("not available here, because ").removeprefix("built here, not measured: ").strip()


def sentence(text: str) -> str:
    """A remark as a sentence of its own: a capital first, a full stop last."""
    said = text.strip()
    return said[:1].upper() + said[1:] + ("" if said.endswith((".", "!", "?")) else ".")


def counted(number: int, noun: str) -> str:
    """``1 limit``, ``15 limits``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listing(words: list[str], most: int = 4) -> str:
    """``a, b and c``; what is over ``most`` is counted."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""
