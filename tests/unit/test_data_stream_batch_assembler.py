"""Assembled batches: equal to samples that are written and packed one by one, their actions included."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig, MixtureConfig, MixtureSource
from data.storage.index import DatasetIndex
from data.stream.loader import TokenStream
from data.tokens.action import DEFAULT_RANGES, NAMED_RANGES
from data.tokens.vocabulary import ACTION_START
from tests.support.reference_batches import Source, reference_rows
from tests.support.reference_samples import pack
from tests.unit.test_data_stream_loader import ACTION_FIELDS, EPISODES, FIELDS, TRAINER, write_dataset


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(
    ("cameras", "history", "chunk", "predicted"), [(1, 1, 1, 1), (2, 2, 5, 1), (2, 3, 2, 3)]
)
def test_assembled_batches_equal_samples_packed_one_by_one(
    url: str, tmp_path: Path, cameras: int, history: int, chunk: int, predicted: int, state: bool
) -> None:
    """Of two data sets of the same episodes whose actions have other ranges."""
    urls = [url, write_dataset(tmp_path, NAMED_RANGES["rynnvla"])]
    config = DataConfig(
        sources=[MixtureSource(each, 1.0) for each in urls], history=history, chunk=chunk,
        predicted_frames=predicted, cameras=["agent", "wrist"][:cameras], state=state,
    )  # fmt: skip
    sources = [Source(DatasetIndex.load(each), EPISODES[:-1], chunk) for each in urls]
    with TokenStream(config, TRAINER, seed=3) as stream:
        assert [source.action_ranges for source in stream.sources] == [
            DEFAULT_RANGES,
            NAMED_RANGES["rynnvla"],
        ]
        most = stream.plan.largest_segment
        for step in range(3):
            rows = reference_rows(stream, step, config, sources)
            expected, (found,) = pack(rows, 512, None, most), stream.micro_batches(step, 0, 1)
            for field in (*FIELDS, *ACTION_FIELDS, "sources"):
                assert np.array_equal(getattr(found, field), getattr(expected, field)), field
            assert (found.action_starts.dtype, found.action_targets.dtype) == (np.int64, np.float32)
            assert (found.action_present.dtype, found.sources.dtype) == (bool, np.int32)
            assert (found.tokens.ravel()[found.action_starts] == ACTION_START).all()
            for first, last in ((0, 1), (1, 3), (2, 9)):
                part, alone = found.rows(first, last), pack(rows[first:last], 512, None, most)
                for field in (*FIELDS, *ACTION_FIELDS, "sources"):
                    assert np.array_equal(getattr(part, field), getattr(alone, field)), field


def test_a_mixture_without_action_samples_has_no_actions(url: str) -> None:
    with TokenStream(DataConfig(url, mixture=MixtureConfig(0, 1)), TRAINER, seed=0) as stream:
        (batch,) = stream.micro_batches(0, 0, 1)
    assert (batch.action_starts.shape, batch.action_targets.shape) == ((0,), (0, 5, 7))
    assert batch.action_present.shape == (0, 5, 7)


def test_batches_of_liberos_layout_never_change(url: str, tmp_path: Path) -> None:
    """A change of these checksums would silently change every run of LIBERO's data that is resumed."""
    sources = [MixtureSource(url, 1.0), MixtureSource(write_dataset(tmp_path, NAMED_RANGES["rynnvla"]), 2.0)]
    mixture = DataConfig(
        sources=sources, cameras=["agent", "wrist"], history=3, chunk=3, predicted_frames=2, state=True
    )
    for config, expected in (
        (DataConfig(url), "b0a9b23f92e02d86bf5049c5ba71f32c6e3e1949e077efc0f7c01307c9f87cd2"),
        (mixture, "757ad14822df4734dfaf33cdcac9c5e1597c9624e706e58804b544e3c4e53997"),
    ):
        found = hashlib.sha256()
        with TokenStream(config, TRAINER, seed=7) as stream:
            for number in range(8):  # four steps of two ranks
                (batch,) = stream.micro_batches(number // 2, number % 2, 2)
                for field in (*FIELDS, "action_starts", "action_targets"):
                    values = getattr(batch, field)
                    found.update(f"{field} {values.dtype} {values.shape}".encode() + values.tobytes())
        assert found.hexdigest() == expected
