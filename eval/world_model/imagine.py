"""`worldvla imagine`: world-model rollouts of episodes, given their true actions, beside the true frames.

Autoregressive: the first frame is given, then every predicted frame is the input of the next prediction.
Shards hold image codes, not pixels, so the true frames are those that the image tokenizer decodes from the
true codes: the scores measure the transformer, not the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.contracts import Episode
from data.errors import InputError
from data.storage.index import DatasetIndex, EpisodeEntry, read_episode
from data.stream.sequence import WORLD_TEXT, action_prompt, world_prompt
from data.tokens.action import encode
from data.tokens.image_block import image_block
from eval.config import ImagineConfig
from eval.contact_sheet import enlarge, evenly_spaced, tile
from eval.policy.loaded_model import LoadedModel, load_model
from eval.video import write_gif, write_video
from eval.world_model.perceptual import Lpips, VideoFeatures
from eval.world_model.scores import FrameScore, HorizonScore, horizon_scores, mean_score, score
from pretrain.checkpoint.fetch import local_checkpoint
from pretrain.model.generate import Guidance, decode_image
from pretrain.model.sampling import GREEDY, Sampling

STEM = "imagine"  # of the files in the evaluation folder
_FRAMES_PER_SECOND = 5
_SEED_STRIDE = 1_000_000  # between the seeds of two episodes


@dataclass(frozen=True)
class Rollout:
    """Scores of one rolled-out episode.

    Attributes:
        episode: Key of the episode.
        split: Its split; an episode of `train` says little about unseen ones.
        instruction: The task in words.
        mean: Mean score of the predicted frames.
        frames: Score of each predicted frame.
    """

    episode: str
    split: str
    instruction: str
    mean: FrameScore
    frames: tuple[FrameScore, ...]


@dataclass(frozen=True)
class ImagineResult:
    """World-model rollouts and their files.

    Attributes:
        rollouts: One per episode; picture and video show the first.
        psnr, ssim: Means over all predicted frames.
        lpips: The same; None: not computed.
        horizons: Scores over the first 10 and 50 frames, where rollouts are that long.
        picture: PNG: true frames above predicted ones, the given first frame at the left of both.
        video: MP4: true beside predicted.
        gif: The same as GIF; None: not requested.
        scores: JSON of all scores.
    """

    rollouts: tuple[Rollout, ...]
    psnr: float
    ssim: float
    lpips: float | None
    horizons: tuple[HorizonScore, ...]
    picture: Path
    video: Path
    scores: Path
    gif: Path | None = None

    @property
    def frames(self) -> tuple[FrameScore, ...]:
        """Mean score of each predicted frame, over the rollouts that are long enough."""
        longest = max(len(rollout.frames) for rollout in self.rollouts)
        return tuple(
            mean_score([rollout.frames[i] for rollout in self.rollouts if i < len(rollout.frames)])
            for i in range(longest)
        )

    def summary(self) -> dict[str, float]:
        """Computed scores by name: `psnr`, `ssim`, ... and `psnr_10`, `fvd_50`, ..."""
        scores: dict[str, float | None] = {"psnr": self.psnr, "ssim": self.ssim, "lpips": self.lpips}
        for horizon in self.horizons:
            for name in ("fvd", "psnr", "ssim", "lpips"):
                scores[f"{name}_{horizon.frames}"] = getattr(horizon, name)
        return {name: value for name, value in scores.items() if value is not None}


def imagine(config: ImagineConfig) -> ImagineResult:
    """Roll the checkpoint's world model out over held-out episodes; write picture, video and scores.

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
    model = load_model(checkpoint)
    index = DatasetIndex.load(model.data.url)
    if index.image.tokenizer_sha256 != model.image.sha256:
        raise InputError(
            f"{index.url}: encoded with the image tokenizer {index.image.tokenizer_sha256[:12]}, the run has "
            f"{model.image.sha256[:12]}; point data.url at the data set that the run was trained on"
        )
    entries = choose_episodes(index, config.episode, config.episodes)
    rolled_out: list[tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[FrameScore, ...]]] = []
    for begin in range(0, len(entries), config.batch):
        episodes = [read_episode(index, entry) for entry in entries[begin : begin + config.batch]]
        predictions = predict(model, index, episodes, config.frames, sampling, guidance.scale, begin)
        for episode, codes in zip(episodes, predictions, strict=True):
            true_codes = episode.codes[model.data.cameras[0]][: len(codes)].astype(np.int64)
            truth, predicted = model.image.decode(true_codes), model.image.decode(codes)
            accuracy = (codes == true_codes).mean(axis=(1, 2))
            rolled_out.append((truth, predicted, score(truth, predicted, accuracy, lpips)))
    horizons = horizon_scores(rolled_out, lpips is not None, features)
    rollouts = tuple(
        Rollout(entry.key, entry.split, entry.instruction, mean_score(scores), scores)
        for entry, (_, _, scores) in zip(entries, rolled_out, strict=True)
    )
    mean = mean_score([frame for rollout in rollouts for frame in rollout.frames])
    default_out = checkpoint.resolve().parents[1] / "eval" / checkpoint.resolve().name
    out = Path(config.out) if config.out else default_out
    result = ImagineResult(
        rollouts=rollouts,
        psnr=mean.psnr,
        ssim=mean.ssim,
        lpips=mean.lpips,
        horizons=tuple(horizons),
        picture=out / f"{STEM}.png",
        video=out / f"{STEM}.mp4",
        scores=out / f"{STEM}.json",
        gif=out / f"{STEM}.gif" if config.gif else None,
    )
    request = {
        "checkpoint": checkpoint.name,
        "temperature": config.temperature,
        "guidance": config.guidance,
        "seed": config.seed,
        "not_computed": _not_computed(config),
    }
    _write(result, request, *rolled_out[0][:2])
    return result


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


def _write(
    result: ImagineResult, request: dict[str, Any], truth: NDArray[np.uint8], predicted: NDArray[np.uint8]
) -> None:
    """Write scores, picture and video of the first rollout; frames uint8 [T + 1, H, W, 3]."""
    numbers = {
        "episode": result.rollouts[0].episode,
        "split": result.rollouts[0].split,
        "instruction": result.rollouts[0].instruction,
        "psnr": result.psnr,
        "ssim": result.ssim,
        "lpips": result.lpips,
        "horizons": [asdict(horizon) for horizon in result.horizons],
        "frames": [asdict(frame) for frame in result.frames],
        "rollouts": [asdict(rollout) for rollout in result.rollouts],
    }
    truth, predicted = enlarge(truth), enlarge(predicted)
    pair = np.concatenate([truth, predicted], axis=2)
    shown = evenly_spaced(len(truth))
    try:
        result.scores.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile(np.stack([truth[shown], predicted[shown]]))).save(result.picture)
        write_video(result.video, list(pair), _FRAMES_PER_SECOND)
        if result.gif is not None:
            write_gif(result.gif, list(pair), _FRAMES_PER_SECOND)
        result.scores.write_text(json.dumps({**request, **numbers}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{result.scores.parent}: cannot write the rollout ({error.strerror}); choose another out"
        ) from error
