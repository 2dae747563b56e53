"""A codebook trained by k-means initialisation, moving averages of the latents, and restarts.

Source: van den Oord et al., "Neural Discrete Representation Learning" (2017), appendix A.1 (moving
averages); restarting unused entries follows Jukebox (Dhariwal et al., 2020, section 3), here at latents
drawn by their squared error as in k-means++, since rare content (a small object) is what lacks entries.
Shape letters: N frames, R C rows and columns of codes, E embedding, L latents of several frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from data.tokens.image_model import Codebook

_DECAY = 0.99
_DEAD_USE = 0.005  # moving mean of uses in a batch below which an entry restarts: none in about 100 batches
_RESTART_USE = 0.1  # initial moving mean of a restarted entry
_KMEANS_ROUNDS = 15


class MovingCodebook:
    """Updates the entries of `codebook` to moving averages of the latents assigned to them.

    Args:
        codebook: Its entries no longer take gradients.
        seed: Of the choices among latents.
    """

    def __init__(self, codebook: Codebook, seed: int) -> None:
        self._codebook = codebook
        self._weight = codebook.embedding.weight.requires_grad_(False)
        self._generator = torch.Generator().manual_seed(seed)
        self._uses = torch.ones(len(self._weight), device=self._weight.device)
        self._sums = self._weight.clone()

    def start(self, latents: Tensor) -> None:
        """Initialise the entries by k-means on latents [L, E], many more than there are entries."""
        chosen = torch.randint(len(latents), (len(self._weight),), generator=self._generator)
        self._weight.copy_(latents[chosen.to(latents.device)])
        for _ in range(_KMEANS_ROUNDS):
            codes = self._codebook.nearest(latents)
            uses, sums = self._assign(latents, codes)
            empty = uses == 0
            fresh = self._worst(latents, codes, int(empty.sum()))
            self._weight.copy_(sums / uses.clamp(min=1)[:, None])
            self._weight[empty] = fresh
        self._uses.fill_(1.0)
        self._sums.copy_(self._weight)

    def quantise(self, latents: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """Replace latents [N, R, C, E] by their nearest entries.

        Args:
            latents: Of several frames.
            update: Whether the entries move towards the latents.

        Returns:
            The entries [N, R, C, E], with a straight-through gradient to the latents, and the commitment
            loss, a scalar: the mean squared distance from latents to entries.
        """
        flat = latents.detach().reshape(-1, latents.shape[-1])
        codes = self._codebook.nearest(flat)
        entries = self._weight[codes].reshape(latents.shape)
        if update:
            self._update(flat, codes)
        commitment = functional.mse_loss(latents, entries)
        return latents + (entries - latents).detach(), commitment

    def _update(self, flat: Tensor, codes: Tensor) -> None:
        uses, sums = self._assign(flat, codes)
        self._uses.lerp_(uses, 1 - _DECAY)
        self._sums.lerp_(sums, 1 - _DECAY)
        dead = self._uses < _DEAD_USE
        fresh = self._worst(flat, codes, int(dead.sum()))
        self._uses[dead] = _RESTART_USE
        self._sums[dead] = _RESTART_USE * fresh
        self._weight.copy_(self._sums / self._uses[:, None])

    def _assign(self, latents: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        uses = torch.bincount(codes, minlength=len(self._weight)).to(latents.dtype)
        sums = torch.zeros_like(self._weight).index_add_(0, codes, latents)
        return uses, sums

    def _worst(self, latents: Tensor, codes: Tensor, count: int) -> Tensor:
        """`count` of the latents [L, E], drawn by squared distance from their entries."""
        if count == 0:
            return latents[:0]
        errors = (latents - self._weight[codes]).square().sum(1) + 1e-12  # all may be met exactly
        return latents[torch.multinomial(errors.cpu(), count, True, generator=self._generator)]
