"""Task metrics. A file here is one; its name is what the recipe says.

A metric file, packaged or the user's own, has

* ``score(outputs, labels, **options) -> float``: ``outputs`` is the list of the model's output arrays
  (N, …), ``labels`` an array (N, …);
* ``HIGHER_IS_BETTER`` (default True);
* optionally ``per_sample(outputs, labels, **options) -> array (N, …)``: what each sample contributes,
  with ``combine(parts, **options) -> float`` where the score is not just the mean of that. With it,
  intervals cost milliseconds, because a resample need not look at the outputs again.

``file.py:function`` names such a ``score`` by itself.
"""

from __future__ import annotations

import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit import rooms
from edgekit.errors import EdgekitError, InputError, StageError, missing_package
from edgekit.store import sha256_file, sha256_json

if TYPE_CHECKING:
    import numpy as np

    from edgekit.recipe import MetricSection

    Array = np.ndarray[Any, Any]
    Outputs = Sequence[Array]


@dataclass(frozen=True)
class Metric:
    """A metric with its options bound.

    Attributes:
        name: As the recipe names it; of a user's own, the file's name without its ending, or the function's.
        higher_is_better: Which way is good.
        options: What the recipe passes to it.
    """

    name: str
    higher_is_better: bool
    options: dict[str, Any] = field(default_factory=dict)
    _module: ModuleType | None = None

    def score(self, outputs: Outputs, labels: Array) -> float:
        """The metric's value over all samples: a finite number.

        Args:
            outputs: The model's outputs, arrays (N, …). labels: Array (N, …).

        Raises:
            InputError: No samples, or labels that don't fit the outputs.
            StageError: The outputs hold NaN, or the value is not a number.
        """
        parts = self.per_sample(outputs, labels)
        if parts is not None:
            return self.combine(parts)
        return self._number(self._call("score", list(outputs), labels))

    def per_sample(self, outputs: Outputs, labels: Array) -> Array | None:
        """What each sample contributes, array (N, …); None where the metric has no such form.

        Raises:
            InputError: As :meth:`score`.
            StageError: As :meth:`score`.
        """
        check(outputs, labels)
        if not hasattr(self._module, "per_sample"):
            return None
        import numpy as np

        parts = np.asarray(self._call("per_sample", list(outputs), labels))
        if parts.shape[:1] != labels.shape[:1]:
            raise InputError(
                f"per_sample gave an array of shape {parts.shape} for {len(labels)} samples",
                where=self.name,
                remedy="return one row for each sample",
            )
        return parts

    def combine(self, parts: Array) -> float:
        """The value over the samples whose ``parts`` these are: their mean unless the metric says otherwise.

        Raises:
            InputError: The value is not defined on these samples.
            StageError: It is not a finite number.
        """
        if hasattr(self._module, "combine"):
            return self._number(self._call("combine", parts))
        return self._number(float(parts.mean()))

    @property
    def is_mean(self) -> bool:
        """Whether the value is the plain mean of what the samples contribute."""
        return hasattr(self._module, "per_sample") and not hasattr(self._module, "combine")

    def source(self) -> str:
        """Hex hash of the metric's file and, for a user's own, of the Python files beside it."""
        assert self._module is not None
        assert self._module.__file__ is not None
        file = Path(self._module.__file__)
        own = file.parent != Path(__file__).parent
        beside = file.parent.glob("*.py") if own else [file, *file.parent.glob("_*.py")]
        return sha256_json({path.name: sha256_file(path) for path in beside})

    def _call(self, function: str, *arguments: Any) -> Any:
        module = self._module
        assert module is not None
        try:
            return getattr(module, function)(*arguments, **_accepted(getattr(module, function), self.options))
        except EdgekitError:
            raise
        except ModuleNotFoundError as error:
            raise missing_package(error.name or "scikit-learn", "compress", f"by the metric '{self.name}'") from error
        except Exception as error:
            raise InputError(
                f"{function} raises {type(error).__name__}: {str(error)[:300]}",
                where=_place(error, module, self.name),
                remedy="mend the metric's file (it gets a list of arrays, one for each output of the model), "
                "or its options in the recipe's [metric]",
                details=traceback.format_exc()[-4000:],
            ) from error

    def _number(self, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the metric gave {type(value).__name__} in place of a number",
                where=self.name,
                remedy="let score() return one float",
            ) from error
        if not math.isfinite(number):
            raise StageError(
                f"the metric '{self.name}' is {number}: it is not defined on these outputs and labels",
                remedy="check the labels of the split (is every class there?) and the model's outputs",
            )
        return number


