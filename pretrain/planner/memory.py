"""Bytes of GPU memory, and of host memory for each GPU, that a training in a layout needs, by formula.

The formulas follow the code that runs: what each recompute policy saves (`pretrain.model.recompute`),
what the loss allocates (`pretrain.model.vocabulary`), what DeepSpeed partitions and buffers under the
settings of `pretrain.parallel.zero`. Tests compare them with measured bytes of small networks.

T tokens of a micro-batch, R = T / tensor tokens of the residual stream, H hidden, K width of all keys, F
feed-forward, V vocabulary; all but R, T and H are divided by `tensor` as well. Values saved by a layer:

    full       R H
    selective  2 R H + (2 H + 2 K + 2 F) T     residual stream; q, k, v, mixture; gate, up (swin norm: 4 R H)
    none       2 R H + 2 T H + (3 H + 3 K + 3 F) T   also inputs of the branches, rotated q and k, SwiGLU
    none, not compiled: + 2 R H + (H + K + F) T      also norms before their weights, SiLU

An action head adds what `pretrain.planner.action_head` says, whole on every tensor-parallel rank.

Offloaded to host memory, where P is a rank's share of the parameters:

    optimizer  master weights and moments 12 P (Lion 8 P), gradients 2 P (accumulated: 4 P), once more in
               fp32 4 P
    all        also the weights 2 P; a layer's weights are still gathered on the GPU
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from pretrain.config import Offload, OptimizerName
from pretrain.model.config import ModelConfig, RecomputePolicy
from pretrain.model.vocabulary import ACCELERATOR_LOGIT_BYTES
from pretrain.planner.action_head import head_activation_bytes, head_parameters

REDUCE_BUCKET = 200_000_000  # gradients; allocated by DeepSpeed at the start
LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters: gathered at a time
STEP_GROUP = 1_000_000_000  # DeepSpeed's sub_group_size: parameters updated at a time
# Bytes for each parameter: fp32 master weight and moments, and working memory of the update (fp32 gradient;
# Lion: also its direction and that scaled).
STATE_BYTES: dict[OptimizerName, int] = {"adamw": 12, "lion": 8}
STEP_BYTES: dict[OptimizerName, int] = {"adamw": 4, "lion": 12}
OFFLOADS: tuple[Offload, ...] = get_args(Offload)


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """One layout of a training: ZeRO stage 3, sequence parallel where `tensor` > 1.

    Attributes:
        tensor: Tensor-parallel size.
        data: Data-parallel size.
        micro_batch: Sequences that one rank processes at a time.
        recompute: Policy as `ModelConfig.recompute`, for all layers.
        accumulates: Whether gradients of several micro-batches are summed, which takes fp32.
        offload: What is in host memory, one of `OFFLOADS`, as `parallel.offload`.
        optimizer: As `optim.name`.
    """

    tensor: int
    data: int
    micro_batch: int
    recompute: RecomputePolicy
    accumulates: bool = False
    offload: Offload = "none"
    optimizer: OptimizerName = "adamw"


@dataclass(frozen=True, slots=True)
class Kernels:
    """How kernels use memory. The defaults are those of a GPU in bf16; tests describe the CPU's.

    Attributes:
        value_bytes: Of an activation and a weight.
        compiled: Whether element-wise functions are compiled, and so save only their inputs.
        dropout_bytes: Of an element of dropout's mask.
        logit_bytes: Maximum size of a block of fp32 logits in bytes.
    """

    value_bytes: int = 2
    compiled: bool = True
    dropout_bytes: int = 1
    logit_bytes: int = ACCELERATOR_LOGIT_BYTES


GPU = Kernels()


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one GPU, and in host memory for it.

    Attributes:
        weights: This rank's share, and the norms that stay whole.
        gradients: This rank's share.
        optimiser: Master weights and moments, fp32.
        activations: Saved between the forward and the backward pass.
        loss: Working memory of the loss's backward pass.
        layer: Working memory of one layer's backward pass: recomputed values and the gradients within.
        update: Working memory of the optimiser step: fp32 gradients and the optimiser's temporaries.
        buffers: ZeRO's: gathered parameters, gradients being reduced.
        host: Offloaded, in host memory.
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
        """Allocated on the GPU throughout, without buffers."""
        return self.weights + self.gradients + self.optimiser

    @property
    def total(self) -> float:
        """The peak on the GPU: loss, layers and update need their working memory one after the other."""
        passes = self.activations + max(self.loss, self.layer)
        return self.state + self.buffers + max(passes, self.update)


def estimate_memory(model: ModelConfig, layout: ParallelLayout, sequence_length: int) -> MemoryEstimate:
    """Memory of one GPU and its share of the host, in bf16 with fp32 master weights."""
    tokens = layout.micro_batch * sequence_length
    matrices, vectors = count_parameters(model, layout.tensor)
    share = (matrices + vectors) / layout.data
    largest = model.vocabulary_size * model.hidden_size / layout.tensor
    live = min(matrices, LIVE_PARAMETERS + largest)
    flattened = max(largest, min(matrices, REDUCE_BUCKET))
    gradients = (4 if layout.accumulates else 2) * share
    weights_on_host, state_on_host = layout.offload == "all", layout.offload != "none"
    state = STATE_BYTES[layout.optimizer]
    weights = 2 * matrices / layout.data
    return MemoryEstimate(
        weights=2 * vectors + (0 if weights_on_host else weights),
        gradients=0 if state_on_host else gradients,
        optimiser=0 if state_on_host else state * share,
        activations=activation_bytes(model, layout.recompute, tokens, layout.tensor),
        loss=loss_bytes(model, tokens, layout.tensor),
        layer=layer_bytes(model, layout.recompute, tokens, layout.tensor),
        update=0 if state_on_host else STEP_BYTES[layout.optimizer] * min(share, STEP_GROUP),
        buffers=2 * (live + REDUCE_BUCKET + flattened),
        host=(weights if weights_on_host else 0) + ((state + 4) * share + gradients if state_on_host else 0),
    )


def count_parameters(model: ModelConfig, tensor: int = 1) -> tuple[int, int]:
    """Parameters of one tensor-parallel rank: in matrices, and in norms (which ZeRO does not partition).

    Those of an action head, which tensor-parallel ranks do not share out, all count as matrices.
    """
    hidden, keys = model.hidden_size, model.shared_heads * model.head_size
    matrices = (model.layers * model.layer_matrices + 2 * model.vocabulary_size * hidden) // tensor
    matrices += head_parameters(model)
    per_head = 2 * (hidden + keys) // tensor
    return matrices, model.layers * (2 * hidden + per_head) + hidden


def activation_bytes(
    model: ModelConfig, policy: RecomputePolicy, tokens: int, tensor: int = 1, kernels: Kernels = GPU
) -> float:
    """Activation bytes between the passes, with the loss over every token."""
    residual = tokens / tensor * model.hidden_size
    ends = residual * (1 if kernels.compiled else 2) + tokens * model.hidden_size
    tables = 2 * tokens * model.head_size
    layers = model.layers * layer_activation_bytes(model, policy, tokens, tensor, kernels)
    head = head_activation_bytes(model, tokens, kernels.value_bytes, kernels.dropout_bytes)
    return layers + kernels.value_bytes * (ends + tables) + head


def layer_activation_bytes(
    model: ModelConfig, policy: RecomputePolicy, tokens: int, tensor: int = 1, kernels: Kernels = GPU
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
    """Working memory of the backward pass of the loss over every token.

    The weight's gradient, the hidden states' gradient in fp32 and one block's part of it, logits of a block.
    """
    rows = model.vocabulary_size / tensor
    block = min(kernels.logit_bytes, 4 * tokens * rows)
    hidden = (4 + kernels.value_bytes) * tokens * model.hidden_size
    return kernels.value_bytes * rows * model.hidden_size + hidden + block * (1 + kernels.value_bytes / 4)


def layer_bytes(
    model: ModelConfig, policy: RecomputePolicy, tokens: int, tensor: int = 1, kernels: Kernels = GPU
) -> float:
    """Working memory of one layer's backward pass, in its feed-forward: recomputed values and gradients."""
    inner = kernels.value_bytes * tokens * model.ffn_size / tensor
    recomputed = 0.0
    if policy == "selective":
        recomputed = inner * (1 if kernels.compiled else 2)
    elif policy == "full":
        layer = layer_activation_bytes(model, "none", tokens, tensor, kernels)
        recomputed = layer - layer_activation_bytes(model, "full", tokens, tensor, kernels)
    matrix = model.ffn_size * model.hidden_size / tensor
    return recomputed + inner + kernels.value_bytes * (tokens * model.hidden_size + matrix)
