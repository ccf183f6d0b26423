"""Every metric against scikit-learn, over the forms that models' outputs take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as truth

from edgekit import metrics, rooms
from edgekit.errors import InputError, StageError, UnavailableError
from edgekit.metrics import _intervals
from edgekit.recipe import MetricSection

RNG = np.random.default_rng(7)


def metric(name: str, **options: Any) -> metrics.Metric:
    return metrics.load(MetricSection(name=name, options=options))


def classification(n: int = 400, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    labels = RNG.integers(0, classes, n)
    labels[:classes] = range(classes)
    logits = RNG.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    return logits, labels


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("name", rooms.members("metrics"))
def test_every_metric_keeps_the_contract(name: str) -> None:
    """Loaded by its name, it scores, and its parts combine to that score."""
    logits, labels = classification()
    values = RNG.normal(size=(400, 5))
    regression = name in ("mse", "mae", "rmse", "r2")
    outputs, wanted = ([values.astype("f")], values + 0.1) if regression else ([logits], labels)
    chosen = metric(name, **({"k": 2} if name == "top_k" else {}))
    parts = chosen.per_sample(outputs, wanted)
    assert parts is not None
    assert len(parts) == 400
    assert chosen.score(outputs, wanted) == pytest.approx(chosen.combine(parts))
    assert chosen.higher_is_better is not (name in ("mse", "mae", "rmse"))
    module = rooms.load("metrics", name)
    assert module.score(outputs, wanted, **chosen.options) == pytest.approx(chosen.score(outputs, wanted))


def test_accuracy_is_scikit_learns() -> None:
    logits, labels = classification()
    assert metric("accuracy").score([logits], labels) == pytest.approx(
        truth.accuracy_score(labels, logits.argmax(1)), abs=1e-12
    )


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_is_scikit_learns(k: int) -> None:
    logits, labels = classification()
    expected = truth.top_k_accuracy_score(labels, logits, k=k, labels=range(5))
    assert metric("top_k", k=k).score([logits], labels) == pytest.approx(expected)


def test_top_1_breaks_ties_as_accuracy_does() -> None:
    """An int8 output has ties; the same outputs must not score differently by two names."""
    logits = RNG.integers(0, 3, (500, 5)).astype(np.float32)
    labels = RNG.integers(0, 5, 500)
    assert metric("top_k", k=1).score([logits], labels) == metric("accuracy").score([logits], labels)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_precision_recall_f1_are_scikit_learns(name: str, average: str) -> None:
    logits, labels = classification()
    expected = getattr(truth, f"{name}_score")(labels, logits.argmax(1), average=average)
    assert metric(name, average=average).score([logits], labels) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_two_classes_are_scored_for_the_positive_one(name: str) -> None:
    logits, labels = classification(classes=2)
    expected = getattr(truth, f"{name}_score")(labels, logits.argmax(1))
    assert metric(name).score([logits], labels) == pytest.approx(expected)


@pytest.mark.parametrize("form", ["(N,) logit", "(N,1) logit", "(N,1) probability", "(N,) int8 probability"])
@pytest.mark.parametrize("name", ["accuracy", "f1", "auc"])
def test_one_score_decides_between_two_classes(name: str, form: str) -> None:
    labels = RNG.integers(0, 2, 300)
    logit = (RNG.normal(size=300) * 2 + labels * 2 - 1).astype(np.float32)
    score = logit
    if "probability" in form:
        score = 1 / (1 + np.exp(-logit))
    if "int8" in form:
        score = np.round(score * 255) / 254.0  # the scale may carry it a step above 1
    expected = {
        "accuracy": truth.accuracy_score(labels, score > (0.5 if "probability" in form else 0)),
        "f1": truth.f1_score(labels, score > (0.5 if "probability" in form else 0)),
        "auc": truth.roc_auc_score(labels, score),
    }[name]
    shaped = score[:, None] if "1)" in form else score
    assert metric(name).score([shaped], labels) == pytest.approx(expected)
    assert metric(name).score([shaped], labels[:, None].astype(np.float32)) == pytest.approx(expected)


def test_threshold_can_be_given() -> None:
    labels, scores = np.array([0, 1, 1]), np.array([0.2, 0.4, 0.9])
    assert metric("accuracy").score([scores], labels) == pytest.approx(2 / 3)
    assert metric("accuracy", threshold=0.3).score([scores], labels) == 1.0


def test_auc_over_many_classes_ranks_probabilities() -> None:
    logits, labels = classification()
    expected = truth.roc_auc_score(labels, softmax(logits), multi_class="ovr")
    assert metric("auc").score([logits], labels) == pytest.approx(expected, abs=1e-6)
    assert metric("auc").score([softmax(logits)], labels) == pytest.approx(expected, abs=1e-6)


def test_segmentation_counts_pixels() -> None:
    labels = RNG.integers(0, 3, (6, 8, 9))
    scores = RNG.normal(size=(6, 3, 8, 9)).astype("f")
    decided = scores.argmax(1)
    assert metric("accuracy").score([scores], labels) == pytest.approx((decided == labels).mean())
    expected = truth.f1_score(labels.ravel(), decided.ravel(), average="macro")
    assert metric("f1").score([scores], labels) == pytest.approx(expected)
    parts = metric("accuracy").per_sample([scores], labels)
    assert parts is not None
    assert parts.shape == (6,)


def test_ignored_labels_do_not_count() -> None:
    labels = RNG.integers(0, 3, (6, 8, 9))
    scores = RNG.normal(size=(6, 3, 8, 9)).astype("f")
    labels[:, :2] = 255
    labels[0] = 255  # a picture without any label that counts
    counted = labels != 255
    decided = scores.argmax(1)
    shares = [(decided[i] == labels[i])[counted[i]].mean() for i in range(1, 6)]
    assert metric("accuracy", ignore=255).score([scores], labels) == pytest.approx(np.mean(shares))
    expected = truth.precision_score(labels[counted], decided[counted], average="macro")
    assert metric("precision", ignore=255).score([scores], labels) == pytest.approx(expected)


def test_tokens_have_their_classes_last() -> None:
    labels = RNG.integers(0, 4, (5, 7))
    scores = RNG.normal(size=(5, 7, 4))
    assert metric("accuracy").score([scores], labels) == pytest.approx((scores.argmax(-1) == labels).mean())


def test_one_hot_labels_and_several_binary_ones() -> None:
    logits, labels = classification()
    assert metric("accuracy").score([logits], np.eye(5)[labels]) == metric("accuracy").score([logits], labels)
    many = RNG.integers(0, 2, (100, 4))
    many[0] = [1, 1, 0, 0]
    scores = RNG.normal(size=(100, 4))
    assert metric("accuracy").score([scores], many) == pytest.approx(((scores > 0) == many).mean())
    assert metric("f1").score([scores], many) == pytest.approx(truth.f1_score(many.ravel(), (scores > 0).ravel()))


def test_a_model_may_end_in_its_arg_max() -> None:
    logits, labels = classification()
    assert metric("f1").score([logits.argmax(1)], labels) == metric("f1").score([logits], labels)
    with pytest.raises(InputError, match="scores"):
        metric("auc").score([logits.argmax(1)], labels)


def test_only_the_first_output_counts() -> None:
    logits, labels = classification()
    assert metric("accuracy").score([logits, np.zeros((400, 3))], labels) == metric("accuracy").score([logits], labels)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("mse", "mean_squared_error"),
        ("mae", "mean_absolute_error"),
        ("rmse", "root_mean_squared_error"),
        ("r2", "r2_score"),
    ],
)
@pytest.mark.parametrize("shape", [(200,), (200, 1), (200, 3)])
def test_regression_is_scikit_learns(name: str, function: str, shape: tuple[int, ...]) -> None:
    labels = RNG.normal(size=shape)
    predicted = (labels + RNG.normal(size=shape) * 0.3).astype(np.float32)
    expected = getattr(truth, function)(labels.reshape(200, -1), predicted.reshape(200, -1))
    if name == "rmse":  # scikit-learn takes the root value by value, then the mean; one root over all is meant here
        expected = truth.mean_squared_error(labels.reshape(200, -1), predicted.reshape(200, -1)) ** 0.5
    assert metric(name).score([predicted], labels) == pytest.approx(expected, rel=1e-6)
    assert metric(name).score([predicted.reshape(200, -1)], labels) == pytest.approx(expected, rel=1e-6)


def test_user_metric_by_path(tmp_path: Path) -> None:
    (tmp_path / "gap.py").write_text(
        "HIGHER_IS_BETTER = False\ndef score(outputs, labels, scale=1.0):\n"
        "    return float(abs(outputs[0].mean() - labels.mean())) * scale\n"
    )
    chosen = metrics.load({"name": "gap.py", "options": {"scale": 2.0}}, tmp_path)
    assert (chosen.name, chosen.higher_is_better) == ("gap", False)
    assert chosen.score([np.array([1.0, 3.0])], np.array([0.0, 1.0])) == pytest.approx(3.0)
    assert chosen.per_sample([np.array([1.0, 3.0])], np.array([0.0, 1.0])) is None
    assert not chosen.is_mean


def test_user_metric_by_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "HIGHER_IS_BETTER = False\ndef misses(outputs, labels, cost=1.0):\n"
        "    return cost * float((outputs[0].argmax(1) != labels).mean())\n"
    )
    section = MetricSection(name="mine.py:misses", options={"cost": 2.0})
    metric = metrics.load(section, tmp_path)
    assert (metric.name, metric.higher_is_better) == ("misses", False)
    outputs = [np.eye(4, dtype=np.float32)]
    assert metric.score(outputs, np.array([0, 1, 2, 0])) == pytest.approx(0.5)
    before = metric.source()
    (tmp_path / "mine.py").write_text("def misses(outputs, labels):\n    return 0.0\n")
    assert metrics.load(MetricSection(name="mine.py:misses"), tmp_path).source() != before
    with pytest.raises(InputError, match=r"no function 'mises' in mine\.py; did you mean 'misses'"):
        metrics.load(MetricSection(name="mine.py:mises"), tmp_path)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def other(): pass", "no function 'score'"),
        ("def score(outputs, labels):\n    return outputs[7]", r"raises IndexError"),
        ("def score(outputs, labels):\n    return 'good'", "str in place of a number"),
        ("def score(outputs, labels):\n    return float('nan')", "is nan"),
        ("def per_sample(o, l):\n    return o[0][:1]\ndef score(o, l):\n    return 1.0", "one row for each sample"),
        ("import nowhere_at_all", "raises ModuleNotFoundError"),
    ],
)
def test_user_metric_that_is_wrong(tmp_path: Path, body: str, problem: str) -> None:
    (tmp_path / "mine.py").write_text(body + "\n")
    with pytest.raises((InputError, StageError)) as caught:
        metrics.load({"name": "mine.py"}, tmp_path).score([np.ones((3, 2))], np.array([0, 1, 0]))
    assert problem in str(caught.value)
    if "IndexError" in problem:
        assert caught.value.where.endswith("mine.py:2")


def test_a_board_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs the library says so; what does not, works."""
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    logits, labels = classification()
    assert 0 < metric("accuracy").score([logits], labels) < 1
    with pytest.raises(UnavailableError, match="not available here") as caught:
        metric("f1").score([logits], labels)
    assert "edgekit-compiler[compress]" in caught.value.remedy


