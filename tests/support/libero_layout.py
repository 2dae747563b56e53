"""Small HDF5 files in LIBERO's layout, for the tests of everything that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def demonstration(steps: int = 6, seed: int = 0, pixels: int = 64) -> dict[str, np.ndarray]:
    """Arrays of one demonstration; every step moves the robot."""
    random = np.random.default_rng(seed)
    actions = random.uniform(-0.5, 0.5, (steps, 7))
    actions[:, 6] = -1
    return {
        "actions": actions,
        "obs/agentview_rgb": random.integers(0, 256, (steps, pixels, pixels, 3), dtype=np.uint8),
        "obs/eye_in_hand_rgb": random.integers(0, 256, (steps, pixels, pixels, 3), dtype=np.uint8),
        "obs/ee_states": random.normal(size=(steps, 6)),
        "obs/gripper_states": random.normal(size=(steps, 2)),
    }


def write_file(path: Path, demonstrations: list[dict[str, Any]], **attributes: Any) -> Path:
    """Write demonstrations; a None array or attribute is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    defaults = {
        "macros_image_convention": "opengl",
        "problem_info": json.dumps({"language_instruction": "lift the cube"}),
        "bddl_file_name": "bddl_files/libero_object/lift.bddl",
    }
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update({k: v for k, v in (defaults | attributes).items() if v is not None})
        for i, arrays in enumerate(demonstrations):
            group = data.create_group(f"demo_{i}")
            for name, array in arrays.items():
                if array is not None:
                    group.create_dataset(name, data=array)
    return path
