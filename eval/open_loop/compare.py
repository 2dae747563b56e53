"""A checkpoint's policy on held-out demonstrations, open loop: its first actions beside the recorded ones.

At every frame of a demonstration the policy sees what it would see there, the stored codes of the frames, the
instruction and the state, as in a sample of its training. What it chooses is compared, not executed: the next
frame is the demonstration's. The error says how well it imitates; success in the simulator depends on more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.contracts import Episode
from data.errors import InputError
from data.storage.episode_entry import ALL_SPLITS, TRAINING_SPLIT, EpisodeEntry
from data.storage.episode_reader import read_episode
from eval.open_loop.results import ComparedEpisode, OpenLoopResult, write_open_loop
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.source import PolicyReference
from eval.world_model.dataset import choose_episodes, open_dataset


def compare_open_loop(
    reference: PolicyReference, out: Path, episodes: int = 1, data_url: str | None = None
) -> OpenLoopResult:
    """Compare the policy of a run's checkpoint with held-out demonstrations of its data; write the result.

    Args:
        reference: Of a checkpoint of a run, `runs/<name>/checkpoints/step_...`.
        out: Folder of the evaluation, for `open_loop.json` and `open_loop.png`.
        episodes: Largest number of demonstrations, the first held-out ones of the data set as whose robot the
            policy acts.
        data_url: The data set, where it was moved; None: the one that the run names.

    Raises:
        InputError: Unusable checkpoint or data, fewer than one episode, or a folder that cannot be written.
    """
    if episodes < 1:
        raise InputError(f"episodes={episodes}: expected at least 1")
    policy = reference.load()
    if not isinstance(policy, CheckpointPolicy):
        raise InputError(f"{reference.name}: has no data to be compared on; expected a checkpoint of a run")
    data = open_dataset(policy.model, data_url or _own_data(policy))
    entries = choose_episodes(data.index, None, episodes, fewest=1)
    recorded = [read_episode(data.index, entry) for entry in entries]
    result = OpenLoopResult(
        names=policy.embodiment.action,
        ranges=policy.source.action_ranges,
        present=policy.embodiment.present,
        episodes=tuple(_compare(policy, *pair) for pair in zip(entries, recorded, strict=True)),
        notes=(*policy.model.notes, *data.notes),
    )
    codes, shown = recorded[0].codes, result.partings
    frames = {camera: policy.model.image.decode(codes[camera][shown]) for camera in policy.cameras if shown}
    request = {
        "checkpoint": Path(reference.name).name,
        "decoder": policy.decoder,
        "precision": policy.model.precision,
        "weights": policy.model.weights,
        "data": {"url": data.index.url, "fingerprint": data.index.fingerprint},
    }
    write_open_loop(result, request, frames, out)
    return result


def _own_data(policy: CheckpointPolicy) -> str | None:
    """URL of the data set as whose robot the policy acts; None: the run has only one."""
    sources = policy.model.data.sources
    return sources[policy.model.settings.sources.index(policy.source)].url if sources else None


def _compare(policy: CheckpointPolicy, entry: EpisodeEntry, episode: Episode) -> ComparedEpisode:
    decision = policy.decide_on_prompts(policy.stored_prompts(episode), entropy=True)
    return ComparedEpisode(
        episode=entry.key,
        split=TRAINING_SPLIT if policy.model.data.split == ALL_SPLITS else entry.split,
        instruction=entry.instruction,
        predicted=decision.actions[:, 0],
        expert=np.asarray(episode.actions, np.float64),
        entropy=None if decision.entropy is None else decision.entropy[:, 0],
    )
