"""Reading and resizing frames of LeRobot videos as `worldvla prepare` does, apart from the image tokenizer.

The data set is written first, with PyAV: format v3.0, all episodes of a camera in one video with a key frame
every second frame, as LeRobot encodes them; frames are a moving scene with noise. Ways, each over all frames:

- PyAV: the whole video decoded from its beginning, frame by frame, to RGB; what no reader can go below
- read: `LerobotSource.read`, episode by episode: seek, decode, compare times, stack; numbers and checks
- read and resize: what `prepare` does before it encodes
- lerobot: every row by LeRobot's own reader, in the interpreter of `--lerobot`

An environment for the last one: a venv with `lerobot==0.4.4`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.report import Column, Report, arguments
from data.config import Fit, SourceConfig
from data.prepare.frames import fit_frames
from data.sources.registry import open_source
from eval.recording.lerobot_format import task_table
from tests.support.lerobot_layout import CAMERAS, Recorded, write_lerobot

_PIXELS = 256
_TASK = "lift the cube"
_PEER = "lerobot"
_LEROBOT = Path(__file__).with_name("lerobot_reading.py")
_Run = tuple[float, float, int]  # seconds of CPU, of wall time, frames
_MOST = 1.5  # times the CPU time of decoding alone: an episode's frames are kept, in one array
_COLUMNS = (
    Column("frames_of", "frames"),
    Column("codec", "codec"),
    Column("way", "way"),
    Column("frames", "frames", digits=0),
    Column("cpu_seconds", "CPU", "s"),
    Column("seconds", "wall", "s"),
    Column("rate", "frames per CPU second", digits=0),
    Column("of_decoding", "CPU against PyAV", "x"),
)


@dataclass(frozen=True, slots=True)
class _DataSet:
    """A data set that is read: its folder, the size of its frames as text, and their codec."""

    folder: Path
    frames_of: str
    codec: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("prepare_reading", __doc__)
    parser.add_argument("--episodes", type=int, help="default: 10")
    parser.add_argument("--steps", type=int, help="of each episode; default: 150")
    parser.add_argument("--lerobot", metavar="PYTHON", help="interpreter with lerobot; default: not measured")
    parser.add_argument("--repeats", type=int, help="runs of each way, the fastest counts; default: 3")
    options = parser.parse_args(argv)
    smoke = options.smoke
    episodes, steps = options.episodes or (2 if smoke else 10), options.steps or (6 if smoke else 150)
    sizes: list[tuple[int, int]] = [(64, 64)] if smoke else [(256, 256), (480, 640)]
    os.environ.setdefault("SVT_LOG", "1")  # errors only: the encoder of AV1 is talkative
    codecs = ["libx264"] if smoke else ["libx264", "libsvtav1"]
    title = f"Frames of LeRobot videos, read and resized to {_PIXELS} px"
    report = Report("prepare_reading", title, _COLUMNS, "cpu")
    for size in sizes:
        for codec in codecs:
            with tempfile.TemporaryDirectory() as folder:
                written = [moving_scene(steps, size, number) for number in range(episodes)]
                place = write_lerobot(Path(folder) / "set", "v3.0", written, codec=codec)
                _complete(place)
                data = _DataSet(place, f"{size[1]} x {size[0]}", codec)
                _measure(report, data, "refuse" if size[0] == size[1] else "crop", options)
    read, decoded = (_cpu_seconds(report, way) for way in ("read", "PyAV"))
    report.target(
        f"reading all of them takes at most {_MOST:g} times the CPU time of decoding alone",
        read / decoded <= _MOST,
        read / decoded,
    )
    peer = _cpu_seconds(report, _PEER)
    report.target(
        "reading takes less CPU time than LeRobot's own reader",
        read < peer if peer else None,
        peer / read if peer else None,
    )
    if options.lerobot is None:
        report.note("peer not measured: lerobot (--lerobot PYTHON)")
    report.finish(options.out)
    return 0


def moving_scene(steps: int, size: tuple[int, int], seed: int) -> Recorded:
    """An episode of two cameras: a textured background, an object that moves over it, and noise.

    Args:
        steps: T.
        size: Height and width.
        seed: Of the scene.
    """
    height, width = size
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 200, (height // 8, width // 8, 3), np.uint8)
    background = coarse.repeat(8, axis=0).repeat(8, axis=1)
    frames: dict[str, NDArray[np.uint8]] = {}
    for camera in CAMERAS:
        film = np.repeat(background[None], steps, axis=0)
        side = height // 4
        for step in range(steps):
            left, top = (3 * step) % (width - side), (2 * step) % (height - side)
            film[step, top : top + side, left : left + side] = 255 - coarse[0, 0]
        film += random.integers(0, 6, film.shape, np.uint8)
        frames[camera] = film
    action = random.uniform(-0.3, 0.3, (steps, 7)).astype(np.float32)
    return Recorded(_TASK, frames, action, np.zeros((steps, 8), np.float32))


def _cpu_seconds(report: Report, way: str) -> float:
    """CPU seconds of a way over all data sets; of LeRobot's reader with the decoder that is always there."""
    return sum(row["cpu_seconds"] for row in report.rows if row["way"] == way or _is_peer(row["way"], way))


