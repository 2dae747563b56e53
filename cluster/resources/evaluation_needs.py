"""What the evaluations of a training need of its machines, in words."""

from __future__ import annotations

import math

from cluster.config import RootConfig
from data.sizes import parse_bytes
from pretrain.planner.evaluation import LARGE, EvaluationMemory, cpu_chunk_seconds, evaluation_memory
from pretrain.planner.gpus import DEFAULT_MEMORY_RESERVE
from pretrain.planner.parameters import count_parameters

_SHARES = 20  # a GPU is shared in twentieths


def evaluation_line(config: RootConfig) -> str:
    """What an evaluation beside the training needs, and whether it has it."""
    evaluation, need = config.eval, _memory(config)
    words = f"{describe_memory(need)}{_usable_share(config, need)}"
    if evaluation.every == 0:
        return f"evaluations: none beside the training (eval.every=0); a policy would take {words}"
    if evaluation.gpus > 0:
        return f"evaluations: every {evaluation.every} steps, eval.gpus={evaluation.gpus:g}; {words}"
    return (
        f"evaluations: every {evaluation.every} steps, on CPUs (eval.gpus=0), {_cpu_time(config)}; or {words}"
    )


def slow_evaluation_warning(config: RootConfig) -> str | None:
    """A line where a large network would act on CPUs; None otherwise."""
    parameters = sum(count_parameters(config.model))
    if config.eval.every == 0 or config.eval.gpus > 0 or parameters < LARGE:
        return None
    return (
        f"evaluations would run a network of {parameters / 1e9:.1f} billion parameters on CPUs "
        f"(eval.gpus=0), {_cpu_time(config)}; give them a GPU of their own (eval.gpus=1), or set "
        "eval.every=0 and evaluate checkpoints with `worldvla eval`"
    )


def describe_memory(need: EvaluationMemory) -> str:
    """The memory of a policy in words."""
    return (
        f"at most {need.total / 1e9:.0f} GB of a GPU (weights {need.weights / 1e9:.1f}, keys and values "
        f"{need.cache / 1e9:.1f}, working memory {need.working / 1e9:.1f}, image tokenizer "
        f"{need.tokenizer / 1e9:.1f}; estimate, not measured)"
    )


def _memory(config: RootConfig) -> EvaluationMemory:
    return evaluation_memory(config.model, config.eval.batch, config.eval.policy_servers)


def _usable_share(config: RootConfig, need: EvaluationMemory) -> str:
    """Whether the GPU that evaluations are given has the memory; empty where its size is not known."""
    if config.cluster.gpu_memory is None:
        return ""
    usable = parse_bytes("cluster.gpu_memory", config.cluster.gpu_memory) * (1 - DEFAULT_MEMORY_RESERVE)
    least = math.ceil(_SHARES * need.total / usable) / _SHARES
    if least > 1:
        return f", more than the {usable / 1e9:.0f} GB of one; lower eval.batch or eval.policy_servers"
    given = min(1.0, config.eval.gpus)
    if config.eval.every == 0 or given == 0 or given >= least:
        return f"; eval.gpus={least:g} is enough"
    return f", more than that share's {given * usable / 1e9:.0f} GB; set eval.gpus={least:g} or more"


def _cpu_time(config: RootConfig) -> str:
    return (
        f"about {cpu_chunk_seconds(config.model):.0f} s for each chunk of actions of each robot by estimate"
    )
