"""How one id is chosen among the logits of several: the likeliest, or at random with a temperature.

Random choice is argmax(logits + temperature * g) with Gumbel noise g, which draws from
softmax(logits / temperature) (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030). The noise is laid out
before decoding begins, by seed, environment and place of the token in the answer. So the tokens do not
depend on the order in which places are decoded, on the other prompts of the batch or on the device; and
a rounding error changes a choice only where two ids are all but tied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.errors import InputError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; the default is greedy.

    Attributes:
        temperature: Divides the logits before the softmax that is drawn from; 0 takes the likeliest id.
        top_k: Draw among the so many likeliest ids only (ties with the last of them included); None: all.
        seed: Of the draws, at least 0.
        environments: Number of each prompt's environment, at least 0; equal numbers draw equal noise.
            None: 0, 1, ... in the order of the prompts.

    Raises:
        InputError: A value is out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    environments: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(
                f"temperature={self.temperature}: expected a finite number of at least 0; 0 is greedy"
            )
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k={self.top_k}: expected at least 1, or null for all")
        if min((self.seed, *(self.environments or ()))) < 0:
            raise InputError(
                f"seed={self.seed}, environments={self.environments}: expected numbers of at least 0"
            )

    def noise(self, batch: int, places: tuple[int, ...], choices: int, device: torch.device) -> Tensor | None:
        """Noise of a whole answer, or None where the choice is greedy.

        Args:
            batch: B, prompts.
            places: Shape of the places that are chosen at, for example (K, 7); the noise of a place does
                not depend on how many lie behind it along the first dimension.
            choices: N, ids to choose among at each place.
            device: Where the logits are.

        Returns:
            fp32 [B, *places, N].

        Raises:
            InputError: As many environments as prompts were expected, but not found.
        """
        if not self.temperature:
            return None
        numbers = range(batch) if self.environments is None else self.environments
        if len(numbers) != batch:
            raise InputError(f"{len(numbers)} environments for {batch} prompts: expected one for each")
        drawn = np.empty((batch, *places, choices), np.float32)
        for row, number in enumerate(numbers):
            exponential = np.random.default_rng((self.seed, number)).standard_exponential(drawn.shape[1:])
            drawn[row] = -np.log(np.maximum(exponential, np.finfo(np.float64).tiny))
        return torch.from_numpy(drawn).to(device)

    def choose(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """Index of the chosen id: logits [..., N] and the noise of their places, or None -> int64 [...]."""
        if noise is None:
            return logits.argmax(dim=-1)
        logits = logits.float()
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        return (logits + self.temperature * noise).argmax(dim=-1)


GREEDY = Sampling()
