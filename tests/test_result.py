"""The record: what is valid, what is refused, and that a changed byte is found."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import result
from edgekit.errors import InputError, StageError
from edgekit.store import sha256_file


def row(variant: str, *, status: str = "ok", **changes: Any) -> dict[str, Any]:
    """One row of a record, complete."""
    full: dict[str, Any] = {
        "id": f"{variant}@x86-cpu",
        "variant": variant,
        "target": "x86-cpu",
        "backend": "onnxruntime",
        "status": status,
        "reason": "",
        "stages": [
            {"name": "load", "seconds": 0.5, "cached": False, "metric": 0.9, "size_bytes": 1000, "parity": None}
        ],
        "artifact": {"path": f"artifacts/{variant}/model.onnx", "sha256": "0" * 64, "files": []},
        "size_bytes": 1000,
        "parameters": 250,
        "macs": 10_000,
        "int8_macs_share": 0.5,
        "metric": {"name": "accuracy", "value": 0.9, "ci95": [0.88, 0.92], "samples": 1000, "higher_is_better": True},
        "latency_ms": {"median": 1.0, "p90": 1.1, "p99": None, "ci95": [0.9, 1.1], "runs": 600},
        "first_inference_ms": 3.0,
        "peak_rss_bytes": 10_000_000,
        "vs_reference": {
            "id": "fp32@x86-cpu",
            "metric_delta": 0.0,
            "metric_delta_ci95": [-0.01, 0.01],
            "size_ratio": 1.0,
            "speedup": 1.0,
            "speedup_ci95": [0.99, 1.01],
        },
        "pareto": True,
    }
    return {**full, **changes}


def record(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": "edgekit.results/1",
        "recipe": {"recipe_version": 1},
        "environment": {"cpu": "test"},
        "seed": 0,
        "lock": {"seed": 0},
        "reference": "fp32@x86-cpu",
        "variants": list(rows) or [row("fp32")],
        "gate": {"passed": True, "checks": []},
    }


NULLS = {"latency_ms": None, "first_inference_ms": None, "peak_rss_bytes": None}
EMPTY = {**NULLS, "artifact": None, "size_bytes": None, "metric": None, "vs_reference": None, "pareto": False}


def test_the_schema_is_one_and_knows_the_contracts_keys() -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(result.schema())
    required = set(result.schema()["$defs"]["variant"]["required"])
    assert required == set(row("x"))
    assert set(result.schema()["required"]) == set(record())


@pytest.mark.parametrize(
    "rows",
    [
        [row("fp32")],
        [row("fp32"), row("int8", status="built", **NULLS)],
        [row("fp32"), row("int8", status="unavailable", reason="no GPU", **EMPTY)],
        [row("fp32"), row("int8", status="failed", reason="export: no", **EMPTY)],
        [row("fp32", metric=None, further={"keys": 1})],
    ],
)
def test_valid_records(rows: list[dict[str, Any]]) -> None:
    result.validate(record(*rows))


@pytest.mark.parametrize("key", sorted(record()))
def test_every_key_of_the_record_is_required(key: str) -> None:
    broken = record()
    del broken[key]
    with pytest.raises(InputError, match=r"schema|required"):
        result.validate(broken)


@pytest.mark.parametrize("key", sorted(row("x")))
def test_every_key_of_a_row_is_required(key: str) -> None:
    broken = row("fp32")
    del broken[key]
    with pytest.raises(InputError, match=f"'{key}' is a required property") as caught:
        result.validate(record(broken))
    assert "variants.0" in caught.value.where


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"latency_ms": {"median": 0, "p90": 1, "p99": 1, "ci95": [1, 1], "runs": 3}}, "latency_ms.median"),
        ({"status": "built"}, "variants.0"),  # a device that was not measured has no latency
        ({"status": "great"}, "status"),
        ({"status": "failed", "reason": ""}, "reason"),
        ({"artifact": {"path": "/etc/passwd", "sha256": "0" * 64, "files": []}}, "artifact.path"),
        ({"artifact": {"path": "a/../../b", "sha256": "0" * 64, "files": []}}, "artifact.path"),
        ({"artifact": {"path": "a", "sha256": "xyz", "files": []}}, "artifact.sha256"),
        ({"artifact": None}, "artifact"),
        ({"size_bytes": 1.5}, "size_bytes"),
        ({"int8_macs_share": 1.2}, "int8_macs_share"),
        ({"metric": {"name": "m", "value": None, "ci95": None, "samples": 1, "higher_is_better": True}}, "value"),
        ({"pareto": "yes"}, "pareto"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(change: dict[str, Any], place: str) -> None:
    with pytest.raises(InputError) as caught:
        result.validate(record(row("fp32", **change)))
    assert place in caught.value.where
    assert caught.value.exit_code == 2


def test_nan_is_refused_wherever_it_is() -> None:
    broken = record(row("fp32", further=[{"deep": float("nan")}]))
    with pytest.raises(InputError, match="NaN") as caught:
        result.validate(broken)
    assert "variants.0.further.0.deep" in caught.value.where


def test_rows_name_rows() -> None:
    with pytest.raises(InputError, match="names the row 'gone'"):
        result.validate({**record(), "reference": "gone"})
    with pytest.raises(InputError, match="two rows"):
        result.validate(record(row("fp32"), row("fp32")))


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "results.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


WHOLE = json.dumps(record(), indent=2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("{}", "not a record of edgekit"),
        ("[]", "not a record of edgekit"),
        ("<html></html>", "not JSON"),
        (WHOLE[:-40], "truncated"),
        (WHOLE.replace("edgekit.results/1", "edgekit.results/2"), "schema 'edgekit.results/2'"),
        (WHOLE.replace("edgekit.results/1", "other/1"), "not a record of edgekit"),
        (WHOLE.replace('"seed": 0,', '<<<<<<< HEAD\n"seed": 0,\n=======\n"seed": 1,\n>>>>>>> b'), "merge conflict"),
        (WHOLE.replace('"seed": 0', '"seed": NaN', 1), "NaN"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("[" * 200_000, "nested too deep"),
    ],
)
def test_files_that_are_no_record(tmp_path: Path, text: str | bytes, problem: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=problem) as caught:
        result.load_results(path)
    assert str(path) in caught.value.where
    assert caught.value.remedy


@pytest.mark.parametrize("cut", range(1, 16))
def test_truncated_anywhere(tmp_path: Path, cut: int) -> None:
    with pytest.raises(InputError, match="truncated"):
        result.load_results(written(tmp_path, WHOLE[: len(WHOLE) * cut // 16]))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.json"):
        with pytest.raises(InputError, match="can't read this record"):
            result.load_results(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    sealed = result.write_results(record(), tmp_path / "results.json")
    assert result.load_results(tmp_path) == sealed
    assert result.write_results(sealed, tmp_path / "again.json") == sealed


def test_an_invalid_record_leaves_the_old_one(tmp_path: Path) -> None:
    result.write_results(record(), tmp_path / "results.json")
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(InputError):
        result.write_results({**record(), "seed": float("inf")}, tmp_path / "results.json")
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StageError, match="can't write"):
        result.write_results(record(), tmp_path / "file" / "results.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A record with two files of an artifact and one of raw samples."""
    own = tmp_path / "artifacts" / "fp32"
    own.mkdir(parents=True)
    for name in ("model.xml", "model.bin"):
        (own / name).write_bytes(name.encode() * 100)
    (tmp_path / "samples.json").write_text("[1, 2]")
    files = [{"path": f"artifacts/fp32/{n}", "sha256": sha256_file(own / n)} for n in ("model.xml", "model.bin")]
    artifact = {**files[0], "files": files}
    raw = {"path": "samples.json", "sha256": sha256_file(tmp_path / "samples.json")}
    result.write_results(record(row("fp32", artifact=artifact, measured={"raw": raw})), tmp_path / "results.json")
    return tmp_path


