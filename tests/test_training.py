"""Training: the loop, its losses, its processes, and what is left when it is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import exported, training
from edgekit.errors import InputError, StageError
from edgekit.recipe import MetricSection, TrainSection
from edgekit.training import TrainJob, losses, statistics
from edgekit.training.data import Split, share
from edgekit.training.models import ending_of
from edgekit.training.work import work
from edgekit.workload import spool

DATA = """
import numpy as np

rng = np.random.default_rng(5)
W = rng.normal(size=(FEATURES, 1)).astype(np.float32)


class Batches:
    def __init__(self, seed, count, size=32):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(count * size, FEATURES)).astype(np.float32)
        self.y = ((self.x @ W)[:, 0] > 0).astype(LABEL)
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __iter__(self):
        order = np.random.permutation(len(self.x)) if self.count > COUNT_FIXED else np.arange(len(self.x))
        for i in range(self.count):
            rows = order[i * self.size : (i + 1) * self.size]
            yield self.x[rows], self.y[rows]


def data():
    return {"train": Batches(1, TRAIN), "validation": Batches(2, 8)}


def broken():
    def batches():
        yield from Batches(1, 3)
        raise RuntimeError("the disk went away")
    return {"train": list_like(batches), "validation": Batches(2, 8)}


def list_like(make):
    class Again:
        def __iter__(self):
            return make()
        def __len__(self):
            return 5
    return Again()


def loss_of_mine(outputs, labels):
    return ((outputs.squeeze(1) - labels) ** 2).mean()


def diverging(outputs, labels):
    diverging.calls = getattr(diverging, "calls", 0) + 1
    scale = float("nan") if diverging.calls > 30 else 1.0
    return ((outputs.squeeze(1) - labels) ** 2).mean() * scale
"""


def mlp(features: int = 16, *, sigmoid: bool = True, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(24)] if norm else []
    layers = [nn.Linear(features, 24), *middle, nn.ReLU(), nn.Linear(24, 1), *([nn.Sigmoid()] if sigmoid else [])]
    return nn.Sequential(*layers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


def write_data(folder: Path, *, features: int = 16, train: int = 20, label: str = "np.int64") -> None:
    text = DATA.replace("FEATURES", str(features)).replace("COUNT_FIXED", "8").replace("TRAIN", str(train))
    (folder / "mine.py").write_text(text.replace("LABEL", label))


def job(folder: Path, model: nn.Module, **changes: Any) -> TrainJob:
    """A recovery of ``model`` on the data in ``folder``; ``changes`` of the settings and of the job."""
    student = folder / "student.pt2"
    if not student.exists():
        example = torch.randn(4, next(model.parameters()).shape[1])
        exported.save(exported.capture(model, example), student)
    fields = {
        name: changes.pop(name) for name in ("data", "scratch", "out", "teacher", "seed", "metric") if name in changes
    }
    settings = {"epochs": 3, "optimizer": "adam", "learning_rate": 0.01, "distill": 0.0, **changes}
    standard: dict[str, Any] = {
        "scratch": str(folder / "scratch"),
        "out": str(folder / "out.pt2"),
        "data": {"entry": "mine.py:data", "base": str(folder)},
        "metric": MetricSection(),
    }
    return TrainJob(
        kind="recover", student=str(student), base=str(folder), settings=TrainSection(**settings), **(standard | fields)
    )


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return exported.load(path).state_dict()


def test_job_survives_json(folder: Path) -> None:
    one = job(folder, mlp(), epochs=7)
    assert TrainJob.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_killed_run_resumes_to_the_same_weights(folder: Path) -> None:
    whole = job(folder, mlp(norm=True), epochs=6, scratch=str(folder / "s1"), out=str(folder / "whole.pt2"))
    training.train(whole)
    torn = job(folder, mlp(norm=True), epochs=6, scratch=str(folder / "s2"), out=str(folder / "torn.pt2"))
    (folder / "job.json").write_text(json.dumps(torn.to_json()))
    code = f"""
