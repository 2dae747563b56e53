"""`worldvla imagine`: the world model dreams an episode, given its true actions, beside the truth.

Autoregressive: the first frame is given, then every predicted frame is the input of the next prediction.
Shards keep image codes, not pixels, so the truth shown and measured against is what the image tokenizer
makes of the true codes: the scores judge the transformer, not the tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.contracts import Episode
from data.errors import InputError
from data.storage.index import DatasetIndex, EpisodeEntry, read_episode
from data.stream.sequence import WORLD_TEXT, action_prompt, world_prompt
from data.tokens.action import encode
from data.tokens.image_block import image_block
from eval.checkpoint_policy import CheckpointModel
from eval.config import ImagineConfig
from eval.video import write_video
from pretrain.model.generate import Guidance, decode_image
from pretrain.model.sampling import GREEDY, Sampling

STEM = "imagine"  # of the three files in the evaluation folder
_FRAMES_PER_SECOND = 5
_MOST_PSNR = 60.0  # dB: equal frames would score infinity, which JSON cannot hold
_GAP = 2  # pixels between frames
_LEAST_SIDE = 128  # pixels: smaller frames are enlarged by a whole factor to be seen


@dataclass(frozen=True)
class FrameScore:
    """How one predicted frame compares with the true one.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB.
        ssim: Structural similarity (Wang et al. 2004), at most 1.
        held_psnr: PSNR of the given first frame in its place: what predicting no change would reach.
        code_accuracy: Share of image codes that are the true ones.
    """

    psnr: float
    ssim: float
    held_psnr: float
    code_accuracy: float


@dataclass(frozen=True)
class Imagination:
    """A world-model rollout and its files.

    Attributes:
        episode: Key of the episode.
        split: Its split; an episode of `train` says little about unseen ones.
        psnr, ssim: Means over the predicted frames.
        frames: Score of each predicted frame.
        picture: PNG: true frames above predicted ones, the given first frame at the left of both.
        video: MP4: true beside predicted.
        scores: JSON of everything here.
    """

    episode: str
    split: str
    psnr: float
    ssim: float
    frames: tuple[FrameScore, ...]
    picture: Path
    video: Path
    scores: Path


def imagine(config: ImagineConfig) -> Imagination:
    """Roll the checkpoint's world model out over one episode and write picture, video and scores.

    Raises:
        InputError: Unusable checkpoint or data, an unknown episode, or one too short to predict.
    """
    if config.frames < 1:
        raise InputError(f"frames={config.frames}: expected at least 1")
    sampling = Sampling(config.temperature, seed=config.seed)
    guidance = Guidance(config.guidance, [])  # refused before anything is read
    checkpoint = Path(config.checkpoint)
    model = CheckpointModel(checkpoint)
    index = DatasetIndex.load(model.data.url)
    if index.image.tokenizer_sha256 != model.image.sha256:
        raise InputError(
            f"{index.url}: encoded with the image tokenizer {index.image.tokenizer_sha256[:12]}, the run has "
            f"{model.image.sha256[:12]}; point data.url at the data set that the run was trained on"
        )
    entry = choose_episode(index, config.episode)
    episode = read_episode(index, entry)
    if episode.length < 2:
        raise InputError(f"episode {entry.key} has one frame, expected at least 2; choose another episode")
    count = min(config.frames, episode.length - 1)
    true_codes = episode.codes[model.data.camera][: count + 1].astype(np.int64)
    codes = predict(model, index, episode, count, sampling, guidance.scale)
    truth, dream = model.image.decode(true_codes), model.image.decode(codes)
    scores = score(truth, dream, (codes == true_codes).mean(axis=(1, 2)))
    out = (
        Path(config.out)
        if config.out
        else checkpoint.resolve().parents[1] / "eval" / checkpoint.resolve().name
    )
    about = {
        "checkpoint": checkpoint.name,
        "instruction": entry.instruction,
        "temperature": config.temperature,
        "guidance": config.guidance,
        "seed": config.seed,
    }
    return _write(out, about, entry, truth, dream, scores)


def choose_episode(index: DatasetIndex, key: str | None) -> EpisodeEntry:
    """The episode of that key; without one the first of `val_ind`, of `val_ood`, or the last of all.

    Raises:
        InputError: No episode has the key.
    """
    if key is None:
        held_out = (*index.split("val_ind"), *index.split("val_ood"))
        return held_out[0] if held_out else index.episodes[-1]
    for entry in index.episodes:
        if entry.key == key:
            return entry
    known = ", ".join(entry.key for entry in index.episodes[:3])
    raise InputError(f"episode={key}: not in {index.url}; it holds {len(index.episodes)}: {known}, ...")


def predict(
    model: CheckpointModel,
    index: DatasetIndex,
    episode: Episode,
    count: int,
    sampling: Sampling = GREEDY,
    scale: float = 1.0,
) -> NDArray[np.int64]:
    """Codes [count + 1, R, C]: the true first frame and `count` predictions, each from the one before.

    Guidance is towards the action: the unconditional prompt is the same words and frame without the action
    block, so what it predicts is a next frame whatever the robot does. (Training never drops actions, so
    the network knows such prompts only as far as it generalises.)

    Args:
        model: Network, tokenizers and camera.
        index: Of the data, for the ranges of actions.
        episode: First frame and true actions.
        count: Frames to predict.
        sampling: How codes are chosen; every frame draws anew.
        scale: Of classifier-free guidance; 1: none.
    """
    image = model.image
    text = np.array(model.text.encode(WORLD_TEXT), np.int32)
    actions = encode(episode.actions[:count], index.action_ranges)
    frames = [episode.codes[model.data.camera][0].astype(np.int64)]
    for step, action in enumerate(actions):
        block = image_block(frames[-1], image.pixels)
        codes = decode_image(
            model.network,
            [world_prompt(text, block, action)],
            image.rows,
            image.columns,
            image.pixels,
            image.codebook_size,
            replace(sampling, environments=[step]),
            Guidance(scale, [action_prompt(text, [block])]),
        )[0]
        frames.append(codes.astype(np.int64))
    return np.stack(frames)


def score(
    truth: NDArray[np.uint8], dream: NDArray[np.uint8], code_accuracy: NDArray[np.floating]
) -> tuple[FrameScore, ...]:
    """Scores of frames 1 .. T of uint8 [T + 1, H, W, 3]; frame 0 was given."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    true, predicted = (torch.as_tensor(frames).permute(0, 3, 1, 2).float() for frames in (truth, dream))
    first = true[:1].expand_as(true)
    psnr, held_psnr = (
        peak_signal_noise_ratio(other, true, data_range=255.0, reduction="none", dim=(1, 2, 3))
        for other in (predicted, first)
    )
    ssim = structural_similarity_index_measure(predicted, true, data_range=255.0, reduction="none")
    columns = (torch.as_tensor(values)[1:].tolist() for values in (psnr, ssim, held_psnr, code_accuracy))
    return tuple(
        FrameScore(min(p, _MOST_PSNR), similarity, min(held, _MOST_PSNR), share)
        for p, similarity, held, share in zip(*columns, strict=True)
    )


