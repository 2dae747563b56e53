"""The only use of DeepSpeed in training: its settings, the partitioned construction of the model, its engine.

Combinations that DeepSpeed trains wrongly without an error are excluded: `zero.Init` over all ranks instead
of the data-parallel group, `zero.Init` with a dtype (it takes float32 for bfloat16), unmarked sharded
parameters (`TensorParallelFactory` marks them); ZeRO++ partitions across tensor-parallel peers are refused
by `pretrain.checks`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import deepspeed
import torch
from torch import Tensor

from pretrain.config import TrainingConfig
from pretrain.model.factory import LayerFactory
from pretrain.model.parameters import Shard, initial_values, sharded_dimension
from pretrain.model.transformer import Transformer
from pretrain.parallel.groups import ModelParallelUnit, ProcessGroups
from pretrain.parallel.replicated import ReplicatedOptimizer
from pretrain.planner.buckets import zero_buckets
from pretrain.precision import PRECISIONS


def build_module(config: TrainingConfig, groups: ProcessGroups, initialise: bool = True) -> Transformer:
    """Build the network, each module partitioned over the data-parallel ranks as it is constructed (stage 3).

    No rank ever holds more than its partition and one whole matrix, and it draws its partition alone. Stages
    0 to 2 hold whole weights on every rank.

    Args:
        config: Of the training.
        groups: This rank's groups.
        initialise: Whether to draw initial values; otherwise the weights are arbitrary, to be loaded.
    """
    if groups.device.type == "cpu":
        _skip_kernel_build()
    factory = _layer_factory(config, groups)
    with _partition_modules(config, groups):
        module = Transformer(config.model, factory)
    if initialise:
        _initialise(module, config.trainer.seed, factory, groups.data_rank)
    return module


def start_engine(
    module: Transformer, optimizer: torch.optim.Optimizer, config: TrainingConfig, groups: ProcessGroups
) -> Any:
    """DeepSpeed's engine around the network and its optimiser."""
    # Of `mpirun` around torchrun: DeepSpeed refuses it where it differs from LOCAL_RANK.
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)
    deepspeed_optimizer: Any = optimizer
    if config.parallel.zero_stage == 0:
        module.to(PRECISIONS[config.trainer.precision])
        # A function of the parameters: the only form in which DeepSpeed does not wrap an optimiser.
        deepspeed_optimizer = lambda _: ReplicatedOptimizer(optimizer, config.optim.gradient_clipping, groups)  # noqa: E731
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=deepspeed_optimizer,
        config=deepspeed_settings(config, groups),
        mpu=_model_parallel_unit(groups),
    )
    return engine


def gradient_norm_of(engine: Any) -> Callable[[], Tensor | float]:
    """A function that returns the global gradient norm before clipping, once DeepSpeed's step has it.

    The engine itself exposes it only after the step.
    """
    return lambda: engine.optimizer._global_grad_norm


def deepspeed_settings(config: TrainingConfig, groups: ProcessGroups) -> dict[str, Any]:
    """DeepSpeed's JSON settings."""
    share = config.trainer.global_batch // groups.mesh.data
    buckets = zero_buckets(config.model, groups.mesh.tensor, groups.mesh.size <= groups.node_ranks)
    return {
        # Accumulation is set step by step (set_gradient_accumulation_boundary); DeepSpeed only checks its
        # own count for consistency.
        "train_batch_size": share * groups.mesh.data,
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": 1,
        # At stage 0 `ReplicatedOptimizer` clips.
        "gradient_clipping": config.optim.gradient_clipping if config.parallel.zero_stage else 0.0,
        "bf16": {"enabled": config.trainer.precision == "bf16" and config.parallel.zero_stage != 0},
        "data_types": {"grad_accum_dtype": _accumulation_dtype(config, share)},
        "steps_per_print": 10**9,
        # Its timer waits for the device before every forward pass; `pretrain.telemetry` measures the speed.
        "timers": {"throughput": {"enabled": False}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "overlap_comm": groups.device.type == "cuda",
            "contiguous_gradients": True,
            "reduce_bucket_size": buckets.reduce,
            "stage3_prefetch_bucket_size": buckets.prefetch,
            "stage3_max_live_parameters": buckets.live,
            "stage3_max_reuse_distance": buckets.live,
            "stage3_allgather_sequential": buckets.sequential,
            # Every matrix is partitioned; norms, the only parameters this small, are not.
            "stage3_param_persistence_threshold": config.model.hidden_size,
            "stage3_gather_16bit_weights_on_model_save": False,
            "zero_hpz_partition_size": config.parallel.hpz_partition_size,
            **_offload_settings(config, groups),
        },
    }