import json, pathlib
from edgekit import training
training.train(training.TrainJob.from_json(json.loads(pathlib.Path({str(folder / "job.json")!r}).read_text())))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    checkpoint = folder / "s2" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and parent.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert not Path(torn.out).exists(), "it was killed too late to try this"
    result = training.train(torn)
    assert [entry["epoch"] for entry in result["history"]] == list(range(7))
    one, other = weights(whole.out), weights(torn.out)
    assert all(torch.equal(one[name], other[name]) for name in one)
    state = torch.load(checkpoint, weights_only=True)
    assert state["progress"]["epoch"] == 6


def test_no_process_outlives_a_killed_parent(folder: Path) -> None:
    write_data(folder, train=4000)
    one = job(folder, mlp(), epochs=50, processes=2)
    (folder / "job.json").write_text(json.dumps(one.to_json()))
    code = f"""
import json, pathlib
from edgekit import training
training.train(training.TrainJob.from_json(json.loads(pathlib.Path({str(folder / "job.json")!r}).read_text())))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    assert until(lambda: len(working_on(folder)) >= 1), "the training did not start"
    parent.kill()
    parent.wait()
    assert until(lambda: not working_on(folder)), "a training process goes on without its parent"


def working_on(folder: Path) -> list[int]:
    """The training processes on a job in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "edgekit.training" in words and any(word.startswith(str(folder)) for word in words):
                found.append(int(entry.name))
    return found


def until(condition: Any, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_one_process_recovers_and_two_do_the_same(folder: Path) -> None:
    outs, results = [], []
    for processes in (1, 2):
        places = {"scratch": str(folder / f"s{processes}"), "out": str(folder / f"{processes}.pt2")}
        one = job(folder, mlp(), processes=processes, **places)
        results.append(training.train(one))
        outs.append(weights(one.out))
    for name in outs[0]:
        torch.testing.assert_close(outs[0][name], outs[1][name], rtol=1e-3, atol=1e-4)
    one_loss, two_loss = ([entry["loss"] for entry in r["history"][1:]] for r in results)
    np.testing.assert_allclose(one_loss, two_loss, rtol=1e-3)
    assert abs(results[0]["metric"] - results[1]["metric"]) < 0.01
    history = results[0]["history"]
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3]
    assert history[-1]["loss"] < history[1]["loss"]
    assert results[0]["metric"] == max(entry["metric"] for entry in history) > 0.9 > history[0]["metric"]
    assert results[0]["metric_name"] == "accuracy"
    assert exported.load(folder / "2.pt2")(torch.randn(7, 16)).shape == (7, 1)


def test_batch_statistics_are_the_same_in_all_processes_and_finite(folder: Path) -> None:
    """Batches of 33 in two processes, and a last one too small to be shared."""
    text = (folder / "mine.py").read_text().replace("size=32", "size=33")
    more = "def odd():\n    b = Batches(1, 5)\n    return data() | {'train': [*b, (b.x[:1], b.y[:1])]}\n"
    (folder / "mine.py").write_text(f"{text}\n\n{more}")
    one = job(folder, mlp(norm=True), processes=2, data={"entry": "mine.py:odd", "base": str(folder)})
    result = training.train(one)
    assert result["epochs"] == 3
    state = weights(one.out)
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    before = weights(one.student)
    assert not torch.equal(state["1.running_mean"], before["1.running_mean"])


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_epoch(folder: Path) -> None:
    one = job(folder, mlp(), loss="mine.py:diverging")
    with pytest.raises(StageError, match="loss became nan in epoch 2") as caught:
        work(one)
    assert "learning_rate" in caught.value.remedy
    assert "after epoch 1" in caught.value.problem
    assert torch.load(folder / "scratch" / "checkpoint.pt", weights_only=True)["progress"]["epoch"] == 1
    assert not Path(one.out).exists()


