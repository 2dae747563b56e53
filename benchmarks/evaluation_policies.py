"""The policies of the evaluation benchmark: a tiny network with random weights, and given actions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from data.contracts import AGENT_CAMERA, DEFAULT_EMBODIMENT
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from eval.config import ExportedConfig
from eval.policy.interface import Observation, PolicyRecord
from eval.policy.source import PolicyReference
from eval.simulator.interface import ACTION_SIZE, Simulator
from pretrain.convert.chameleon import hugging_face_config
from pretrain.convert.exporting import ARCHITECTURE
from pretrain.model.transformer import Transformer, initialise
from pretrain.settings import named_models

_SCALE = 8.0  # of the random weights
_REACH = 0.3  # of a drawn action in every dimension of the hand's motion
_GRIP_STEPS = 20  # steps between opening and closing


def random_network(folder: Path) -> PolicyReference:
    """The tiny network with random weights, as exported weights in `folder`, and the tokenizers that ship."""
    config = named_models()["tiny"]
    network = Transformer(config)
    initialise(network, seed=0)
    for parameter in network.parameters():
        if parameter.dim() > 1:  # otherwise every observation would get the same actions
            parameter.data *= _SCALE
    save_file(network.state_dict(), folder / "model.safetensors")
    settings = hugging_face_config(config, "float32", None, ARCHITECTURE)
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    text, image = (
        TextTokenizer.load().save(folder / "tokenizers"),
        folder / "tokenizers" / "image.safetensors",
    )
    ImageTokenizer.load().save(image)
    # Other orders of decoding are other roundings, which choose the same action in fp32 alone.
    return PolicyReference(str(folder), exported=ExportedConfig(str(image), str(text)), precision="fp32")


class GivenActions:
    """Answers a task's given actions, and looks at frames as the published WorldVLA policy does.

    Args:
        steps: Steps of an episode.
    """

    chunk, history, cameras, pixels = 5, 2, (AGENT_CAMERA,), 256
    uses_state = False
    embodiment = DEFAULT_EMBODIMENT

    def __init__(self, steps: int) -> None:
        self._steps, self._next = steps, 0
        self._actions = np.empty((0, ACTION_SIZE))

    def reset(self, environment: int, simulator: Simulator) -> None:
        """Start with the first action."""
        self._actions, self._next = given_actions(simulator.task.number, self._steps), 0

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """The next actions [1, 5, 7]."""
        start, self._next = self._next, self._next + self.chunk
        return self._actions[start : self._next][None]


@dataclass(frozen=True, slots=True)
class GivenActionsSource:
    """Refers to `GivenActions` so that the pool's workers can make them."""

    steps: int
    name: str = "given actions"
    uses_server: bool = False

    def load(self) -> GivenActions:
        """The policy."""
        return GivenActions(self.steps)

    def identity(self) -> str:
        """Name and length."""
        return f"{self.name}, {self.steps} steps"

    def record(self) -> PolicyRecord:
        """Nothing to say."""
        return PolicyRecord()


def given_actions(task: int, steps: int) -> NDArray[np.float64]:
    """A task's actions float64 [T, 7], the same in every run: slow motions of the hand, opened and closed.

    T is the next multiple of the chunk from `steps` on.
    """
    steps += -steps % GivenActions.chunk
    motion = np.random.default_rng(task).uniform(-_REACH, _REACH, (steps, ACTION_SIZE - 1))
    grip = np.where(np.arange(steps) // _GRIP_STEPS % 2, 1.0, -1.0)
    return np.concatenate([motion, grip[:, None]], axis=1)
