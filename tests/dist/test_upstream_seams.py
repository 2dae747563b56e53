"""Canaries: the internals of DeepSpeed and megatron that we depend on are as we use them.

When a pin moves and one of these fails, read the named place first: some of them, if wrong, train wrongly
without an error.
"""

from __future__ import annotations

import inspect
import os
from importlib.metadata import version
from typing import Any, cast

import pytest

from pretrain.config import ParallelConfig, Precision, TrainerConfig, TrainingConfig, ZeroStage
from pretrain.model.config import ModelConfig
from pretrain.parallel.mesh import Mesh
from tests.support.ranks import run_ranks

SMALL = ModelConfig(
    vocabulary_size=64, hidden_size=16, ffn_size=32, layers=1, heads=2, max_positions=8, dropout=0.0
)


@pytest.mark.parametrize(
    ("package", "expected"), [("deepspeed", "0.19.8"), ("megatron-core", "0.16.1"), ("ray", "2.60.0")]
)
def test_installed_versions_are_the_tested_ones(package: str, expected: str) -> None:
    assert version(package) == expected


def test_megatron_layers_accept_our_arguments() -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding

    column = inspect.signature(ColumnParallelLinear).parameters
    row = inspect.signature(RowParallelLinear).parameters
    embedding = inspect.signature(VocabParallelEmbedding).parameters
    assert {"config", "init_method", "bias", "gather_output"} <= set(column)
    assert {"config", "init_method", "bias", "input_is_parallel", "skip_bias_add"} <= set(row)
    assert {"config", "init_method"} <= set(embedding)
    groups = inspect.signature(parallel_state.initialize_model_parallel).parameters
    assert {"tensor_model_parallel_size", "high_priority_stream_groups"} <= set(groups)
    assert 'get_nccl_options("tp"' in inspect.getsource(parallel_state.initialize_model_parallel)


def test_deepspeed_still_builds_its_shared_memory_collectives_by_that_name() -> None:
    import importlib

    from deepspeed.ops import __compatible_ops__ as compatible
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # `deepspeed.comm.torch` the attribute is torch itself; the module is meant.
    backend = importlib.import_module("deepspeed.comm.torch")
    assert ShareMemCommBuilder.NAME == "deepspeed_shm_comm"
    assert "deepspeed_shm_comm" in compatible
    assert "__compatible_ops__.get(builder.NAME" in inspect.getsource(backend.build_shm_op)


@pytest.mark.parametrize("enabled", [True, False])
def test_deepspeeds_throughput_timer_waits_for_the_device_unless_it_is_off(
    enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime import engine
    from deepspeed.utils.config import get_timers_config

    waits: list[int] = []
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: waits.append(1))
    settings = {"timers": {"throughput": {"enabled": enabled}}}
    timer = engine.ThroughputTimer(get_timers_config(settings), batch_size=1, start_step=0)
    timer.start()
    timer.stop(global_step=True)
    assert bool(waits) == enabled
    assert "self.tput_timer.start()" in inspect.getsource(engine.DeepSpeedEngine)


def test_zero_init_accepts_our_arguments() -> None:
    import deepspeed

    actual = set(inspect.signature(deepspeed.zero.Init).parameters)
    assert {"data_parallel_group", "config_dict_or_path", "mpu"} <= actual
    assert callable(deepspeed.init_distributed)