def test_verify_finds_nothing_wrong(folder: Path) -> None:
    assert result.verify(folder) == []


@pytest.mark.parametrize("name", ["artifacts/fp32/model.xml", "artifacts/fp32/model.bin", "samples.json"])
def test_verify_finds_one_flipped_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    (problem,) = result.verify(folder)
    assert problem.startswith(f"{name}: changed")
    (folder / name).unlink()
    assert result.verify(folder) == [f"{name}: missing"]


def test_verify_finds_a_changed_number(folder: Path) -> None:
    path = folder / "results.json"
    path.write_text(path.read_text().replace('"median": 1.0', '"median": 0.5'))
    assert result.verify(folder) == ["results.json: changed after it was written"]


def test_verify_finds_strangers_and_links(folder: Path) -> None:
    own = folder / "artifacts" / "fp32"
    (own / "model.onnx.data").write_bytes(b"weights of somebody else")
    assert result.verify(folder) == ["artifacts/fp32/model.onnx.data: the record does not name this file"]
    (own / "model.onnx.data").unlink()
    (folder / "samples").mkdir()
    (folder / "samples" / "of-an-earlier-run.json").write_text("[]")  # no runtime loads that
    (folder / "report.html").write_text("")
    assert result.verify(folder) == []
    (own / "model.bin").rename(folder / "elsewhere.bin")
    (own / "model.bin").symlink_to(folder / "elsewhere.bin")
    assert result.verify(folder) == ["artifacts/fp32/model.bin: is a symbolic link"]


