"""Preparation with a recipe: what it says is in the data set, and its plan depends on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.cli.commands import COMMANDS
from cluster.cli.help import describe
from cluster.config import PrepareCommandConfig
from data.config import PrepareConfig
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from pretrain.settings import compose
from tests.support.recipe_originals import ORIGINALS, POSE
from tests.unit.test_data_prepare_parts import Tokenizer


def settings(out: Path, source: Path, *overrides: str) -> PrepareConfig:
    words = [f"out={out}", f"source={source}", *overrides]
    return compose("prepare", PrepareCommandConfig, None, words)


def test_a_data_set_says_what_its_recipe_says(tmp_path: Path) -> None:
    source = ORIGINALS["jaco"].write(tmp_path / "jaco_play")
    config = settings(tmp_path / "out", source, "recipe=jaco")
    prepare(Preparer(config, Tokenizer()))
    index = DatasetIndex.load(config.out)
    robot = index.embodiment
    assert (robot.name, robot.action, robot.missing, robot.control_hz) == ("jaco", POSE, POSE[3:6], 10.0)
    assert (index.weight, index.recipe) == (1.0, f"jaco {config.recipe_sha256}")
    assert json.loads((tmp_path / "out" / "index.json").read_bytes())["schema"] == 5
    other = settings(tmp_path / "other", source, "recipe=jaco", "control_hz=5", "weight=2")
    index_of_other = prepare(Preparer(other, Tokenizer()))
    assert index_of_other.recipe == f"jaco {config.recipe_sha256} with another control_hz, weight"
    episode = read_episode(index, index.episodes[0])
    assert not episode.actions[:, 3:6].any()
    assert set(episode.actions[:, 6]) == {-1.0, 1.0}
    assert index.action_ranges.minimum[6] == -1.0, "of the training actions, not WorldVLA's"


def test_steps_of_joints_are_kept_where_they_change(tmp_path: Path) -> None:
    def written(name: str, positions: list[int]) -> Path:
        numbers = ORIGINALS["droid"].numbers | {
            "action_dict/joint_position": np.array(positions)[:, None] * np.ones(7),
            "action_dict/gripper_position": np.ones((4, 1)),
        }
        return replace(ORIGINALS["droid"], numbers=numbers).write(tmp_path / name)

    pausing, resting = written("pausing", [1, 1, 2, 3]), written("resting", [1, 1, 1, 1])
    for number, (override, kept) in enumerate((("no_ops=null", 3), ("no_ops=motion", 4))):
        config = settings(tmp_path / str(number), pausing, "recipe=droid", override)
        prepare(Preparer(config, Tokenizer()))
        assert DatasetIndex.load(config.out).episodes[0].length == kept
    with pytest.raises(InputError, match="none of its 4 steps moves the robot"):
        prepare(Preparer(settings(tmp_path / "rest", resting, "recipe=droid"), Tokenizer()))


def test_the_plan_depends_on_what_a_recipe_says(tmp_path: Path) -> None:
    source = ORIGINALS["viola"].write(tmp_path / "viola")

    def plan(*overrides: str) -> str:
        config = settings(tmp_path / "out", source, "recipe=viola", *overrides)
        return Preparer(config, Tokenizer()).plan()[0].plan

    plans = [
        plan(),
        plan("state=[]"),
        plan("missing=[roll]"),
        plan("no_ops=keep"),
        plan("drop_first=always"),
        plan("draw_camera=[observation/agentview_rgb]"),
        plan("draw_seed=1"),
        plan("embodiment=other"),
        plan("action=[{name: action/world_vector, do: [{name: scale, factor: 2}], dimensions: [x,y,z]}]"),
    ]
    assert len(set(plans)) == len(plans)
    assert plan("weight=7") == plan(), "of the index alone"


def test_settings_that_were_there_before_have_the_plan_they_had(tmp_path: Path) -> None:
    """A preparation that an earlier version began is resumed: no new setting is in its plan by default."""
    seen: list[object] = []
    source = ORIGINALS["viola"].write(tmp_path / "viola")
    config = settings(
        tmp_path / "out",
        source,
        "action=[action/world_vector]",
        "state=[]",
        "cameras={agent: observation/agentview_rgb}",
    )
    preparer = Preparer(config, Tokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "data.prepare.preparer.plan_parts", lambda *_, settings, **__: seen.append(settings) or []
        )
        preparer.plan()
    depends_on = seen[0][0]  # pyright: ignore
    assert sorted(depends_on) == [
        *("action", "cameras", "fit", "format", "instruction", "replay", "resize", "rotate", "state"),
    ]
    assert depends_on["action"] == ["action/world_vector"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weight=0", "weight=0: expected a number above 0"),
        ("control_hz=-1", "control_hz=-1: expected steps a second"),
        ("ranges=worldvla", "ranges=worldvla are of 7 numbers"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_encoded(
    tmp_path: Path, override: str, message: str
) -> None:
    source = ORIGINALS["droid"].write(tmp_path / "droid")
    with pytest.raises(InputError, match=message):
        Preparer(settings(tmp_path / "out", source, "recipe=droid", override), Tokenizer()).plan()


def test_help_lists_the_recipes() -> None:
    for name in ("prepare", "vq"):
        text = describe(next(command for command in COMMANDS if command.name == name))
        assert "recipe=agibot|aloha|berkeley_fanuc|bridge|bridge_orig|droid|" in text
    assert "recipe=" not in describe(next(command for command in COMMANDS if command.name == "train"))
