"""A codebook that learns by following the latents: k-means start, moving averages, restarts.

Source: van den Oord et al., "Neural Discrete Representation Learning" (2017), appendix A.1 (moving
averages); restarting unused entries at random latents follows Jukebox (Dhariwal et al., 2020, section 3).
Shape letters: N frames, R C rows and columns of codes, E embedding, L latents of several frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from data.tokens.image_model import Codebook

_DECAY = 0.98
_DEAD_USE = 0.05  # moving mean of uses in a batch below which an entry restarts
_KMEANS_ROUNDS = 15


class MovingCodebook:
    """Keeps `codebook` at the moving averages of the latents that choose each entry."""

    def __init__(self, codebook: Codebook, seed: int) -> None:
        """Take over `codebook`: no optimiser updates its entries any more."""
        self._codebook = codebook
        self._weight = codebook.embedding.weight.requires_grad_(False)
        self._generator = torch.Generator().manual_seed(seed)
        self._uses = torch.ones(len(self._weight), device=self._weight.device)
        self._sums = self._weight.clone()

    def start(self, latents: Tensor) -> None:
        """Place the entries by k-means on latents [L, E], many more than there are entries."""
        self._weight.copy_(latents[self._pick(len(latents), len(self._weight))])
        for _ in range(_KMEANS_ROUNDS):
            uses, sums = self._assign(latents, self._codebook.nearest(latents))
            empty = uses == 0
            self._weight.copy_(sums / uses.clamp(min=1)[:, None])
            self._weight[empty] = latents[self._pick(len(latents), int(empty.sum()))]
        self._uses.fill_(1.0)
        self._sums.copy_(self._weight)

    def quantise(self, latents: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """Replace latents [N, R, C, E] by their nearest entries; `update` lets the entries follow.

        Returns:
            The entries [N, R, C, E], through which the gradient passes straight to the latents, and the
            mean squared distance from latents to entries, whose gradient pulls the latents (commitment).
        """
        flat = latents.detach().reshape(-1, latents.shape[-1])
        codes = self._codebook.nearest(flat)
        entries = self._weight[codes].reshape(latents.shape)
        if update:
            self._follow(flat, codes)
        commitment = functional.mse_loss(latents, entries)
        return latents + (entries - latents).detach(), commitment

    def _follow(self, flat: Tensor, codes: Tensor) -> None:
        uses, sums = self._assign(flat, codes)
        self._uses.lerp_(uses, 1 - _DECAY)
        self._sums.lerp_(sums, 1 - _DECAY)
        self._weight.copy_(self._sums / self._uses.clamp(min=1e-6)[:, None])
        dead = self._uses < _DEAD_USE
        fresh = flat[self._pick(len(flat), int(dead.sum()))]
        self._weight[dead] = fresh
        self._sums[dead] = fresh
        self._uses[dead] = 1.0

    def _assign(self, latents: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        uses = torch.bincount(codes, minlength=len(self._weight)).to(latents.dtype)
        sums = torch.zeros_like(self._weight).index_add_(0, codes, latents)
        return uses, sums

    def _pick(self, of: int, count: int) -> Tensor:
        return torch.randint(of, (count,), generator=self._generator).to(self._weight.device)
