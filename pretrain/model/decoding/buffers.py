"""Everything that a decoding step reads and writes, at addresses that outlast one answer.

A policy decodes thousands of answers of a few shapes. Their buffers, and the steps captured on them, are
kept with the model: a session takes them and gives them back, so two sessions never share any.

Shapes: B prompts, A answer tokens, C capacity of the cache, P chosen tokens, N ids to choose among.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from pretrain.model.cache import DecodingCache
from pretrain.model.config import ModelConfig
from pretrain.model.decoding.graphs import CudaGraphs, GraphedStep, Graphs
from pretrain.model.transformer import Transformer

_KEPT = 8  # shapes a model: a policy has a few sizes of batches and widths of prompts


class BufferShape(NamedTuple):
    """What buffers are made for.

    Attributes:
        batch: B.
        answer: A.
        capacity: C.
        noise: Shape [B', P, N] of the noise of sampling; None: greedy. (B' is B, without guidance's
            unconditional prompts.)
        device: Of the model.
        dtype: Of the cache.
    """

    batch: int
    answer: int
    capacity: int
    noise: tuple[int, ...] | None
    device: torch.device
    dtype: torch.dtype


class AnswerBuffers:
    """The buffers of B prompts and their answers, on the device.

    Args:
        config: Of the model.
        shape: Sizes.

    Attributes:
        shape: As given.
        cache: Keys and values.
        tokens: Answer tokens int64 [B, A]: forced ones from the start, chosen ones as they are decoded.
        blocks: int64 [A], block id of each answer token.
        places: int64 [A], for a token after which one is chosen: its number among the chosen ones.
        entropy: fp32 [B, A], of the distribution that each token was chosen from, in nats, where a step was
            asked for it.
        ends: int64 [B, 1], tokens of each prompt: position of the first answer token.
        noise: fp32 [B', P, N]; None: greedy.
        steps: Captured steps; see `DecodingSession.run`.
    """

    def __init__(self, config: ModelConfig, shape: BufferShape) -> None:
        batch, answer, capacity, noise, device, dtype = shape
        self.shape = shape
        with torch.inference_mode(False):  # tensors made in inference mode could not be written outside it
            self.cache = DecodingCache(config, batch, capacity, device, dtype)
            self.tokens = torch.zeros(batch, answer, dtype=torch.int64, device=device)
            self.blocks = torch.zeros(answer, dtype=torch.int64, device=device)
            self.places = torch.zeros_like(self.blocks)
            self.entropy = torch.zeros(batch, answer, device=device)
            self.ends = torch.zeros(batch, 1, dtype=torch.int64, device=device)
            self.noise = None if noise is None else torch.zeros(noise, device=device)
        self.steps: dict[Hashable, GraphedStep] = {}


class BufferPool:
    """Idle buffers of a model, the most recently used few of them; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: OrderedDict[BufferShape, AnswerBuffers] = OrderedDict()
        self._weights: tuple[int, ...] | None = None
        self._graphs: dict[torch.device, Graphs] = {}

    def take(self, model: Transformer, shape: BufferShape, captured: bool = False) -> AnswerBuffers:
        """Idle buffers of this shape, or new ones; contents are those of an earlier answer.

        Args:
            model: Whose pool it is.
            shape: Of the buffers.
            captured: Their captured steps are to be run. All buffers are forgotten where the model's weights
                have moved since: those steps read the old addresses.
        """
        weights = tuple(parameter.data_ptr() for parameter in model.parameters()) if captured else None
        with self._lock:
            if captured and weights != self._weights:
                self._weights = weights
                self._idle.clear()
            kept = self._idle.pop(shape, None)
        return AnswerBuffers(model.config, shape) if kept is None else kept

    def give(self, buffers: AnswerBuffers) -> None:
        """Keep buffers that no session uses any more."""
        with self._lock:
            self._idle[buffers.shape] = buffers
            self._idle.move_to_end(buffers.shape)
            while len(self._idle) > _KEPT:
                self._idle.popitem(last=False)

    def graphs(self, device: torch.device) -> Graphs | None:
        """CUDA graphs of the model's steps on this device; None where it is no GPU."""
        if device.type != "cuda":
            return None
        with self._lock:
            if device not in self._graphs:
                self._graphs[device] = Graphs(CudaGraphs(device))
            return self._graphs[device]


_POOLS: WeakKeyDictionary[Transformer, BufferPool] = WeakKeyDictionary()
_POOLS_LOCK = threading.Lock()


def pool_of(model: Transformer) -> BufferPool:
    """The buffers of a model, which are freed with it."""
    with _POOLS_LOCK:
        return _POOLS.setdefault(model, BufferPool())
