"""Rank 0's commit of a checkpoint, and what another thread of its process loses meanwhile.

Everything that rank 0 does between the arrival of the ranks' messages and READY, for all ranks of a layout
(ZeRO stage 3), in a thread; the messages are made by the project's code for every rank in turn. Meanwhile
another thread, in place of the training, runs Python without a pause. The longest pause is the most time on a
core that the commit took between two turns of that thread's loop: for so long a training could not run
Python. Other programs on the machine do not count in it, they only make it longer by chance: the least of
several rounds is reported.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Column, Report, arguments
from benchmarks.scale_measured import rank_written
from pretrain.checkpoint.commit import WrittenShard, commit
from pretrain.checkpoint.location import CheckpointLocation, open_checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.model.transformer import expected_shapes
from pretrain.run_layout import step_name
from pretrain.settings import named_models

_ATTEMPT = "0123abcd"
_TENSOR = 2
_MAX_PAUSE = 0.05  # seconds
_COLUMNS = (
    Column("ranks", "ranks"),
    Column("messages", "messages", "MB", digits=1),
    Column("seconds", "commit", "s"),
    Column("cpu_seconds", "on a core", "s"),
    Column("beside", "commit beside Python", "s"),
    Column("pause", "longest pause", "ms", digits=1),
    Column("opening", "opening", "s"),
)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One commit: seconds, seconds on a core, and its most seconds on a core between two turns beside it."""

    seconds: float
    cpu_seconds: float
    pause: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = _options(argv)
    report = Report(
        "checkpoint_commit", f"Rank 0's commit: {options.model}, tensor {_TENSOR}", _COLUMNS, "cpu"
    )
    for ranks in options.ranks:
        report.add(**_row(options, ranks))
    row = report.rows[-1]
    report.target(
        f"no pause of a training's Python beyond 50 ms, at {row['ranks']:,} ranks",
        None if options.smoke else row["pause"] < 1e3 * _MAX_PAUSE,
        row["pause"],
    )
    report.note(f"medians of {options.repeats}, of the pause the least")
    report.note(f"load of {os.getloadavg()[0]:.1f} at the end")
    report.finish(options.out)
    return 0


def _options(argv: Sequence[str] | None) -> Namespace:
    parser = arguments("checkpoint_commit", __doc__)
    parser.add_argument("--model", choices=sorted(named_models()), default="7b", help="default: %(default)s")
    parser.add_argument("--ranks", nargs="+", type=int, help="default: 512 4096")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args(argv)
    if options.smoke:
        options.model, options.repeats = "tiny", 1
    options.ranks = options.ranks or ([8] if options.smoke else [512, 4096])
    return options


def _row(options: Namespace, ranks: int) -> dict[str, float]:
    shapes = expected_shapes(named_models()[options.model])
    numbers = {name: number for number, name in enumerate(sorted(shapes))}
    messages = [
        np.frombuffer(rank_written(shapes, numbers, _TENSOR, ranks // _TENSOR, rank).encode(), np.uint8)
        for rank in range(ranks)
    ]
    with tempfile.TemporaryDirectory() as folder:
        place = CheckpointLocation(folder)

        def save() -> None:
            _commit(place, messages, shapes)

        save()  # creates the folder, imports what is needed
        alone = [_turn(save, beside=False) for _ in range(options.repeats)]
        beside = [_turn(save, beside=True) for _ in range(options.repeats)]
        opening = [_seconds(lambda: _open(f"{folder}/{step_name(1)}")) for _ in range(options.repeats)]
    return {
        "ranks": ranks,
        "messages": sum(map(len, messages)) / 1e6,
        "seconds": statistics.median(turn.seconds for turn in alone),
        "cpu_seconds": statistics.median(turn.cpu_seconds for turn in alone),
        "beside": statistics.median(turn.seconds for turn in beside),
        "pause": 1e3 * min(turn.pause for turn in beside),
        "opening": statistics.median(opening),
    }


def _commit(
    place: CheckpointLocation, messages: Sequence[NDArray[np.uint8]], shapes: dict[str, tuple[int, ...]]
) -> None:
    """What rank 0 does when the messages are there."""
    shards = [WrittenShard.decode(message) for message in messages]
    commit(place, 1, 1, {}, _ATTEMPT, shards, shapes)


def _turn(function: Callable[[], None], beside: bool) -> _Turn:
    """Call a function in this thread, with or without another one that runs Python."""
    stopped, pauses = threading.Event(), [0.0]
    clock = time.pthread_getcpuclockid(threading.get_ident())  # of this thread, whoever reads it

    def run() -> None:
        last = time.clock_gettime(clock)
        while not stopped.is_set():
            now = time.clock_gettime(clock)
            pauses[0] = max(pauses[0], now - last)
            last = now

    other = threading.Thread(target=run)
    if beside:
        other.start()
    start, cpu = time.perf_counter(), time.thread_time()
    function()
    turn = time.perf_counter() - start, time.thread_time() - cpu
    stopped.set()
    if beside:
        other.join()
    return _Turn(*turn, pauses[0])


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _open(url: str) -> None:
    """Read and check manifest and table, as rank 0 does at a restart."""
    store = open_checkpoint(url)
    manifest = Manifest.read(store)
    manifest.chunk_table(url, manifest.read_chunk_table(store))


if __name__ == "__main__":
    sys.exit(main())
