"""`worldvla imagine`: world-model rollouts of episodes, given their true actions, beside the true frames.

Autoregressive: the first frame of each camera is given, then the predicted frames are the input of the next
prediction.
Shards hold image codes, not pixels. By the protocol `tokens` the true frames are those that the image
tokenizer decodes from the true codes: the scores measure the transformer, not the tokenizer. By the protocol
`published` they are the camera's, from the demonstrations (`eval.world_model.protocol`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import WeightsChoice
from data.errors import InputError
from data.files import writable_folder
from data.prepare.preparer import Replay
from data.storage.episode_entry import ALL_SPLITS, TRAINING_SPLIT, EpisodeEntry
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from eval.config import ImagineConfig
from eval.policy.loaded_model import LoadedModel, load_model
from eval.world_model.backbones import not_requested, open_backbones
from eval.world_model.camera_frames import CameraFrames
from eval.world_model.dataset import DatasetChoice, choose_episodes, open_dataset
from eval.world_model.horizons import FAILED, ScoredRollout, horizon_scores
from eval.world_model.mp4 import PIXELS
from eval.world_model.protocol import scoring_protocol
from eval.world_model.results import ImagineResult, write_result
from eval.world_model.rollout import check_world_model, fewest_steps, predict, predicted_steps
from eval.world_model.scores import check_pixels, mean_score
from eval.world_model.scoring import RolledOut, score_rollouts
from eval.world_model.view_scores import Rollout, ViewScores
from pretrain.checkpoint.fetch import local_checkpoint
from pretrain.checkpoint.policy_files import has_average
from pretrain.model.generate_images import Guidance
from pretrain.model.sampling import Sampling
from pretrain.run_layout import IMAGINE_PUBLISHED_STEM, IMAGINE_STEM, TRAINED_SUFFIX, RunLayout


def imagine(config: ImagineConfig, device: str | None = None, replay: Replay | None = None) -> ImagineResult:
    """Roll the checkpoint's world model out over held-out episodes; write picture, video and scores.

    Backbones are tried before the first rollout. One that fails nevertheless costs its own metric only.

    Args:
        config: What is rolled out.
        device: Device of the model; None: a GPU if there is one.
        replay: Replays a demonstration in its simulator; required where `config.replay` is set.

    Raises:
        InputError: Unusable checkpoint or data, a world sample that the model has no room for, an unknown
            episode, none that is long enough, demonstrations that are not those of the data, or backbone
            weights that cannot be used.
    """
    protocol = scoring_protocol(config.protocol)
    _check_settings(config)
    sampling = Sampling(config.temperature, seed=config.seed)
    Guidance(config.guidance, [])  # validates the scale before anything is read
    lpips, features = open_backbones(
        config.lpips_weights, config.fvd_network, config.frames, protocol=protocol
    )
    checkpoint = local_checkpoint(config.checkpoint)
    model = load_model(checkpoint, device=device, precision=config.precision, weights=config.weights)
    check_pixels(model.image.pixels)
    if lpips is not None:
        lpips.check(PIXELS if config.protocol == "published" else model.image.pixels)
    data = open_dataset(model, config.data.url)
    check_world_model(model, checkpoint, data.index.embodiment.action_dim)
    entries = choose_episodes(data.index, config.episode, config.episodes, fewest_steps(model))
    camera = None
    if config.protocol == "published":
        camera = CameraFrames(config, model, data.index, replay)
        camera.check([entry.key for entry in entries])
    out = writable_folder(Path(config.out) if config.out else _default_out(checkpoint, config.weights))
    rolled_out = _roll_out(config, model, data.index, entries, sampling, camera)
    scored, failures = score_rollouts(model.image, rolled_out, lpips, protocol)
    missing = not_requested(config, protocol) | failures
    views = {
        view: ViewScores(
            _rollouts(model, entries, rollouts),
            tuple(horizon_scores(rollouts, missing, features, protocol, view)),
        )
        for view, rollouts in scored.items()
    }
    failures |= {
        metric: reason
        for scores in views.values()
        for horizon in scores.horizons
        for metric, reason in horizon.not_computed.items()
        if reason.startswith(FAILED)
    }
    stem = IMAGINE_PUBLISHED_STEM if config.protocol == "published" else IMAGINE_STEM
    result = ImagineResult(
        protocol=config.protocol,
        views=views,
        suites=tuple(sorted({entry.suite for entry in entries})),
        picture=out / f"{stem}.png",
        video=out / f"{stem}.mp4",
        scores=out / f"{stem}.json",
        gif=out / f"{stem}.gif" if config.gif else None,
        failures=failures,
        notes=(*model.notes, *data.notes),
    )
    request = _request(config, checkpoint, model, data) | {"not_computed": missing | failures}
    write_result(result, request, {view: each[0].frames(model.image) for view, each in rolled_out.items()})
    return result


def _check_settings(config: ImagineConfig) -> None:
    for name, value in (("frames", config.frames), ("episodes", config.episodes), ("batch", config.batch)):
        if value < 1:
            raise InputError(f"{name}={value}: expected at least 1")
    if config.protocol == "published" and not config.source:
        raise InputError(
            "protocol=published: compares with the camera's frames, which shards do not hold; add "
            "source=FOLDER, the demonstrations that the data set was prepared from"
        )
    if config.protocol == "tokens" and (config.source or config.replay):
        given = f"source={config.source}" if config.source else "replay=true"
        raise InputError(
            f"{given}: protocol=tokens reads no demonstrations; leave it out, or give protocol=published"
        )


def _roll_out(
    config: ImagineConfig,
    model: LoadedModel,
    index: DatasetIndex,
    entries: Sequence[EpisodeEntry],
    sampling: Sampling,
    camera: CameraFrames | None,
) -> dict[str, list[RolledOut]]:
    """Every view of every episode, `config.batch` episodes at a time."""
    protocol = scoring_protocol(config.protocol)
    views: dict[str, list[RolledOut]] = {view: [] for view in model.settings.cameras}
    for begin in range(0, len(entries), config.batch):
        episodes = [read_episode(index, entry) for entry in entries[begin : begin + config.batch]]
        stride = model.settings.predicted_frames
        lengths = [predicted_steps(episode.length, config.frames, stride) + 1 for episode in episodes]
        true_frames: list[dict[str, NDArray[np.uint8]]] = [{} for _ in episodes]
        if camera is not None:
            true_frames = [camera.read(*each) for each in zip(episodes, lengths, strict=True)]
        predictions = predict(
            model, index, episodes, config.frames, sampling, config.guidance, begin, protocol
        )
        for number, view in enumerate(views):
            for episode, codes, frames in zip(episodes, predictions, true_frames, strict=True):
                true_codes = episode.codes[view][: len(codes)].astype(np.int64)
                views[view].append(RolledOut(true_codes, codes[:, number], frames.get(view)))
    return views


def _rollouts(
    model: LoadedModel, entries: Sequence[EpisodeEntry], scored: Sequence[ScoredRollout]
) -> tuple[Rollout, ...]:
    return tuple(
        Rollout(
            entry.key,
            TRAINING_SPLIT if model.data.split == ALL_SPLITS else entry.split,
            entry.instruction,
            mean_score(each.scores),
            each.scores,
        )
        for entry, each in zip(entries, scored, strict=True)
    )


def _default_out(checkpoint: Path, weights: WeightsChoice) -> Path:
    """Folder in the checkpoint's run; the trained weights' own where there is an average beside them."""
    suffix = TRAINED_SUFFIX if weights == "trained" and has_average(checkpoint) else ""
    return RunLayout.of_checkpoint(checkpoint).evaluations / f"{checkpoint.resolve().name}{suffix}"


def _request(
    config: ImagineConfig, checkpoint: Path, model: LoadedModel, data: DatasetChoice
) -> dict[str, Any]:
    """What was asked for, and what the scores depend on beside the weights."""
    return {
        "checkpoint": checkpoint.name,
        "temperature": config.temperature,
        "guidance": config.guidance,
        "seed": config.seed,
        "precision": model.precision,
        "weights": model.weights,
        "data": {"url": data.index.url, "fingerprint": data.index.fingerprint},
        "demonstrations": config.source or None,
        "policy_settings": model.settings.to_json(),
    }
