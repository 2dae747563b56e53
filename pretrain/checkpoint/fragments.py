"""Which part of every parameter and of its Adam moments this rank holds, for every ZeRO stage.

| stage | fp32 master and moments lie in | a rank holds |
|---|---|---|
| 1, 2 | one flat tensor a parameter group, cut evenly over the ranks | any range of some parameters |
| 3 | one flat tensor a sub-group | an even range of every parameter, padded at the end |

This is the only place that knows DeepSpeed's insides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pretrain.checkpoint.boxes import Box, boxes_of_range
from pretrain.checkpoint.manifest import MASTER

if TYPE_CHECKING:  # importing it takes seconds, and reading bare weights does without
    from pretrain.parallel.engine import Engine

MOMENTS = ("exp_avg", "exp_avg_sq")
STATES = (MASTER, *MOMENTS)


@dataclass(frozen=True, slots=True)
class Fragment:
    """This rank's part of one parameter.

    Attributes:
        name: Of the parameter, the same on all ranks.
        shape: Of the global parameter.
        boxes: The part, as boxes of the global parameter.
        states: Master weights and moments of the part, flat fp32 [n], in the order of the boxes. They are
            the optimiser's own memory: copying into them changes the training.
        written: Whether this rank writes it (of ranks that hold the same, the first does).
    """

    name: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    states: Mapping[str, Tensor]
    written: bool


def fragments(engine: Engine) -> Iterator[Fragment]:
    """This rank's part of every parameter; parameters of which it holds nothing are left out."""
    zero, mesh = engine.deepspeed_engine.optimizer, engine.groups.mesh
    _make_moments(zero)
    for name, parameter in engine.module.named_parameters():
        start, states = _held(parameter, zero, engine.groups.data_rank)
        count = states[MASTER].numel() if states else 0
        if not count:
            continue
        part = _part(parameter)
        shift, dimension = [0] * len(part), _sharded_dimension(parameter, mesh.tensor)
        if dimension is not None:
            shift[dimension] = engine.groups.tensor_rank * part[dimension]
        boxes = tuple(box.shifted(shift) for box in boxes_of_range(part, start, start + count))
        written = dimension is not None or engine.groups.tensor_rank == 0
        yield Fragment(name, _global_shape(parameter, mesh.tensor), boxes, states, written)


def _part(parameter: Any) -> tuple[int, ...]:
    """Shape of the tensor-parallel part, which ZeRO-3 hides."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _sharded_dimension(parameter: Any, tensor: int) -> int | None:
    """Along which the parameter is shared out over tensor-parallel ranks."""
    sharded = tensor > 1 and getattr(parameter, "tensor_model_parallel", False)
    return parameter.partition_dim if sharded else None


def _global_shape(parameter: Any, tensor: int) -> tuple[int, ...]:
    dimension = _sharded_dimension(parameter, tensor)
    return tuple(size * tensor if d == dimension else size for d, size in enumerate(_part(parameter)))


def _held(parameter: Any, zero: Any, data_rank: int) -> tuple[int, dict[str, Tensor]]:
    """Where in the flat (tensor-parallel) parameter the rank's part begins, and the part's states."""
    if hasattr(parameter, "ds_tensor"):
        return _held_stage_3(parameter, data_rank)
    mapping = parameter._hp_mapping
    if mapping is None:
        return 0, {}
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    where = mapping.hp_fragment_address
    flats = {MASTER: flat.data, **{key: zero.optimizer.state[flat][key] for key in MOMENTS}}
    views = {key: value.narrow(0, where.start, where.numel) for key, value in flats.items()}
    return mapping.lp_fragment_address.start, views


def _held_stage_3(parameter: Any, data_rank: int) -> tuple[int, dict[str, Tensor]]:
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    each = parameter.ds_tensor.ds_numel
    start = min(data_rank * each, parameter.ds_numel)
    count = min(each, parameter.ds_numel - start)
    states = {MASTER: cast(Tensor, safe_get_local_fp32_param(parameter))}
    states |= {key: cast(Tensor, safe_get_local_optimizer_state(parameter, key)) for key in MOMENTS}
    return start, {key: value.data[:count] for key, value in states.items()}


def _flat_masters(zero: Any) -> list[Tensor]:
    """The flat tensors that AdamW itself updates."""
    stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    return list(zero.fp32_partitioned_groups_flat if stage_3 else zero.single_partition_of_fp32_groups)


def _make_moments(zero: Any) -> None:
    """Make AdamW's moments, which it would make itself at the first step."""
    for flat in _flat_masters(zero):
        state = zero.optimizer.state[flat]
        for key in MOMENTS:
            if key not in state:
                state[key] = torch.zeros_like(flat.data)
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=_step_device(zero, flat))


def _step_device(zero: Any, flat: Tensor) -> torch.device:
    """Where AdamW keeps its count: with the weights if fused, else on the host."""
    return flat.device if zero.optimizer.defaults.get("fused") else torch.device("cpu")


def optimizer_step(engine: Engine) -> int:
    """Updates that AdamW has counted, for its bias correction."""
    zero = engine.deepspeed_engine.optimizer
    _make_moments(zero)
    return max(int(zero.optimizer.state[flat]["step"]) for flat in _flat_masters(zero))


def finish_loading(engine: Engine, count: int) -> None:
    """Let the working weights follow the masters, and AdamW count on from `count`.

    Every rank calls it, after the fragments' states were filled.
    """
    zero = engine.deepspeed_engine.optimizer
    for flat in _flat_masters(zero):
        zero.optimizer.state[flat]["step"].fill_(count)
    if not hasattr(zero, "fp32_partitioned_groups_flat"):
        zero.update_lp_params()
        return
    from deepspeed.utils import safe_get_local_fp32_param

    zero.checkpoint_event_prologue()  # small parameters that are kept whole are cut first
    for parameter in engine.module.parameters():
        cast(Any, parameter).ds_tensor.data.copy_(safe_get_local_fp32_param(parameter))
    zero.checkpoint_event_epilogue()  # and gathered again
