"""The bookkeeping of a commit: what ranks report, the chunk table, and how it grows with the ranks."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from benchmarks.checkpoint_commit import _commit
from benchmarks.scale_measured import rank_written
from data.errors import InputError
from pretrain.checkpoint.boxes import Box, boxes_of_range
from pretrain.checkpoint.chunks import ChunkTable
from pretrain.checkpoint.commit import WrittenShard, commit
from pretrain.checkpoint.location import CheckpointLocation, open_checkpoint
from pretrain.checkpoint.manifest import Manifest, StoredFile
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes

ATTEMPT = "0123abcd"
MAX_INSTRUCTIONS = 800  # of Python, for each further rank
COLUMNS = ("parameter", "writer", "offset", "shape")


def shards_of(layers: int, ranks: int) -> tuple[list[WrittenShard], dict[str, tuple[int, ...]]]:
    """What all ranks of a layout report."""
    model = ModelConfig(vocabulary_size=264, hidden_size=32, ffn_size=96, layers=layers, heads=4)
    shapes = expected_shapes(model)
    numbers = {name: number for number, name in enumerate(sorted(shapes))}
    return [rank_written(shapes, numbers, 2, ranks // 2, rank) for rank in range(ranks)], shapes


def received(shards: list[WrittenShard]) -> list[WrittenShard]:
    """The same after their way to rank 0."""
    return [WrittenShard.decode(np.frombuffer(shard.encode(), np.uint8)) for shard in shards]


def equal(one: ChunkTable, other: ChunkTable) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)


def test_a_report_arrives_as_it_was() -> None:
    shards, _ = shards_of(2, 4)
    nothing = ChunkTable.of([], 2)
    failed = WrittenShard({}, nothing, {}, ["rank_00004.safetensors"], "rank 4: no space: “größer”")
    for sent, got in zip([*shards, failed], received([*shards, failed]), strict=True):
        assert got.files == sent.files
        assert equal(got.table, sent.table)
        assert {state: held.tolist() for state, held in got.states.items()} == {
            state: held.tolist() for state, held in sent.states.items()
        }
        assert (got.error, got.started) == (sent.error, [])


def test_a_commit_of_reports_is_read_back(tmp_path: Path) -> None:
    shards, shapes = shards_of(2, 8)
    commit(CheckpointLocation(tmp_path), 1, 7, {"a": 1}, ATTEMPT, received(shards), shapes)
    store = open_checkpoint(tmp_path / "step_00000001")
    manifest = Manifest.read(store)
    table = manifest.chunk_table(store.url, manifest.read_chunk_table(store))
    assert equal(table, ChunkTable.concatenated([shard.table for shard in shards]))
    assert {len(manifest.tensors), len(manifest.files)} == {3 * len(shapes), 2 * 8 + 1}
    assert {name: tensor.shape for name, tensor in manifest.weights.items()} == shapes
    assert (manifest.step, manifest.optimizer_step, manifest.metadata) == (1, 7, {"a": 1})


def test_tables_of_earlier_versions_are_read() -> None:
    rows = [(0, 0, Box((0, 0), (2, 3))), (0, 1, Box((2, 0), (1, 3))), (1, 0, Box((0,), (5,)))]
    table = ChunkTable.of(rows, 2)
    earlier = save({name: getattr(table, name).astype(np.int64) for name in COLUMNS})
    decoded = ChunkTable.decode("here", earlier)
    assert equal(decoded, table)
    assert decoded.inconsistency({"a": (3, 3), "b": (5,)}) is None
    assert [chunk.writer for chunk in decoded.chunks(0, 2)] == [0, 1]
    assert decoded.chunks(1, 1)[0].box == Box((0,), (5,))


def test_numbers_take_four_bytes_where_they_fit() -> None:
    small = ChunkTable.of([(0, 0, Box((2**31 - 2,), (1,)))], 1)
    large = ChunkTable.of([(0, 0, Box((2**31,), (1,)))], 1)
    assert {getattr(small, name).dtype.name for name in COLUMNS} == {"int32"}
    assert ChunkTable.concatenated([small, large]).offset.tolist() == [[2**31 - 2], [2**31]]
    for table in (small, large):
        stored = load(table.encode())
        assert all(np.array_equal(stored[name], getattr(table, name)) for name in COLUMNS)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_numbers_of_a_damaged_table_do_not_overflow(dtype: type) -> None:
    most = np.iinfo(dtype).max
    table = ChunkTable.of_rows(np.array([[0, 0, most, most]], dtype))
    assert table.inconsistency({"a": (4,)}) == "a chunk beyond a"
    unordered = ChunkTable.of_rows(np.array([[1, 0, 0, 4], [0, 0, 0, 4]], dtype))
    assert unordered.inconsistency({"a": (4,), "b": (4,)}) == "its chunks are not ordered by parameter"
    assert "more dimensions" in (table.inconsistency({"a": (4, 4)}) or "")


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("writer"),
        lambda arrays: arrays.update(writer=arrays["writer"].astype(np.float32)),
        lambda arrays: arrays.update(writer=arrays["writer"][1:]),
        lambda arrays: arrays.update(offset=arrays["offset"][:, 0]),
        lambda arrays: arrays.update(shape=arrays["shape"][1:]),
        lambda arrays: arrays.update(parameter=arrays["offset"]),
    ],
)
def test_other_files_are_not_tables(change: object) -> None:
    table = ChunkTable.of([(0, 0, box) for box in boxes_of_range((4, 5), 3, 14)], 2)
    arrays = {name: np.ascontiguousarray(getattr(table, name)) for name in COLUMNS}
    assert ChunkTable.decode("here", save(arrays)).parameter.tolist() == [0, 0, 0]
    change(arrays)  # type: ignore[operator]
    with pytest.raises(InputError, match="here: not a table of chunks"):
        ChunkTable.decode("here", save(arrays))


def work_of_committing(shards: list[WrittenShard], shapes: dict[str, tuple[int, ...]], folder: Path) -> int:
    """Instructions of Python that rank 0 executes from the messages of all ranks to the commit."""
    messages = [np.frombuffer(shard.encode(), np.uint8) for shard in shards]
    instructions = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal instructions
        frame.f_trace_opcodes = True
        instructions += event == "opcode"
        return count

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # finalisers of what earlier tests have left are Python, too
    sys.settrace(count)
    try:
        _commit(CheckpointLocation(folder), messages, shapes)
    finally:
        sys.settrace(before)
        gc.enable()
    return instructions


def cut_by_column(table: ChunkTable) -> ChunkTable:
    """The same chunks, each cut into its columns."""
    numbers = np.repeat(table.rows(), table.shape[:, 1], axis=0)
    numbers[:, 3] += np.concatenate([np.arange(width) for width in table.shape[:, 1]])
    numbers[:, 5] = 1
    return ChunkTable.of_rows(numbers)


def test_rank_0_runs_no_loop_over_the_chunks_and_little_for_each_rank(tmp_path: Path) -> None:
    few, many = ({"layers": 2, "ranks": ranks} for ranks in (40, 80))
    shards, shapes = shards_of(**few)
    work_of_committing(shards, shapes, tmp_path / "first")  # imports what is needed
    less = work_of_committing(shards, shapes, tmp_path / "few")
    shards, shapes = shards_of(**many)
    more = work_of_committing(shards, shapes, tmp_path / "many")
    assert (more - less) / 40 < MAX_INSTRUCTIONS
    cut = [WrittenShard(shard.files, cut_by_column(shard.table), shard.states) for shard in shards]
    rows, cut_rows = (sum(len(shard.table.parameter) for shard in some) for some in (shards, cut))
    assert cut_rows > 4 * rows
    assert work_of_committing(cut, shapes, tmp_path / "cut") == more


def test_a_checksum_in_blocks_is_that_of_the_whole() -> None:
    table = ChunkTable.of([(0, 0, Box((0,), (4,)))], 1)
    assert StoredFile.of_blocks(table.blocks()) == StoredFile.of(table.encode())