def describe_partitions(precision: str) -> dict[str, Any]:
    import torch
    from torch import nn

    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.zero import build_module

    plain = (torch.empty, nn.Linear.__init__)
    config = TrainingConfig(
        trainer=TrainerConfig(global_batch=2, precision=cast(Precision, precision)),
        parallel=ParallelConfig(2, 2, 3),
        model=SMALL,
    )
    module = build_module(config, ProcessGroups.create(Mesh(2, 2)))
    head: Any = module.lm_head.weight
    return {
        "dtypes": {str(parameter.ds_tensor.dtype) for parameter in module.parameters()},  # pyright: ignore
        "share": (tuple(head.ds_shape), head.ds_numel, head.ds_tensor.numel(), head.numel()),
        "whole between": [name for name, p in module.named_parameters() if p.numel()],
        "torch as before": plain == (torch.empty, nn.Linear.__init__),
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_init_partitions_over_the_data_parallel_ranks(precision: str) -> None:
    for actual in run_ranks(describe_partitions, 4, precision):
        # With dtype=float32 it uses bfloat16.
        assert actual["dtypes"] == {"torch.float32" if precision == "fp32" else "torch.bfloat16"}
        # Half of the rows by tensor parallelism, half of those here; without its group, a quarter.
        assert actual["share"] == ((32, 16), 512, 256, 0)
        assert actual["whole between"] == []
        assert actual["torch as before"]


def test_nccl_is_bound_to_its_device() -> None:
    from torch.distributed import init_process_group

    assert "device_id" in inspect.signature(init_process_group).parameters


def describe_engine(mesh: Mesh, stage: int) -> dict[str, Any]:
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups

    config = TrainingConfig(
        trainer=TrainerConfig(global_batch=mesh.data, precision="fp32"),
        parallel=ParallelConfig(mesh.tensor, mesh.data, cast(ZeroStage, stage)),
        model=SMALL,
    )
    os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = (
        "7"  # of mpirun around the command: the engine is built all the same
    )
    engine = Engine.build(config, ProcessGroups.create(mesh))
    deepspeed_engine, zero = engine.deepspeed_engine, engine.deepspeed_engine.optimizer
    parameters = dict(engine.module.named_parameters())
    return {
        "engine": [
            name
            for name in ("set_gradient_accumulation_boundary", "get_global_grad_norm", "backward", "step")
            if not callable(getattr(deepspeed_engine, name, None))
        ],
        # Its decorator hides the signature.
        "backward takes scale_wrt_gas": "def backward(self, loss, retain_graph=False, scale_wrt_gas=True)"
        in inspect.getsource(inspect.getmodule(type(deepspeed_engine)) or deepspeed_engine),
        "optimizer": zero.optimizer is engine.optimizer,
        "flat stage 3": hasattr(zero, "fp32_partitioned_groups_flat"),
        "flat stage 1, 2": hasattr(zero, "single_partition_of_fp32_groups"),
        "partitioned": sorted(name for name, p in parameters.items() if hasattr(p, "ds_tensor")),
        "mapped": sorted(name for name, p in parameters.items() if hasattr(p, "_hp_mapping")),
        "sharded": sorted(n for n, p in parameters.items() if getattr(p, "tensor_model_parallel", False)),
        "shared memory": deepspeed_engine.dist_backend and _shared_memory_kernels(),
        "timer": deepspeed_engine.tput_timer.config.enabled,
    }


def _shared_memory_kernels() -> bool:
    from deepspeed import comm

    return comm.cdb is not None and comm.cdb.shm_comm_op is not None


def test_stage_3_partitions_as_checkpoints_expect() -> None:
    for actual in run_ranks(describe_engine, 2, Mesh(2, 1), 3):
        assert actual["engine"] == []
        assert actual["backward takes scale_wrt_gas"]
        assert actual["optimizer"]
        assert actual["flat stage 3"]
        assert "lm_head.weight" in actual["partitioned"]
        assert not actual["shared memory"], "DeepSpeed compiles kernels for 90 s again"
        assert not actual["timer"], "it waits for the device before every forward pass"
        # Unmarked, a sharded parameter makes the gradient norm, and so the clipping, wrong.
        whole = ["model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"]
        assert not set(actual["sharded"]) & {*whole, "model.norm.weight"}
        assert len(actual["sharded"]) == len(actual["partitioned"]) - 3


def test_stage_1_maps_as_checkpoints_expect() -> None:
    for actual in run_ranks(describe_engine, 2, Mesh(1, 2), 1):
        assert actual["flat stage 1, 2"]
        assert not actual["timer"]
        assert actual["partitioned"] == []
        assert "lm_head.weight" in actual["mapped"]


def taken_settings(node_ranks: int) -> tuple[dict[str, Any], dict[str, Any], list[float]]:
    """Our settings of ZeRO-3 by DeepSpeed's engine and modules, as given and as taken, and some losses."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.zero import deepspeed_settings
    from tests.support.engine_case import global_batch, parts, settings

    os.environ["LOCAL_WORLD_SIZE"] = str(node_ranks)
    config = settings(Mesh(1, 2))
    groups = ProcessGroups.create(Mesh(1, 2))
    engine = Engine.build(config, groups)
    zero = engine.deepspeed_engine
    given = deepspeed_settings(config, groups)["zero_optimization"]
    taken = {
        "reduce_bucket_size": zero.optimizer.reduce_bucket_size,
        "stage3_prefetch_bucket_size": zero.zero_prefetch_bucket_size(),
        "stage3_max_live_parameters": zero.zero_max_live_parameters(),
        "stage3_max_reuse_distance": zero.zero_max_reuse_distance(),
        "stage3_allgather_sequential": zero.zero_allgather_sequential(),
        "bucket": [bucket.buffer.numel() for bucket in zero.optimizer.ipg_buckets.values()],
    }
    losses = []
    for step in range(3):
        batches = parts(global_batch(step), groups.mesh, 1, groups.data_rank)
        losses.append(float(engine.step(batches, 1e-3).loss))
    return given, taken, losses


def test_deepspeed_takes_the_sizes_of_its_buffers() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    curves = []
    for node_ranks in (2, 1):
        given, taken, losses = run_ranks(taken_settings, 2, node_ranks)[0]
        assert set(given) <= known, "a key that DeepSpeed does not know is ignored"
        assert {name: given[name] for name in taken if name in given} == {
            name: value for name, value in taken.items() if name in given
        }
        assert taken["bucket"] == [given["reduce_bucket_size"]]
        assert given["stage3_allgather_sequential"] == (node_ranks == 2)
        curves.append(losses)
    assert curves[0] == curves[1], "weights are copied one way or the other"


def describe_step(stage: int, precision: str) -> dict[str, Any]:
    """Internals that the engine and its checkpoints use, in a step over two micro-batches."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from tests.support.engine_case import global_batch, parts, settings

    config = settings(Mesh(1, 2), stage, precision)
    config.trainer.micro_batch = 1
    groups = ProcessGroups.create(Mesh(1, 2))
    engine = Engine.build(config, groups)
    zero, norms, averaged = engine.deepspeed_engine.optimizer, [], []
    engine.optimizer.register_step_pre_hook(lambda *_: norms.append(float(zero._global_grad_norm)))
    if stage == 0:
        gradients = zero.get_grads_for_reduction
        zero.get_grads_for_reduction = lambda: averaged.append(True) or gradients()
    result = engine.step(parts(global_batch(0), groups.mesh, 2, groups.data_rank), 1e-3)
    return {
        "norms": set(norms),
        "norm": float(result.gradient_norm),
        "optimizer": type(zero).__name__,
        "averaged": len(averaged),
        "flat fp32 of bf16": bool(getattr(zero, "fp32_groups_flat_partition", None)),
        "second copies": [hasattr(p, "ds_secondary_tensor") for p in engine.module.parameters()],
        "forgets second copies": callable(getattr(zero, "invalidate_secondary_tensor", None)),
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradient_norm_is_available_when_the_optimiser_is_called(stage: int) -> None:
    for actual in run_ranks(describe_step, 2, stage, "bf16"):
        assert list(actual["norms"]) == [pytest.approx(actual["norm"], rel=1e-6)]
        # Passed as a function, the optimiser is not wrapped, and its gradients are averaged once a step.
        assert (actual["optimizer"] == "ReplicatedOptimizer") == (stage == 0)
        assert actual["averaged"] == (stage == 0)
        # Stage 1 that accumulates bf16 in fp32 is another class, with its masters under another name.
        assert actual["flat fp32 of bf16"] == (stage == 1)
        assert set(actual["second copies"]) == {stage == 3}
        assert actual["forgets second copies"] == (stage == 3)


def second_copies_after_forgetting() -> list[tuple[bool, bool]]:
    """For every parameter: whether it has a second copy after a pass, and after dropping it."""
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from tests.support.engine_case import global_batch, parts, settings

    config = settings(Mesh(1, 2))
    config.parallel.hpz_partition_size = 2
    groups = ProcessGroups.create(Mesh(1, 2))
    engine = Engine.build(config, groups)
    engine.evaluate(parts(global_batch(0), groups.mesh, 1, groups.data_rank))
    copied = [cast(Any, p).ds_secondary_tensor is not None for p in engine.module.parameters()]
    engine.deepspeed_engine.optimizer.invalidate_secondary_tensor()
    left = [cast(Any, p).ds_secondary_tensor is not None for p in engine.module.parameters()]
    return list(zip(copied, left, strict=True))


def test_hpz_second_copies_are_created_and_dropped() -> None:
    for actual in run_ranks(second_copies_after_forgetting, 2):
        assert set(actual) == {(True, False)}


def test_the_fused_optimiser_reads_the_flag() -> None:
    import torch

    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer: Any = torch.optim.AdamW([weight], lr=0.1, fused=True)
    optimizer.step()
    held = [weight.detach().clone(), *(value.clone() for value in optimizer.state[weight].values())]
    for flag in (1.0, 0.0):
        optimizer.found_inf = torch.tensor(flag)
        optimizer.step()
        now = [weight.detach(), *optimizer.state[weight].values()]
        same = [torch.equal(old, new) for old, new in zip(held, now, strict=True)]
        assert same == [flag == 1.0] * 4