def load(settings: MetricSection | dict[str, Any], base: Path | None = None) -> Metric:
    """The metric that ``[metric]`` asks for.

    Args:
        settings: The section, or its dump: ``name`` and ``options``.
        base: The folder that a relative path of the user's own file starts from.

    Raises:
        InputError: No such metric, a file without ``score``, or an option that it does not take.
    """
    from edgekit.recipe import MetricSection

    section = settings if isinstance(settings, MetricSection) else MetricSection.model_validate(settings)
    if ":" in section.name:
        module = _of_function(rooms.load_entry(section.name, base or Path()))
    else:
        module = rooms.load("metrics", section.name, base=base)
    if not callable(getattr(module, "score", None)):
        raise InputError(
            "this metric has no function 'score'", where=section.name, remedy="add: def score(outputs, labels): …"
        )
    _check_options(section, module.score)
    name = Path(section.name).stem if section.name.endswith(".py") else section.name.rpartition(":")[2]
    return Metric(name, bool(getattr(module, "HIGHER_IS_BETTER", True)), dict(section.options), module)


def _of_function(score: Callable[..., Any]) -> ModuleType:
    """A metric of one function: its file's ``HIGHER_IS_BETTER`` is its own too."""
    file = sys.modules[score.__module__]
    module = ModuleType(score.__name__)
    module.__dict__.update(
        score=score, __file__=file.__file__, HIGHER_IS_BETTER=getattr(file, "HIGHER_IS_BETTER", True)
    )
    return module


def check(outputs: Outputs, labels: Array) -> None:
    """Refuse what no metric can be computed on.

    Raises:
        InputError: No samples, no outputs, numbers of samples that differ, NaN in the labels.
        StageError: NaN in the first output.
    """
    import numpy as np

    if not len(outputs):
        raise InputError("the model has no outputs", remedy="return at least one tensor from the model")
    if not len(labels):
        raise InputError("the split has no samples", remedy="give it at least one batch with at least one sample")
    if len(outputs[0]) != len(labels):
        raise InputError(
            f"the model gave {len(outputs[0])} outputs for {len(labels)} labels",
            remedy="the first size of every output must be the batch",
        )
    if np.issubdtype(labels.dtype, np.floating) and np.isnan(labels).any():
        bad = int(np.isnan(labels).reshape(len(labels), -1).any(axis=1).argmax())
        raise InputError(f"the labels of sample {bad} hold NaN", remedy="mend the data set")
    if np.issubdtype(outputs[0].dtype, np.floating) and np.isnan(outputs[0]).any():
        rows = np.isnan(outputs[0]).reshape(len(labels), -1).any(axis=1)
        raise StageError(
            f"the model's first output is NaN for {int(rows.sum())} of {len(labels)} samples (the first is "
            f"sample {int(rows.argmax())})",
            remedy="look at the stage before: weights or a layer's range went wrong there",
        )


def _check_options(section: MetricSection, score: Callable[..., Any]) -> None:
    known = list(inspect.signature(score).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in known):
        return
    names = [p.name for p in known[2:]]
    for option in section.options:
        if option not in names:
            takes = f"it takes {', '.join(names)}" if names else "it takes no options"
            raise InputError(
                f"the metric '{section.name}' has no option '{option}'{rooms.did_you_mean(option, names)}",
                where="[metric] options",
                remedy=f"remove it; {takes}",
            )


def _accepted(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that this function of the metric takes (``score`` takes them all)."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return options
    return {name: value for name, value in options.items() if name in parameters}


def _place(error: BaseException, module: ModuleType, name: str) -> str:
    """``file:line`` of the metric's file where the error arose, else the metric's name."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == module.__file__]
    return f"{module.__file__}:{lines[-1]}" if lines else name
