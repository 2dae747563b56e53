"""Autoregressive prediction of frames from the first frame and the true actions of episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data.contracts import Episode
from data.storage.index import DatasetIndex
from data.stream.samples import action_prompt, world_prompt
from data.tokens.action import encode
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT
from eval.policy.loaded_model import LoadedModel
from eval.world_model.protocol import TOKENS, ScoringProtocol
from pretrain.model.generate import Guidance, decode_image
from pretrain.model.sampling import GREEDY, Sampling

_SEED_STRIDE = 1_000_000  # between the seeds of two episodes


def predict(
    model: LoadedModel,
    index: DatasetIndex,
    episodes: Sequence[Episode],
    count: int,
    sampling: Sampling = GREEDY,
    scale: float = 1.0,
    first: int = 0,
    protocol: ScoringProtocol = TOKENS,
) -> list[NDArray[np.int64]]:
    """Predict frames autoregressively, the episodes side by side, one batch per frame.

    Guidance is towards the action: the unconditional prompt is the same words and frame without the action
    block, so it predicts a next frame for no particular action. (Training never drops actions: such prompts
    are out of distribution.)

    Args:
        model: Network, tokenizers and camera.
        index: Index of the data, for the ranges of actions.
        episodes: First frames and true actions.
        count: Number of frames to predict.
        sampling: How codes are sampled; every frame of every episode has a seed of its own.
        scale: Scale of classifier-free guidance; 1: none.
        first: Number of the first episode, for the seeds.
        protocol: Whether a prediction is decoded to pixels and encoded again before it is the next input.

    Returns:
        Codes int64 [T + 1, R, C] of each episode: the true first frame and T predictions, where T is `count`
        or less where an episode ends.
    """
    image = model.image
    text = np.array(model.text.encode(WORLD_TEXT), np.int32)
    actions = [encode(episode.actions[:count], index.action_ranges) for episode in episodes]
    lengths = [min(count, episode.length - 1) for episode in episodes]
    frames = [[episode.codes[model.data.cameras[0]][0].astype(np.int64)] for episode in episodes]
    last = [codes[0] for codes in frames]
    for step in range(max(lengths)):
        active = [number for number, length in enumerate(lengths) if step < length]
        blocks = [image_block(last[number], image.pixels) for number in active]
        prompts = [
            world_prompt(text, block, actions[number][step])
            for number, block in zip(active, blocks, strict=True)
        ]
        codes = decode_image(
            model.network,
            prompts,
            image.rows,
            image.columns,
            image.pixels,
            image.codebook_size,
            replace(sampling, environments=[_SEED_STRIDE * (first + number) + step for number in active]),
            Guidance(scale, [action_prompt(text, [block]) for block in blocks]),
        )
        inputs = image.encode(image.decode(codes)) if protocol.inputs_from_pixels else codes
        for number, row, following in zip(active, codes, inputs, strict=True):
            frames[number].append(row.astype(np.int64))
            last[number] = following.astype(np.int64)
    return [np.stack(codes) for codes in frames]
