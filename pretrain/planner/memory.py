"""Bytes that one GPU, and the host for it, needs for a training in a layout, by formula.

Everything here follows the code that runs: what each recompute policy keeps (`pretrain.model.recompute`),
what the loss holds (`pretrain.model.vocabulary`), what DeepSpeed partitions and buffers under the
settings of `pretrain.parallel.zero`. Tests hold the formulas against measured bytes of small networks.

T tokens of a micro-batch, R = T / tensor tokens of the residual stream, H hidden, K width of all keys, F
feed-forward, V vocabulary; all but R, T and H are divided by `tensor` as well. Values a layer keeps:

    full       R H
    selective  2 R H + (2 H + 2 K + 2 F) T     residual stream; q, k, v, mixture; gate, up (swin norm: 4 R H)
    none       2 R H + 2 T H + (3 H + 3 K + 3 F) T   also inputs of the branches, turned q and k, SwiGLU
    none, not compiled: + 2 R H + (H + K + F) T      also norms before their weights, SiLU

What is offloaded lies in host memory, P a rank's share of the parameters:

    optimizer  master weights and moments 12 P (Lion 8 P), gradients 2 P (accumulated: 4 P), once more in
               fp32 4 P
    all        also the weights 2 P; what a layer needs is gathered on the GPU as ever
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from pretrain.config import Offload, OptimizerName
from pretrain.model.config import ModelConfig
from pretrain.model.vocabulary import ACCELERATOR_LOGIT_BYTES

REDUCE_BUCKET = 200_000_000  # gradients; DeepSpeed allocates all of it at the start
LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters: gathered at a time
STEP_GROUP = 1_000_000_000  # DeepSpeed's sub_group_size: parameters updated at a time
# Bytes of a parameter.
STATE_BYTES: dict[OptimizerName, int] = {
    "adamw": 12,
    "lion": 8,
}  # master weight and moments, fp32
STEP_BYTES: dict[OptimizerName, int] = {
    "adamw": 4,
    "lion": 12,
}  # fp32 gradient in the update; Lion: also its direction
OFFLOADS: tuple[Offload, ...] = get_args(Offload)


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to train; ZeRO stage 3, sequence parallel where `tensor` > 1.

    Attributes:
        tensor: Tensor-parallel size.
        data: Data-parallel size.
        micro_batch: Sequences that one rank processes at a time.
        recompute: Policy as `ModelConfig.recompute`, for all layers.
        accumulates: Whether gradients of several micro-batches are added up, which takes fp32.
        offload: What lies in host memory, one of `OFFLOADS`, as `parallel.offload`.
        optimizer: As `optim.name`.
    """

    tensor: int
    data: int
    micro_batch: int
    recompute: str
    accumulates: bool = False
    offload: Offload = "none"
    optimizer: OptimizerName = "adamw"


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the hardware keeps. The defaults are a GPU's in bf16; tests describe the CPU's.

    Attributes:
        value_bytes: Of an activation and a weight.
        compiled: Whether element-wise functions are compiled, and so keep their inputs alone.
        dropout_bytes: Of an element of dropout's mask.
        logit_bytes: Most bytes of a block of fp32 logits.
    """

    value_bytes: int = 2
    compiled: bool = True
    dropout_bytes: int = 1
    logit_bytes: int = ACCELERATOR_LOGIT_BYTES


GPU = Kernels()


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU, and in host memory for it.

    Attributes:
        weights: This rank's share, and the norms that stay whole.
        gradients: This rank's share.
        optimiser: Master weights and moments, fp32.
        activations: Kept between the forward and the backward pass.
        loss: While the loss has its gradient.
        layer: While one layer has its gradient: what is made again, and the gradients within.
        update: fp32 gradients while the optimiser steps, and what it computes with.
        buffers: ZeRO's: gathered parameters, gradients on their way.
        host: What is offloaded, in host memory.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    loss: float
    layer: float
    update: float
    buffers: float
    host: float = 0.0

    @property
    def state(self) -> float:
        """What is held on the GPU all the time, without buffers."""
        return self.weights + self.gradients + self.optimiser

    @property
    def total(self) -> float:
        """The peak on the GPU: loss, layers and update come one after the other."""
        passes = self.activations + max(self.loss, self.layer)
        return self.state + self.buffers + max(passes, self.update)


def memory(model: ModelConfig, layout: Layout, sequence_length: int) -> Memory:
    """Of one GPU and its share of the host, in bf16 with fp32 master weights."""
    tokens = layout.micro_batch * sequence_length
    matrices, vectors = parameters(model, layout.tensor)
    share = (matrices + vectors) / layout.data
    largest = model.vocabulary_size * model.hidden_size / layout.tensor
    live = min(matrices, LIVE_PARAMETERS + largest)
    flattened = max(largest, min(matrices, REDUCE_BUCKET))
    gradients = (4 if layout.accumulates else 2) * share
    weights_there, state_there = layout.offload == "all", layout.offload != "none"
    state = STATE_BYTES[layout.optimizer]
    held_weights = 2 * matrices / layout.data
    return Memory(
        weights=2 * vectors + (0 if weights_there else held_weights),
        gradients=0 if state_there else gradients,
        optimiser=0 if state_there else state * share,
        activations=kept(model, layout.recompute, tokens, layout.tensor),
        loss=loss_bytes(model, tokens, layout.tensor),
        layer=layer_bytes(model, layout.recompute, tokens, layout.tensor),
        update=0 if state_there else STEP_BYTES[layout.optimizer] * min(share, STEP_GROUP),
        buffers=2 * (live + REDUCE_BUCKET + flattened),
        host=(held_weights if weights_there else 0) + ((state + 4) * share + gradients if state_there else 0),
    )


def parameters(model: ModelConfig, tensor: int = 1) -> tuple[int, int]:
    """Values of one tensor-parallel rank: in matrices, and in norms (ZeRO keeps those whole)."""
    hidden, keys = model.hidden_size, model.shared_heads * model.head_size
    matrices = (model.layers * model.layer_matrices + 2 * model.vocabulary_size * hidden) // tensor
    per_head = 2 * (hidden + keys) // tensor
    return matrices, model.layers * (2 * hidden + per_head) + hidden


def kept(model: ModelConfig, policy: str, tokens: int, tensor: int = 1, kernels: Kernels = GPU) -> float:
    """Activation bytes between the passes, with the loss over every token."""
    residual = tokens / tensor * model.hidden_size
    ends = residual * (1 if kernels.compiled else 2) + tokens * model.hidden_size
    tables = 2 * tokens * model.head_size
    layers = model.layers * kept_by_layer(model, policy, tokens, tensor, kernels)
    return layers + kernels.value_bytes * (ends + tables)


def kept_by_layer(
    model: ModelConfig, policy: str, tokens: int, tensor: int = 1, kernels: Kernels = GPU
) -> float:
    """Activation bytes of one layer; see the formulas above."""
    whole = tokens * model.hidden_size
    residual, queries, inner = whole / tensor, whole / tensor, tokens * model.ffn_size / tensor
    keys = tokens * model.shared_heads * model.head_size / tensor
    if policy == "full":
        return kernels.value_bytes * residual
    values = 2 * residual + 2 * queries + 2 * keys + 2 * inner
    statistics = 4 * tokens * model.heads / tensor  # log-sum-exps of attention
    if policy == "selective":
        values += 2 * residual if model.swin_norm else 0
    else:
        values += 2 * whole + queries + keys + inner
        values += 0 if kernels.compiled else 2 * residual + queries + keys + inner
        statistics += 8 * tokens * (model.heads + model.shared_heads) / tensor
    dropped = 2 * residual * kernels.dropout_bytes if model.dropout else 0
    return kernels.value_bytes * values + statistics + dropped


def loss_bytes(model: ModelConfig, tokens: int, tensor: int = 1, kernels: Kernels = GPU) -> float:
    """While the loss over every token has its gradient.

    The weight's gradient, the hidden states' gradient in fp32 and a block's part of it, logits of a block.
    """
    rows = model.vocabulary_size / tensor
    block = min(kernels.logit_bytes, 4 * tokens * rows)
    hidden = (4 + kernels.value_bytes) * tokens * model.hidden_size
    return kernels.value_bytes * rows * model.hidden_size + hidden + block * (1 + kernels.value_bytes / 4)


def layer_bytes(
    model: ModelConfig, policy: str, tokens: int, tensor: int = 1, kernels: Kernels = GPU
) -> float:
    """While one layer has its gradient, in its feed-forward: what is made again and the gradients there."""
    inner = kernels.value_bytes * tokens * model.ffn_size / tensor
    again = 0.0
    if policy == "selective":
        again = inner * (1 if kernels.compiled else 2)
    elif policy == "full":
        layer = kept_by_layer(model, "none", tokens, tensor, kernels)
        again = layer - kept_by_layer(model, "full", tokens, tensor, kernels)
    matrix = model.ffn_size * model.hidden_size / tensor
    return again + inner + kernels.value_bytes * (tokens * model.hidden_size + matrix)
