"""What the policy of an evaluation needs: memory of a GPU, or time on CPUs. Estimates, not measurements.

Bytes, b of a value (2 in bf16), N parameters, B observations at a time, L longest sample in tokens, K width
of all keys, F feed-forward, H hidden, V vocabulary; times the processes that run the policy:

    weights      N b
    cache        2 layers B L K b            keys and values
    working      B L (3 F + 4 H) b           one layer while prompts are read
                 + B 128 V 4                 fp32 logits of the tokens that are decoded at once
    tokenizer    2 GB                        the image tokenizer and its activations; assumed

All of it at most: prompts are mostly shorter than the longest sample. Seconds of a chunk on one CPU thread,
in fp32, for a prompt of T tokens that is read in one pass and R further passes:

    2 N T / FLOP/s + R 4 N / bandwidth
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.model.config import ModelConfig
from pretrain.planner.parameters import count_parameters

LARGE = 1_000_000_000  # parameters from which a policy is not for CPUs
_DECODED = 128  # tokens that are decoded at once, at most
_TOKENIZER = 2e9
_PROMPT = 600  # tokens: two frames of 256 pixels and an instruction
_PASSES = 7  # of a chunk that is decoded in parallel
_THREAD_FLOPS = 50e9  # of one CPU thread in fp32; assumed
_THREAD_BANDWIDTH = 10e9  # bytes a second of memory that one thread reads; assumed


@dataclass(frozen=True, slots=True)
class EvaluationMemory:
    """Bytes of a GPU for the policy of an evaluation, at most.

    Attributes:
        weights: Of the network.
        cache: Keys and values of prompts and chunks.
        working: Temporaries of the network.
        tokenizer: Image tokenizer.
    """

    weights: float
    cache: float
    working: float
    tokenizer: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.cache + self.working + self.tokenizer


def evaluation_memory(model: ModelConfig, batch: int, processes: int = 1) -> EvaluationMemory:
    """Memory of a policy in bf16.

    Args:
        model: The network.
        batch: Observations that a process decides on at once.
        processes: That run the policy on this GPU.
    """
    tokens, width = batch * model.max_positions, model.shared_heads * model.head_size
    working = 2 * tokens * (3 * model.ffn_size + 4 * model.hidden_size)
    return EvaluationMemory(
        weights=2.0 * processes * sum(count_parameters(model)),
        cache=2.0 * processes * 2 * model.layers * tokens * width,
        working=float(processes * (working + 4 * batch * _DECODED * model.vocabulary_size)),
        tokenizer=processes * _TOKENIZER,
    )


def cpu_chunk_seconds(model: ModelConfig) -> float:
    """Seconds that one CPU thread takes for a chunk of actions."""
    parameters = sum(count_parameters(model))
    return 2 * parameters * _PROMPT / _THREAD_FLOPS + _PASSES * 4 * parameters / _THREAD_BANDWIDTH
