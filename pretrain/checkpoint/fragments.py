"""Which fragment of every parameter, of its moments and its average this rank holds, for every ZeRO stage.

| stage | fp32 master, moments and average are in | a rank holds |
|---|---|---|
| 0 | one tensor a parameter | every parameter |
| 1, 2 | one flat tensor a parameter group, divided evenly among the ranks | any range of some parameters |
| 3 | one flat tensor a sub-group | an even range of every parameter, padded at the end |

Only this module and `pretrain.parallel.masters` know DeepSpeed's insides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pretrain.checkpoint.boxes import Box, global_boxes
from pretrain.checkpoint.manifest import EMA, MASTER
from pretrain.optim import has_step_count, moment_names
from pretrain.parallel.masters import fp32_masters, is_replicated

if TYPE_CHECKING:  # importing it takes seconds, and bare weights are read without it
    from pretrain.parallel.engine import Engine


@dataclass(frozen=True, slots=True)
class Fragment:
    """This rank's part of one parameter.

    Attributes:
        name: Of the parameter, the same on all ranks.
        shape: Of the global parameter.
        boxes: The part, as boxes of the global parameter.
        states: Master weights, moments and, if there is one, the weights' average of the part, flat fp32
            [n], in the order of the boxes. They are the memory in use: copying into them changes the
            training.
        is_writer: Whether this rank writes it (of ranks that hold the same, one does).
    """

    name: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    states: Mapping[str, Tensor]
    is_writer: bool


def state_names(engine: Engine) -> tuple[str, ...]:
    """Names of the states that the engine has for every weight: master, the moments, the average if any."""
    names = (MASTER, *moment_names(engine.deepspeed_engine.optimizer.optimizer))
    return names if engine.average is None else (*names, EMA)


def fragments(engine: Engine) -> Iterator[Fragment]:
    """Yield this rank's fragment of every parameter of which it holds anything."""
    zero, mesh = engine.deepspeed_engine.optimizer, engine.groups.mesh
    moments = _make_moments(zero)
    for number, (name, parameter) in enumerate(engine.module.named_parameters()):
        start, states = _local_states(parameter, engine, moments)
        count = states[MASTER].numel() if states else 0
        if not count:
            continue
        dimension = _sharded_dimension(parameter, mesh.tensor)
        tensor_rank = engine.groups.tensor_rank
        boxes = global_boxes(_partition_shape(parameter), dimension, tensor_rank, start, start + count)
        is_writer = dimension is not None or tensor_rank == 0
        if is_replicated(zero):  # the data-parallel ranks take turns
            is_writer = is_writer and number % mesh.data == engine.groups.data_rank
        yield Fragment(name, _global_shape(parameter, mesh.tensor), boxes, states, is_writer)


def state_addresses(engine: Engine) -> tuple[int, ...]:
    """Where the states' memory lies; as long as that is the same, so is what the fragments refer to."""
    zero = engine.deepspeed_engine.optimizer
    moments = _make_moments(zero)
    return tuple(
        values.data_ptr()
        for master in fp32_masters(zero)
        for values in _states(master, engine, moments).values()
    )


def _states(master: Tensor, engine: Engine, moments: tuple[str, ...]) -> dict[str, Tensor]:
    """All states of one of the optimiser's tensors, of its shape."""
    state = engine.deepspeed_engine.optimizer.optimizer.state[master]
    states = {MASTER: master.data, **{key: state[key] for key in moments}}
    return states if engine.average is None else {**states, EMA: engine.average.of(master)}


def _partition_shape(parameter: Any) -> tuple[int, ...]:
    """Shape of the tensor-parallel partition, which ZeRO-3 hides."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _sharded_dimension(parameter: Any, tensor: int) -> int | None:
    """Dimension along which the parameter is divided among tensor-parallel ranks."""
    sharded = tensor > 1 and getattr(parameter, "tensor_model_parallel", False)
    return parameter.partition_dim if sharded else None


def _global_shape(parameter: Any, tensor: int) -> tuple[int, ...]:
    dimension = _sharded_dimension(parameter, tensor)
    return tuple(
        size * tensor if d == dimension else size for d, size in enumerate(_partition_shape(parameter))
    )


def _local_states(parameter: Any, engine: Engine, moments: tuple[str, ...]) -> tuple[int, dict[str, Tensor]]:
    """Where the rank's range of the flat (tensor-parallel) parameter begins, and the range's states."""
    zero = engine.deepspeed_engine.optimizer
    if hasattr(parameter, "ds_tensor"):
        return _local_states_stage_3(parameter, engine, moments)
    if is_replicated(zero):
        whole = _states(zero.masters[parameter], engine, moments)
        return 0, {key: value.view(-1) for key, value in whole.items()}
    mapping = parameter._hp_mapping
    if mapping is None:
        return 0, {}
    flat = fp32_masters(zero)[mapping.param_group_index]
    address = mapping.hp_fragment_address
    flats = _states(flat, engine, moments)
    views = {key: value.narrow(0, address.start, address.numel) for key, value in flats.items()}
    return mapping.lp_fragment_address.start, views


def _local_states_stage_3(
    parameter: Any, engine: Engine, moments: tuple[str, ...]
) -> tuple[int, dict[str, Tensor]]:
    zero, data_rank = engine.deepspeed_engine.optimizer, engine.groups.data_rank
    per_rank = parameter.ds_tensor.ds_numel
    start = min(data_rank * per_rank, parameter.ds_numel)
    count = min(per_rank, parameter.ds_numel - start)
    # Not by `safe_get_local_fp32_param`, which returns offloaded states as copies on the GPU.
    group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
    flat = fp32_masters(zero)[group]
    flats = _states(flat, engine, moments)
    return start, {key: value.narrow(0, offset, count) for key, value in flats.items()}


def _make_moments(zero: Any) -> tuple[str, ...]:
    """Create the moments, as the optimiser would do itself at the first step; return their names."""
    moments = moment_names(zero.optimizer)
    for master in fp32_masters(zero):
        state = zero.optimizer.state[master]
        for key in moments:
            if key not in state:
                state[key] = torch.zeros_like(master.data)
        if has_step_count(zero.optimizer) and "step" not in state:
            # The fused kernel expects its count on the device of the weights.
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
    return moments


def optimizer_step(engine: Engine) -> int:
    """Updates that AdamW has counted, for its bias correction; 0 for an optimiser that does not count."""
    zero = engine.deepspeed_engine.optimizer
    _make_moments(zero)
    if not has_step_count(zero.optimizer):
        return 0
    return max(int(zero.optimizer.state[master]["step"]) for master in fp32_masters(zero))


def finish_loading(engine: Engine, count: int) -> None:
    """Update the working weights from the masters, and set the optimiser's count of updates (if it has one).

    Every rank calls it, after the fragments' states were filled.
    """
    zero = engine.deepspeed_engine.optimizer
    if has_step_count(zero.optimizer):
        for master in fp32_masters(zero):
            zero.optimizer.state[master]["step"].fill_(count)
    if is_replicated(zero):
        zero.copy_masters_to_parameters()
        return
    if not hasattr(zero, "fp32_partitioned_groups_flat"):
        zero.update_lp_params()
        return
    from deepspeed.utils import safe_get_local_fp32_param

    zero.invalidate_secondary_tensor()  # hpZ's second copy is outdated
    zero.checkpoint_event_prologue()  # small parameters that are gathered are partitioned first
    for parameter in engine.module.parameters():
        cast(Any, parameter).ds_tensor.data.copy_(safe_get_local_fp32_param(parameter))
    zero.checkpoint_event_epilogue()  # and gathered again
