"""Autoregressive prediction of frames from the first frame and the true actions of episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.contracts import Episode
from data.errors import InputError
from data.storage.index import DatasetIndex
from data.stream.samples import SampleForm, action_prompt, world_prompt
from data.tokens.action import encode
from data.tokens.image_block import image_block, image_block_length
from data.tokens.prompt_text import WORLD_TEXT
from eval.policy.loaded_model import LoadedModel
from eval.world_model.protocol import TOKENS, ScoringProtocol
from pretrain.model.generate_images import Guidance, decode_images
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
    """Predict the frames of all cameras autoregressively, the episodes side by side in one batch.

    The model predicts P time steps at once from one time step and P actions, as it was trained; the last of
    them is the input of the next prediction.

    Guidance is towards the actions: the unconditional prompt is the same words and frames without the action
    blocks, so it predicts next frames for no particular actions. (Training never drops actions: such prompts
    are out of distribution.)

    Args:
        model: Network, tokenizers, cameras and P.
        index: Index of the data, for the ranges of actions.
        episodes: First frames and true actions.
        count: Number of time steps to predict.
        sampling: How codes are sampled; every prediction of every episode has a seed of its own.
        scale: Scale of classifier-free guidance; 1: none.
        first: Number of the first episode, for the seeds.
        protocol: Whether a prediction is decoded to pixels and encoded again before it is the next input.

    Returns:
        Codes int64 [T + 1, V, R, C] of each episode: the true first frame of its V cameras and T predictions,
        T as `predicted_steps` counts them.
    """
    image, cameras, stride = model.image, model.settings.cameras, model.settings.predicted_frames
    grid = (len(cameras), image.rows, image.columns)
    text = np.array(model.text.encode(WORLD_TEXT), np.int32)
    actions = [encode(episode.actions, index.action_ranges) for episode in episodes]
    lengths = [predicted_steps(episode.length, count, stride) for episode in episodes]
    last = [np.stack([episode.codes[camera][0] for camera in cameras]) for episode in episodes]
    parts = [[given[None]] for given in last]
    for step in range(0, max(lengths), stride):
        active = [number for number, length in enumerate(lengths) if step < length]
        blocks = [image_block(last[number], image.pixels) for number in active]
        prompts = [
            world_prompt(text, block, actions[number][step : step + stride])
            for number, block in zip(active, blocks, strict=True)
        ]
        codes = decode_images(
            model.network,
            prompts,
            image.rows,
            image.columns,
            image.pixels,
            image.codebook_size,
            replace(sampling, environments=[_SEED_STRIDE * (first + number) + step for number in active]),
            Guidance(scale, [action_prompt(text, [block]) for block in blocks]),
            stride * len(cameras),
        ).reshape(len(active), stride, *grid)
        inputs = codes[:, -1]
        if protocol.inputs_from_pixels:
            seen = image.decode(inputs.reshape(-1, *grid[1:]))
            inputs = image.encode(seen).reshape(inputs.shape)
        for number, predicted, following in zip(active, codes, inputs, strict=True):
            parts[number].append(predicted)
            last[number] = following
    return [
        np.concatenate(codes)[: length + 1].astype(np.int64)
        for codes, length in zip(parts, lengths, strict=True)
    ]


def predicted_steps(length: int, count: int, stride: int) -> int:
    """T, time steps that are predicted of an episode: `count`, fewer where it ends.

    A prediction takes `stride` actions of the episode; at its end, fewer than these predict nothing. Of the
    last prediction the time steps beyond `count`, or beyond the episode's last frame, are not used.
    """
    return min(count, length - 1, length // stride * stride)


def fewest_steps(model: LoadedModel) -> int:
    """Time steps of the shortest episode of which a time step is predicted."""
    return max(2, model.settings.predicted_frames)


def check_world_model(model: LoadedModel, checkpoint: Path, action_dim: int) -> None:
    """Check that a world model was trained, and has positions for its prompt and the images of its answer.

    Args:
        model: The model.
        checkpoint: Its folder, for errors.
        action_dim: D, numbers of an action of the data.

    Raises:
        InputError: It was not, or has too few.
    """
    if model.data.mixture.world == 0:
        raise InputError(
            f"checkpoint={checkpoint}: trained without world samples (data.mixture.world=0), so it predicts "
            "no frames; take a checkpoint of a training with world samples"
        )
    image, settings, longest = model.image, model.settings, model.network.config.max_positions
    form = SampleForm(
        image=image_block_length(image.rows, image.columns),
        views=len(settings.cameras),
        predicted=settings.predicted_frames,
        action_dim=action_dim,
    )
    # the last image's end and the end of the turn are not decoded
    needed = form.world_length(len(model.text.encode(WORLD_TEXT))) - 2
    if needed > longest:
        raise InputError(
            f"checkpoint={checkpoint}: {form.views} images of {form.image} tokens, {form.predicted} actions "
            f"and {form.predicted * form.views} predicted images take {needed} positions, the model has "
            f"{longest}; take a checkpoint with more (model.max_positions) or smaller frames"
        )
