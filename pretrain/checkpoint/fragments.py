"""Which part of every parameter and of its Adam moments this rank holds, for every ZeRO stage.

| stage | fp32 master and moments lie in | a rank holds |
|---|---|---|
| 0 | the parameter itself and AdamW's state | the whole (tensor-parallel) part |
| 1, 2 | one flat tensor a parameter group, cut evenly over the ranks | any range of some parameters |
| 3 | one flat tensor a sub-group | an even range of every parameter, padded at the end |

This is the only place that knows DeepSpeed's insides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pretrain.checkpoint.boxes import Box, boxes_of_range

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
STATES = (MASTER, *MOMENTS)


class Layout(Protocol):
    """Where this rank stands (`pretrain.parallel.mesh.Mesh` with a rank)."""

    tensor: int
    tensor_rank: int
    data_rank: int


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


def fragments(module: nn.Module, optimizer: Any, layout: Layout) -> Iterator[Fragment]:
    """This rank's part of every parameter; parameters of which it holds nothing are left out.

    Args:
        module: With `tensor_model_parallel` and `partition_dim` on its sharded parameters.
        optimizer: DeepSpeed's ZeRO optimiser of stage 1, 2 or 3, or a torch AdamW (stage 0).
        layout: Where this rank stands.
    """
    make_moments(optimizer)
    for name, parameter in module.named_parameters():
        start, states = _held(parameter, optimizer, layout.data_rank)
        count = states[MASTER].numel() if states else 0
        if not count:
            continue
        part = tuple(getattr(parameter, "ds_shape", parameter.shape))
        shape, shift = list(part), [0] * len(part)
        sharded = layout.tensor > 1 and getattr(parameter, "tensor_model_parallel", False)
        if sharded:
            dimension = cast(Any, parameter).partition_dim
            shape[dimension] *= layout.tensor
            shift[dimension] = layout.tensor_rank * part[dimension]
        alike = not sharded and layout.tensor_rank > 0
        alike = alike or (isinstance(optimizer, torch.optim.Optimizer) and layout.data_rank > 0)
        boxes = tuple(box.shifted(shift) for box in boxes_of_range(part, start, start + count))
        yield Fragment(name, tuple(shape), boxes, states, written=not alike)


def _held(parameter: Any, optimizer: Any, data_rank: int) -> tuple[int, dict[str, Tensor]]:
    """Where in the flat (tensor-parallel) parameter the rank's part begins, and the part's states."""
    if isinstance(optimizer, torch.optim.Optimizer):
        state = optimizer.state[parameter]
        return 0, {MASTER: parameter.data.view(-1), **{key: state[key].view(-1) for key in MOMENTS}}
    if hasattr(parameter, "ds_tensor"):
        return _held_stage_3(parameter, data_rank)
    mapping = parameter._hp_mapping
    if mapping is None:
        return 0, {}
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    where = mapping.hp_fragment_address
    state = optimizer.optimizer.state[flat]
    flats = {MASTER: flat.data, **{key: state[key] for key in MOMENTS}}
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


def _flat_masters(optimizer: Any) -> list[Tensor]:
    """The tensors that AdamW itself updates."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return list(optimizer.fp32_partitioned_groups_flat)
    return list(optimizer.single_partition_of_fp32_groups)


def _adam(optimizer: Any) -> torch.optim.Optimizer:
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def make_moments(optimizer: Any) -> None:
    """Make AdamW's moments, which it would make itself at the first step."""
    states = _adam(optimizer).state
    for flat in _flat_masters(optimizer):
        for key in MOMENTS:
            if key not in states[flat]:
                states[flat][key] = torch.zeros_like(flat.data)
        states[flat].setdefault("step", torch.zeros((), dtype=torch.float32))


def optimizer_step(optimizer: Any) -> int:
    """Updates that AdamW counts, for its bias correction."""
    make_moments(optimizer)
    states = _adam(optimizer).state
    return max(int(states[flat]["step"]) for flat in _flat_masters(optimizer))


def finish_loading(module: nn.Module, optimizer: Any, count: int) -> None:
    """Let the working weights follow the masters, and AdamW count on from `count`.

    Every rank calls it, after the fragments' states were filled.
    """
    states = _adam(optimizer).state
    for flat in _flat_masters(optimizer):
        before = states[flat]["step"]
        states[flat]["step"] = count if isinstance(before, int) else torch.full_like(before, count)
    for group in _adam(optimizer).param_groups:
        if "step" in group:  # DeepSpeed's FusedAdam counts a group
            group["step"] = count
    if isinstance(optimizer, torch.optim.Optimizer):
        return
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer.update_lp_params()
        return
    from deepspeed.utils import safe_get_local_fp32_param

    optimizer.checkpoint_event_prologue()  # small parameters that are kept whole are cut first
    for parameter in module.parameters():
        cast(Any, parameter).ds_tensor.data.copy_(safe_get_local_fp32_param(parameter))
    optimizer.checkpoint_event_epilogue()  # and gathered again
