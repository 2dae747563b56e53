"""Placeholder batches: those planned except for frames, actions and states; no episode is read for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.config import DataConfig, MixtureSource
from data.contracts import PackedBatch
from data.storage.index import DatasetIndex
from data.stream.episodes import unit_reader
from data.stream.loader import TokenStream
from pretrain.model.loss import label_kinds
from tests.unit.test_data_stream_loader import TRAINER, write_dataset


def check_alike(planned: PackedBatch, blank: PackedBatch) -> None:
    """Everything that sizes and masks depend on is equal."""
    for field in ("positions", "segments", "blocks", "action_starts"):
        assert np.array_equal(getattr(planned, field), getattr(blank, field)), field
    assert planned.action_targets.shape == blank.action_targets.shape
    assert np.array_equal(planned.labels < 0, blank.labels < 0)
    kinds = [label_kinds(torch.from_numpy(batch.labels.ravel())) for batch in (planned, blank)]
    assert torch.equal(*kinds)


@pytest.mark.parametrize("state", [False, True])
def test_a_placeholder_is_the_planned_batch_except_for_frames_actions_and_states(
    tmp_path: Path, state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [write_dataset(tmp_path / name) for name in ("one", "other")]
    sources = [MixtureSource(urls[0], 3.0), MixtureSource(urls[1], 1.0)]
    config = DataConfig("", sources=sources, cameras=["agent", "wrist"], state=state)
    trainer = replace(TRAINER, micro_batch=1)
    with TokenStream(config, trainer, seed=0) as stream, TokenStream(config, trainer, seed=0) as other:
        expected = [stream.micro_batches(step, 1, 2) for step in range(3)]
        monkeypatch.delattr(unit_reader, "read_episodes")  # nothing can be read
        for step, planned in enumerate(expected):
            for one, blank in zip(planned, other.placeholder_batches(step, 1, 2), strict=True):
                check_alike(one, blank)
                assert 0 <= blank.tokens.min() <= blank.tokens.max() < stream.vocabulary_size
                assert not np.array_equal(one.tokens, blank.tokens)
                assert np.isfinite(blank.action_targets).all()


def test_a_placeholder_leaves_out_skipped_episodes(tmp_path: Path) -> None:
    url = write_dataset(tmp_path)
    bad = DatasetIndex.load(url).split("train")[2]
    content = bytearray((tmp_path / bad.shard).read_bytes())
    content[bad.offset + 700] ^= 1
    (tmp_path / bad.shard).write_bytes(content)
    with TokenStream(DataConfig(url, skip_bad_episodes=1), TRAINER, seed=0) as stream:
        for step in range(3):
            (planned,), (blank,) = stream.micro_batches(step, 0, 1), stream.placeholder_batches(step, 0, 1)
            assert len(stream._memory.skipped) == 1
            check_alike(planned, blank)