def _write(
    out: Path,
    about: dict[str, Any],
    entry: EpisodeEntry,
    truth: NDArray[np.uint8],
    dream: NDArray[np.uint8],
    scores: tuple[FrameScore, ...],
) -> Imagination:
    done = Imagination(
        episode=entry.key,
        split=entry.split,
        psnr=float(np.mean([frame.psnr for frame in scores])),
        ssim=float(np.mean([frame.ssim for frame in scores])),
        frames=scores,
        picture=out / f"{STEM}.png",
        video=out / f"{STEM}.mp4",
        scores=out / f"{STEM}.json",
    )
    numbers = {key: value for key, value in asdict(done).items() if not isinstance(value, Path)}
    truth, dream = enlarge(truth), enlarge(dream)
    pair = np.concatenate([truth, dream], axis=2)
    try:
        out.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile(np.stack([truth, dream]))).save(done.picture)
        write_video(done.video, list(pair), _FRAMES_PER_SECOND)
        done.scores.write_text(json.dumps({**about, **numbers}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot write the rollout ({error.strerror}); choose another out") from error
    return done


def enlarge(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3], each pixel repeated so that a side has at least `_LEAST_SIDE`."""
    factor = -(-_LEAST_SIDE // frames.shape[1])
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def tile(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of frames uint8 [R, T, H, W, 3] -> one picture, thin white gaps between."""
    rows, columns, height, width, _ = frames.shape
    size = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    picture = np.full(size, 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            y, x = r * (height + _GAP), c * (width + _GAP)
            picture[y : y + height, x : x + width] = frames[r, c]
    return picture