def test_names_and_options_are_checked() -> None:
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        metrics.load({"name": "acuracy"})
    with pytest.raises(InputError, match="no option 'kk'; did you mean 'k'"):
        metrics.load({"name": "top_k", "options": {"kk": 3}})
    with pytest.raises(InputError, match="takes no options") as caught:
        metrics.load({"name": "mse", "options": {"k": 3}})
    assert caught.value.exit_code == 2


LOGITS, LABELS = classification(10, 3)


@pytest.mark.parametrize(
    ("outputs", "labels", "kind", "problem"),
    [
        (LOGITS, np.full(10, 3), InputError, "label of sample 0 is 3, but the model's output has 3 classes"),
        (LOGITS, np.array([0] * 9 + [-1]), InputError, "label of sample 9 is -1"),
        (LOGITS[:, :1], np.full(10, 2), InputError, "one score for two classes"),
        (LOGITS, LABELS + 0.5, InputError, "no whole number"),
        (LOGITS, LABELS.astype(str), InputError, "type <U"),
        (LOGITS[:0], LABELS[:0], InputError, "no samples"),
        (LOGITS[:9], LABELS, InputError, "9 outputs for 10 labels"),
        (LOGITS, np.full(10, np.nan), InputError, "labels of sample 0 hold NaN"),
        (np.where(np.arange(10)[:, None] > 3, np.nan, LOGITS), LABELS, StageError, "NaN for 6 of 10 samples"),
        (LOGITS.reshape(10, 3, 1, 1), np.zeros((10, 2, 2), int), InputError, "don't fit together"),
    ],
)
def test_what_no_accuracy_can_be_given_for(
    outputs: np.ndarray, labels: np.ndarray, kind: type[Exception], problem: str
) -> None:
    """Refused, and never told as 0 or NaN."""
    with pytest.raises(kind, match=problem):
        metric("accuracy").score([outputs], labels)