def test_errors_cross_from_the_processes(folder: Path) -> None:
    one = job(folder, mlp(), data={"entry": "mine.py:broken", "base": str(folder)}, processes=2)
    with pytest.raises(InputError, match="the disk went away") as caught:
        training.train(one)
    assert "batch 3" in caught.value.problem


# ── in this process ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("schedule", "rises"),
    [("cosine", False), ("onecycle", True), ("step", False), ("plateau", False), ("constant", False)],
)
def test_schedules(folder: Path, schedule: str, rises: bool) -> None:
    result = work(job(folder, mlp(), schedule=schedule, epochs=4, optimizer="adamw"))
    rates = [entry["learning_rate"] for entry in result["history"]]
    assert (rates[0] < max(rates)) is rises
    assert rates[-1] <= max(rates)
    assert (rates[-1] == rates[0]) is (schedule in ("constant", "plateau"))
    assert result["metric"] > 0.8


def test_stops_early_and_keeps_the_best(folder: Path) -> None:
    """At this rate training only harms, so the untrained model is what is kept."""
    good = job(folder, mlp(), out=str(folder / "good.pt2"), scratch=str(folder / "s0"))
    work(good)
    one = job(folder, mlp(), learning_rate=50.0, optimizer="sgd", patience=2, epochs=20)
    bad = TrainJob.from_json({**one.to_json(), "student": good.out})
    result = work(bad)
    assert result["epochs"] == 2
    assert result["best_epoch"] == 0
    before, after = weights(good.out), weights(bad.out)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_of_another_job_is_left_alone(folder: Path) -> None:
    work(job(folder, mlp(), epochs=2))
    again = work(job(folder, mlp(), epochs=2))
    assert len(again["history"]) == 3  # nothing was left to do
    other = work(job(folder, mlp(), epochs=2, seed=1))
    assert other["history"][1]["loss"] != again["history"][1]["loss"]


def test_statistics_alone_are_exact(folder: Path) -> None:
    torch.manual_seed(4)
    x = torch.randn(150, 16) * 3 + torch.arange(150)[:, None] / 50  # batches differ in their means
    batches = [(x[:70], None), (x[70:149], None), (x[149:], None)]  # the last has no variance of its own
    one = job(folder, mlp(norm=True), epochs=0, data={}, metric=None)
    result = training.train(one, data={"train": batches})
    assert result["epochs"] == 0
    before, after = weights(one.student), weights(one.out)
    first = x[:149] @ before["0.weight"].T + before["0.bias"]
    torch.testing.assert_close(after["1.running_mean"], first.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after["1.running_var"], first.var(0, unbiased=False), rtol=0.02, atol=1e-3)
    assert torch.equal(after["0.weight"], before["0.weight"])


def test_bf16_is_of_the_steps_alone(folder: Path) -> None:
    """Weights stay fp32, and so does the run that judges them: the untrained model's loss is the very same."""
    full = job(folder, mlp(), out=str(folder / "full.pt2"), scratch=str(folder / "s0"), metric=None)
    half = job(folder, mlp(), out=str(folder / "half.pt2"), scratch=str(folder / "s1"), metric=None, precision="bf16")
    fine, coarse = work(full)["history"], work(half)["history"]
    assert fine[0]["validation_loss"] == coarse[0]["validation_loss"]
    assert fine[1]["loss"] != coarse[1]["loss"]
    assert fine[-1]["validation_loss"] == pytest.approx(coarse[-1]["validation_loss"], rel=0.1)
    assert {tensor.dtype for tensor in weights(half.out).values()} == {torch.float32}