def test_verify_does_not_follow_paths_out_of_the_folder(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    results["variants"][0]["measured"]["raw"]["path"] = "../secret"
    (folder / "results.json").write_text(json.dumps(results))
    assert "../secret: points outside of the record's folder" in result.verify(folder)


def costs(value: float, latency: float | None, size: int, higher: bool = True, **changes: Any) -> dict[str, Any]:
    metric = {"name": "m", "value": value, "ci95": None, "samples": 1, "higher_is_better": higher}
    times = None if latency is None else {"median": latency, "p90": None, "p99": None, "ci95": None, "runs": 1}
    return {"target": "t", "status": "ok", "metric": metric, "latency_ms": times, "size_bytes": size, **changes}


def test_pareto_by_hand() -> None:
    rows = [costs(0.9, 2, 100), costs(0.8, 1, 50), costs(0.8, 1.5, 60), costs(0.95, 3, 100), costs(0.9, 2, 100)]
    assert result.pareto(rows) == [True, True, False, True, True]


def test_pareto_keeps_targets_apart_and_leaves_unfinished_rows_out() -> None:
    rows = [costs(0.9, 2, 100), costs(0.95, 1, 50, target="u"), costs(0.99, 1, 1, status="failed")]
    assert result.pareto(rows) == [True, True, False]


def test_pareto_without_latency_or_metric_and_with_errors_to_minimize() -> None:
    assert result.pareto([costs(0.9, None, 100), costs(0.9, 1, 50)]) == [False, True]
    assert result.pareto([costs(0.9, 1, 100, metric=None), costs(0.1, 2, 100)]) == [True, False]
    assert result.pareto([costs(0.5, 1, 1, higher=False), costs(0.6, 1, 1, higher=False)]) == [True, False]
    assert result.pareto([]) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_pareto_holds_its_definition(values: list[tuple[int, int, int]]) -> None:
    """Some row is on the front; a row off it is beaten by one on it; none on it is beaten."""
    rows = [costs(*v) for v in values]
    front = result.pareto(rows)
    assert any(front)

    def beats(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
        return a != b and a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2]

    for i, value in enumerate(values):
        beaten_by_front = any(front[j] and beats(values[j], value) for j in range(len(values)))
        assert front[i] is not beaten_by_front


def test_validation_leaves_the_record_alone() -> None:
    before = record()
    kept = copy.deepcopy(before)
    result.validate(before)
    assert before == kept
