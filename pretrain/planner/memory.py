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

What ZeRO holds and buffers at each stage: `pretrain.planner.zero_state`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.model.config import ModelConfig, RecomputePolicy
from pretrain.model.vocabulary import ACCELERATOR_LOGIT_BYTES
from pretrain.planner.action_head import head_activation_bytes
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.zero_state import zero_state


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
        weights: In bf16; of stage 3 this rank's share (hpZ: and its second copy), and the norms whole.
        gradients: This rank's share.
        optimiser: Master weights, moments and, if there is one, the weights' average, fp32.
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


def estimate_memory(
    model: ModelConfig,
    layout: ParallelLayout,
    sequence_length: int,
    node_gpus: int = 8,
    kernels: Kernels = GPU,
) -> MemoryEstimate:
    """Memory of one GPU and its share of the host, in bf16 with fp32 master weights.

    Args:
        model: The network.
        layout: Of the ranks.
        sequence_length: Tokens of a sequence.
        node_gpus: GPUs of one node: the buffers of stage 3 are smaller inside one.
        kernels: How activations are held.
    """
    tokens = layout.micro_batch * sequence_length
    state = zero_state(model, layout, node_gpus)
    return MemoryEstimate(
        weights=state.weights,
        gradients=state.gradients,
        optimiser=state.optimiser,
        activations=activation_bytes(model, layout.recompute, tokens, layout.tensor, kernels),
        loss=loss_bytes(model, tokens, layout.tensor, kernels),
        layer=layer_bytes(model, layout.recompute, tokens, layout.tensor, kernels),
        update=state.update,
        buffers=state.buffers,
        host=state.host,
    )


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
