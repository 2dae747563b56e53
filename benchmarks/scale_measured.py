"""Costs of a run of many ranks in our own code, measured by running that code for all ranks in turn.

No rank is started and no tensor allocated: the data plan, the placement and a checkpoint's bookkeeping are
pure functions of sizes and rank numbers, so one process can compute them for thousands of ranks.
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.scale_reading import POOL_EPISODES
from cluster.resources.placement import Node, place_run
from cluster.resources.run_resources import RunResources
from data.config import MixtureConfig
from data.contracts import Episode
from data.storage.shards import encode_episode
from data.stream.order.layout import DatasetWindows
from data.stream.order.plan import DataPlan, Order
from data.stream.samples import SampleForm
from data.stream.windows.episode_line import EpisodeLine
from data.stream.windows.window_table import WindowTable
from data.tokens.image_block import image_block_length
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM
from pretrain.checkpoint.boxes import Box, global_boxes
from pretrain.checkpoint.chunks import ChunkTable
from pretrain.checkpoint.commit import WrittenShard, commit
from pretrain.checkpoint.location import CheckpointLocation, open_checkpoint
from pretrain.checkpoint.manifest import MASTER, Manifest, StoredFile, state_file
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.model.parameters import sharded_dimension
from pretrain.model.transformer import expected_shapes

CODES = 16  # rows and columns of codes of a 256-pixel frame
CAMERAS = 2  # that an episode in a shard has
WORDS = (5, 25)  # tokens of an instruction, fewest and most
WORLD_WORDS = 20  # tokens of a world sample's prompt
MOMENTS = ("exp_avg", "exp_avg_sq")
FORM = SampleForm(image_block_length(CODES, CODES))
_ATTEMPT = "0123abcd"
T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """Result of a call, and its seconds."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class PlanCost:
    """The data plan of one rank.

    Attributes:
        start_seconds: To build the plan, once.
        bytes: Size of the plan in memory.
        step_seconds: To look up the windows of one step.
        windows: Of one step.
    """

    start_seconds: float
    bytes: int
    step_seconds: float
    windows: float