def test_learns_from_a_teacher_alone(folder: Path) -> None:
    good = job(folder, mlp(), out=str(folder / "good.pt2"), scratch=str(folder / "s0"))
    reached = work(good)["metric"]
    unlabelled = [(torch.randn(64, 16), None) for _ in range(30)]
    one = job(folder, mlp(), teacher=good.out, distill=1.0, temperature=1.0, epochs=6, data={}, seed=3)
    fresh = TrainJob.from_json({**one.to_json(), "student": str(fresh_student(folder))})
    result = training.train(fresh, data={"train": unlabelled, "validation": None})
    assert result["metric"] is None
    x = torch.randn(200, 16)
    agree = (exported.load(fresh.out)(x) > 0.5) == (exported.load(good.out)(x) > 0.5)
    assert float(agree.float().mean()) > 0.9
    assert reached > 0.9
    with pytest.raises(InputError, match="no labels"):
        training.train(job(folder, mlp(), data={}, epochs=1), data={"train": unlabelled})


def fresh_student(folder: Path) -> Path:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 1), nn.Sigmoid())
    return exported.save(exported.capture(model, torch.randn(4, 16)), folder / "fresh.pt2")


def test_trains_from_spools_in_another_order_each_epoch(folder: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(70, 16)).astype(np.float32), np.arange(70) % 2
    captured = exported.capture(mlp(), torch.randn(4, 16))
    name = exported.signature(captured).inputs[0]
    split = spool.write((({name: x[i : i + 32]}, y[i : i + 32]) for i in range(0, 70, 32)), folder / "train")
    one = job(folder, mlp(), data={"spool": {"train": str(folder / "train"), "validation": None}}, metric=None)
    assert work(one)["epochs"] == 3
    passes = [list(Split("train", split, lambda batch, where: batch, shuffle=True)) for _ in range(2)]
    seen = [torch.cat([feeds[name] for feeds, _ in one_pass]) for one_pass in passes]
    assert not torch.equal(seen[0], seen[1])
    for values in seen:
        np.testing.assert_array_equal(np.sort(values.numpy(), 0), np.sort(x, 0))
    assert sorted(len(labels) for _, labels in passes[0]) == [6, 32, 32]  # type: ignore[arg-type]


def test_textbook_mlp(tmp_path: Path) -> None:
    """1000-500-250-100-1 with a sigmoid, Adam, a binary task: exported, trained, loaded and run."""
    write_data(tmp_path, features=1000, train=100)
    torch.manual_seed(0)
    widths = [1000, 500, 250, 100]
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(100, 1), nn.Sigmoid())
    one = job(tmp_path, model, epochs=4, learning_rate=None)
    result = work(one)
    assert result["history"][-1]["loss"] < 0.5 * result["history"][1]["loss"]
    assert result["metric"] > 0.8
    p = exported.load(one.out)(torch.randn(5, 1000))
    assert p.shape == (5, 1)
    assert bool(((p > 0) & (p < 1)).all())


# ── the parts ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("output", "labels", "task", "ending", "name"),
    [
        ((8, 10), torch.arange(8), "unknown", "logits", "cross_entropy"),
        ((8, 10), torch.arange(8), "classes", "softmax", "cross_entropy"),
        ((8, 1), torch.arange(8) % 2, "unknown", "sigmoid", "bce"),
        ((8, 1), torch.arange(8) % 2, "unknown", "logits", "bce"),
        ((8,), (torch.arange(8) % 2).float(), "classes", "logits", "bce"),
        ((8, 1), torch.randn(8), "unknown", "logits", "mse"),
        ((8, 3), torch.randn(8, 3), "unknown", "logits", "mse"),
        ((8, 3), torch.ones(8, 3), "classes", "logits", "bce"),
        ((8, 3), torch.eye(3)[torch.arange(8) % 3], "classes", "logits", "cross_entropy"),
        ((8, 1), torch.arange(8), "values", "logits", "mse"),
        ((8, 3), torch.ones(8, 3).long(), "classes", "sigmoid", "bce"),
    ],
)
def test_auto_loss(output: tuple[int, ...], labels: torch.Tensor, task: str, ending: str, name: str) -> None:
    assert losses.auto(torch.randn(output), labels, task, ending) == name


def loss_value(name: str, output: torch.Tensor, labels: torch.Tensor, ending: str = "logits") -> float:
    return float(losses.task_loss(name, metric=None, ending=ending, base=Path())((output,), labels))