def _offload_settings(config: TrainingConfig, groups: ProcessGroups) -> dict[str, Any]:
    """DeepSpeed's settings for `parallel.offload`; with them the optimiser updates on the host."""
    host = {"device": "cpu", "pin_memory": groups.device.type == "cuda"}
    names = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}
    return {name: host for name in names[config.parallel.offload]}


def _accumulation_dtype(config: TrainingConfig, share: int) -> str | None:
    """Dtype in which gradients of micro-batches accumulate; None: the dtype of the parameters.

    In bf16 late micro-batches would be rounded away against the sum of the early ones. fp32 takes two more
    bytes for each parameter whose gradient this rank holds, so it is used only for several micro-batches.
    Data-parallel ranks still exchange bf16 at stages 2 and 3, half the bytes; at stage 1 fp32. Stage 0
    always accumulates in fp32.
    """
    several = config.trainer.micro_batch is not None and config.trainer.micro_batch < share
    bf16, partitioned = config.trainer.precision == "bf16", config.parallel.zero_stage != 0
    return "fp32" if several and bf16 and partitioned else None


def _layer_factory(config: TrainingConfig, groups: ProcessGroups) -> LayerFactory:
    if groups.mesh.tensor == 1:
        return LayerFactory()
    # Imported late: megatron takes seconds, and only tensor parallelism needs it.
    from pretrain.parallel.tensor_parallel import TensorParallelFactory

    return TensorParallelFactory(groups, config.parallel.sequence_parallel)


def _partition_modules(config: TrainingConfig, groups: ProcessGroups) -> AbstractContextManager[Any]:
    """A context in which each module is partitioned at the end of its constructor (stage 3 only)."""
    if config.parallel.zero_stage != 3:
        return nullcontext()
    deepspeed.init_distributed()  # otherwise its settings are interpreted for one rank
    return deepspeed.zero.Init(
        data_parallel_group=groups.data,
        config_dict_or_path=deepspeed_settings(config, groups),
        mpu=_model_parallel_unit(groups),
    )


def _model_parallel_unit(groups: ProcessGroups) -> ModelParallelUnit | None:
    return ModelParallelUnit(groups) if groups.tensor is not None else None


@torch.no_grad()
def _initialise(module: Transformer, seed: int, factory: LayerFactory, data_rank: int) -> None:
    """Draw the initial values of this rank's partition (stage 3), else of its tensor-parallel shard."""
    for name, parameter in module.named_parameters():
        partition: Any = getattr(parameter, "ds_tensor", None)
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        shard = Shard(shape, sharded_dimension(name), factory.rank, factory.size)
        if partition is None:
            parameter.copy_(initial_values(name, shard, module.config, seed).view(shape))
            continue
        first = data_rank * partition.numel()
        share = initial_values(name, shard, module.config, seed, first, first + partition.numel())
        partition[: len(share)].copy_(share)
        partition[len(share) :].zero_()  # padding of the last ranks
        cast(Any, parameter).ds_secondary_tensor = None  # hpZ's second copy is outdated


def _skip_kernel_build() -> None:
    """Prevent DeepSpeed from compiling its shared-memory collectives, which takes 90 s."""
    from deepspeed.ops import __compatible_ops__ as compatible

    compatible["deepspeed_shm_comm"] = False
