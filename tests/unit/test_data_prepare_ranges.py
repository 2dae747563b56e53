"""Ranges of actions and states at preparation: chosen, refused, and what lies outside is told."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import PrepareConfig
from data.contracts import DEFAULT_EMBODIMENT, Demonstration, Embodiment
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.prepare.ranges import (
    action_ranges,
    check_range_settings,
    check_ranges,
    state_ranges,
    warn_of_clipped_actions,
)
from data.prepare.statistics import summarise
from data.sources.files.source_files import LocalFiles
from data.sources.interface import DemonstrationReference
from data.sources.no_ops import NoOpRule
from data.storage.index import DatasetIndex, StateRanges
from data.tokens.action import ActionRanges
from tests.unit.test_data_prepare_parts import Tokenizer

ARM = Embodiment("arm", ("x", "y", "grip"), ("q", "constant"), missing=("y",))


def settings(**changes: Any) -> PrepareConfig:
    return dataclasses.replace(PrepareConfig(source="demos"), **changes)


def warnings(
    caplog: pytest.LogCaptureFixture, actions: Sequence[Sequence[float]], robot: Embodiment, **changes: Any
) -> str:
    config, values = settings(**changes), [np.array(actions, np.float64)]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_clipped_actions(values, action_ranges(config, summarise(values), robot), robot, config)
    return caplog.text


def test_states_have_the_ranges_of_the_settings() -> None:
    values = np.stack([np.linspace(0, 100, 201), np.full(201, 5.0)], axis=1)
    states = summarise([values])
    assert state_ranges(settings(), states, ARM) == StateRanges((0.0, 4.999), (100.0, 5.001))
    found = state_ranges(settings(state_ranges="quantiles"), states, ARM)
    assert found == StateRanges((1.0, 4.999), (99.0, 5.001))
    given = settings(state_minimum=[-1, 0], state_maximum=[1, 2], state_ranges="quantiles")
    assert state_ranges(given, states, ARM) == StateRanges((-1, 0), (1, 2))
    assert state_ranges(settings(), states, Embodiment("bare", ("x",), ())) is None


def test_liberos_states_have_ranges_of_their_own_only_on_request() -> None:
    states = summarise([np.random.default_rng(0).normal(size=(50, 8))])
    assert state_ranges(settings(), states, DEFAULT_EMBODIMENT) is None
    found = state_ranges(settings(state_ranges="extremes"), states, DEFAULT_EMBODIMENT)
    assert found == StateRanges(states.minimum, states.maximum)
    eight = settings(state_minimum=[0] * 8, state_maximum=[1] * 8)
    assert state_ranges(eight, states, DEFAULT_EMBODIMENT) == StateRanges((0,) * 8, (1,) * 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_minimum": [0.0]}, "state_minimum and state_maximum belong together"),
        ({"action_maximum": [0.0]}, "action_minimum and action_maximum belong together"),
        (
            {"state_minimum": [0.0, 1.0], "state_maximum": [1.0, 1.0]},
            r"state_minimum with state_maximum reach from \[0.0, 1.0\] to \[1.0, 1.0\], expected finite",
        ),
        (
            {"state_minimum": [0.0], "state_maximum": [1.0]},
            "have 1 numbers, a state of demos has 2: q, constant",
        ),
        ({"ranges": "worldvla"}, r"ranges=worldvla are of 7 numbers, an action of demos has 3; set ranges=q"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    def check(config: PrepareConfig) -> None:
        check_range_settings(config)
        check_ranges(config, ARM)

    with pytest.raises(InputError, match=message):
        check(settings(**changes))


def test_a_warning_names_numbers_and_the_remedy_that_fits(caplog: pytest.LogCaptureFixture) -> None:
    steps = [[0.0] * 6 + [1.0]] * 96 + [[3.0] + [0.0] * 5 + [1.0]] * 4
    shown = warnings(caplog, steps, DEFAULT_EMBODIMENT)
    assert "demos: training actions outside their ranges become the outermost bins: x 4.0 % outside" in shown
    assert "-0.9375 .. 0.9375; set ranges=quantiles, or convert the actions" in shown
    given = {"action_minimum": [-1.0, 1.0, 0.0], "action_maximum": [1.0, 2.0, 1.0]}
    arm = [[0.0, 0.0, 1.0]] * 96 + [[3.0, 0.0, 1.0]] * 4
    shown = warnings(caplog, arm, ARM, **given)
    assert "x 4.0 % outside -1 .. 1; widen action_minimum and action_maximum, or leave both out" in shown
    assert "y 100" not in shown, "a number that the robot does not have"
    assert warnings(caplog, arm, ARM, ranges="extremes") == ""


def test_quantiles_that_make_a_gripper_constant_are_told(caplog: pytest.LogCaptureFixture) -> None:
    spread = np.linspace(-1, 1, 400).tolist()
    closes = [[value, 0.0, float(number < 3)] for number, value in enumerate(spread)]
    shown = warnings(caplog, closes, ARM)
    assert "grip 0.8 % outside 0 .. 0; set ranges=extremes" in shown
    assert "x " not in shown.rpartition("bins: ")[2]
    halves = [[value, 0.0, float(number < 200)] for number, value in enumerate(spread)]
    assert warnings(caplog, halves, ARM) == ""


def test_another_robot_is_prepared_with_ranges_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(f"joint_{number}" for number in range(8))
    robot = Embodiment("two_arms", names, ("q", "p"), control_hz=50.0)

    class Joints:
        files = LocalFiles(tmp_path)

        def embodiment(self) -> Embodiment:
            return robot

        def no_ops(self) -> NoOpRule:
            return NoOpRule.of(names)

        def references(self) -> list[DemonstrationReference]:
            return [
                DemonstrationReference(tmp_path, str(i), f"e_{i}", "s", "t", "do it", 60, ("agent",))
                for i in range(3)
            ]

        def checked(self, references: Iterable[DemonstrationReference]) -> Iterator[DemonstrationReference]:
            return iter(references)

        def read(self, reference: DemonstrationReference) -> Demonstration:
            random = np.random.default_rng(int(reference.item))
            frames = {"agent": random.integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)}
            actions = random.normal(size=(60, 8))
            states = random.normal(size=(60, 2)).astype(np.float32)
            return Demonstration(reference.key, "s", "t", "do it", frames, actions, states)

    monkeypatch.setattr("data.prepare.preparer.open_source", lambda config: Joints())
    index = prepare(Preparer(settings(out=str(tmp_path / "out"), variants=1), Tokenizer()))
    loaded = DatasetIndex.load(str(tmp_path / "out"))
    assert loaded == index
    assert (loaded.embodiment, loaded.variants) == (robot, 1)
    actions, states = loaded.statistics["actions"], loaded.statistics["states"]
    assert loaded.action_ranges == ActionRanges(actions.q01, actions.q99)
    assert loaded.state_ranges == StateRanges(states.minimum, states.maximum)
    with pytest.raises(InputError, match="a state of demos has 2: q, p"):
        Preparer(settings(state_minimum=[0], state_maximum=[1]), Tokenizer()).plan()
