"""Choice of one id by its logits: greedy, or sampled with a temperature.

Sampling is argmax(logits + temperature * g) with Gumbel noise g, which draws from
softmax(logits / temperature) (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030). The noise is drawn
before decoding, by seed, environment and index of the token in the answer. So the tokens do not depend on
the order of decoding, on the other prompts of the batch or on the device; and a rounding error changes a
choice only where two ids are nearly tied.
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
        temperature: Divides the logits before the softmax; 0 takes the likeliest id.
        top_k: Sample among this many likeliest ids only (ties with the last of them included); None: all.
        seed: Of the noise, at least 0.
        environments: Number of each prompt's environment, at least 0; equal numbers get equal noise.
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
        """Noise of a whole answer; None for greedy choice.

        Args:
            batch: B, prompts.
            places: Shape of the tokens to choose, for example (K, 7); the noise of a token does not depend
                on the size of the first dimension.
            choices: N, ids to choose among for each token.
            device: Of the logits.

        Returns:
            fp32 [B, *places, N].

        Raises:
            InputError: The numbers of environments and prompts differ.
        """
        if not self.temperature:
            return None
        numbers = range(batch) if self.environments is None else self.environments
        if len(numbers) != batch:
            raise InputError(f"{len(numbers)} environments for {batch} prompts: expected one for each")
        noise = np.empty((batch, *places, choices), np.float32)
        for row, number in enumerate(numbers):
            exponential = np.random.default_rng((self.seed, number)).standard_exponential(noise.shape[1:])
            noise[row] = -np.log(np.maximum(exponential, np.finfo(np.float64).tiny))
        return torch.from_numpy(noise).to(device)

    def choose(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """Index of the chosen id, int64 [...].

        Args:
            logits: [..., N].
            noise: fp32 [..., N], from `noise`; None: greedy.
        """
        if noise is None:
            return logits.argmax(dim=-1)
        logits = logits.float()
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            threshold = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < threshold, -math.inf)
        return (logits + self.temperature * noise).argmax(dim=-1)


GREEDY = Sampling()
