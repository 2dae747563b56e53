"""Assembled batches: equal to samples that are written and packed one by one, their actions included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig, MixtureConfig, MixtureSource
from data.stream.loader import TokenStream
from data.stream.plan import Kind
from data.tokens.action import DEFAULT_RANGES, NAMED_RANGES, encode, normalise
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT, action_text
from data.tokens.state import STATE_MAX, STATE_MIN, state_blocks
from data.tokens.text import TextTokenizer
from data.tokens.vocabulary import ACTION_START
from tests.support.reference_samples import Sample, action_sample, pack, world_sample
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
    ranges = (DEFAULT_RANGES, NAMED_RANGES["rynnvla"])
    sources = [MixtureSource(url, 1.0), MixtureSource(write_dataset(tmp_path, ranges[1]), 1.0)]
    config = DataConfig(
        sources=sources, history=history, chunk=chunk, predicted_frames=predicted,
        cameras=["agent", "wrist"][:cameras], state=state,
    )  # fmt: skip
    text = TextTokenizer.load()
    with TokenStream(config, TRAINER, seed=3) as stream:
        for step in range(3):
            planned = stream.plan.step(step)
            rows: list[list[Sample]] = [[] for _ in range(4)]
            for i in range(len(planned)):
                episode, t = EPISODES[planned.episodes[i]], int(planned.times[i])
                views = np.stack([episode.codes[name] for name in config.cameras], axis=1)
                own = ranges[planned.datasets[i]]
                frames, actions = image_block(views, 32), encode(episode.actions, own)
                if planned.kinds[i] == Kind.ACTION:
                    block = state_blocks(episode.states[t : t + 1], STATE_MIN, STATE_MAX) if state else None
                    numbers = normalise(episode.actions[t : t + chunk], own).astype(np.float32)
                    sample = action_sample(
                        text.encode(action_text(episode.instruction)),
                        list(frames[max(0, t - history + 1) : t + 1]),
                        actions[t : t + chunk],
                        block,
                        numbers,
                    )
                else:
                    following = frames[t + 1 : t + 1 + predicted]
                    sample = world_sample(
                        text.encode(WORLD_TEXT), frames[t], actions[t : t + predicted], following
                    )
                rows[planned.sequences[i]].append(sample)
            expected, (found,) = pack(rows, 512), stream.micro_batches(step, 0, 1)
            for field in (*FIELDS, *ACTION_FIELDS):
                assert np.array_equal(getattr(found, field), getattr(expected, field)), field
            assert (found.action_starts.dtype, found.action_targets.dtype) == (np.int64, np.float32)
            assert (found.tokens.ravel()[found.action_starts] == ACTION_START).all()
            for first, last in ((0, 1), (1, 3), (2, 9)):
                part, alone = found.rows(first, last), pack(rows[first:last], 512)
                for field in (*FIELDS, *ACTION_FIELDS):
                    assert np.array_equal(getattr(part, field), getattr(alone, field)), field


def test_a_mixture_without_action_samples_has_no_actions(url: str) -> None:
    with TokenStream(DataConfig(url, mixture=MixtureConfig(0, 1)), TRAINER, seed=0) as stream:
        (batch,) = stream.micro_batches(0, 0, 1)
    assert (batch.action_starts.shape, batch.action_targets.shape) == ((0,), (0, 5, 7))
