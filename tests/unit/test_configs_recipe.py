"""Every recipe of `configs/recipe`, on a small data set with the published names, widths and types.

The originals were not at hand: features are those of the data sets' own descriptions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.config import PrepareCommandConfig, RootConfig
from data.config import PrepareConfig
from data.contracts import DEFAULT_EMBODIMENT, Demonstration
from data.errors import InputError
from data.sources.registry import open_source, read_demonstrations
from pretrain.config import VqConfig
from pretrain.settings import CONFIG_FOLDER, compose, from_mapping, to_mapping
from tests.support.recipe_originals import AXIS, LEROBOT, ORIGINALS, STEPS, libero

RECIPES = sorted(path.stem for path in (CONFIG_FOLDER / "recipe").glob("*.yaml"))


def settings(*overrides: str) -> PrepareConfig:
    return compose("prepare", PrepareCommandConfig, None, ["out=unused", *overrides])


@pytest.mark.parametrize("recipe", ORIGINALS)
def test_recipes_of_rlds_read_data_sets_as_published(tmp_path: Path, recipe: str) -> None:
    original = ORIGINALS[recipe]
    folder = original.write(tmp_path / "1.0.0")
    config = settings(f"recipe={recipe}", f"source={folder}")
    assert open_source(config).embodiment() == original.expected
    (found,) = read_demonstrations(config)
    assert found.actions[:, -1].tolist() == list(original.gripper)
    assert found.actions.shape == (STEPS - original.first, len(original.expected.action))
    assert found.states.shape == (STEPS - original.first, len(original.expected.state))
    assert set(found.frames) == (
        {"agent"} if len(original.cameras) == 1 or recipe == "bridge_orig" else {"agent", "wrist"}
    )
    assert found.frames["agent"][:, 0, 0, 0].tolist() == list(range(original.first, STEPS))
    assert found.instruction == next(iter(original.words.values())).lower()
    for column, name in enumerate(original.expected.action):
        assert (name in original.expected.missing) == (not found.actions[:, column].any())


def test_bridges_movements_are_those_of_its_states(tmp_path: Path) -> None:
    for recipe in ("bridge", "bridge_orig"):
        original = ORIGINALS[recipe]
        (found,) = read_demonstrations(
            settings(f"recipe={recipe}", f"source={original.write(tmp_path / recipe)}")
        )
        poses = np.asarray(original.numbers["observation/state"], np.float32)[:, :6]
        np.testing.assert_allclose(found.actions[:-1, :6], poses[2:] - poses[1:-1], atol=1e-7)
        assert not found.actions[-1, :6].any()


@pytest.mark.parametrize("recipe", ["fractal", "kuka"])
def test_orientations_are_continuous_whatever_sign_a_quaternion_has(tmp_path: Path, recipe: str) -> None:
    folder = ORIGINALS[recipe].write(tmp_path / "set")
    (found,) = read_demonstrations(settings(f"recipe={recipe}", f"source={folder}"))
    np.testing.assert_allclose(found.states[:, 3:6], np.outer([0.2, 0.4, 0.6, 0.8], AXIS), atol=1e-6)


def test_droids_ranges_failures_and_views(tmp_path: Path) -> None:
    folder = ORIGINALS["droid"].write(tmp_path / "set")
    ranges = tmp_path / "ranges.json"
    key = "lab/success/1/recordings--lab/success/1/trajectory.h5"
    ranges.write_text(json.dumps({key: [[0, 1], [2, 4]]}))
    words = ["recipe=droid", f"source={folder}"]
    found = list(read_demonstrations(settings(*words, f"keep_ranges.file={ranges}", "no_ops=keep")))
    assert [each.key for each in found] == [
        "train/episode_000000_steps_0-1",
        "train/episode_000000_steps_2-4",
    ]
    ranges.write_text("{}")
    with pytest.raises(InputError, match="leave out all 1 episodes"):
        list(read_demonstrations(settings(*words, f"keep_ranges.file={ranges}")))
    with pytest.raises(InputError, match="without success"):
        list(read_demonstrations(settings(*words, "successful.contains=failure")))


@pytest.mark.parametrize("name", LEROBOT)
def test_recipes_of_lerobot_read_data_sets_as_published(tmp_path: Path, name: str) -> None:
    original = LEROBOT[name]
    folder = original.write(tmp_path / "set")
    config = settings(f"recipe={name.split()[0]}", f"source={folder}", *original.overrides)
    source = open_source(config)
    robot = source.embodiment()
    assert (robot.name, len(robot.action), len(robot.state), robot.control_hz) == original.expected
    assert source.no_ops().kind == "change"
    (found,) = read_demonstrations(config)
    assert found.actions.shape == (STEPS, len(robot.action))
    joints = sum(width for column, width in original.widths.items() if column.startswith("action"))
    assert robot.action[0].endswith(("waist", "shoulder_pan", "joint_0"))
    assert len(robot.action) <= joints
    assert set(found.frames) == ({"agent"} if len(original.overrides) else {"agent", "wrist"})


def test_the_recipe_of_libero_reads_all_its_layouts(tmp_path: Path) -> None:
    for name, folder in libero(tmp_path).items():
        config = settings("recipe=libero", f"source={folder}")
        assert config.split_order == "letters"
        assert open_source(config).embodiment() == DEFAULT_EMBODIMENT
        found: list[Demonstration] = list(read_demonstrations(config))
        assert (found[0].actions.shape, found[0].states.shape) == ((STEPS, 7), (STEPS, 8)), name
        assert set(found[0].frames) == ({"agent"} if name == "rlds" else {"agent", "wrist"}), name


def test_every_recipe_is_tested_and_composes_for_each_command_that_reads_demonstrations() -> None:
    tested = {*ORIGINALS, *(name.split()[0] for name in LEROBOT), "libero"}
    assert tested == set(RECIPES)
    for recipe in RECIPES:
        config = settings(f"recipe={recipe}", "source=x")
        assert config.recipe == recipe
        assert from_mapping("again", PrepareCommandConfig, to_mapping(config)) == config
        vq = compose("vq", VqConfig, None, [f"recipe={recipe}", "source=x", "out=y"])
        assert (vq.action, vq.cameras) == (config.action, config.cameras)


def test_the_mixture_of_open_x_embodiment_names_recipes_with_their_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLDVLA_SHARDS", "s3://bucket/oxe")
    config = compose("train", RootConfig, "train", ["data=oxe_magic_soup_plus", "run.name=x"])
    weights = {source.url.removeprefix("s3://bucket/oxe/"): source.weight for source in config.data.sources}
    assert len(weights) == 27
    shared = sorted(weights.keys() & set(RECIPES))
    assert len(shared) == 10
    for recipe in shared:
        assert settings(f"recipe={recipe}", "source=x").weight == weights[recipe]


def test_the_command_line_wins_over_a_recipe(tmp_path: Path) -> None:
    words = ["recipe=bridge", "source=x"]
    assert settings(*words).fit == "pad"
    assert settings(*words, "fit=crop", "weight=3", "action=[a,b]").action == ["a", "b"]
    assert settings("fit=crop", *words).fit == "crop", "in any order"
    assert settings(*words, "resolution=64").recipe_changed == [], "the recipe does not say it"
    assert settings(*words, "fit=crop", "cameras.agent=x").recipe_changed == ["cameras", "fit"]
    assert settings(*words, "recipe=null").embodiment is None
    file = tmp_path / "mine.yaml"
    file.write_text("embodiment: mine\n")
    mine = settings(f"recipe={file}", "source=x")
    assert (mine.embodiment, mine.recipe) == ("mine", str(file))
    before = mine.recipe_sha256
    file.write_text("embodiment: mine # changed\n")
    assert settings(f"recipe='{file}'", "source=x").recipe_sha256 != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "emboddiment: x",
            r"prepare \(recipe .*\): unknown setting 'emboddiment'; did you mean 'embodiment'",
        ),
        ("fit: squash", r"recipe .*: fit=squash, expected one of refuse, crop"),
        (
            "action: [{name: a, dimension: [x]}]",
            r"action\[0\]: unknown setting 'dimension'; did you mean 'dim",
        ),
        ("action: [{name: a, do: [{name: clip, lo: 1}]}]", r"action\[0\]\.do\[0\]: unknown setting 'lo'"),
        ("action: [{do: [invert]}]", r"no value for action\[0\]\.name"),
        ("action: [7]", r"action\[0\] is 7, expected a name, or its settings: name, do, dimensions"),
        ("action: {name: a}", r"recipe .*: action is {'name': 'a'}, expected a list; write it in brackets"),
        ("action_minimum: x", r"recipe .*: action_minimum is 'x', expected a list"),
        ("cameras: front", r"recipe .*: cameras is 'front', expected a mapping of its parts: agent, wrist"),
        ("action: [{name: a, do: invert}]", r"action\[0\]: do is a list; write its members in brackets"),
        ("action: [{name: a, do: {name: clip}}]", r"action\[0\]: a mapping in place of a list; write its"),
        ("recipe: bridge", "names another recipe"),
        ("- a", "holds a list, expected a mapping"),
        ("a: [", "cannot read settings"),
    ],
)
def test_wrong_recipes_are_explained_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        settings(f"recipe={file}", "source=x")
    assert "\n" not in str(caught.value)


def test_one_name_stands_for_a_list_of_one_as_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("action: a/b\ninstruction: words\nmissing: gripper\nstate: []\n")
    mine = settings(f"recipe={file}", "source=x")
    assert (mine.action, mine.instruction) == (["a/b"], ["words"])
    assert (mine.missing, mine.state) == (["gripper"], [])


def test_unknown_recipes_are_refused_with_the_list() -> None:
    message = (
        r"prepare: no file configs/recipe/brigde.yaml; did you mean 'bridge'\? \(there are: agibot, aloha,"
    )
    with pytest.raises(InputError, match=message):
        settings("recipe=brigde", "source=x")
    with pytest.raises(InputError, match=r"nowhere.yaml: cannot read settings"):
        settings("recipe=./nowhere.yaml", "source=x")
