"""Limits and restarts, which cannot be measured without thousands of GPUs, as formulas over stated inputs.

Every function takes `Inputs`; its values are assumptions or published figures, as stated for each. The step
itself is the planner's estimate (`pretrain.planner.speed`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.scale_measured import CheckpointCost, PlanCost
from data.stream.episode_memory import MEGABYTE
from data.stream.samples import SampleForm
from data.tokens.vocabulary import ACTION_BLOCK_LENGTH
from pretrain.planner.speed import StepEstimate

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of the formulas.

    Attributes:
        node_gpus: GPUs, and ranks, of a node.
        node_cpus: Logical CPUs of a node.
        memory_megabytes: `data.memory_megabytes`.
        requests: Range requests a second that a store serves from one prefix (S3's documentation: 5,500).
        node_storage: Bytes a second between a node and the store; assumed, half a 100 Gbit/s card.
        total_storage: Bytes a second of the store; assumed.
        gpu_hours_between_interruptions: Of the whole run; 419 unexpected interruptions in 54 days of 16,384
            H100 (Llama 3, arXiv 2407.21783).
        detect_seconds: Until a lost rank is noticed by the others and the supervisor; assumed.
        start_seconds: Until every process has been started, has imported what it needs and has its network;
            measured 45 s for imports and Ray on two CPU cores, the rest assumed.
        warm_seconds: Compilation and first steps; assumed.
        stall_seconds_per_byte: A save's hold-up of the training; measured at most 1 s a GB of a rank's part.
        most_tokens: Tokens of a batch beyond which larger ones are not known to help; the largest of
            published runs of this kind of network.
        most_lost: Share of the time that restarts and saves may take before they count as a bottleneck.
    """

    node_gpus: int = 8
    node_cpus: int = 96
    memory_megabytes: int = 512
    requests: float = 5_500.0
    node_storage: float = 6e9
    total_storage: float = 200e9
    gpu_hours_between_interruptions: float = 16_384 * 54 * 24 / 419
    detect_seconds: float = 30.0
    start_seconds: float = 90.0
    warm_seconds: float = 60.0
    stall_seconds_per_byte: float = 1e-9
    most_tokens: float = 16e6
    most_lost: float = 0.05


@dataclass(frozen=True, slots=True)
class Reading:
    """Load of a run on its storage after the first steps.

    Attributes:
        hit: Share of the windows whose episode is in the rank's memory.
        requests: A second, of all ranks.
        bytes: A second, of all ranks.
    """

    hit: float
    requests: float
    bytes: float


def reading(
    plan: PlanCost,
    step: StepEstimate,
    ranks: int,
    total_steps: int,
    episode_size: int,
    form: SampleForm,
    inputs: Inputs,
) -> Reading:
    """A window is cut from an episode in memory, or one range request fetches the episode.

    Windows come in a random order, so the share that is in memory is the memory's share of the data.

    Args:
        plan: Windows of a data-parallel rank in a step.
        step: How long it lasts.
        ranks: Of the run; tensor-parallel peers read the same for themselves.
        total_steps: Time steps of the data set.
        episode_size: Bytes of a mean episode.
        form: Of the samples.
        inputs: The memory.
    """
    held = inputs.memory_megabytes * MEGABYTE // (2 * (form.frame + ACTION_BLOCK_LENGTH))
    hit = min(1.0, held / total_steps)
    requests = ranks * plan.windows * (1 - hit) / step.seconds
    return Reading(hit, requests, requests * episode_size)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What interruptions cost.

    Attributes:
        restart_seconds: From the loss of a rank to the next step.
        write_seconds: Of a checkpoint, in the background.
        interval_seconds: Between checkpoints, where the least is lost.
        between_seconds: Mean time between interruptions.
        lost: Share of the time that goes into saves, restarts and repeated work.
    """

    restart_seconds: float
    write_seconds: float
    interval_seconds: float
    between_seconds: float
    lost: float


def recovery(checkpoint: CheckpointCost, plan: PlanCost, ranks: int, inputs: Inputs) -> Recovery:
    """Checkpoints at the interval where saves and repeated work cost the same (Young 1974)."""
    nodes = math.ceil(ranks / inputs.node_gpus)
    bandwidth = min(nodes * inputs.node_storage, inputs.total_storage)
    transfer = checkpoint.bytes / bandwidth
    restart = inputs.detect_seconds + inputs.start_seconds + inputs.warm_seconds
    restart += transfer + checkpoint.open_seconds + plan.start_seconds
    write = transfer + checkpoint.commit_seconds
    stall = inputs.stall_seconds_per_byte * checkpoint.rank_bytes
    between = inputs.gpu_hours_between_interruptions / ranks * HOUR
    interval = max(math.sqrt(2 * stall * between), write)
    lost = stall / interval + (interval / 2 + restart) / between
    return Recovery(restart, write, interval, between, lost)


def loads(
    step: StepEstimate,
    read: Reading,
    recovered: Recovery,
    checkpoint: CheckpointCost,
    plan: PlanCost,
    ranks: int,
    tokens: int,
    inputs: Inputs,
) -> dict[str, float]:
    """Load of each limit: demand over capacity; at 1 the run waits only for it."""
    nodes = math.ceil(ranks / inputs.node_gpus)
    storage = min(nodes * inputs.node_storage, inputs.total_storage)
    return {
        "data requests": read.requests / inputs.requests,
        "data bytes": read.bytes / storage,
        "ZeRO-3 network": step.partition / step.compute,
        "tensor parallel": step.tensor / step.compute,
        "batch size": tokens / inputs.most_tokens,
        "checkpoint bytes": recovered.write_seconds / recovered.interval_seconds,
        "rank 0's commit": checkpoint.commit_seconds / recovered.interval_seconds,
        "restarts": recovered.lost / inputs.most_lost,
        "data plan": plan.step_seconds / step.seconds,
    }
