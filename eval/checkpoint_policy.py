"""A trained checkpoint as a policy: one process, plain torch, no training engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import InputError
from data.stream.sequence import action_prompt, action_text
from data.tokens.action import decode
from data.tokens.image import ImageTokenizer
from data.tokens.image_block import image_block
from data.tokens.text import TextTokenizer
from eval.policy import Observation
from eval.simulator.interface import Simulator
from pretrain.checkpoint.load import load_weights
from pretrain.model.config import ModelConfig
from pretrain.model.generate import decode_action_chunk
from pretrain.model.transformer import Transformer
from pretrain.settings import from_mapping, read_yaml


class CheckpointModel:
    """Everything that is needed to use a checkpoint `runs/<name>/checkpoints/step_...` alone.

    Attributes:
        data: History, chunk and camera that it was trained with.
        network: The transformer in evaluation mode, fp32.
        text: Text tokenizer of the run.
        image: Image tokenizer of the run.

    Raises:
        InputError: The run folder lacks its settings or a tokenizer, or the weights do not fit.
    """

    def __init__(self, checkpoint: Path, device: str | None = None) -> None:
        run = checkpoint.resolve().parent.parent
        if not (checkpoint.is_dir() and (run / "config.yaml").is_file()):
            raise InputError(
                f"checkpoint={checkpoint}: no checkpoint of a run there (a folder, config.yaml two folders "
                "above it); expected runs/<name>/checkpoints/step_..."
            )
        settings = {"data": {}, "model": {}} | read_yaml(run / "config.yaml")
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.data: DataConfig = from_mapping(f"{run}/config.yaml data", DataConfig, settings["data"])
        model = from_mapping(f"{run}/config.yaml model", ModelConfig, settings["model"])
        tokenizers = run / "tokenizers"
        self.text = TextTokenizer.load(_only(tokenizers, "json", "text"))
        self.image = ImageTokenizer.load(_only(tokenizers, "safetensors", "image"), device=self.device)
        self.network = _network(model, checkpoint).to(self.device)


class CheckpointPolicy:
    """Looks at the newest frames and decodes a whole chunk of actions at once, greedily.

    Args:
        checkpoint: Folder `runs/<name>/checkpoints/step_...`.
        device: Where it computes; None takes a GPU if there is one.
    """

    def __init__(self, checkpoint: Path, device: str | None = None) -> None:
        self._model = CheckpointModel(checkpoint, device)

    @property
    def chunk(self) -> int:
        """K, actions in a chunk."""
        return self._model.data.chunk

    @property
    def history(self) -> int:
        """M, frames it looks at."""
        return self._model.data.history

    @property
    def camera(self) -> str:
        """Camera it was trained with."""
        return self._model.data.camera

    @property
    def pixels(self) -> int:
        """Side of the frames that its image tokenizer takes."""
        return self._model.image.pixels

    def reset(self, environment: int, simulator: Simulator) -> None:
        """Nothing to do: it remembers nothing but the frames it is given."""

    @torch.inference_mode()
    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """Actions [B, K, 7]: the middle of each decoded bin."""
        frames = np.stack([frame for observation in observations for frame in observation.frames])
        blocks = iter([image_block(codes, self.pixels) for codes in self._model.image.encode(frames)])
        prompts = []
        for observation in observations:
            text = self._model.text.encode(action_text(observation.instruction))
            seen = [next(blocks) for _ in observation.frames]
            prompts.append(action_prompt(text, seen).tolist())
        bins = decode_action_chunk(self._model.network, prompts, self.chunk)
        return decode(bins.reshape(-1, bins.shape[-1])).reshape(bins.shape)


def _only(folder: Path, ending: str, kind: str) -> Path:
    """The one file with an ending in a folder."""
    files = sorted(folder.glob(f"*.{ending}"))
    if len(files) != 1:
        raise InputError(
            f"{folder}: found {len(files)} files *.{ending}, expected the run's {kind} tokenizer; "
            "copy it there from the training run"
        )
    return files[0]


def _network(config: ModelConfig, checkpoint: Path) -> Transformer:
    """The plain transformer with the checkpoint's weights, fp32."""
    with torch.device("meta"):
        network = Transformer(config)
    weights = load_weights(checkpoint)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        raise InputError(
            f"{checkpoint}: {len(wrong)} tensors do not fit the model of the run's config.yaml, first "
            f"{wrong[0]}: found {found.get(wrong[0])}, expected {expected.get(wrong[0])}"
        )
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
