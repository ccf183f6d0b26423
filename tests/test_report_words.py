"""Numbers as people read them, text made safe, TOML that reads back."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_sample import NAMES

from edgekit.report import toml, words

MINUS = "−"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9123, "91.23 %"),
        (1.0, "100.00 %"),
        (0.0, "0.00 %"),
        (None, "–"),
    ],
)
def test_a_fraction_is_shown_as_per_cent(value: float | None, text: str) -> None:
    assert words.metric_text(value, "accuracy") == text


def test_other_metrics_keep_their_own_unit() -> None:
    assert words.metric_text(0.012345, "mse") == "0.01235"
    assert words.metric_text(1234.5, "rmse") == "1\u202f234" or words.metric_text(1234.5, "rmse") == "1\u202f235"
    assert words.delta_text(-0.5, "mae") == f"{MINUS}0.500"


@pytest.mark.parametrize(
    ("value", "text"), [(-0.0021, f"{MINUS}0.21 pt"), (0.0021, "+0.21 pt"), (0.0, "±0.00 pt"), (1e-9, "±0.00 pt")]
)
def test_a_change_of_a_fraction_is_signed_points(value: float, text: str) -> None:
    assert words.delta_text(value, "accuracy") == text


def test_the_interval_of_a_change_names_the_unit_once() -> None:
    assert words.delta_interval((-0.004, 0.0002), "accuracy") == f"[{MINUS}0.40, +0.02]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0432, "43.2 µs"),
        (0.432, "0.432 ms"),
        (43.2, "43.2 ms"),
        (4320.0, "4\u202f320 ms"),
        (43200.0, "43.2 s"),
        (None, "–"),
        (0.0, "0 ms"),
    ],
)
def test_times_are_shown_in_the_unit_that_reads_best(value: float | None, text: str) -> None:
    assert words.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (369_659, "370 kB"), (2.5e9, "2.50 GB")]
)
def test_sizes_are_decimal(value: float, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.034, "2.03×"),
        (0.294, "0.29×"),
        (12.34, "12.3×"),
        (0.0321, "0.032×"),
        (1.004, "1.004×"),
        (0.998, "0.998×"),
        (1.0, "1.00×"),
    ],
)
def test_a_ratio_never_hides_on_which_side_of_one_it_lies(value: float, text: str) -> None:
    assert words.times(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100 %"), (0.999, "> 99 %"), (0.001, "< 1 %"), (0.0, "0 %"), (0.34, "34 %")]
)
def test_a_share_says_all_and_nothing_only_where_it_is_so(value: float, text: str) -> None:
    assert words.share(value) == text


def test_a_listing_counts_what_it_leaves_out() -> None:
    assert words.listing(["a"]) == "a"
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert words.listing(list("abcdef"), 4) == "a, b, c and 3 more"
    assert words.listing([]) == ""


@pytest.mark.parametrize("name", NAMES)
def test_shown_text_has_nothing_that_a_terminal_or_reader_obeys(name: str) -> None:
    shown = words.clean(name)
    shown.encode()  # raises on lone surrogates
    assert len(shown) <= words.LONGEST
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(c in shown for c in "\x7f\x9b\u202e\u200b\ufeff\u2028")


def test_tidying_reaches_every_depth_and_keeps_what_is_harmless() -> None:
    given_ = {"a": [1, 2.5, math.nan, {"b\x1b": "c\x00"}], "ok": "ünï 漢", "none": None, "true": True}
    assert words.tidy(given_) == {
        "a": [1, 2.5, None, {"b\ufffd": "c\ufffd"}],
        "ok": "ünï 漢",
        "none": None,
        "true": True,
    }


def test_a_long_name_loses_its_middle() -> None:
    short = words.short("backbone.layer1." + "x" * 100 + ".conv2", 21)
    assert short == "backbone.l…xxxx.conv2"
    assert len(short) == 21


_KEYS = st.text(min_size=1, max_size=8)
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
)
_TABLES = st.recursive(
    st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8), _LEAVES, max_size=4),
    lambda inner: st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8),
        _LEAVES | inner | st.lists(inner, max_size=2) | st.lists(_LEAVES, max_size=3),
        max_size=4,
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(_TABLES)
def test_toml_reads_back_as_what_was_written(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml.dumps(table)) == _without_none(table)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value if v is not None]
    return value