def episode_lengths(episodes: int, mean: int) -> np.ndarray:
    """Time steps of synthetic episodes, int32 [episodes]: half to one and a half times the mean."""
    return np.random.default_rng(0).integers(mean // 2, 3 * mean // 2 + 1, episodes, dtype=np.int32)


def windows_of(lengths: np.ndarray, shuffle: Order) -> DatasetWindows:
    """The windows of synthetic episodes, with instructions of different lengths, as an order numbers them."""
    numbering = EpisodeLine if shuffle == "local" else WindowTable
    texts = np.random.default_rng(1).integers(*WORDS, len(lengths), dtype=np.int32)
    world_words = np.full(len(lengths), WORLD_WORDS, np.int32)
    return DatasetWindows(
        "synthetic",
        (
            numbering(lengths, FORM.chunk - 1, FORM.history, texts, FORM.action_length),
            numbering(lengths, FORM.predicted, 1, world_words, lambda words, _: FORM.world_length(words)),
        ),
    )


def build_plan(lengths: np.ndarray, global_batch: int, sequence_length: int, shuffle: Order) -> DataPlan:
    """The plan of synthetic episodes, half of whose samples are action samples."""
    return DataPlan(
        [windows_of(lengths, shuffle)],
        MixtureConfig(1.0, 1.0),
        global_batch,
        sequence_length,
        0,
        "synthetic",
        pool_episodes=POOL_EPISODES if shuffle == "local" else None,
    )


def plan_cost(lengths: np.ndarray, global_batch: int, sequence_length: int, data: int) -> PlanCost:
    """Cost of the plan of the middle one of `data` data-parallel ranks."""

    def build() -> DataPlan:
        return build_plan(lengths, global_batch, sequence_length, "local")

    plan, start = timed(build)
    share = plan.share(data // 2, data)
    counts, seconds = [], []
    for step in (0, 1, 1000):
        windows, one = timed(lambda step=step: plan.step(step, *share))
        counts.append(len(windows))
        seconds.append(one)
    tracemalloc.start()
    second = build()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del second
    return PlanCost(start, size, float(np.median(seconds)), float(np.mean(counts)))


@cache
def episode_bytes(steps: int) -> int:
    """Length of an episode of so many time steps in a shard."""
    codes = np.zeros((steps, CODES, CODES), np.uint16)
    content = Episode(
        key="task/episode_000000",
        suite="suite",
        task="task",
        instruction="put the bowl on the plate",
        codes={f"camera_{number}": codes for number in range(CAMERAS)},
        actions=np.zeros((steps, ACTION_DIM)),
        states=np.zeros((steps, STATE_DIM), np.float32),
    )
    return len(encode_episode(content))


def placement_cost(ranks: int, tensor: int, node_gpus: int, cpus: int) -> float:
    """Seconds to give every rank its node; evaluations get one of their own."""
    nodes = [Node(f"gpu{number:04d}", cpus, node_gpus) for number in range(-(-ranks // node_gpus))]
    nodes.append(Node("cpu0000", cpus, 0))
    placement = RunResources(ranks, cpus // node_gpus, 1, cpus // 2)
    return timed(lambda: place_run(placement, tensor, nodes))[1]


@dataclass(frozen=True, slots=True)
class CheckpointCost:
    """A checkpoint of all ranks.

    Attributes:
        files: Of weights, moments, chunk table and manifest.
        rank_bytes: Maximum bytes written by one rank.
        bytes: Of all ranks' files.
        chunk_table_bytes: Of the chunk table.
        manifest_bytes: Of the manifest.
        commit_seconds: Of rank 0's commit.
        gathered_bytes: Gathered by rank 0 from all ranks before the commit.
        open_seconds: For every rank to read and check manifest and table before loading.
        written_by: Number of files read by a rank of a run with half the data-parallel ranks.
    """

    files: int
    rank_bytes: int
    bytes: int
    chunk_table_bytes: int
    manifest_bytes: int
    commit_seconds: float
    gathered_bytes: int
    open_seconds: float
    written_by: int


def rank_boxes(
    shapes: dict[str, tuple[int, ...]], tensor: int, data: int, rank: int
) -> dict[str, tuple[Box, ...]]:
    """Boxes of each parameter that a rank writes at ZeRO stage 3; tensor-parallel peers are consecutive."""
    data_rank, tensor_rank = divmod(rank, tensor)
    boxes_of: dict[str, tuple[Box, ...]] = {}
    for name, shape in shapes.items():
        dimension = sharded_dimension(name) if tensor > 1 else None
        if dimension is None and tensor_rank:
            continue
        part = tuple(size // tensor if d == dimension else size for d, size in enumerate(shape))
        start, stop = _zero_3_range(int(np.prod(part)), data_rank, data)
        boxes = global_boxes(part, dimension, tensor_rank, start, stop)
        if boxes:
            boxes_of[name] = boxes
    return boxes_of


def _zero_3_range(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """First and last (exclusive) of `size` elements that ZeRO-3 gives a rank; the last rank's is padded."""
    each = -(-size // ranks)
    return min(rank * each, size), min((rank + 1) * each, size)


def rank_written(
    shapes: dict[str, tuple[int, ...]], numbers: dict[str, int], tensor: int, data: int, rank: int
) -> WrittenShard:
    """The message of a rank to rank 0 after writing its files."""
    boxes = rank_boxes(shapes, tensor, data, rank)
    rows = [(numbers[name], rank, box) for name, parts in boxes.items() for box in parts]
    values = sum(box.size for parts in boxes.values() for box in parts)
    held = np.packbits(np.isin(np.arange(len(numbers)), [numbers[name] for name in boxes]))
    files = {
        state_file(rank, MASTER, _ATTEMPT): StoredFile(4 * values, "0" * 64),
        state_file(rank, MOMENTS[0], _ATTEMPT): StoredFile(8 * values, "0" * 64),
    }
    return WrittenShard(files, ChunkTable.of(rows, 2), dict.fromkeys((MASTER, *MOMENTS), held))


@cache
def _shapes(
    layers: int, hidden: int, ffn: int, vocabulary: int, heads: int, horizon: int | None
) -> dict[str, tuple[int, ...]]:
    head = None if horizon is None else ActionHeadConfig(horizon)
    return expected_shapes(
        ModelConfig(vocabulary, hidden, ffn, layers, heads, action_head=head)  # all that shapes depend on
    )


def checkpoint_cost(model: ModelConfig, tensor: int, data: int) -> CheckpointCost:
    """Cost of a checkpoint at ZeRO stage 3, in bf16 with fp32 master weights and two moments."""
    horizon = None if model.action_head is None else model.action_head.time_horizon
    shapes = _shapes(
        model.layers, model.hidden_size, model.ffn_size, model.vocabulary_size, model.heads, horizon
    )
    numbers = {name: number for number, name in enumerate(sorted(shapes))}
    parts = [rank_written(shapes, numbers, tensor, data, rank) for rank in range(tensor * data)]
    sizes = [sum(file.bytes for file in part.files.values()) for part in parts]
    with tempfile.TemporaryDirectory() as folder:
        where = f"{folder}/step_00000001"
        Path(where).mkdir()
        place = CheckpointLocation(folder)
        _, commit_seconds = timed(lambda: commit(place, 1, 1, {}, _ATTEMPT, parts, shapes))
        table_bytes, manifest = (
            (Path(where) / name).stat().st_size
            for name in (f"pieces-{_ATTEMPT}.safetensors", f"manifest-{_ATTEMPT}.json")
        )
        (read, table), open_seconds = timed(lambda: _open(where))
        touched = _touched(read, table, shapes, tensor, max(1, data // 2))
    return CheckpointCost(
        files=2 * len(parts) + 3,
        rank_bytes=max(sizes),
        bytes=sum(sizes),
        chunk_table_bytes=table_bytes,
        manifest_bytes=manifest,
        commit_seconds=commit_seconds,
        gathered_bytes=sum(_table_bytes(part.table) for part in parts),
        open_seconds=open_seconds,
        written_by=touched,
    )


def _open(where: str) -> tuple[Manifest, ChunkTable]:
    store = open_checkpoint(where)
    manifest = Manifest.read(store)
    return manifest, manifest.chunk_table(where, manifest.read_chunk_table(store))


def _table_bytes(table: ChunkTable) -> int:
    return sum(column.nbytes for column in (table.parameter, table.writer, table.offset, table.shape))


def _touched(
    manifest: Manifest, table: ChunkTable, shapes: dict[str, tuple[int, ...]], tensor: int, data: int
) -> int:
    """Number of files that the middle rank of another layout reads from."""
    requested = rank_boxes(shapes, tensor, data, tensor * data // 2)
    writers: set[int] = set()
    for name, boxes in requested.items():
        writers |= {chunk.writer for chunk in manifest.chunks(table, name, list(boxes))}
    return 2 * len(writers)


def sizes_of(largest: int, smallest: int = 4) -> Sequence[int]:
    """Numbers of ranks to compare: 4, 8, 32, 128, 512, ... up to `largest`."""
    sizes = [smallest, 8]
    while sizes[-1] < largest:
        sizes.append(min(4 * sizes[-1], largest))
    return [ranks for ranks in sizes if ranks <= largest]
