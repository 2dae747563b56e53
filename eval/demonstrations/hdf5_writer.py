"""Write demonstrations in LIBERO's HDF5 layout, with the attributes that robomimic writes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from data.files import write_whole
from data.sources.libero.motion import DISPLACED_ATTRIBUTE
from data.sources.libero.source import COLLECTED_TAG, HAND_ORIENTATION, ORIENTATION_ATTRIBUTE
from eval.demonstrations.recording import Recording
from eval.simulator.interface import TaskInfo, problem_file_in_package

COLLECTION_ATTRIBUTE = "collection"
_FRAME_NAMES = {AGENT_CAMERA: "agentview_rgb", WRIST_CAMERA: "eye_in_hand_rgb"}


def demonstration_path(folder: Path, task: TaskInfo) -> Path:
    """File of the demonstrations of a task."""
    return folder / f"{task.name}_demo.hdf5"


def write_demonstrations(
    path: Path,
    task: TaskInfo,
    recordings: Iterable[Recording],
    versions: dict[str, str],
    standin_assets: bool,
    collection: Mapping[str, Any] | None = None,
) -> None:
    """Write one file of a task: complete under its name, or not at all.

    Dataset `states` of a demonstration is float64 [T, D], the physical state before each action. HDF5 crashes
    where the disk is full: the file is made in memory, where it is smaller than the recordings.

    Args:
        path: Of the file.
        task: The task.
        recordings: Its demonstrations.
        versions: Of the simulator's packages.
        standin_assets: Whether objects were drawn with stand-ins.
        collection: What an interrupted collection knows its own files by, as JSON.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        group = file.create_group("data")
        total = 0
        count = 0
        environment_arguments: dict[str, Any] = {}
        for recording in recordings:
            environment_arguments = recording.environment_arguments  # the same for all of a task
            _write_demonstration(group.create_group(f"demo_{count}"), recording)
            total += len(recording.actions)
            count += 1
        _write_attributes(group, task, environment_arguments, versions, standin_assets)
        group.attrs.update({"num_demos": count, "total": total})
        if collection is not None:
            group.attrs[COLLECTION_ATTRIBUTE] = json.dumps(collection)
    write_whole(path, content.getvalue())


def _write_attributes(
    group: h5py.Group,
    task: TaskInfo,
    environment_arguments: dict[str, Any],
    versions: dict[str, str],
    standin_assets: bool,
) -> None:
    problem_file = problem_file_in_package(task)
    # LIBERO finds its environments by the name in small letters, robosuite by that of the class.
    problem_name = task.environment.lower() if problem_file else task.environment
    environment = {
        "env_name": task.environment,
        "type": 1,  # robomimic's number for robosuite
        "env_version": versions.get("robosuite", ""),
        "env_kwargs": environment_arguments,
        "problem_name": problem_name,
        "bddl_file": problem_file,
    }
    problem = {
        "problem_name": problem_name,
        "domain_name": "robosuite",
        "language_instruction": task.instruction,
    }
    group.attrs.update(
        {
            "env_name": task.environment,
            "env_args": json.dumps(environment),
            "problem_info": json.dumps(problem),
            "bddl_file_name": problem_file,
            "macros_image_convention": "opengl",
            "tag": COLLECTED_TAG,
            ORIENTATION_ATTRIBUTE: HAND_ORIENTATION,
            "suite": task.suite,
            "versions": json.dumps(versions),
            "standin_assets": standin_assets,
        }
    )
    if task.category:
        # `env_args` builds the unperturbed environment; the task's name and `model_file` hold the rest.
        group.attrs.update({"task": task.name, "perturbation": task.category})


def _write_demonstration(group: h5py.Group, recording: Recording) -> None:
    steps = len(recording.actions)
    last = np.zeros(steps, dtype=np.uint8)
    last[-1] = 1
    position, turn, fingers = np.split(recording.states, [3, 6], axis=1)
    group.create_dataset("actions", data=recording.actions)
    group.create_dataset("states", data=recording.sim_states)
    group.create_dataset("dones", data=last)
    group.create_dataset("rewards", data=last)
    quaternions = np.array([_quaternion(vector) for vector in turn])
    group.create_dataset("robot_states", data=np.concatenate([fingers, position, quaternions], axis=1))
    observations = group.create_group("obs")
    for camera, frames in recording.frames.items():
        # Stored as MuJoCo renders them: rotated by 180 degrees.
        observations.create_dataset(
            _FRAME_NAMES[camera], data=frames[:, ::-1, ::-1], compression="gzip", compression_opts=1
        )
    observations.create_dataset("ee_pos", data=position)
    observations.create_dataset("ee_ori", data=turn)
    observations.create_dataset("ee_states", data=recording.states[:, :6])
    observations.create_dataset("gripper_states", data=fingers)
    observations.create_dataset("joint_states", data=recording.joints)
    group.attrs.update(
        {
            "num_samples": steps,
            "init_state": recording.sim_states[0],
            "initial_state_number": recording.initial_state,
            DISPLACED_ATTRIBUTE: recording.displaced,
            "model_file": recording.model_xml,
        }
    )


def _quaternion(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quaternion (x, y, z, w) of an axis times angle [3]; w is negative where the angle exceeds pi."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.array([0.0, 0.0, 0.0, 1.0])
    return np.array([*(vector / angle * np.sin(angle / 2)), np.cos(angle / 2)])
