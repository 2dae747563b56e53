"""`worldvla imagine`: world-model rollouts of episodes, given their true actions, beside the true frames.

Autoregressive: the first frame is given, then every predicted frame is the input of the next prediction.
Shards hold image codes, not pixels, so the true frames are those that the image tokenizer decodes from the
true codes: the scores measure the transformer, not the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
from eval.output_folder import writable_folder
from eval.policy.loaded_model import LoadedModel, load_model
from eval.world_model.dataset import DatasetChoice, open_dataset
from eval.world_model.perceptual import Lpips, VideoFeatures, failure_reason
from eval.world_model.results import ImagineResult, Rollout, write_result
from eval.world_model.scores import (
    FAILED,
    HORIZONS,
    FrameScore,
    check_pixels,
    horizon_scores,
    mean_score,
    score,
    without_lpips,
)
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


class _Codes(NamedTuple):
    """True and predicted image codes int64 [T + 1, R, C] of one episode; the first frame is given."""

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]


def imagine(config: ImagineConfig, device: str | None = None) -> ImagineResult:
    """Roll the checkpoint's world model out over held-out episodes; write picture, video and scores.

    Backbones are tried before the first rollout. One that fails nevertheless costs its own metric only.

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
    lpips, features = open_backbones(config.lpips_weights, config.fvd_network, config.frames)
    checkpoint = local_checkpoint(config.checkpoint)
    model = load_model(checkpoint, device=device)
    check_pixels(model.image.pixels)
    if lpips is not None:
        lpips.check(model.image.pixels)
    data = open_dataset(model, config.data.url)
    entries = choose_episodes(data.index, config.episode, config.episodes)
    default_out = RunLayout.of_checkpoint(checkpoint).evaluations / checkpoint.resolve().name
    out = writable_folder(Path(config.out) if config.out else default_out)
    codes: list[_Codes] = []
    for begin in range(0, len(entries), config.batch):
        episodes = [read_episode(data.index, entry) for entry in entries[begin : begin + config.batch]]
        predictions = predict(model, data.index, episodes, config.frames, sampling, guidance.scale, begin)
        codes += [
            _Codes(episode.codes[model.data.cameras[0]][: len(predicted)].astype(np.int64), predicted)
            for episode, predicted in zip(episodes, predictions, strict=True)
        ]
    scored, failures = _scored(model, codes, lpips)
    missing = _not_requested(config) | failures
    horizons = horizon_scores(scored, missing, features)
    failures |= {
        metric: reason
        for horizon in horizons
        for metric, reason in horizon.not_computed.items()
        if reason.startswith(FAILED)
    }
    rollouts = tuple(
        Rollout(
            entry.key,
            TRAINING_SPLIT if model.data.split == ALL_SPLITS else entry.split,
            entry.instruction,
            mean_score(each.scores),
            each.scores,
        )
        for entry, each in zip(entries, scored, strict=True)
    )
    result = ImagineResult(
        rollouts=rollouts,
        mean=mean_score([frame for rollout in rollouts for frame in rollout.frames]),
        horizons=tuple(horizons),
        picture=out / f"{IMAGINE_STEM}.png",
        video=out / f"{IMAGINE_STEM}.mp4",
        scores=out / f"{IMAGINE_STEM}.json",
        gif=out / f"{IMAGINE_STEM}.gif" if config.gif else None,
        failures=failures,
        notes=(*model.notes, *data.notes),
    )
    request = _request(config, checkpoint, model, data) | {"not_computed": missing | failures}
    write_result(result, request, scored[0].truth, scored[0].predicted)
    return result


def open_backbones(
    lpips_weights: str | None, fvd_network: str | None, frames: int, prefix: str = ""
) -> tuple[Lpips | None, VideoFeatures | None]:
    """Open the backbones of LPIPS and FVD, and try the latter on as many frames as it will get.

    Args:
        lpips_weights: As in `ImagineConfig`.
        fvd_network: As in `ImagineConfig`.
        frames: Number of frames that will be predicted.
        prefix: Of the settings' names in messages (`eval.`).

    Raises:
        InputError: A file that cannot be used.
    """
    lpips = Lpips(Path(lpips_weights), f"{prefix}lpips_weights") if lpips_weights else None
    features = VideoFeatures(Path(fvd_network), f"{prefix}fvd_network") if fvd_network else None
    if features is not None:
        features.check([length for length in HORIZONS if length <= frames] or HORIZONS[:1])
    return lpips, features


def _scored(
    model: LoadedModel, rollouts: Sequence[_Codes], lpips: Lpips | None
) -> tuple[list[_ScoredFrames], dict[str, str]]:
    """Decode and score rollouts; LPIPS is left out of all where it fails for one, and the reason returned."""
    scored: list[_ScoredFrames] = []
    failures: dict[str, str] = {}
    for codes in rollouts:
        truth, predicted = model.image.decode(codes.true), model.image.decode(codes.predicted)
        try:
            scores = score(truth, predicted, codes.true, codes.predicted, lpips)
        except RuntimeError as error:  # the backbone's: out of memory
            if lpips is None:
                raise
            lpips, failures["lpips"] = None, f"{FAILED}: {failure_reason(error)}"
            scores = score(truth, predicted, codes.true, codes.predicted)
        scored.append(_ScoredFrames(truth, predicted, scores))
    if failures:
        scored = [each._replace(scores=without_lpips(each.scores)) for each in scored]
    return scored, failures


def _request(
    config: ImagineConfig, checkpoint: Path, model: LoadedModel, data: DatasetChoice
) -> dict[str, Any]:
    """What was asked for, and what the scores depend on beside the weights."""
    return {
        "checkpoint": checkpoint.name,
        "temperature": config.temperature,
        "guidance": config.guidance,
        "seed": config.seed,
        "data": {"url": data.index.url, "fingerprint": data.index.fingerprint},
        "policy_settings": model.settings.to_json(),
    }


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


def _not_requested(config: ImagineConfig) -> dict[str, str]:
    """Metrics that cannot be computed, with the setting that is missing or too small."""
    needed = {"lpips": ("lpips_weights", config.lpips_weights), "fvd": ("fvd_network", config.fvd_network)}
    missing = {metric: f"{name} is not set" for metric, (name, value) in needed.items() if not value}
    if "fvd" not in missing and config.frames < HORIZONS[0]:
        missing["fvd"] = f"frames={config.frames}, needs at least {HORIZONS[0]}"
    return missing
