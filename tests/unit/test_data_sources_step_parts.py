"""Actions and states of any robot out of the features of a data set: names, widths, no-ops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data.config import SourceConfig
from data.contracts import DEFAULT_EMBODIMENT, Embodiment
from data.errors import InputError
from data.recipe_settings import Operation, Part
from data.sources.no_ops import NoOpRule, moving_steps
from data.sources.parts.step_parts import NumbersFeature, StepParts, resolve_parts

MOTORS = ("shoulder", "elbow", "gripper")
FEATURES = {
    "action": NumbersFeature(7),
    "state": NumbersFeature(8),
    "motors": NumbersFeature(3, MOTORS),
    "pose": NumbersFeature(6),
    "grip": NumbersFeature(1),
    "ragged": NumbersFeature(0),
    "wide": NumbersFeature(40),
}
USUAL = {"action": ("action",), "state": ("state",)}


def parts(**settings: Any) -> StepParts:
    available = {"action": FEATURES, "state": FEATURES}
    return resolve_parts(SourceConfig("set", **settings), available, USUAL, "set", "arm", 30.0)


def named(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{number}" for number in range(count))


SEVEN, EIGHT = DEFAULT_EMBODIMENT.action, DEFAULT_EMBODIMENT.state


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, DEFAULT_EMBODIMENT),
        ({"action": ["pose", "grip"]}, DEFAULT_EMBODIMENT),
        ({"state": []}, DEFAULT_EMBODIMENT),
        ({"action": [Part("action", dimensions=list(SEVEN))]}, DEFAULT_EMBODIMENT),
        ({"state": ["pose"]}, Embodiment("arm", SEVEN, named("s", 6), control_hz=30.0)),
        ({"action": ["pose"]}, Embodiment("arm", named("a", 6), named("s", 8), control_hz=30.0)),
        ({"action": ["motors"], "state": []}, Embodiment("arm", MOTORS, (), control_hz=30.0)),
        (
            {"action": ["motors", "grip"], "state": ["motors"]},
            Embodiment("arm", (*MOTORS, "a3"), MOTORS, (), 30.0),
        ),
        # The data set's own names are not unique: numbers instead.
        ({"state": ["motors", "motors"]}, Embodiment("arm", SEVEN, named("s", 6), control_hz=30.0)),
        ({"embodiment": "mine"}, Embodiment("mine", SEVEN, EIGHT, (), 30.0)),
        ({"control_hz": 5.0, "state": []}, Embodiment("arm", SEVEN, (), (), 5.0)),
        ({"missing": ["roll", "yaw"]}, Embodiment("arm", SEVEN, EIGHT, ("roll", "yaw"), 30.0)),
    ],
)
def test_the_embodiment_follows_from_parts_and_settings(
    settings: dict[str, Any], expected: Embodiment
) -> None:
    assert parts(**settings).embodiment == expected


@pytest.mark.parametrize(
    ("names", "dimensions", "warned"),
    [
        (named("joint_", 7), None, True),
        (("delta_x", "delta_y", "delta_z", "rx", "ry", "rz", "grip"), None, False),
        ((), None, False),
        (named("joint_", 7), list(SEVEN), False),
        (named("joint_", 7), [*named("j", 6), "gripper"], False),
    ],
)
def test_seven_numbers_that_the_data_set_calls_otherwise_are_named_by_a_warning(
    names: tuple[str, ...],
    dimensions: list[str] | None,
    warned: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    available = {"action": {"action": NumbersFeature(7, names)}, "state": {}}
    config = SourceConfig("set", action=[Part("action", dimensions=dimensions)], state=[])
    found = resolve_parts(config, available, USUAL, "set", "arm", 30.0)
    assert found.embodiment.action == tuple(dimensions or SEVEN)
    assert ("set: the numbers of the action, in the data set joint_0, joint_1, " in caplog.text) is warned
    assert ("name them: action=[{name: action, dimensions: [...]}]" in caplog.text) is warned


def test_parts_are_changed_and_joined() -> None:
    found = parts(
        action=[
            Part("pose", [Operation("select", columns=[0, 1, 2]), Operation("pad", width=6)], list("xyzabc")),
            Part("grip", ["binarise", Operation("scale", factor=-2.0, offset=1.0)], ["gripper"]),
        ],
        state=[Part("motors", ["delta_from_absolute"])],
        missing=["a", "b", "c"],
    )
    values = {
        "pose": np.arange(12.0).reshape(2, 6),
        "grip": np.array([[0.5], [1.0]]),
        "motors": np.array([[1.0, 2, 3], [2, 2, 5]]),
    }
    actions, states = found.read(values.__getitem__, "here")
    assert actions.tolist() == [[0, 1, 2, 0, 0, 0, -1], [6, 7, 8, 0, 0, 0, -1]]
    assert states.tolist() == [[1, 0, 2], [0, 0, 0]]
    assert (actions.dtype, states.dtype) == (np.float64, np.float32)
    assert found.embodiment.state == ("s0", "s1", "s2"), "changes are not the motors"
    values["pose"][1, 4] = np.nan
    actions, _ = found.read(values.__getitem__, "here")
    assert np.isfinite(actions).all(), "a column that is not selected need not be a number"
    values["grip"][1] = np.nan
    with pytest.raises(InputError, match=r"here: grip\[1, 0\] is nan, expected a finite number"):
        found.read(values.__getitem__, "here")


def test_missing_dimensions_are_zero() -> None:
    table = {"action": np.ones((2, 7)), "state": np.ones((2, 8))}
    actions, _ = parts(missing=["pitch"]).read(table.__getitem__, "here")
    assert actions.tolist() == [[1, 1, 1, 1, 0, 1, 1]] * 2


def test_a_ragged_part_needs_names_and_a_selection() -> None:
    selected = Part("ragged", [Operation("select", columns=[1])], ["x"])
    found = parts(action=[selected], state=[])
    values = np.array([[1, 2, np.nan], [3, 4, 5]])
    assert found.read(lambda _: values, "here")[0].tolist() == [[2], [4]]
    with pytest.raises(InputError, match="action ragged: steps have no fixed number of numbers; select some"):
        parts(action=[replace(selected, dimensions=None)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"action": [Part("pose", dimensions=["x"])]},
            r"pose: 6 numbers, but 1 dimensions \(x\)",
        ),
        (
            {"action": [Part("pose", ["quaternion_to_axis_angle"])]},
            "action pose: quaternion_to_axis_angle: 6 col",
        ),
        ({"action": [Part("pose", ["invrt"])]}, "action pose: no operation 'invrt'; did you mean 'invert'"),
        ({"action": [Part("pse")]}, "no pse among"),
        ({"action": ["wide"]}, "action of 40 numbers, expected 1 to 32"),
        ({"missing": ["rol"]}, r"missing=\['rol'\], expected some, not all, of x, y"),
        (
            {"action": [Part("grip", dimensions=["x"]), Part("grip", dimensions=["x"])]},
            "are x, x, expected each once",
        ),
        ({"action": []}, r"action=\[\] names no part"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parts(**settings)


HAND = ("x", "y", "z", "gripper")
STILL = [[0.5, 0.5, 0.5, 0.0]] * 2


@pytest.mark.parametrize(
    ("names", "kind", "actions", "kept"),
    [
        # Movements of the hand: none is a no-op, a command that changes is one of its own.
        (
            ("x", "y", "z", "gripper"),
            None,
            [[0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, -1]],
            [0, 1, 0, 1],
        ),
        # Positions: staying is a no-op, wherever that is.
        (("j0", "j1", "j2", "gripper"), None, STILL, [0, 0]),
        (("j0", "j1", "j2", "gripper"), None, [*STILL, [0.5, 0.6, 0.5, 0], [0.5, 0.6, 0.5, 1]], [1, 0, 1, 1]),
        # Slow: each step alone is below the limit, together they are not.
        (("j0",), None, [[0], [6e-5], [12e-5], [18e-5]], [1, 0, 1, 0]),
        (("j0",), "motion", [[0], [0.1], [0.1]], [0, 1, 1]),
        (("x", "y", "z"), "change", [[0, 0, 1], [0, 0, 1], [0, 0, 2]], [1, 0, 1]),
        (("j0",), "keep", [[0], [0]], [1, 1]),
        (("left_gripper", "right_gripper"), None, [[0, 0], [0, 1e-9], [0, 1e-9]], [1, 1, 0]),
        (("j0",), None, [[3.0]], [0]),
    ],
)
def test_a_no_op_of_positions_is_no_change(
    names: tuple[str, ...], kind: Any, actions: list[list[float]], kept: list[int]
) -> None:
    rule = NoOpRule.of(names, kind)
    assert moving_steps(np.array(actions, np.float64), rule).astype(int).tolist() == kept
