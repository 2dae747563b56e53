"""The LIBERO reader: content, order, and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data.config import CameraNames, SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.recipe_settings import KeepRangesConfig, Part
from data.sources.interface import DemonstrationReference
from data.sources.libero.motion import read_motion
from data.sources.libero.source import LiberoSource
from data.sources.registry import read_demonstrations
from tests.support.libero_layout import demonstration, write_file

NO_ATTRIBUTES: dict[str, Any] = {
    "macros_image_convention": None,
    "problem_info": None,
    "bddl_file_name": None,
}


def listed(path: Path) -> list[DemonstrationReference]:
    return LiberoSource(SourceConfig(str(path))).references()


def read(path: Path, **settings: Any) -> list[Demonstration]:
    return list(read_demonstrations(SourceConfig(str(path), **settings)))


def test_a_demonstration_is_read_upright(tmp_path: Path) -> None:
    arrays = demonstration()
    path = write_file(tmp_path / "pick_up_the_cube_demo.hdf5", [arrays])
    (found,) = read(path)
    assert (found.key, found.suite, found.task) == (
        "pick_up_the_cube/demo_0",
        "libero_object",
        "pick_up_the_cube",
    )
    assert found.instruction == "lift the cube"
    assert (found.actions.dtype, found.states.dtype) == (np.float64, np.float32)
    assert np.array_equal(found.actions, arrays["actions"])
    assert np.array_equal(found.states[:, 6:], arrays["obs/gripper_states"].astype(np.float32))
    assert set(found.frames) == {"agent", "wrist"}
    assert np.array_equal(found.frames["agent"], arrays["obs/agentview_rgb"][:, ::-1, ::-1])


def test_both_image_conventions_give_the_same_picture(tmp_path: Path) -> None:
    arrays = demonstration()
    flipped = arrays | {name: arrays[name][:, ::-1] for name in ("obs/agentview_rgb", "obs/eye_in_hand_rgb")}
    write_file(tmp_path / "a.hdf5", [arrays])
    write_file(tmp_path / "b.hdf5", [flipped], macros_image_convention="opencv")
    first, second = read(tmp_path)
    assert np.array_equal(first.frames["wrist"], second.frames["wrist"])


def test_order_is_by_file_then_by_number(tmp_path: Path) -> None:
    write_file(tmp_path / "b_demo.hdf5", [demonstration(3)])
    write_file(tmp_path / "a_demo.hdf5", [demonstration(2 + i) for i in range(11)])
    (tmp_path / "notes.txt").write_text("not a demonstration")
    references = listed(tmp_path)
    assert [r.key for r in references] == [*(f"a/demo_{i}" for i in range(11)), "b/demo_0"]
    assert [r.length for r in references] == [*range(2, 13), 3]
    assert [d.key for d in read(tmp_path)] == [r.key for r in references]


def test_the_suite_is_read_from_the_attribute_the_problem_file_or_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "libero_goal"
    write_file(folder / "a.hdf5", [demonstration()], suite="robosuite_lift")
    write_file(folder / "b.hdf5", [demonstration()])
    write_file(folder / "c.hdf5", [demonstration()], bddl_file_name=None)
    assert [r.suite for r in listed(folder)] == [
        "robosuite_lift",
        "libero_object",
        "libero_goal",
    ]


@pytest.mark.parametrize(
    ("folder", "suite"),
    [
        ("libero_spatial_no_noops", "libero_spatial"),
        ("libero_10_no_noops_t_256", "libero_10"),
        ("libero_90", "libero_90"),
        ("libero_100", "libero_100"),
        ("libero_goals", "libero_goals"),
        ("kitchen", "kitchen"),
    ],
)
def test_files_without_attributes_have_their_words_and_suite_from_their_names(
    folder: str, suite: str, tmp_path: Path
) -> None:
    path = tmp_path / folder / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
    write_file(path, [demonstration()] * 3, **NO_ATTRIBUTES)
    with h5py.File(path, "a") as file:
        assert not file["data"].attrs
        file.move("data/demo_2", "data/demo_10")  # filters leave gaps between the numbers
    references = listed(path.parent)
    assert [r.item for r in references] == ["demo_0", "demo_1", "demo_10"]
    assert {(r.suite, r.instruction) for r in references} == {(suite, "turn on the stove")}
    assert np.array_equal(read(path)[2].frames["agent"], demonstration()["obs/agentview_rgb"][:, ::-1, ::-1])


@pytest.mark.parametrize("name", ["low_dim_v141", "demo", "_demo", "lift_demo", "1_2_3_demo"])
def test_names_that_tell_no_instruction_are_refused(name: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / f"{name}.hdf5", [demonstration()], **NO_ATTRIBUTES)
    [reference] = listed(path)
    assert re.search(r"problem_info of `data` is 'None'.*or name the file after its task", reference.fault)


def test_states_of_earlier_collections_are_known(tmp_path: Path) -> None:
    marks = {"tag": "worldvla-expert", "state_orientation": "hand_body"}
    write_file(tmp_path / "a.hdf5", [demonstration()], **marks)
    write_file(tmp_path / "b.hdf5", [demonstration()], tag="worldvla-expert")
    write_file(tmp_path / "c.hdf5", [demonstration()])
    assert [r.turned_states for r in listed(tmp_path)] == [False, True, False]


@pytest.mark.parametrize("words", [["Lift", "the", "cube"], '"Lift the cube"', " lift the cube "])
def test_instructions_are_plain_lower_case_text(tmp_path: Path, words: object) -> None:
    info = json.dumps({"language_instruction": words})
    path = write_file(tmp_path / "a.hdf5", [demonstration()], problem_info=info)
    assert listed(path)[0].instruction == "lift the cube"


def test_instructions_have_no_control_characters_and_show_something(tmp_path: Path) -> None:
    bell, invisible = ("\a Lift\0the cube\x1b", "\N{ZERO WIDTH SPACE}")
    first = write_file(tmp_path / "a.hdf5", [demonstration()], problem_info=words(bell))
    assert listed(first)[0].instruction == "lift the cube"
    second = write_file(tmp_path / "b.hdf5", [demonstration()], problem_info=words(invisible))
    assert "expected LIBERO's JSON with a language_instruction" in listed(second)[0].fault


def words(text: str) -> str:
    return json.dumps({"language_instruction": text})


def test_instructions_of_libero_tasks_are_those_of_evaluations(tmp_path: Path) -> None:
    problem_info = json.dumps({"language_instruction": "pick the akita black bowl"})
    names = {
        "pick_up_the_black_bowl": "pick up the black bowl",
        "KITCHEN_SCENE3_turn_on_the_stove": "turn on the stove",
        "LIVING_ROOM_SCENE10_pick_up_the_book": "pick up the book",
    }
    for name, words in names.items():
        bddl = f"libero/libero/bddl_files/libero_90/{name}.bddl"
        path = write_file(
            tmp_path / f"{name}_demo.hdf5", [demonstration()], problem_info=problem_info, bddl_file_name=bddl
        )
        assert listed(path)[0].instruction == words


def test_instructions_of_perturbed_tasks_are_their_own(tmp_path: Path) -> None:
    path = write_file(
        tmp_path / "pick_up_the_black_bowl_language_demo.hdf5",
        [demonstration()],
        problem_info=json.dumps({"language_instruction": "lift the dark bowl"}),
        bddl_file_name="bddl_files/libero_spatial_lan/pick_up_the_black_bowl_language.bddl",
        suite="libero_pro_spatial_language",
    )
    assert listed(path)[0].instruction == "lift the dark bowl"


def test_one_camera_is_enough(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.hdf5", [demonstration() | {"obs/eye_in_hand_rgb": None}])
    assert set(read(path)[0].frames) == {"agent"}


def test_cameras_and_rotation_can_be_chosen(tmp_path: Path) -> None:
    arrays = demonstration()
    path = write_file(tmp_path / "a.hdf5", [arrays])
    (found,) = read(path, cameras=CameraNames(agent="eye_in_hand_rgb"), rotate=False)
    assert set(found.frames) == {"agent"}
    assert np.array_equal(found.frames["agent"], arrays["obs/eye_in_hand_rgb"])
    missing = LiberoSource(SourceConfig(str(path), cameras=CameraNames(agent="frontview_rgb")))
    assert "demo_0: no dataset `frontview_rgb`" in missing.references()[0].fault


def test_motion_is_read_without_frames(tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(6, 30))
    path = write_file(tmp_path / "a.hdf5", [demonstration() | {"states": states}])
    motion = read_motion(listed(path)[0])
    assert np.array_equal(motion.first_physics, states[0])
    assert np.array_equal(motion.actions, demonstration()["actions"])
    assert motion.initial_state == 0
    states[0, 4] = np.inf
    path = write_file(tmp_path / "b.hdf5", [demonstration() | {"states": states}])
    with pytest.raises(InputError, match=r"states\[0\] is not finite"):
        read_motion(listed(path)[0])


def test_an_ending_in_capitals_is_one_too(tmp_path: Path) -> None:
    write_file(tmp_path / "a.HDF5", [demonstration()])
    assert [demonstration.task for demonstration in read(tmp_path)] == ["a"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"source": "s3://bucket/demos", "format": "libero"},
            r"^source=s3://bucket/demos: HDF5 files are read in a file system only; copy or mount the folder",
        ),
        (
            {"instruction": ["words"]},
            r"^instruction=\[words\]: is for RLDS and WebDataset only, .* is libero",
        ),
        ({"action": ["torque", Part("grip")]}, r"^action=\[torque,grip\]: LIBERO's layout fixes this"),
        ({"missing": ["roll"]}, r"^missing=\[roll\]: LIBERO's layout fixes this"),
        ({"keep_ranges": KeepRangesConfig("a.json")}, r"^keep_ranges=\{\.\.\.\}: is for RLDS only"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_file(tmp_path / "a.hdf5", [demonstration()])
    values: dict[str, Any] = {"source": str(tmp_path), **settings}
    with pytest.raises(InputError, match=reason):
        list(read_demonstrations(SourceConfig(**values)))


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        listed(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no \*\.hdf5 file"):
        listed(tmp_path)


def with_nan(array: np.ndarray) -> np.ndarray:
    broken = array.copy()
    broken[2, 3] = np.nan
    return broken


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: {"actions": d["actions"][:0]}, "no time steps"),
        (lambda d: {"actions": d["actions"][:, :6]}, r"\(6, 6\), expected numbers \[T, 7\]"),
        (lambda d: {"actions": with_nan(d["actions"])}, r"actions\[2, 3\] is nan"),
        (lambda d: {"actions": d["actions"].astype("S8")}, "expected numbers"),
        (lambda d: {"actions": None}, "no dataset `actions`"),
        (lambda d: {"obs/ee_states": None}, "no dataset `ee_states`"),
        (lambda d: {"obs/gripper_states": d["obs/gripper_states"][:4]}, "has 4 time steps, expected 6"),
        (lambda d: {"obs/agentview_rgb": d["obs/agentview_rgb"][:5]}, "has 5 time steps, expected 6"),
        (lambda d: {"obs/agentview_rgb": d["obs/agentview_rgb"] / 255.0}, "expected uint8"),
        (lambda d: {"obs/agentview_rgb": None}, "no dataset `agentview_rgb`"),
    ],
)
def test_broken_demonstrations_are_refused(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], dict[str, Any]], reason: str
) -> None:
    arrays: dict[str, Any] = demonstration()
    path = write_file(tmp_path / "a.hdf5", [demonstration(), arrays | change(arrays)])
    with pytest.raises(InputError, match=reason) as error:
        read(path)
    assert "demo_1" in str(error.value)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"problem_info": None}, "language_instruction"),
        ({"problem_info": "{"}, "language_instruction"),
        ({"problem_info": '{"language_instruction": ""}'}, "language_instruction"),
        ({"macros_image_convention": "mirror"}, "expected opengl or opencv"),
    ],
)
def test_broken_attributes_are_refused(tmp_path: Path, attributes: dict[str, Any], reason: str) -> None:
    path = write_file(tmp_path / "a.hdf5", [demonstration()], **attributes)
    with pytest.raises(InputError, match=reason):
        read(path)


def test_a_file_without_demonstrations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no demo_0"):
        read(write_file(tmp_path / "a.hdf5", []))


def test_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    other = write_file(tmp_path / "other.h5", [demonstration()])
    path = write_file(tmp_path / "a.hdf5", [demonstration() | {"actions": None}])
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"] = h5py.ExternalLink(str(other), "/data/demo_0/actions")
    with pytest.raises(InputError, match="no dataset `actions`"):
        read(path)


def test_damaged_files_are_refused_wherever_they_are_damaged(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.hdf5", [demonstration(pixels=8)])
    content = path.read_bytes()
    random = np.random.default_rng(0)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        read(path)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        start = int(random.integers(0, len(content) - 16))
        damaged[start : start + 16] = random.bytes(16)
        path.write_bytes(damaged)
        try:
            read(path)
        except InputError:
            refused += 1
    assert refused > 20


def test_text_that_cannot_be_encoded_is_replaced(tmp_path: Path) -> None:
    info = '{"language_instruction": "lift \\ud83d the cube"}'
    path = write_file(tmp_path / "a.hdf5", [demonstration()], problem_info=info)
    with h5py.File(path, "a") as file:
        attributes: Any = file["data"].attrs
        attributes.create("suite", b"lab\xff", dtype=h5py.string_dtype("utf-8"))
    (found,) = listed(path)
    assert found.instruction == "lift \N{REPLACEMENT CHARACTER} the cube"
    assert found.suite == "lab\N{REPLACEMENT CHARACTER}"
