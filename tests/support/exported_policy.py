"""A small policy of both cameras and the state, with random weights, as exported files; a suite of noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from data.config import DataConfig
from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from eval.config import ExportedConfig, Observations, Reset
from pretrain.convert.chameleon import hugging_face_config
from pretrain.convert.exporting import ARCHITECTURE
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer, initialise
from pretrain.policy_settings import PolicySettings
from pretrain.sources import libero_source
from tests.support.fake_suite import FakeSuite, FaultySimulator
from tests.support.tokenizers import shipped_image_tokenizer, shipped_text_tokenizer

CHUNK, HISTORY, PIXELS = 3, 2, 64
CAMERAS = (AGENT_CAMERA, WRIST_CAMERA)
POLICY_MODEL = ModelConfig(
    vocabulary_size=16_896, hidden_size=32, ffn_size=64, layers=2, heads=2, max_positions=512, dropout=0.0
)


@dataclass(frozen=True)
class ExportedPolicy:
    """Where its files are."""

    weights: Path
    files: ExportedConfig

    @property
    def words(self) -> list[str]:
        """The settings that name it on the command line."""
        return [
            f"checkpoint={self.weights}",
            f"exported.image_tokenizer={self.files.image_tokenizer}",
            f"exported.text_tokenizer={self.files.text_tokenizer}",
        ]


def write_exported_policy(
    folder: Path, cameras: Sequence[str] = CAMERAS, state: bool = True
) -> ExportedPolicy:
    """Write weights, `policy.json` and tokenizers into an existing folder."""
    network = Transformer(POLICY_MODEL)
    initialise(network, seed=0)
    for parameter in network.parameters():  # far from uniform: the actions depend on the frames
        parameter.data *= 4
    weights = folder / "weights"
    weights.mkdir()
    (weights / "config.json").write_text(
        json.dumps(hugging_face_config(POLICY_MODEL, "float32", None, ARCHITECTURE))
    )
    save_file(network.state_dict(), weights / "model.safetensors")
    image, text = shipped_image_tokenizer(), shipped_text_tokenizer()
    data = DataConfig(history=HISTORY, chunk=CHUNK, cameras=list(cameras), state=state)
    settings = PolicySettings.of(data, PIXELS, (libero_source(data),), image.sha256, text.sha256)
    (weights / "policy.json").write_text(json.dumps(settings.to_json()))
    text.save(folder)
    image.save(folder / "image.safetensors")
    files = ExportedConfig(
        image_tokenizer=str(folder / "image.safetensors"), text_tokenizer=str(folder / "text_tokenizer.json")
    )
    return ExportedPolicy(weights, files)


class NoisySimulator(FaultySimulator):
    """Every frame is other noise, of its camera, initial state and time step."""

    def reset(self, initial_state: int) -> None:
        self.initial_state = initial_state
        super().reset(initial_state)

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        seed = [self.initial_state, len(self.actions), CAMERAS.index(camera)]
        noise = np.random.default_rng(seed)
        return noise.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)


class NoisySuite(FakeSuite):
    def open(
        self, task: int, observations: Observations = "recomputed", reset: Reset | None = None
    ) -> NoisySimulator:
        return NoisySimulator(self.name, task)


def open_noisy_suite(name: str) -> NoisySuite:
    return NoisySuite(name)
