"""Small data sets with the names, widths and types of published ones, for the tests of recipes.

The originals were not at hand: features are those of the data sets' own descriptions.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.contracts import Embodiment
from tests.support.lerobot_layout import recorded, write_lerobot
from tests.support.libero_layout import demonstration, write_file
from tests.support.rlds_layout import episode, png, tensor, write_records, write_rlds

STEPS = 4
AXIS = np.array([2.0, 3.0, 6.0]) / 7
POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
HAND = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "gripper")
ARM = tuple(f"joint_{number}" for number in range(7))
WORDS = "observation/natural_language_instruction"


@dataclass(frozen=True)
class Original:
    """A data set as published: numbers of a step by feature, and what its recipe makes of it.

    Attributes:
        numbers: Feature -> [STEPS, width], written as float32.
        cameras: Features that are pictures.
        words: Feature -> the instruction of every step.
        expected: The embodiment.
        gripper: The gripper's commands that come out, -1 open and 1 closed.
        episode: Feature of the episode -> its value: a text, or a number.
        packed: Features of `numbers` that are compressed.
        flags: Features of `numbers` that are booleans.
        first: Steps that are left out at the beginning.
    """

    numbers: dict[str, Any]
    cameras: tuple[str, ...]
    words: dict[str, str]
    expected: Embodiment
    gripper: tuple[float, ...]
    episode: dict[str, Any] | None = None
    packed: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    first: int = 0

    def write(self, folder: Path) -> Path:
        features: dict[str, dict[str, Any]] = {}
        values: dict[str, Any] = {}
        for name, table in self.numbers.items():
            path, table = f"steps/{name}", np.asarray(table, np.float32)
            width = () if table.ndim == 1 else (table.shape[1],)
            features[path] = tensor(*width, dtype="bool" if name in self.flags else "float32")
            values[path] = table.astype(bool).tolist() if name in self.flags else table.reshape(-1)
            if name in self.packed:
                features[path]["tensor"]["encoding"] = "zlib"
                values[path] = [zlib.compress(row.tobytes()) for row in table]
        for name in self.cameras:
            features[f"steps/{name}"] = {"image": {"shape": {"dimensions": ["8", "8", "3"]}}}
            values[f"steps/{name}"] = [png(np.full((8, 8, 3), step, np.uint8)) for step in range(STEPS)]
        for name, text in self.words.items():
            features[f"steps/{name}"] = {"text": {}}
            values[f"steps/{name}"] = [text.encode()] * STEPS
        for name, value in (self.episode or {}).items():
            features[name] = {"text": {}} if isinstance(value, str) else tensor(dtype="bool")
            values[name] = [value.encode()] if isinstance(value, str) else [value]
        return write_records(folder, features, [values], "original")


def ramp(width: int, by: float = 0.01) -> np.ndarray:
    """Numbers [STEPS, width] that differ everywhere and move."""
    return by * (1 + np.arange(STEPS)[:, None] ** 2 + 10 * np.arange(width))


def state_of_pose(gripper: list[float]) -> np.ndarray:
    return np.concatenate([ramp(6), np.array(gripper)[:, None]], axis=1)


def turned() -> np.ndarray:
    """Position 3 and quaternion 4 (x y z w): turns by 0.2, 0.4, ... about `AXIS`, one of another sign."""
    half = 0.1 * (1 + np.arange(STEPS))[:, None]
    quaternions = np.concatenate([np.sin(half) * AXIS, np.cos(half)], axis=1)
    quaternions[2] *= -1
    return np.concatenate([ramp(3), quaternions], axis=1)


def closing(values: list[float]) -> np.ndarray:
    return np.array(values)[:, None]


def rt1(first: str, gripper: str) -> dict[str, Any]:
    return {
        "action/world_vector": ramp(3),
        "action/rotation_delta": ramp(3),
        "action/gripper_closedness_action": closing([0, 1, 0, -1]),
        first: turned(),
        gripper: closing([0, 0, 1, 1]),
    }


def plain(gripper: Any, **others: Any) -> dict[str, Any]:
    return {
        "action/world_vector": ramp(3),
        "action/rotation_delta": ramp(3),
        "action/gripper_closedness_action": gripper,
        **others,
    }


def arm(name: str, hz: float, state: tuple[str, ...], missing: tuple[str, ...] = ()) -> Embodiment:
    return Embodiment(name, POSE, state, missing, hz)


ORIGINALS = {
    "bridge": Original(
        {
            "action/world_vector": ramp(3),
            "action/rotation_delta": ramp(3),
            "action/open_gripper": [1, 1, 0, 0],
            "observation/state": state_of_pose([1, 1, 0.5, 0]),
        },
        ("observation/image",),
        {WORDS: "Put it down"},
        arm("bridge", 5.0, POSE),
        (-1, 1, 1),
        flags=("action/open_gripper",),
        first=1,
    ),
    "bridge_orig": Original(
        {
            "action": np.concatenate([0 * ramp(6), closing([1, 0.98, 0.5, 0])], axis=1),
            "observation/state": state_of_pose([1, 1, 0.5, 0]),
        },
        ("observation/image_0", "observation/image_1"),
        {"language_instruction": "Put it down"},
        arm("bridge", 5.0, POSE),
        (-1, 1, 1),
        first=1,
    ),
    "fractal": Original(
        rt1("observation/base_pose_tool_reached", "observation/gripper_closed"),
        ("observation/image",),
        {WORDS: "pick the can"},
        arm("fractal", 3.0, HAND),
        (-1, 1, 1, -1),
    ),
    "kuka": Original(
        rt1("observation/clip_function_input/base_pose_tool_reached", "observation/gripper_closed"),
        ("observation/image",),
        {WORDS: "pick anything"},
        arm("kuka", 10.0, HAND),
        (-1, 1, 1, -1),
        episode={"success": True},
        packed=("observation/clip_function_input/base_pose_tool_reached", "observation/gripper_closed"),
    ),
    "jaco": Original(
        {
            "action/world_vector": ramp(3),
            "action/gripper_closedness_action": closing([0, -1, 0, 1]),
            "observation/end_effector_cartesian_pos": ramp(7),
        },
        ("observation/image", "observation/image_wrist"),
        {WORDS: "pick up the cup"},
        arm("jaco", 10.0, POSE, ("roll", "pitch", "yaw")),
        (1, -1, -1, 1),
    ),
    "taco_play": Original(
        {
            "action/rel_actions_world": np.concatenate([ramp(6), closing([1, 1, -1, -1])], axis=1),
            "observation/robot_obs": ramp(15),
        },
        ("observation/rgb_static", "observation/rgb_gripper"),
        {WORDS: "open the drawer"},
        arm("taco_play", 15.0, POSE),
        (-1, -1, 1, 1),
    ),
    "viola": Original(
        plain(
            [-1, -1, 1, 1],
            **{"observation/joint_states": ramp(7), "observation/gripper_states": closing([0.1, 0.1, 0, 0])},
        ),
        ("observation/agentview_rgb", "observation/eye_in_hand_rgb"),
        {WORDS: "make coffee"},
        arm("viola", 20.0, (*ARM, "gripper")),
        (-1, -1, 1, 1),
    ),
    "roboturk": Original(
        plain(closing([0, 0, 1, 1])),
        ("observation/front_rgb",),
        {WORDS: "stack the cups"},
        arm("roboturk", 10.0, ()),
        (-1, -1, 1, 1),
    ),
    "berkeley_fanuc": Original(
        {
            "action": ramp(6),
            "observation/state": np.concatenate([ramp(6), closing([0, 0, 1, 1]), ramp(6)], axis=1),
        },
        ("observation/image", "observation/wrist_image"),
        {"language_instruction": "close the drawer"},
        arm("berkeley_fanuc", 10.0, (*ARM[:6], "gripper")),
        (-1, -1, 1, 1),
    ),
    "iamlab": Original(
        {
            "action": np.concatenate([turned(), closing([1, 1, 0, 0])], axis=1),
            "observation/state": ramp(20),
        },
        ("observation/image", "observation/wrist_image"),
        {"language_instruction": "insert the peg"},
        arm("iamlab", 20.0, (*ARM, "gripper")),
        (-1, -1, 1, 1),
    ),
    "droid": Original(
        {
            "action_dict/joint_position": ramp(7),
            "action_dict/gripper_position": closing([0, 0, 1, 1]),
            "action_dict/cartesian_velocity": ramp(6),
            "observation/joint_position": ramp(7),
            "observation/gripper_position": closing([0, 0, 0.5, 1]),
        },
        tuple(f"observation/{view}_left" for view in ("exterior_image_1", "exterior_image_2", "wrist_image")),
        {
            "language_instruction": "Put the pen away",
            "language_instruction_2": "",
            "language_instruction_3": "put the pen away",
        },
        Embodiment("droid", (*ARM, "gripper"), (*ARM, "gripper"), (), 15.0),
        (-1, -1, 1, 1),
        episode={
            "episode_metadata/file_path": "lab/success/1/trajectory.h5",
            "episode_metadata/recording_folderpath": "lab/success/1/recordings",
        },
    ),
}


@dataclass(frozen=True)
class Lerobot:
    """A LeRobot data set: widths by column, cameras, and the embodiment that its recipe gives."""

    widths: dict[str, int]
    cameras: tuple[str, ...]
    expected: tuple[str, int, int, float]
    overrides: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        write_lerobot(folder, "v2.1", [recorded(STEPS, 0)], "image")
        info = json.loads((folder / "meta/info.json").read_text())
        features, fps = info["features"], self.expected[3]
        picture = features.pop("observation.images.image")
        del features["observation.images.wrist_image"], features["action"], features["observation.state"]
        features |= {name: picture for name in self.cameras}
        features |= {n: {"dtype": "float32", "shape": [w], "names": None} for n, w in self.widths.items()}
        (folder / "meta/info.json").write_text(json.dumps(info | {"fps": fps}))
        path = folder / "data/chunk-000/episode_000000.parquet"
        table = pq.read_table(path)
        columns = {name: table[name] for name in table.column_names}
        columns |= {name: columns["observation.images.image"] for name in self.cameras}
        columns |= {name: pa.array(list(ramp(width))) for name, width in self.widths.items()}
        pq.write_table(pa.table(columns), path)
        return folder


def views(*names: str) -> tuple[str, ...]:
    return tuple(f"observation.images.{name}" for name in names)


ALOHA = {"action": 14, "observation.state": 14}
SO = {"action": 6, "observation.state": 6}
LEROBOT = {
    "aloha": Lerobot(
        ALOHA, views("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist"), ("aloha", 14, 14, 50)
    ),
    "aloha in simulation": Lerobot(
        ALOHA,
        views("top"),
        ("aloha", 14, 14, 50),
        ("cameras.agent=observation.images.top", "cameras.wrist=null"),
    ),
    "so100": Lerobot(
        SO, views("laptop", "phone"), ("so100", 6, 6, 30), ("cameras={agent:observation.images.laptop}",)
    ),
    "so101": Lerobot(SO, views("front", "wrist"), ("so101", 6, 6, 30)),
    "agibot": Lerobot(
        {
            "actions.joint.position": 14,
            "actions.effector.position": 2,
            "actions.waist.position": 2,
            "observation.states.joint.position": 14,
            "observation.states.effector.position": 2,
        },
        views("head", "hand_left", "hand_right"),
        ("agibot", 16, 16, 30),
    ),
    "template": Lerobot(
        {"action": 7, "observation.state": 9}, views("front", "wrist"), ("my_robot", 7, 9, 10)
    ),
}


def hub_layout(folder: Path, agent: str, wrist: str, action: str, state: str) -> Path:
    """LIBERO of the hub with other names of the columns."""
    write_lerobot(folder, "v2.1", [recorded(STEPS, 0)], "image")
    names = {"observation.images.image": agent, "observation.images.wrist_image": wrist}
    names |= {"action": action, "observation.state": state}
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"] = {names.get(name, name): value for name, value in info["features"].items()}
    (folder / "meta/info.json").write_text(json.dumps(info))
    path = folder / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), path)
    return folder


def libero(tmp_path: Path) -> dict[str, Path]:
    arrays = demonstration(STEPS)
    return {
        "hdf5": write_file(tmp_path / "libero_object" / "lift_demo.hdf5", [arrays]).parent,
        "rlds": write_rlds(tmp_path / "rlds", [episode(STEPS, 0)], files=1),
        "image2": hub_layout(
            tmp_path / "a",
            "observation.images.image",
            "observation.images.image2",
            "action",
            "observation.state",
        ),
        "wrist_image": hub_layout(tmp_path / "b", "image", "wrist_image", "actions", "state"),
    }