def test_metrics_that_are_not_defined() -> None:
    logits, labels = classification(50, 3)
    with pytest.raises(InputError, match="no sample has the label 2"):
        metric("auc").score([logits], labels % 2)
    with pytest.raises(InputError, match="labels are all the same"):
        metric("r2").score([logits[:, 0]], np.ones(50))
    with pytest.raises(InputError, match="k = 5 says nothing about a model with 3 classes"):
        metric("top_k").score([logits], labels)
    with pytest.raises(InputError, match="every label is the one to ignore"):
        metric("accuracy", ignore=0).score([logits], labels * 0)
    with pytest.raises(InputError, match="don't fit together"):
        metric("mse").score([logits], labels)
    with pytest.raises(StageError, match="infinite"):
        metric("mse").score([np.array([1.0, np.inf])], np.array([1.0, 2.0]))


def test_published_intervals() -> None:
    """Newcombe 1998 (Statistics in Medicine 17:857, table I; 17:2635, table II) and Altman 2000, p. 53."""
    assert _intervals.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert _intervals.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert _intervals.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert _intervals.newcombe(*paired(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert _intervals.newcombe(*paired(14, 5, 0, 22)) == pytest.approx((0.011, 0.226), abs=5e-4)
    assert _intervals.mcnemar(*paired(14, 5, 0, 22)) == pytest.approx(0.0625)
    assert _intervals.mcnemar(*paired(14, 0, 0, 22)) == 1.0


def paired(both: int, only_one: int, only_other: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    one = np.repeat([True, True, False, False], [both, only_one, only_other, none])
    other = np.repeat([True, False, True, False], [both, only_one, only_other, none])
    return one, other


def test_intervals_cover_what_they_should() -> None:
    """Of 400 samples drawn with a known difference, the 95 % interval holds it about 95 times in 100."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        both = rng.random(500) < 0.85
        one = both ^ (rng.random(500) < 0.04)
        other = both ^ (rng.random(500) < 0.04)
        low, high = _intervals.newcombe(one, other)
        held += low <= 0.0 <= high
    assert 0.92 <= held / 400 <= 0.99
