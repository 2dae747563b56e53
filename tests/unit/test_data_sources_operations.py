"""What recipes do to numbers, on written-out episodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from data.errors import InputError
from data.recipe_settings import Operation
from data.sources.parts import operations
from data.sources.parts.operations import resolve


@pytest.mark.parametrize(
    ("function", "given", "expected", "parameters"),
    [
        ("select", [[1, 2, 3]], [[3, 1]], {"columns": [2, 0]}),
        ("scale", [[0], [0.25], [1]], [[-1], [-0.5], [1]], {"factor": 2.0, "offset": -1.0}),
        ("scale", [[5]], [[5]], {}),
        ("invert", [[0], [0.25], [1]], [[1], [0.75], [0]], {}),
        ("invert", [[-1], [0.5]], [[1], [-0.5]], {"low": -1.0, "high": 1.0}),
        ("clip", [[-2], [0.5], [3]], [[0], [0.5], [1]], {"low": 0.0, "high": 1.0}),
        # On its way up, up, open, on its way down, closed, and up again without arriving.
        ("binarise", [[0.3], [0.6], [1], [0.5], [0], [0.4]], [[1], [1], [1], [0], [0], [0]], {}),
        ("binarise", [[0.3], [0.3]], [[0], [0]], {}),  # a gripper that never moves
        ("binarise", [[1.0]], [[1]], {}),  # one step
        ("binarise", [[0.2, 1], [1, 0.8], [0.5, 0]], [[1, 1], [1, 0], [1, 0]], {}),  # columns apart
        ("relative_to_absolute", [[0], [1], [0], [-1], [0]], [[0], [1], [1], [0], [0]], {}),
        ("relative_to_absolute", [[0], [-1], [0.05], [1]], [[1], [0], [0], [1]], {}),
        ("relative_to_absolute", [[0], [0.1], [0]], [[0], [0], [0]], {}),  # never moves: open
        ("relative_to_absolute", [[0.3]], [[1]], {}),
        ("relative_to_absolute", [[0.3], [0.6]], [[0], [1]], {"threshold": 0.5}),
        ("delta_from_absolute", [[1, 5], [2, 4], [4, 4]], [[1, -1], [2, 0], [0, 0]], {}),
        ("delta_from_absolute", [[7]], [[0]], {}),
        ("delta_from_absolute", [[3.1], [-3.1]], [[2 * math.pi - 6.2], [0]], {"wrap": True}),
        ("euler_to_axis_angle", [[0.3, 0, 0], [0, -0.4, 0]], [[0.3, 0, 0], [0, -0.4, 0]], {}),
        # A half turn about z after one about x is a half turn about y.
        ("euler_to_axis_angle", [[math.pi, 0, math.pi]], [[0, math.pi, 0]], {}),
        ("pad", [[1, 2]], [[1, 2, 0, 0]], {"width": 4}),
    ],
)
def test_operations_on_written_out_numbers(
    function: Any, given: list[Any], expected: list[Any], parameters: dict[str, Any]
) -> None:
    before = np.array(given, np.float64)
    (step,) = resolve([Operation(function, **parameters)], "part")
    found = step(before)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.array_equal(before, np.array(given, np.float64)), "the input is not changed"


def about(axis: list[float], angles: np.ndarray) -> np.ndarray:
    """Quaternions x y z w of turns about an axis of length 1."""
    return np.concatenate([np.outer(np.sin(angles / 2), axis), np.cos(angles / 2)[:, None]], axis=1)


def test_quaternions_of_either_sign_become_one_continuous_axis_angle() -> None:
    angles = np.linspace(0.2, 3 * math.pi, 60)  # past a half turn, a whole one and beyond
    axis = [0.6, 0.0, -0.8]
    quaternions = about(axis, angles)
    expected = np.outer(angles, axis)
    np.testing.assert_allclose(operations.quaternion_to_axis_angle(quaternions), expected, atol=1e-12)
    antipodal = quaternions * np.where(np.arange(60) % 3, 1.0, -1.0)[:, None] * 2.0  # and not of length 1
    np.testing.assert_allclose(operations.quaternion_to_axis_angle(antipodal), expected, atol=1e-12)
    real_first = antipodal[:, [3, 0, 1, 2]]
    np.testing.assert_allclose(
        operations.quaternion_to_axis_angle(real_first, order="wxyz"), expected, atol=1e-12
    )


def test_turns_through_no_rotation_have_no_jump() -> None:
    angles = np.array([0.2, 0.1, 0.0, -0.1, -0.2])
    found = operations.quaternion_to_axis_angle(about([0, 1, 0], angles))
    np.testing.assert_allclose(found[:, 1], angles, atol=1e-12)
    still = np.tile([0.0, 0.0, 0.0, -1.0], (3, 1))
    assert np.array_equal(operations.quaternion_to_axis_angle(still), np.zeros((3, 3)))
    half = operations.quaternion_to_axis_angle(np.array([[0.0, 0.0, -1.0, 0.0]]))
    np.testing.assert_allclose(np.abs(half), [[0, 0, math.pi]], atol=1e-12)


def test_euler_angles_are_turns_about_fixed_axes_and_continuous() -> None:
    def turn(axis: int, angle: float) -> np.ndarray:
        i, j = (axis + 1) % 3, (axis + 2) % 3
        matrix = np.eye(3)
        matrix[[i, j], [i, j]] = math.cos(angle)
        matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
        return matrix

    roll, pitch, yaw = 0.4, -0.7, 1.2
    matrix = turn(2, yaw) @ turn(1, pitch) @ turn(0, roll)
    vector = operations.euler_to_axis_angle(np.array([[roll, pitch, yaw]]))[0]
    angle = np.linalg.norm(vector)
    np.testing.assert_allclose(matrix @ vector, vector, atol=1e-12)  # the axis stays where it is
    assert np.trace(matrix) == pytest.approx(1 + 2 * math.cos(angle))
    # Yaw jumps from pi to -pi in the data, the orientation does not.
    yaws = np.array([3.0, 3.1, 3.2 - 2 * math.pi, 3.3 - 2 * math.pi])
    found = operations.euler_to_axis_angle(np.stack([0 * yaws, 0 * yaws, yaws], axis=1))
    np.testing.assert_allclose(found[:, 2], [3.0, 3.1, 3.2, 3.3], atol=1e-12)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("quaternion_to_axis_angel", "did you mean 'quaternion_to_axis_angle'"),
        ("drop", r"no operation 'drop' \(there are: select, scale"),
        (Operation("clip", low=0.0), "clip needs high"),
        (Operation("scale", high=1.0), "scale has no parameter 'high'; its parameters: factor, offset"),
        (Operation("euler_to_axis_angle", order="wxyz"), "has no parameter 'order'; its parameters: none"),
    ],
)
def test_wrong_operations_are_refused(operation: str | Operation, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve([operation], "action: gripper")


@pytest.mark.parametrize(
    ("operation", "values", "message"),
    [
        (
            Operation("select", columns=[3]),
            [[1, 2, 3]],
            r"columns=\[3\] of 3 columns, expected numbers from 0",
        ),
        (Operation("select", columns=[]), [[1]], "columns"),
        (Operation("pad", width=1), [[1, 2]], "2 columns, expected at most width=1"),
        ("quaternion_to_axis_angle", [[1, 2, 3]], "3 columns, expected 4"),
        ("quaternion_to_axis_angle", [[0, 0, 0, 1], [0, 0, 0, 0]], r"step 1 is \[0.0, 0.0, 0.0, 0.0\]"),
        ("euler_to_axis_angle", [[1, 2]], "2 columns, expected 3"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(operation: Any, values: list[Any], message: str) -> None:
    (step,) = resolve([operation], "part")
    with pytest.raises(InputError, match=message):
        step(np.array(values, np.float64))