def test_losses_are_torchs_own() -> None:
    x, y, bit = torch.randn(8, 5), torch.arange(8) % 5, (torch.arange(8) % 2).float()
    wanted = float(nn.functional.cross_entropy(x, y))
    assert loss_value("auto", x, y) == pytest.approx(wanted)
    assert loss_value("auto", x.softmax(1), y, "softmax") == pytest.approx(wanted, abs=1e-5)
    assert loss_value("auto", x.log_softmax(1), y, "log_softmax") == pytest.approx(wanted, abs=1e-5)
    one_hot = nn.functional.one_hot(y, 5).float()
    assert loss_value("cross_entropy", x, one_hot) == pytest.approx(wanted)
    wanted = float(nn.functional.binary_cross_entropy_with_logits(x[:, 0], bit))
    assert loss_value("bce", x[:, :1], bit) == pytest.approx(wanted)
    assert loss_value("bce", x[:, :1].sigmoid(), bit, "sigmoid") == pytest.approx(wanted, abs=1e-5)
    words, tags = torch.randn(2, 7, 5), torch.randint(0, 5, (2, 7))
    wanted = float(nn.functional.cross_entropy(words.reshape(-1, 5), tags.reshape(-1)))
    assert loss_value("auto", words, tags) == pytest.approx(wanted)
    pixels, mask = torch.randn(2, 5, 3, 4), torch.randint(0, 5, (2, 3, 4))
    mask[0, 0] = -100
    assert loss_value("auto", pixels, mask) == pytest.approx(float(nn.functional.cross_entropy(pixels, mask)))
    assert loss_value("l1", x, x + 2) == pytest.approx(2)
    assert loss_value("huber", x, x + 2) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("output", "labels", "message"),
    [
        (torch.randn(4, 3), torch.tensor([0, 1, 2, 3]), "out of range: found 0 to 3"),
        (torch.randn(4, 3), torch.tensor([0, -1, 2, 1]), "out of range"),
        (torch.randn(4, 1), torch.tensor([0, 1, 2, 1]), "out of range"),
        (torch.randn(4, 3), torch.zeros(4, 2).long(), "don't fit outputs"),
        (torch.randn(4, 3), torch.zeros(5), "don't fit outputs"),
    ],
)
def test_labels_that_do_not_fit(output: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loss_value("auto", output, labels)


def test_losses_of_the_users(folder: Path) -> None:
    mine = losses.task_loss("mine.py:loss_of_mine", metric=None, ending="logits", base=folder)
    assert float(mine((torch.ones(3, 1),), torch.zeros(3))) == 1
    with pytest.raises(InputError, match="did you mean 'cross_entropy'"):
        losses.task_loss("crossentropy", metric=None, ending="logits", base=folder)
    vector = losses.task_loss(lambda outputs, labels: outputs - labels, metric=None, ending="logits", base=folder)
    with pytest.raises(InputError, match="shape"):
        vector((torch.ones(3),), torch.zeros(3))


def softened(folder: Path, labels: torch.Tensor, temperature: float) -> float:
    """The loss of one epoch that follows the teacher alone, without validation data and so without a metric."""
    teacher = mlp(sigmoid=False)
    with torch.no_grad():
        teacher[2].weight.mul_(3)
    exported.save(exported.capture(teacher, torch.randn(4, 16)), folder / "teacher.pt2")
    data = {"train": [(torch.linspace(-1, 1, len(labels) * 16).reshape(-1, 16).numpy(), labels.numpy())]}
    changes = {"metric": None, "teacher": str(folder / "teacher.pt2"), "scratch": str(folder / f"t{temperature}")}
    one = job(folder, mlp(sigmoid=False), epochs=1, distill=1.0, temperature=temperature, **changes)
    return float(work(one, data=data)["history"][-1]["loss"])


@pytest.mark.parametrize(("labels", "classes"), [(torch.arange(8) % 2, True), (torch.linspace(0, 5, 8), False)])
def test_whole_number_labels_soften_the_distillation_without_a_metric_too(
    folder: Path, labels: torch.Tensor, classes: bool
) -> None:
    assert (softened(folder, labels, 1.0) != softened(folder, labels, 8.0)) is classes


@pytest.mark.parametrize("ending", ["logits", "sigmoid", "softmax"])
@pytest.mark.parametrize("task", ["classes", "values"])
def test_distillation_is_least_at_the_teacher(task: str, ending: str) -> None:
    shape = {"logits": lambda x: x, "sigmoid": torch.sigmoid, "softmax": lambda x: x.softmax(1)}[ending]
    teacher = shape(torch.randn(16, 4))
    loss = losses.distillation(task=task, ending=ending, temperature=2.0)
    assert float(loss((teacher,), (teacher,))) == pytest.approx(0, abs=1e-5)
    assert float(loss((shape(torch.randn(16, 4)),), (teacher,))) > 0.05


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 33])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_make_the_same_gradient(size: int, world: int) -> None:
    x, w = torch.randn(size, 3), torch.ones(3, requires_grad=True)
    ((x @ w) ** 2).mean().backward()
    assert w.grad is not None
    wanted, total = w.grad.clone(), torch.zeros(3)
    for rank in range(world):
        (feeds, labels), weight = share(({"x": x}, torch.arange(size)), rank, world)
        assert len(feeds["x"]) == len(labels) >= min(2, size)  # type: ignore[arg-type]
        w.grad = None
        (((feeds["x"] @ w) ** 2).mean() * weight).backward()
        total += w.grad / world
    torch.testing.assert_close(total, wanted)


