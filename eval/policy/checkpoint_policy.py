"""A trained checkpoint as a policy: one process, plain torch, no training engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.contracts import Decoder, Embodiment, Episode, WeightsChoice
from data.errors import InputError
from data.stream.samples import action_prompt
from data.stream.source_format import SourceFormat
from data.tokens.action import ActionRanges, decode, denormalise, encode
from data.tokens.image_block import image_block, image_block_length
from data.tokens.prompt_text import action_text
from data.tokens.state import state_blocks
from data.tokens.vocabulary import block_length
from eval.config import ExportedConfig, Precision
from eval.policy.batch_invariance import (
    BatchInvariantDecoder,
    BatchInvariantEncoder,
    ContinuousDecoder,
    DiscreteDecoder,
)
from eval.policy.description import chosen_decoder
from eval.policy.embodiment import acting_source
from eval.policy.interface import Decision, Observation
from eval.policy.loaded_model import LoadedModel, load_model
from eval.simulator.interface import ACTION_LIMIT, EMBODIMENT, Simulator
from pretrain.model.generate import Order


class CheckpointPolicy:
    """Decides on a whole chunk of actions from the newest frames at once: greedily, or by its action head.

    Args:
        checkpoint: Folder `runs/<name>/checkpoints/step_...`, or one of exported weights.
        device: Device it computes on; None takes a GPU if there is one.
        batch: Maximum number of observations in one pass.
        exported: Files and settings beside a folder of exported weights.
        order: Order of discrete decoding, as in `decode_action_chunk`; all orders give the same actions in
            fp32.
        precision: Arithmetic of its network.
        decoder: How it decides; None: as in `eval.config.EvaluationSettings`.
        embodiment: Data set as whose robot it acts; None: the only one that fits.
        in_simulator: Whether it acts in a simulator, whose numbers the robot's must be.
        weights: Which weights of the checkpoint it has.

    Raises:
        InputError: As for `load_model`, or no embodiment fits, or its actions are in other units than the
            simulators', or its history and chunk do not fit into the model.
    """

    def __init__(
        self,
        checkpoint: Path,
        device: str | None = None,
        batch: int = 8,
        exported: ExportedConfig | None = None,
        order: Order = "parallel",
        precision: Precision = "auto",
        decoder: Decoder | None = None,
        embodiment: str | None = None,
        in_simulator: bool = True,
        weights: WeightsChoice = "auto",
    ) -> None:
        self._checkpoint = checkpoint
        self._model = load_model(checkpoint, exported or ExportedConfig(), device, precision, weights)
        self._settings, network = self._model.settings, self._model.network
        self._source = acting_source(checkpoint, self._settings.sources, embodiment, in_simulator)
        if self.embodiment.action == EMBODIMENT.action:
            _check_units(checkpoint, self._source.action_ranges)
        self.decoder = chosen_decoder(checkpoint, decoder, self._settings, network.config.action_head)
        _check_length(checkpoint, self._model, self._source, self.decoder)
        self._decoder: BatchInvariantDecoder = (
            ContinuousDecoder(network, batch)
            if self.decoder == "continuous"
            else DiscreteDecoder(
                network, self.chunk, batch, order, self.embodiment.action_dim, _missing_bins(self._source)
            )
        )
        # Frames of several cameras are several batches: no more memory than for one camera.
        self._encoder = BatchInvariantEncoder(self._model.image, batch * self.history)

    @property
    def embodiment(self) -> Embodiment:
        """What the numbers of its actions and states are."""
        return self._source.embodiment

    @property
    def source(self) -> SourceFormat:
        """The data set as whose robot it acts."""
        return self._source

    @property
    def model(self) -> LoadedModel:
        """Its network, tokenizers and settings."""
        return self._model

    @property
    def chunk(self) -> int:
        """K, actions in a chunk."""
        return self._source.chunk

    @property
    def history(self) -> int:
        """M, number of time steps whose frames an observation has."""
        return self._settings.history

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras it was trained with."""
        return self._settings.cameras

    @property
    def pixels(self) -> int:
        """Side of the frames that its image tokenizer takes."""
        return self._model.image.pixels

    @property
    def uses_state(self) -> bool:
        """Whether it was trained with the robot's state."""
        return self._source.state_dim > 0

    def reset(self, environment: int, simulator: Simulator) -> None:
        """Nothing to do: it remembers nothing, and sees what it is given."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """Actions [B, K, D]: the middle of each decoded bin, or what the action head predicts.

        Numbers that the robot does not have are 0.

        Raises:
            InputError: The action head predicts numbers that are not finite.
        """
        return self.decide_on_prompts(self.prompts(observations), entropy=False).actions

    def decide(self, observations: Sequence[Observation]) -> Decision:
        """The actions of `act` and the entropy of their tokens; of an action head there is none.

        Raises:
            InputError: As `act`.
        """
        asked = any(each.with_entropy for each in observations)
        return self.decide_on_prompts(self.prompts(observations), asked)

    @torch.inference_mode()
    def decide_on_prompts(self, prompts: Sequence[NDArray[np.integer]], entropy: bool) -> Decision:
        """As `decide`, of the prompts [S] of observations.

        Raises:
            InputError: As `act`.
        """
        decoded, spread = self._decoder.decode_with_entropy(prompts, entropy)
        if not np.isfinite(decoded).all():
            raise InputError(
                f"checkpoint={self._checkpoint}: its action head predicts numbers that are not finite; take "
                "weights from before they diverged"
            )
        to_units = denormalise if self.decoder == "continuous" else decode
        chunks = decoded[:, : self.chunk, : self.embodiment.action_dim]  # a head predicts the largest
        actions = to_units(chunks.reshape(-1, chunks.shape[-1]), self._source.action_ranges)
        present = self.embodiment.present
        actions[:, ~present] = 0.0
        if spread is not None:
            spread = spread[..., present].mean(axis=-1)
        return Decision(actions.reshape(chunks.shape), spread)

    @torch.inference_mode()
    def prompts(self, observations: Sequence[Observation]) -> list[NDArray[np.int32]]:
        """The prompt [S] of each observation, the same as in the samples of its training."""
        frames = np.concatenate([each.frames.reshape(-1, *each.frames.shape[2:]) for each in observations])
        blocks = iter([image_block(codes, self.pixels) for codes in self._encoder.encode(frames)])
        prompts = []
        for each in observations:
            text = self._model.text.encode(action_text(each.instruction))
            steps, views = each.frames.shape[:2]
            images = [next(blocks) for _ in range(steps * views)]
            prompts.append(action_prompt(text, images, self._state_block(each.state)))
        return prompts

    def stored_prompts(self, episode: Episode) -> list[NDArray[np.int32]]:
        """The prompt [S] at each time step of a stored episode: that of its sample in training."""
        text = self._model.text.encode(action_text(episode.instruction))
        blocks = np.stack(
            [image_block(episode.codes[camera], self.pixels) for camera in self.cameras], axis=1
        )
        return [
            action_prompt(
                text,
                list(blocks[max(0, step + 1 - self.history) : step + 1]),
                self._state_block(episode.states[step] if self.uses_state else None),
            )
            for step in range(episode.length)
        ]

    def _state_block(self, state: NDArray[np.floating] | None) -> NDArray[np.int32] | None:
        """Tokens [S + 2] of a state [S]; None for a policy without it."""
        ranges = self._source.state_ranges
        if ranges is None:
            return None
        if state is None:
            raise ValueError("an observation without a state, of a policy that uses it")
        # Training reads states of float32: of float64 some lie in the next bin.
        states = np.asarray(state, np.float32)[None]
        return state_blocks(states, ranges.minimum, ranges.maximum)[0]


def _missing_bins(source: SourceFormat) -> dict[int, int]:
    """Bins of the numbers that a robot does not have, by dimension: those of 0, as in its training."""
    bins = encode(np.zeros((1, source.embodiment.action_dim)), source.action_ranges)[0]
    return {int(d): int(bins[d]) for d in np.flatnonzero(~source.embodiment.present)}


def _check_length(checkpoint: Path, model: LoadedModel, source: SourceFormat, decoder: Decoder) -> None:
    """Refuse a history and a chunk that leave no room for an instruction."""
    settings, longest = model.settings, model.network.config.max_positions
    side = settings.pixels // model.image.config.downsample
    image, num_images = image_block_length(side, side), settings.history * len(settings.cameras)
    state = block_length(source.state_dim) if source.state_dim else 0
    action = block_length(source.embodiment.action_dim)
    answer = source.chunk * action if decoder == "discrete" else 0
    needed = num_images * image + state + answer
    if needed >= longest:
        parts = [f"{num_images} frames of {image} tokens"]
        parts += [f"a state of {state}"] if state else []
        parts += [f"{source.chunk} actions of {action}"] if answer else []
        before, last = ", ".join(parts[:-1]), parts[-1]
        raise InputError(
            f"checkpoint={checkpoint}: {f'{before} and ' if before else ''}{last} take {needed} positions "
            f"without the instruction, the model has {longest}; lower exported.history"
            f"{' or exported.chunk' if answer else ''}"
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
