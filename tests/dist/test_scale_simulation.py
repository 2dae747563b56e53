"""The simulated checkpoint of `benchmarks.scale` equals one written by a training of that layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale_measured import checkpoint_cost, rank_written
from pretrain.checkpoint.chunks import ChunkTable
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.model.transformer import expected_shapes
from tests.support import checkpoint_case as case
from tests.support.ranks import run_ranks


@pytest.mark.parametrize(("tensor", "data"), [(1, 3), (2, 2)])
def test_simulated_chunks_and_files_are_those_of_every_rank(tensor: int, data: int, tmp_path: Path) -> None:
    settings = case.config((tensor, data, 3))
    if data == 3:
        settings.trainer.global_batch = 3
    run_ranks(_save, tensor * data, settings, tmp_path)
    checkpoint = tmp_path / "step_00000000"
    manifest = Manifest.read(open_checkpoint(checkpoint))
    table = manifest.chunk_table(str(checkpoint), manifest.read_chunk_table(open_checkpoint(checkpoint)))
    shapes = expected_shapes(settings.model)
    numbers = {name: number for number, name in enumerate(sorted(shapes))}
    parts = [rank_written(shapes, numbers, tensor, data, rank) for rank in range(tensor * data)]
    simulated = ChunkTable.concatenated([part.table for part in parts])
    for column in ("parameter", "writer", "offset", "shape"):
        assert np.array_equal(getattr(simulated, column), getattr(table, column)), column
    cost = checkpoint_cost(settings.model, tensor, data)
    assert cost.files == len(list(checkpoint.iterdir()))
    assert cost.chunk_table_bytes == next(checkpoint.glob("pieces-*")).stat().st_size
    tensors = sum(path.stat().st_size for path in checkpoint.glob("rank_*"))
    headers = tensors - cost.bytes
    assert 0 < headers < 0.6 * tensors, "a small network's files are half names of tensors"


def _save(settings: case.TrainingConfig, root: Path) -> None:
    from pretrain.checkpoint.save import CheckpointWriter

    writer = CheckpointWriter(root, case.build(settings))
    writer.save(0, {})
    writer.wait()
