"""Reference of the token stream: the batch of a planned step from samples that are written one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.config import DataConfig
from data.contracts import Episode
from data.storage.index import DatasetIndex
from data.stream.loader import TokenStream
from data.stream.order.plan import Kind, PlannedWindows
from data.tokens.action import encode, normalise
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT, action_text
from data.tokens.state import state_blocks
from data.tokens.text import TextTokenizer
from tests.support.reference_samples import Sample, action_sample, world_sample

TEXT = TextTokenizer.load()


@dataclass(frozen=True, slots=True)
class Source:
    """A data set that was written for a test: its index, the episodes of the split, and its chunk length."""

    index: DatasetIndex
    episodes: Sequence[Episode]
    chunk: int


def reference_rows(
    stream: TokenStream, step: int, config: DataConfig, sources: Sequence[Source]
) -> list[list[Sample]]:
    """The samples of each sequence of a step."""
    planned = stream.plan.step(step)
    rows: list[list[Sample]] = [[] for _ in range(stream.plan.global_batch)]
    for i in range(len(planned)):
        rows[planned.sequences[i]].append(_sample(planned, i, config, sources))
    return rows


def _sample(planned: PlannedWindows, i: int, config: DataConfig, sources: Sequence[Source]) -> Sample:
    number, t = int(planned.datasets[i]), int(planned.times[i])
    source = sources[number]
    index, episode = source.index, source.episodes[planned.episodes[i]]
    codes = (episode.codes, *episode.variants)[planned.variants[i]]
    views = np.stack([codes[name] for name in config.cameras], axis=1)
    frames, actions = image_block(views, index.image.pixels), encode(episode.actions, index.action_ranges)
    if planned.kinds[i] == Kind.WORLD:
        following = frames[t + 1 : t + 1 + config.predicted_frames]
        before = actions[t : t + config.predicted_frames]
        sample = world_sample(TEXT.encode(WORLD_TEXT), frames[t], before, following)
        return replace(sample, source=number)
    chosen = config.state_ranges if index.state_ranges is None else index.state_ranges
    state = state_blocks(episode.states[t : t + 1], chosen.minimum, chosen.maximum) if config.state else None
    sample = action_sample(
        TEXT.encode(action_text(episode.instruction)),
        list(frames[max(0, t - config.history + 1) : t + 1]),
        actions[t : t + source.chunk],
        state,
        normalise(episode.actions[t : t + source.chunk], index.action_ranges).astype(np.float32),
        index.embodiment.present,
    )
    return replace(sample, source=number)
