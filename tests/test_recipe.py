"""Recipes: checked strictly before any work; every message names file, line, key and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import InputError
from edgekit.pipeline.routes import routes_of
from edgekit.pipeline.stages import takes_part
from edgekit.recipe import Recipe, load_recipe

GOOD = """
recipe_version = 1
targets = ["x86-cpu"]
[model]
entry = "model.py:build"
[prune]
ratio = 0.3
[[variant]]
name = "small"
prune = { ratio = 0.5 }
quantize = "static"
"""


def _load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_recipe(path)


def test_a_good_recipe(tmp_path: Path) -> None:
    recipe = _load(tmp_path, GOOD)
    assert recipe.base == tmp_path
    assert recipe.prune.ratio == 0.3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ratio = 0.3", "ration = 0.3", r"recipe\.toml:7: unknown key 'prune\.ration'; did you mean 'ratio'"),
        ("ratio = 0.3", "ratio = 1.0", r"recipe\.toml:7: 'prune\.ratio' is wrong: .*less than 1"),
        ("ratio = 0.3", "ratio = -0.1", r"'prune\.ratio' is wrong"),
        ("ratio = 0.3", "ratio = nan", r"'prune\.ratio' is wrong"),
        ("ratio = 0.3", 'ratio = "much"', r"'prune\.ratio' is wrong: .*number"),
        ("[prune]", "[prone]", r"unknown key 'prone'; did you mean 'prune'"),
        ("recipe_version = 1", "recipe_version = 2", "'recipe_version' is wrong"),
        ('targets = ["x86-cpu"]', "targets = []", "no target is named"),
        ('targets = ["x86-cpu"]', 'targets = ["x86-cpu", "x86-cpu"]', "named twice"),
        ("[prune]", "[prune", "not valid TOML.*line 6"),
        ("ratio = 0.3", "ratio = 0.3\nratio = 0.4", "not valid TOML"),
        ('name = "small"', 'name = "../small"', "'variant.0.name' is wrong"),
    ],
)
def test_a_wrong_recipe_is_told_where(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match=said):
        _load(tmp_path, GOOD.replace(old, new))


def test_windows_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_recipe(path).prune.ratio == 0.3


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x = 1\n" * 400_000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not UTF-8|no settings file"):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml: can't read this file"):
        load_recipe(tmp_path / "nothing.toml")


def test_overrides_reach_nested_keys(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD)
    assert load_recipe(path, {"prune.ratio": 0.5, "quantize.train.epochs": 9}).quantize.train.epochs == 9
    with pytest.raises(InputError, match="did you mean 'ratio'"):
        load_recipe(path, {"prune.ratoi": 0.5})


def test_routes_put_the_untouched_model_first(tmp_path: Path) -> None:
    routes = routes_of(_load(tmp_path, GOOD))
    assert [(r.id, r.reference) for r in routes] == [("fp32@x86-cpu", True), ("small@x86-cpu", False)]
    small = routes[1]
    assert small.prune is not None
    assert small.prune.ratio == 0.5
    assert small.quantize is not None
    assert small.quantize.method == "static"


def test_finetune_makes_a_stage_of_training(tmp_path: Path) -> None:
    text = GOOD.replace('quantize = "static"', 'quantize = { method = "clustered", finetune = true }')
    small = routes_of(recipe := _load(tmp_path, text))[1]
    assert small.trains
    assert takes_part("finetune", small, recipe)
    with pytest.raises(InputError, match="what 'bf16' makes can't be trained"):
        routes_of(_load(tmp_path, text.replace("clustered", "bf16")))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"x86-cpu"', '"x86-cpo"', "no target named 'x86-cpo'; did you mean 'x86-cpu'"),
        ('quantize = "static"', 'quantize = "statik"', "no quantizer named 'statik'; did you mean 'static'"),
        (
            "{ ratio = 0.5 }",
            "{ ratoi = 0.5 }",
            r"\[\[variant\]\] small prune: unknown key 'ratoi'; did you mean 'ratio'",
        ),
        ("{ ratio = 0.5 }", "{ ratio = 1.5 }", r"small prune: 'ratio' is wrong"),
    ],
)
def test_a_wrong_route_is_told(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        routes_of(_load(tmp_path, GOOD.replace(old, new)))


def test_only_and_target_must_be_the_recipes(tmp_path: Path) -> None:
    recipe = _load(tmp_path, GOOD)
    assert [r.variant for r in routes_of(recipe, only=("small",))] == ["fp32", "small"]
    with pytest.raises(InputError, match="no variant 'smal'; did you mean 'small'"):
        routes_of(recipe, only=("smal",))
    with pytest.raises(InputError, match="no target 'x86-openvino'"):
        routes_of(recipe, targets=("x86-openvino",))
