"""`worldvla imagine`: world-model rollouts of episodes, given their true actions, beside the true frames.

Autoregressive: the first frame is given, then every predicted frame is the input of the next prediction.
Shards hold image codes, not pixels, so the true frames are those that the image tokenizer decodes from the
true codes: the scores measure the transformer, not the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.contracts import Episode
from data.errors import InputError
from data.storage.episode_entry import ALL_SPLITS, TRAINING_SPLIT, EpisodeEntry
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.stream.samples import action_prompt, world_prompt
from data.tokens.action import encode
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT
from eval.config import ImagineConfig
from eval.policy.loaded_model import LoadedModel, load_model
from eval.world_model.perceptual import Lpips, VideoFeatures
from eval.world_model.results import ImagineResult, Rollout, write_result
from eval.world_model.scores import FrameScore, horizon_scores, mean_score, score
from pretrain.checkpoint.fetch import local_checkpoint
from pretrain.model.generate import Guidance, decode_image
from pretrain.model.sampling import GREEDY, Sampling
from pretrain.run_layout import IMAGINE_STEM, RunLayout

_SEED_STRIDE = 1_000_000  # between the seeds of two episodes


class _ScoredFrames(NamedTuple):
    """True and predicted frames uint8 [T + 1, H, W, 3] of one episode, and the scores of frames 1 .. T."""

    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    scores: tuple[FrameScore, ...]


def imagine(config: ImagineConfig, device: str | None = None) -> ImagineResult:
    """Roll the checkpoint's world model out over held-out episodes; write picture, video and scores.

    Args:
        config: What is rolled out.
        device: Device of the model; None: a GPU if there is one.

    Raises:
        InputError: Unusable checkpoint or data, an unknown episode, none that is long enough, or backbone
            weights that cannot be used.
    """
    for name, value in (("frames", config.frames), ("episodes", config.episodes), ("batch", config.batch)):
        if value < 1:
            raise InputError(f"{name}={value}: expected at least 1")
    sampling = Sampling(config.temperature, seed=config.seed)
    guidance = Guidance(config.guidance, [])  # validates the scale before anything is read
    lpips = Lpips(Path(config.lpips_weights)) if config.lpips_weights else None
    features = VideoFeatures(Path(config.fvd_network)) if config.fvd_network else None
    checkpoint = local_checkpoint(config.checkpoint)
    model = load_model(checkpoint, device=device)
    index = _open_index(model)
    entries = choose_episodes(index, config.episode, config.episodes)
    rolled_out: list[_ScoredFrames] = []
    for begin in range(0, len(entries), config.batch):
        episodes = [read_episode(index, entry) for entry in entries[begin : begin + config.batch]]
        predictions = predict(model, index, episodes, config.frames, sampling, guidance.scale, begin)
        rolled_out += [
            _score_episode(model, episode, codes, lpips)
            for episode, codes in zip(episodes, predictions, strict=True)
        ]
    horizons = horizon_scores(rolled_out, lpips is not None, features)
    rollouts = tuple(
        Rollout(
            entry.key,
            TRAINING_SPLIT if model.data.split == ALL_SPLITS else entry.split,
            entry.instruction,
            mean_score(each.scores),
            each.scores,
        )
        for entry, each in zip(entries, rolled_out, strict=True)
    )
    mean = mean_score([frame for rollout in rollouts for frame in rollout.frames])
    default_out = RunLayout.of_checkpoint(checkpoint).evaluations / checkpoint.resolve().name
    out = Path(config.out) if config.out else default_out
    result = ImagineResult(
        rollouts=rollouts,
        psnr=mean.psnr,
        ssim=mean.ssim,
        lpips=mean.lpips,
        horizons=tuple(horizons),
        picture=out / f"{IMAGINE_STEM}.png",
        video=out / f"{IMAGINE_STEM}.mp4",
        scores=out / f"{IMAGINE_STEM}.json",
        gif=out / f"{IMAGINE_STEM}.gif" if config.gif else None,
    )
    request = {
        "checkpoint": checkpoint.name,
        "temperature": config.temperature,
        "guidance": config.guidance,
        "seed": config.seed,
        "not_computed": _not_computed(config),
    }
    write_result(result, request, rolled_out[0].truth, rolled_out[0].predicted)
    return result


def _open_index(model: LoadedModel) -> DatasetIndex:
    """The index of the run's data; refuse data encoded with another image tokenizer."""
    index = DatasetIndex.load(model.data.url)
    if index.image.tokenizer_sha256 != model.image.sha256:
        raise InputError(
            f"{index.url}: encoded with the image tokenizer {index.image.tokenizer_sha256[:12]}, the run has "
            f"{model.image.sha256[:12]}; point data.url at the data set that the run was trained on"
        )
    return index


def _score_episode(
    model: LoadedModel, episode: Episode, codes: NDArray[np.int64], lpips: Lpips | None
) -> _ScoredFrames:
    """Decode and score the predicted codes [T + 1, R, C] of one episode."""
    true_codes = episode.codes[model.data.cameras[0]][: len(codes)].astype(np.int64)
    truth, predicted = model.image.decode(true_codes), model.image.decode(codes)
    accuracy = (codes == true_codes).mean(axis=(1, 2))
    return _ScoredFrames(truth, predicted, score(truth, predicted, accuracy, lpips))


def choose_episodes(index: DatasetIndex, key: str | None, count: int = 1) -> list[EpisodeEntry]:
    """The episode with that key; without one the first of `val_ind`, then of `val_ood`.

    Without any held-out episode it is the last of all.

    Raises:
        InputError: No episode has the key, or all have only one frame.
    """
    if key is not None:
        entries = [entry for entry in index.episodes if entry.key == key]
        if not entries:
            examples = ", ".join(entry.key for entry in index.episodes[:3])
            raise InputError(
                f"episode={key}: not in {index.url}; it holds {len(index.episodes)}: {examples}, ..."
            )
    else:
        entries = [*index.split("val_ind"), *index.split("val_ood")] or list(index.episodes[-1:])
    long = [entry for entry in entries if entry.length >= 2]
    if not long:
        raise InputError(
            f"episode {entries[0].key} has one frame, expected at least 2; choose another episode"
        )
    return long[:count]


def predict(
    model: LoadedModel,
    index: DatasetIndex,
    episodes: Sequence[Episode],
    count: int,
    sampling: Sampling = GREEDY,
    scale: float = 1.0,
    first: int = 0,
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

    Returns:
        Codes int64 [T + 1, R, C] of each episode: the true first frame and T predictions, where T is `count`
        or less where an episode ends.
    """
    image = model.image
    text = np.array(model.text.encode(WORLD_TEXT), np.int32)
    actions = [encode(episode.actions[:count], index.action_ranges) for episode in episodes]
    lengths = [min(count, episode.length - 1) for episode in episodes]
    frames = [[episode.codes[model.data.cameras[0]][0].astype(np.int64)] for episode in episodes]
    for step in range(max(lengths)):
        active = [number for number, length in enumerate(lengths) if step < length]
        blocks = [image_block(frames[number][-1], image.pixels) for number in active]
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
        for number, row in zip(active, codes, strict=True):
            frames[number].append(row.astype(np.int64))
    return [np.stack(codes) for codes in frames]


def _not_computed(config: ImagineConfig) -> dict[str, str]:
    """Metrics that were not computed, with the setting that is missing."""
    needed = {"lpips": ("lpips_weights", config.lpips_weights), "fvd": ("fvd_network", config.fvd_network)}
    return {metric: f"{name} is not set" for metric, (name, value) in needed.items() if not value}