def _is_peer(row_way: str, way: str) -> bool:
    return way == _PEER and row_way.startswith(_PEER) and row_way.endswith("pyav")


def _complete(folder: Path) -> None:
    """Add what LeRobot's own reader needs and ours does not: numbers of all rows, and tasks by their text."""
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text("utf-8"))
    (table,) = folder.glob("data/*/*.parquet")
    rows = pq.read_table(table)
    pq.write_table(rows.append_column("index", pa.array(range(len(rows)), pa.int64())), table)
    info |= {"total_frames": len(rows), "total_tasks": 1}
    info["features"]["index"] = {"dtype": "int64", "shape": [1], "names": None}
    path.write_text(json.dumps(info), "utf-8")
    pq.write_table(task_table([_TASK]), folder / "meta" / "tasks.parquet")


def _measure(report: Report, data: _DataSet, fit: Fit, options: argparse.Namespace) -> None:
    """Time each way over one data set, in turns."""
    ways: dict[str, Callable[[], int]] = {
        "PyAV": lambda: _decoded(data.folder),
        "read": lambda: _read(data.folder, None),
        "read and resize": lambda: _read(data.folder, fit),
    }
    best: dict[str, _Run] = {}
    for _ in range(options.repeats or (1 if options.smoke else 3)):
        for way, run in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            frames = run()
            _keep_faster(best, way, (time.process_time() - cpu, time.perf_counter() - wall, frames))
        if options.lerobot is not None:
            answer = _lerobot(options.lerobot, data.folder)
            for each in answer["ways"]:
                run = (each["cpu_seconds"], each["seconds"], each["frames"])
                _keep_faster(best, f"{_PEER} {answer['version']}, {each['decoder']}", run)
            report.notes = list(dict.fromkeys([*report.notes, *answer["not_loaded"]]))
    for way, (cpu, wall, frames) in best.items():
        report.add(
            frames_of=data.frames_of,
            codec=data.codec,
            way=way,
            frames=frames,
            cpu_seconds=cpu,
            seconds=wall,
            rate=frames / cpu,
            of_decoding=cpu / best["PyAV"][0],
        )


def _keep_faster(best: dict[str, _Run], way: str, run: _Run) -> None:
    best[way] = min(best.get(way, run), run)


def _lerobot(interpreter: str, folder: Path) -> dict[str, Any]:
    """What `benchmarks.lerobot_reading` measures; nothing is asked of the hub."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hub")}
    command = [interpreter, "-I", str(_LEROBOT), str(folder)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=offline)
    if done.returncode:
        raise RuntimeError(f"{interpreter} ended with {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _decoded(folder: Path) -> int:
    """Decode every video of a data set; returns the number of frames."""
    count = 0
    for path in sorted(folder.rglob("*.mp4")):
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24")
                count += 1
    return count


def _read(folder: Path, fit: Fit | None) -> int:
    """Read every episode, resized if `fit` says how; returns the number of frames."""
    source, count = open_source(SourceConfig(str(folder))), 0
    for reference in source.references():
        for frames in source.read(reference).frames.values():
            if fit is not None:
                fit_frames(frames, _PIXELS, fit, "box_bicubic")
            count += len(frames)
    return count


if __name__ == "__main__":
    sys.exit(main())