def test_torchrun_gets_the_users_options() -> None:
    alone = training.torchrun_arguments(TrainSection(processes=2), Path("job.json"))
    assert alone == ["--standalone", "--nproc-per-node", "2", "-m", "edgekit.training", "job.json"]
    options = ("--nnodes=2", "--rdzv-endpoint=host:29400")
    many = training.torchrun_arguments(TrainSection(torchrun=options), Path("job.json"))
    assert many[:4] == ["--nproc-per-node", "1", *options]


def test_endings_are_seen_in_the_graph() -> None:
    for last, ending in ((nn.Sigmoid(), "sigmoid"), (nn.Softmax(1), "softmax"), (nn.Identity(), "logits")):
        model = exported.capture(nn.Sequential(nn.Linear(3, 2), last, nn.Flatten()), torch.randn(2, 3))
        assert ending_of(model) == ending


def test_momentum_of_statistics_is_found() -> None:
    norm = nn.BatchNorm1d(3, momentum=0.03)
    batches = [({"x": torch.randn(8, 3)}, None) for _ in range(3)]
    assert statistics.reestimate(norm, batches, lambda feeds: norm(feeds["x"])) == 2
    x = torch.cat([feeds["x"] for feeds, _ in batches])
    torch.testing.assert_close(norm.running_mean, x.mean(0), rtol=1e-4, atol=1e-5)


class Stream:
    """A split that has a length by name only, as a DataLoader over a stream does, and grows."""

    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        raise TypeError("a stream has no length")

    def __iter__(self) -> Any:
        self.passes += 1
        x = torch.randn(16, 16)
        for _ in range(3 if self.passes == 1 else 5):
            yield x, (x[:, 0] > 0).long()


def test_a_stream_is_counted_and_may_grow(folder: Path) -> None:
    one = job(folder, mlp(), data={}, schedule="onecycle", epochs=2, metric=None)
    assert training.train(one, data={"train": Stream()})["epochs"] == 2


def test_a_generator_is_told_apart(folder: Path) -> None:
    x = torch.randn(16, 16)
    used_up = ((x, (x[:, 0] > 0).long()) for _ in range(3))
    with pytest.raises(InputError, match="gave no batches") as caught:
        training.train(job(folder, mlp(), data={}, metric=None), data={"train": used_up})
    assert "generator" in caught.value.remedy
