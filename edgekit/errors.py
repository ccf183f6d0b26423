"""The errors a user can cause, each with its remedy and its exit code.

    EdgekitError            3
    ├── InputError          2   a recipe, model, data set or file is wrong
    ├── StageError          3   a stage of the line failed
    ├── UnavailableError    4   a target or library can't run here
    ├── InconclusiveError   5   too noisy, or too few samples to tell
    └── GateError           1   the gate says no

A message says what was wrong and where; ``remedy`` says what to do and is required,
so an error without one does not even construct.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Base of all errors that edgekit raises on purpose.

    Args:
        problem: What was wrong, in one sentence, with the value that was found.
        remedy: What the user can do about it.
        where: The file, key, layer or node it concerns.
        details: The last lines of a foreign tool's output, for ``-v``.
    """

    exit_code = 3

    def __init__(self, problem: str, *, remedy: str, where: str = "", details: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.where = where
        self.details = details

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.problem}\n  fix: {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self).__name__, self.to_dict())

    def to_dict(self) -> dict[str, str]:
        """The error as JSON, as it crosses from a child process to its parent."""
        return {
            "kind": type(self).__name__,
            "problem": self.problem,
            "remedy": self.remedy,
            "where": self.where,
            "details": self.details,
        }


class InputError(EdgekitError):
    """A recipe, model, data set or file that the user gave is wrong."""

    exit_code = 2


class StageError(EdgekitError):
    """A stage of the line failed, or its output does not agree with its input."""

    exit_code = 3


class UnavailableError(EdgekitError):
    """A target, runtime or library can't be used on this machine."""

    exit_code = 4


class InconclusiveError(EdgekitError):
    """The measurement can't tell: too noisy, or too few samples."""

    exit_code = 5


class GateError(EdgekitError):
    """The gate's limits are broken."""

    exit_code = 1


_KINDS: dict[str, type[EdgekitError]] = {"EdgekitError": EdgekitError}
_KINDS.update({kind.__name__: kind for kind in EdgekitError.__subclasses__()})


def from_dict(data: dict[str, str]) -> EdgekitError:
    """Rebuild an error that :meth:`EdgekitError.to_dict` wrote."""
    kind = _KINDS.get(data["kind"], StageError)
    return kind(data["problem"], remedy=data["remedy"], where=data["where"], details=data["details"])


def _rebuild(kind: str, data: dict[str, str]) -> EdgekitError:
    return from_dict({**data, "kind": kind})


def missing_package(package: str, extra: str, purpose: str) -> UnavailableError:
    """The one wording for "not available here" where an optional package is missing.

    Args:
        package: The import name that failed.
        extra: The extra of the distribution that brings it.
        purpose: What it was needed for: "to run ONNX Runtime models".
    """
    return UnavailableError(
        f"not available here, because the Python package '{package}' is not installed (needed {purpose})",
        remedy=f"install it, for example with: pip install 'edgekit-compiler[{extra}]' from your checkout or wheel",
    )
