"""The prompt of a rollout is that of training, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.config import DataConfig
from data.contracts import Episode
from data.stream.batch_assembler import BatchAssembler
from data.stream.episodes.episode_memory import EpisodeMemory
from data.stream.order.plan import Kind, PlannedWindows
from data.stream.setup import open_setup
from data.tokens.action import quantise
from data.tokens.state import STATE_MAX, STATE_MIN
from data.tokens.vocabulary import ACTION_START
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.interface import Observation
from eval.rollout.episode import run_episode
from eval.simulator.interface import Simulator
from pretrain.config import TrainerConfig
from tests.support.exported_policy import CHUNK, HISTORY, PIXELS, write_exported_policy
from tests.support.fake_simulator import TASK, FakeSimulator
from tests.support.shards_case import write_dataset
from tests.support.tokenizers import shipped_image_tokenizer

STEPS = 3 * CHUNK
DECISIONS = range(0, STEPS, CHUNK)


class Playback(FakeSimulator):
    """Shows the frames and states of a demonstration of random noise, whatever the actions."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        shape = (STEPS, PIXELS, PIXELS, 3)
        self.frames = {camera: rng.integers(0, 256, shape, dtype=np.uint8) for camera in ("agent", "wrist")}
        self.states = rng.uniform(STATE_MIN, STATE_MAX, (STEPS, 8))
        self.states[CHUNK] = states_that_float32_moves()
        super().__init__()

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        assert pixels == PIXELS
        return self.frames[camera][len(self.actions)]

    def state(self) -> NDArray[np.float64]:
        return self.states[len(self.actions)]


def states_that_float32_moves() -> NDArray[np.float64]:
    """A state [8] whose numbers lie in other bins once they are rounded to float32, as in training."""
    low, high = np.array(STATE_MIN), np.array(STATE_MAX)
    edges = np.linspace(-1.0, 1.0, 256)[1:-1, None]
    near = low + (edges + 1) / 2 * (high - low + 1e-8)
    candidates = np.concatenate([near - 1e-9, near + 1e-9])
    moved = quantise(candidates, STATE_MIN, STATE_MAX) != quantise(
        candidates.astype(np.float32).astype(np.float64), STATE_MIN, STATE_MAX
    )
    assert moved.any(axis=0).all()
    return candidates[moved.argmax(axis=0), np.arange(8)]


@dataclass
class PromptRecorder:
    """A policy that decides nothing and keeps its prompts."""

    policy: CheckpointPolicy

    def __post_init__(self) -> None:
        self.chunk, self.history = self.policy.chunk, self.policy.history
        self.cameras, self.pixels = self.policy.cameras, self.policy.pixels
        self.uses_state, self.embodiment = self.policy.uses_state, self.policy.embodiment
        self.prompts: list[NDArray[np.int32]] = []

    def reset(self, environment: int, simulator: Simulator) -> None:
        self.prompts.clear()

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        self.prompts += self.policy.prompts(observations)
        return np.zeros((len(observations), self.chunk, 7))


def training_tokens(
    simulator: Playback, cameras: Sequence[str], state: bool, folder: Path
) -> NDArray[np.int32]:
    """The action samples of the steps at which a rollout decides, int32 [3, S], one in each sequence."""
    image = shipped_image_tokenizer()
    episode = Episode(
        key="noise/demo_0",
        suite=TASK.suite,
        task=TASK.name,
        instruction=TASK.instruction,
        codes={camera: image.encode(frames) for camera, frames in simulator.frames.items()},
        actions=np.zeros((STEPS, 7)),
        states=simulator.states.astype(np.float32),
    )
    write_dataset(folder, episodes=[episode], codebook_size=image.codebook_size)
    config = DataConfig(url=str(folder), history=HISTORY, chunk=CHUNK, cameras=list(cameras), state=state)
    setup = open_setup(config, TrainerConfig(global_batch=4, sequence_length=512), seed=0)
    memory = EpisodeMemory(setup.datasets, setup.forms, config)
    count = len(DECISIONS)
    zeros = np.zeros(count, np.int64)
    kinds = np.full(count, Kind.ACTION)
    windows = PlannedWindows(np.arange(count), kinds, zeros, zeros, np.array(DECISIONS), zeros)
    return BatchAssembler(setup, memory).assemble(windows, 0, count).tokens


@pytest.mark.parametrize(
    ("cameras", "state"),
    [(("agent",), False), (("agent", "wrist"), True), (("wrist", "agent"), True)],
)
def test_the_prompts_of_a_rollout_are_those_of_training(
    cameras: tuple[str, ...], state: bool, tmp_path: Path
) -> None:
    exported = write_exported_policy(tmp_path, cameras, state)
    policy = PromptRecorder(CheckpointPolicy(exported.weights, "cpu", exported=exported.files))
    simulator = Playback()
    run_episode(simulator, policy, 0, horizon=STEPS)
    trained = training_tokens(simulator, cameras, state, tmp_path / "shards")
    assert len(policy.prompts) == len(trained) == 3
    lengths = [len(prompt) for prompt in policy.prompts]
    assert lengths[0] < lengths[1] == lengths[2]
    for prompt, sample in zip(policy.prompts, trained, strict=True):
        np.testing.assert_array_equal(prompt, sample[: len(prompt)])
        assert sample[len(prompt)] == ACTION_START
