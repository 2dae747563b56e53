"""Planning of 10^9 windows, in a process of its own, so that only the plan is measured.

Writes the index of a simulated data set (no shards: a plan needs none) and plans one rank's sequence of one
step, as a rank does when it starts: read and verify the index, number the windows, lay out the step.
"""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import run_in_processes
from benchmarks.stream_data import CODES, PIXELS, SIDE
from data.config import DataConfig
from data.contracts import AGENT_CAMERA
from data.prepare.statistics import summarise
from data.storage.episode_entry import Task
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, ImageFormat
from data.stream.order.plan import DataPlan
from data.stream.setup import make_plan
from data.tokens.action import ActionRanges
from pretrain.config import TrainerConfig

EPISODES = 2_900_000
_TASKS, _KEY, _IN_A_SHARD, _BYTES = 2000, 12, 500, 102_400
_RANKS, _LENGTH = 4096, 8192


def write_index(folder: Path, episodes: int) -> None:
    """The index of a simulated data set: 100 to 299 steps an episode, every tenth held out."""
    random, number = np.random.default_rng(0), np.arange(episodes)
    digits = number[:, None] // 10 ** np.arange(_KEY - 1, -1, -1) % 10
    columns: dict[str, NDArray[Any]] = {
        "shard": (number // _IN_A_SHARD).astype(np.int32),
        "offset": number % _IN_A_SHARD * _BYTES,
        "size": np.full(episodes, _BYTES),
        "sha256": random.integers(0, 256, (episodes, 32), np.uint8),
        "length": random.integers(100, 300, episodes, np.int32),
        "task": random.integers(0, _TASKS, episodes, np.int32),
        "split": (number % 10 == 9).astype(np.uint8),
        "key_end": _KEY * (number + 1),
        "keys": (digits + ord("0")).astype(np.uint8).reshape(-1),
    }
    tasks = [
        Task("simulated", f"task_{task:04d}", " ".join(["reach", *["further"] * (task % 40)]))
        for task in range(_TASKS)
    ]
    shards = [f"shard-{shard:06d}.tar" for shard in range(-(-episodes // _IN_A_SHARD))]
    values = random.normal(size=(100, 8)).astype(np.float32)
    DatasetIndex(
        image=ImageFormat(PIXELS, SIDE, SIDE, CODES, tokenizer_sha256="0" * 64),
        cameras=(AGENT_CAMERA,),
        action_ranges=ActionRanges(),
        statistics={"actions": summarise([values[:, :7]]), "states": summarise([values])},
        episodes=EpisodeTable(columns, shards, tasks),
    ).save(str(folder))


def plan_a_rank(url: str) -> DataPlan:
    """The work of a rank before its first batch, except for reading episodes."""
    trainer = TrainerConfig(global_batch=_RANKS, sequence_length=_LENGTH)
    plan = make_plan(DataConfig(url), trainer, seed=0)
    plan.step(10**6, *plan.share(17, _RANKS))
    return plan


def measure(folder: Path, episodes: int) -> dict[str, float]:
    """Measure the plan of a data set in a process of its own, once for the time and once for the memory.

    Args:
        folder: For the index; it is created.
        episodes: Of the data set.

    Returns:
        `windows`, `cpu_seconds`, and `peak_bytes` that Python and numpy allocated.
    """
    return run_in_processes(_measure, [(folder, episodes)])[0]


def _measure(folder: Path, episodes: int) -> dict[str, float]:
    write_index(folder, episodes)
    start = time.process_time()
    plan = plan_a_rank(str(folder))
    seconds = time.process_time() - start
    windows = sum(table.count for dataset in plan.datasets for table in dataset.tables)
    del plan
    tracemalloc.start()
    plan_a_rank(str(folder))
    peak = tracemalloc.get_traced_memory()[1]
    return {"windows": windows, "cpu_seconds": seconds, "peak_bytes": peak}
