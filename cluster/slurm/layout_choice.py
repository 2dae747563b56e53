"""The parallel layout of a job: the one that was given, or the quickest that fits the requested GPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.overrides import key_of, override
from cluster.slurm.config import SubmitConfig
from cluster.slurm.sbatch import gpus_per_node
from data.errors import InputError
from data.sizes import parse_bytes
from pretrain.checks import check_training
from pretrain.config import ZeroStage
from pretrain.model.config import RECOMPUTE_POLICIES
from pretrain.planner.gpus import DEFAULT_EFFICIENCY, DEFAULT_MEMORY_RESERVE, Machine
from pretrain.planner.layouts import MICRO_BATCHES, LayoutEstimate, LayoutRequest, feasible_layouts
from pretrain.planner.parallel_layout import STAGES

_LAYOUT_KEYS = {"parallel", "parallel.tensor", "parallel.data"}


def choose_layout(config: SubmitConfig, overrides: Sequence[str]) -> list[str]:
    """The layout as `key=value` words: none if the user gave it, else the quickest that fits the GPUs.

    Args:
        config: Settings of the training and of the job.
        overrides: `key=value` words of the command line; what they set is not chosen.

    Raises:
        InputError: The given layout does not use the requested GPUs, or none fits.
    """
    if config.nodes < 1:
        raise InputError(f"nodes={config.nodes}, expected 1 or more")
    gpus, evaluation = config.nodes * gpus_per_node(config), _evaluation_gpus(config)
    training = _training_gpus(config, evaluation)
    given = {key_of(word) for word in overrides}
    if gpus and not given & _LAYOUT_KEYS:
        layout = _quickest(config, training, given).layout
        chosen = {
            "parallel.tensor": layout.tensor,
            "parallel.data": layout.data,
            "parallel.sequence_parallel": layout.tensor > 1,
            "parallel.zero_stage": layout.zero_stage,
            "parallel.hpz_partition_size": layout.hpz,
            "trainer.micro_batch": layout.micro_batch,
            "model.recompute": layout.recompute,
        }
        return [override(key, value) for key, value in chosen.items() if key not in given]
    check_training(config)
    ranks = config.parallel.tensor * config.parallel.data
    if gpus and not training <= ranks <= gpus - evaluation:
        apart = f", {evaluation} of them for evaluations (eval.gpus)" if evaluation else ""
        raise InputError(
            f"parallel.tensor x parallel.data = {ranks} ranks, but nodes={config.nodes} have {gpus} GPUs"
            f"{apart}; change one of them, or leave parallel.* out to have it chosen"
        )
    return []


def _evaluation_gpus(config: SubmitConfig) -> int:
    return math.ceil(config.eval.gpus) if config.eval.every > 0 and gpus_per_node(config) else 0


def _training_gpus(config: SubmitConfig, evaluation: int) -> int:
    """GPUs of the ranks: of several nodes evaluations have one for themselves, for ranks are whole nodes'."""
    each = gpus_per_node(config)
    if evaluation == 0:
        return config.nodes * each
    if evaluation >= each * config.nodes:
        raise InputError(
            f"eval.gpus={config.eval.gpus:g} leaves no GPU of nodes={config.nodes} to the training; lower "
            "it, set eval.every=0, or take more nodes"
        )
    return each - evaluation if config.nodes == 1 else (config.nodes - 1) * each


def _quickest(config: SubmitConfig, gpus: int, given: set[str]) -> LayoutEstimate:
    """The quickest layout that fits, with the stage, policy and micro-batch that are given, if any."""
    cluster, policy = config.cluster, config.model.recompute
    if cluster.gpu is None or cluster.gpu_memory is None:
        raise InputError(
            "cluster.gpu and cluster.gpu_memory are not set, so that no layout can be chosen; take a profile "
            "(cluster=h100, h200, a100_80gb, a100_40gb), or give parallel.tensor and parallel.data"
        )
    request = LayoutRequest(
        model=config.model,
        gpus=gpus,
        gpu_memory=parse_bytes("cluster.gpu_memory", cluster.gpu_memory),
        reserve=DEFAULT_MEMORY_RESERVE,
        sequence_length=config.trainer.sequence_length,
        micro_batches=_micro_batches(config, given),
        global_batch=config.trainer.global_batch,
        machine=Machine.of_gpu(cluster.gpu, DEFAULT_EFFICIENCY, cluster.gpus_per_node),
        offloads=("none",),
        optimizer=config.optim.name,
        ema=config.optim.ema is not None,
        stages=_stages(config, given),
        policies=RECOMPUTE_POLICIES if "model.recompute" not in given or policy == "auto" else (policy,),
        hpz="parallel.hpz_partition_size" not in given,
    )
    try:
        return feasible_layouts(request)[0]
    except InputError as error:
        if gpus == config.nodes * gpus_per_node(config):
            raise
        raise InputError(
            f"{error}; evaluations have GPUs of their own (eval.gpus={config.eval.gpus:g}): set eval.every=0 "
            "or take one node more"
        ) from error


def _stages(config: SubmitConfig, given: set[str]) -> Sequence[ZeroStage]:
    stage, offload = config.parallel.zero_stage, config.parallel.offload
    if "parallel.zero_stage" in given and stage != "auto":
        return (stage,)
    return STAGES if offload == "none" else (3,)


def _micro_batches(config: SubmitConfig, given: set[str]) -> Sequence[int]:
    size = config.trainer.micro_batch
    return (size,) if size is not None and "trainer.micro_batch" in given else MICRO_BATCHES
