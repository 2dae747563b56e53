"""LeRobot's own reader over a data set, frame by frame: run by an interpreter that has it, prints JSON.

    PYTHON benchmarks/lerobot_reading.py FOLDER

Imports nothing of this repository (`benchmarks.prepare_reading` starts it). The decoders are those of
`LeRobotDataset`: `pyav` (through torchvision) and, where it can be loaded, `torchcodec`.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]


def measured(folder: Path, decoder: str) -> dict[str, Any]:
    """CPU and wall seconds of one pass over all rows, after the first one has opened the files.

    Args:
        folder: The data set.
        decoder: `pyav` or `torchcodec`.
    """
    data = LeRobotDataset("local/set", root=folder, video_backend=decoder)
    data[0]
    cpu, wall, frames = time.process_time(), time.perf_counter(), 0
    for row in range(len(data)):
        item = data[row]
        frames += sum(camera in item for camera in data.meta.video_keys)
    return {
        "decoder": decoder,
        "frames": frames,
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - wall,
    }


def main() -> None:
    """Measure every decoder that can be loaded."""
    ways: list[dict[str, Any]] = []
    reasons: list[str] = []
    for decoder in ("pyav", "torchcodec"):
        try:
            ways.append(measured(Path(sys.argv[1]), decoder))
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(f"lerobot's decoder {decoder} cannot be loaded ({type(error).__name__})")
    sys.stdout.write(json.dumps({"version": version("lerobot"), "ways": ways, "not_loaded": reasons}) + "\n")


if __name__ == "__main__":
    main()
