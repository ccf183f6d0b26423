"""One check: a value against a limit, with three answers, and the sentence that says by how much."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """How a kind of number is written.

    Attributes:
        digits: ``format``'s specification. name: What stands behind it.
    """

    digits: str
    name: str = ""

    def show(self, value: float) -> str:
        """``1,234 bytes``."""
        shown = f"{value:{self.digits}}"
        return (shown.lstrip("-") if not shown.strip("-0.,%") else shown) + self.name  # no "-0.0000"


FRACTION = Unit(digits=".4f")
RATIO = Unit(digits=".3f", name="x")
BYTES = Unit(digits=",.0f", name=" bytes")
MILLISECONDS = Unit(digits=".4g", name=" ms")
COUNT = Unit(digits=",.0f")
SHARE = Unit(digits=".1%")


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one limit says of one row.

    Attributes:
        name: The limit's key in the recipe. variant: The row's id; None: about the run.
        target: The row's target.
        limit, value: Numbers in the limit's unit, or words.
        passed: True, False, or None: this run can't tell.
        sentence: Value, limit and by how much, for a person.
        ci: The interval of the value that decided.
        excess: By how much the limit is broken (0 or less: kept), in its own unit.
        provable: The smallest change that this run could have proved, in the limit's unit.
    """

    name: str
    variant: str | None
    target: str | None = None
    limit: float | str | None
    value: float | str | None
    passed: bool | None
    sentence: str
    ci: Interval | None = None
    excess: float | None = None
    provable: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "ci": list(self.ci) if self.ci else None}


def at_most(
    name: str, row: dict[str, Any], what: str, value: float, limit: float, unit: Unit, ci: Interval | None = None
) -> Check:
    """``value`` must not be above ``limit``; with an interval, only what lies wholly on one side is decided."""
    value += 0.0  # no -0.0
    low, high = ci or (value, value)
    passed = True if high <= limit else False if low > limit else None
    return _check(name, row, f"{what} is", value, limit, "at most", unit, ci, passed, value - limit)


def at_least(
    name: str, row: dict[str, Any], what: str, value: float, limit: float, unit: Unit, ci: Interval | None = None
) -> Check:
    """``value`` must not be below ``limit``; with an interval, only what lies wholly on one side is decided."""
    low, high = ci or (value, value)
    passed = True if low >= limit else False if high < limit else None
    return _check(name, row, f"{what} is", value, limit, "at least", unit, ci, passed, limit - value)


def unknown(name: str, row: dict[str, Any], limit: float, why: str, value: float | None = None) -> Check:
    """A limit that was set and can't be judged: never a pass by accident."""
    return Check(
        name=name,
        variant=row["id"],
        target=row["target"],
        limit=limit,
        value=value,
        passed=None,
        sentence=f"{row['id']}: {name}: can't tell: {why}",
    )


def broken(name: str, variant: str | None, target: str | None, limit: str, value: str, sentence: str) -> Check:
    """A check of words that does not hold."""
    return Check(
        name=name,
        variant=variant,
        target=target,
        limit=limit,
        value=value,
        passed=False,
        sentence=sentence,
        excess=None,
    )


def _check(
    name: str,
    row: dict[str, Any],
    what: str,
    value: float,
    limit: float,
    side: str,
    unit: Unit,
    ci: Interval | None,
    passed: bool | None,
    excess: float,
) -> Check:
    shown = unit.show(value) + (f" [{unit.show(ci[0])}, {unit.show(ci[1])}]" if ci else "")
    provable = (ci[1] - ci[0]) / 2 if ci else None
    smallest = f"; the smallest change this run could have proved is {unit.show(provable)}" if provable else ""
    end = {
        True: f"holds with {unit.show(-excess)} to spare",
        False: f"broken by {unit.show(excess)}",
        None: f"can't tell, the limit lies inside the interval{smallest}",
    }[passed]
    return Check(
        name=name,
        variant=row["id"],
        target=row["target"],
        limit=limit,
        value=value,
        passed=passed,
        sentence=f"{row['id']}: {name}: {what} {shown}, limit {side} {unit.show(limit)}: {end}",
        ci=ci,
        excess=excess,
        provable=provable,
    )
