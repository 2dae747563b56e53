"""Frames a second of Lift (robosuite): rendered alone, and with the physics of a step, a camera and both.

The renderer is the one that an evaluation chooses here (`eval.simulator.rendering`): EGL on an NVIDIA device,
else OSMesa in software; MUJOCO_GL chooses another. Without a simulator or a renderer there are no rows, and a
note says what is missing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from benchmarks.report import Column, Report, arguments
from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from data.errors import InputError
from eval.simulator.interface import SETTLE_ACTION, Simulator, Suite
from eval.simulator.registry import open_suite

_COLUMNS = (
    Column("renderer", "renderer"),
    Column("cameras", "cameras"),
    Column("pixels", "side"),
    Column("frames", "frames alone", "1/s", digits=0),
    Column("steps", "steps and frames", "1/s", digits=0),
)
_CAMERAS = {"agent": (AGENT_CAMERA,), "agent, wrist": (AGENT_CAMERA, WRIST_CAMERA)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the JSON file."""
    parser = arguments("frames", __doc__)
    parser.add_argument("--suite", default="robosuite_lift", help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="of a measurement; default: 200, with --smoke 2")
    options = parser.parse_args(argv)
    steps = options.steps or (2 if options.smoke else 200)
    report = Report("frames", f"Frames of {options.suite}", _COLUMNS, options.device, out=options.out)
    try:
        _measure(report, open_suite(options.suite), (64,) if options.smoke else (64, 256), steps)
    except (InputError, ImportError) as missing:  # a package, a library, or a display of EGL
        report.note(f"not measured: {missing}")
    report.note("one process; frames: cameras x pictures of an unchanged scene a second")
    report.finish(options.out)
    return 0


def _measure(report: Report, suite: Suite, sides: Sequence[int], steps: int) -> None:
    renderer = suite.renderer()
    with closing(suite.open(0)) as simulator:
        simulator.reset(0)
        for pixels in sides:
            for name, cameras in _CAMERAS.items():
                _pictures(simulator, cameras, pixels, steps=1)  # makes the rendering context
                start = time.perf_counter()
                _pictures(simulator, cameras, pixels, steps)
                alone = steps * len(cameras) / (time.perf_counter() - start)
                start = time.perf_counter()
                for _ in range(steps):
                    simulator.step(np.asarray(SETTLE_ACTION))
                    _pictures(simulator, cameras, pixels, steps=1)
                both = steps / (time.perf_counter() - start)
                report.add(renderer=renderer, cameras=name, pixels=pixels, frames=alone, steps=both)


def _pictures(simulator: Simulator, cameras: Sequence[str], pixels: int, steps: int) -> None:
    for _ in range(steps):
        for camera in cameras:
            simulator.render(camera, pixels)


if __name__ == "__main__":
    sys.exit(main())
