"""Limits and restarts, which cannot be measured without thousands of GPUs, as formulas over stated inputs.

Every function takes `Inputs`; its values are assumptions or published figures, as stated for each. The step
itself is the planner's estimate (`pretrain.planner.speed`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.scale_measured import CheckpointCost, PlanCost, episode_bytes
from benchmarks.scale_reading import NodeMemory, NodeRequests
from data.storage.shared_memory import LIMIT
from data.stream.episodes.episode_memory import MEGABYTE
from data.stream.samples import SampleForm
from data.tokens.vocabulary import ACTION_BLOCK_LENGTH
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.speed import StepEstimate

MINUTE, HOUR = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of the formulas.

    Attributes:
        node_gpus: GPUs, and ranks, of a node.
        node_cpus: Logical CPUs of a node.
        memory_megabytes: `data.memory_megabytes`.
        node_cache: Bytes of episodes that the ranks of a node share in memory, by default.
        requests: Range requests a second that a store serves from one prefix (S3's documentation: 5,500).
        node_storage: Bytes a second between a node and the store; assumed, half a 100 Gbit/s card.
        total_storage: Bytes a second of the store; assumed.
        gpu_hours_between_interruptions: Of the whole run; 419 unexpected interruptions in 54 days of 16,384
            H100 (Llama 3, arXiv 2407.21783).
        detect_seconds: Until a lost rank is noticed by the others and the supervisor; assumed.
        start_seconds: Until every process has been started, has imported what it needs and has its network;
            measured 45 s for imports and Ray on two CPU cores, the rest assumed.
        warm_seconds: Compilation and first steps; assumed.
        stall_seconds_per_byte: A save's hold-up of the training; measured below 2 ms a GB of a rank's part.
        most_tokens: Tokens of a batch beyond which larger ones are not known to help; the largest of
            published runs of this kind of network.
        most_lost: Share of the time that restarts and saves may take before they count as a bottleneck.
    """

    node_gpus: int = 8
    node_cpus: int = 96
    memory_megabytes: int = 512
    node_cache: float = LIMIT
    requests: float = 5_500.0
    node_storage: float = 6e9
    total_storage: float = 200e9
    gpu_hours_between_interruptions: float = 16_384 * 54 * 24 / 419
    detect_seconds: float = 30.0
    start_seconds: float = 90.0
    warm_seconds: float = 60.0
    stall_seconds_per_byte: float = 2e-12
    most_tokens: float = 16e6
    most_lost: float = 0.05


@dataclass(frozen=True, slots=True)
class Reading:
    """Load of a run on its storage.

    Attributes:
        requests: A second, of all nodes.
        bytes: A second, of all nodes.
        requests_per_episode: Of an epoch.
        copies: Bytes of an epoch over those of the data set.
        first_minute: Requests a second in the first minute, in which every memory is empty.
    """

    requests: float
    bytes: float
    requests_per_episode: float
    copies: float
    first_minute: float


def node_memory(layout: ParallelLayout, form: SampleForm, mean_steps: int, inputs: Inputs) -> NodeMemory:
    """What the ranks of a node hold of episodes of `mean_steps` steps; several ranks share a cache."""
    ranks = min(inputs.node_gpus, layout.tensor * layout.data)
    ring = inputs.memory_megabytes * MEGABYTE // (2 * (form.frame + ACTION_BLOCK_LENGTH))
    episodes = int(inputs.node_cache // episode_bytes(mean_steps)) if ranks > 1 else 0
    return NodeMemory(ranks // layout.tensor, layout.tensor, ring, episodes * mean_steps)


def reading(
    found: NodeRequests, step: StepEstimate, nodes: float, episodes: int, episode_size: int
) -> Reading:
    """Requests of all nodes from those of one.

    Args:
        found: Requests of a node.
        step: How long a step lasts.
        nodes: Of the run.
        episodes: Of the data set.
        episode_size: Bytes of a mean episode.
    """
    epoch = nodes * found.epoch_steps / episodes
    minute = found.first[: max(1, round(MINUTE / step.seconds))]
    return Reading(
        requests=nodes * found.of_step / step.seconds,
        bytes=nodes * found.episodes * episode_size / step.seconds,
        requests_per_episode=epoch * found.of_step,
        copies=epoch * found.episodes,
        first_minute=nodes * float(minute.sum()) / max(MINUTE, step.seconds),
    )


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
        "ZeRO-3 network": (step.partition + step.exposed) / step.compute,
        "tensor parallel": step.tensor / step.compute,
        "batch size": tokens / inputs.most_tokens,
        "checkpoint bytes": recovered.write_seconds / recovered.interval_seconds,
        "rank 0's commit": checkpoint.commit_seconds / recovered.interval_seconds,
        "restarts": recovered.lost / inputs.most_lost,
        "data plan": plan.step_seconds / step.seconds,
    }
