"""A trained checkpoint as a policy: one process, plain torch, no training engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.errors import InputError
from data.stream.samples import action_prompt
from data.tokens.action import ActionRanges, decode
from data.tokens.image_block import image_block, image_block_length
from data.tokens.prompt_text import action_text
from data.tokens.vocabulary import ACTION_BLOCK_LENGTH
from eval.config import ExportedConfig, Precision
from eval.policy.batch_invariance import BatchInvariantDecoder, BatchInvariantEncoder
from eval.policy.interface import Observation
from eval.policy.loaded_model import LoadedModel, load_model
from eval.simulator.interface import ACTION_LIMIT, Simulator
from pretrain.model.generate import Order


class CheckpointPolicy:
    """Decodes a whole chunk of actions from the newest frames at once, greedily.

    Args:
        checkpoint: Folder `runs/<name>/checkpoints/step_...`, or one of exported weights.
        device: Device it computes on; None takes a GPU if there is one.
        batch: Maximum number of observations in one pass.
        exported: Files and settings beside a folder of exported weights.
        order: Order of decoding, as in `decode_action_chunk`; all orders give the same actions in fp32.
        precision: Arithmetic of its network.

    Raises:
        InputError: As for `load_model`, or its actions are in other units than the simulators', or its
            history and chunk do not fit into the model.
    """

    def __init__(
        self,
        checkpoint: Path,
        device: str | None = None,
        batch: int = 8,
        exported: ExportedConfig | None = None,
        order: Order = "parallel",
        precision: Precision = "auto",
    ) -> None:
        self._model = load_model(checkpoint, exported or ExportedConfig(), device, precision)
        _check_units(checkpoint, self._model.action_ranges)
        _check_length(checkpoint, self._model)
        self._decoder = BatchInvariantDecoder(self._model.network, self._model.data.chunk, batch, order)
        self._encoder = BatchInvariantEncoder(self._model.image, batch * self._model.data.history)

    @property
    def chunk(self) -> int:
        """K, actions in a chunk."""
        return self._model.data.chunk

    @property
    def history(self) -> int:
        """M, number of frames in an observation."""
        return self._model.data.history

    @property
    def camera(self) -> str:
        """Camera it was trained with."""
        return self._model.data.cameras[0]

    @property
    def pixels(self) -> int:
        """Side of the frames that its image tokenizer takes."""
        return self._model.image.pixels

    def reset(self, environment: int, simulator: Simulator) -> None:
        """Nothing to do: it has no state but the frames it is given."""

    @torch.inference_mode()
    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """Actions [B, K, 7]: the middle of each decoded bin."""
        frames = np.stack([frame for observation in observations for frame in observation.frames])
        blocks = iter([image_block(codes, self.pixels) for codes in self._encoder.encode(frames)])
        prompts = []
        for observation in observations:
            text = self._model.text.encode(action_text(observation.instruction))
            prompts.append(action_prompt(text, [next(blocks) for _ in observation.frames]))
        bins = self._decoder.decode(prompts)
        return decode(bins.reshape(-1, bins.shape[-1]), self._model.action_ranges).reshape(bins.shape)


def _check_length(checkpoint: Path, model: LoadedModel) -> None:
    """Refuse a history and a chunk that leave no room for an instruction."""
    settings, longest = model.settings, model.network.config.max_positions
    side = settings.pixels // model.image.config.downsample
    frame = image_block_length(side, side)
    needed = settings.history * frame + settings.chunk * ACTION_BLOCK_LENGTH
    if needed >= longest:
        raise InputError(
            f"checkpoint={checkpoint}: {settings.history} frames of {frame} tokens and {settings.chunk} "
            f"actions of {ACTION_BLOCK_LENGTH} take {needed} positions without the instruction, the model "
            f"has {longest}; lower exported.history or exported.chunk"
        )


def _check_units(checkpoint: Path, ranges: ActionRanges) -> None:
    """Refuse a policy whose training data had actions outside the simulators' range."""
    for dimension, (low, high) in enumerate(zip(ranges.minimum, ranges.maximum, strict=True)):
        if max(-low, high) > ACTION_LIMIT * (1 + 1e-6):
            raise InputError(
                f"checkpoint={checkpoint}: actions of its training data reach from {low:g} to {high:g} in "
                f"dimension {dimension}, the simulators take -{ACTION_LIMIT:g} to {ACTION_LIMIT:g}; it was "
                "trained on data in other units and cannot act here"
            )
