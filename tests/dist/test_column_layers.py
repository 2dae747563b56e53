"""Column layers of a branch: the same bits as one layer after the other, communicating while computing."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.model.config import RecomputePolicy
from pretrain.model.recompute import element_wise, run_layer
from pretrain.parallel.mesh import Mesh
from tests.support.ranks import run_ranks
from tests.unit.test_pretrain_planner_memory import CPU, SMALL, held_bytes

TOKENS, INPUTS, OUTPUTS = 24, 32, (16, 8, 8)
Columns = Callable[[Tensor, list[Tensor]], tuple[Tensor, ...]]
CASES = pytest.mark.parametrize(
    ("sequence_parallel", "policy"),
    [(False, "none"), (False, "selective"), (True, "none"), (True, "selective")],
)


def one_after_the_other(group: dist.ProcessGroup, sequence_parallel: bool) -> Columns:
    """A collective in each pass and ordinary layers between them; autograd sums their gradients."""
    from pretrain.parallel import collectives as c

    passes = (c._all_gather, c._reduce_scatter) if sequence_parallel else (c._identity, c._all_reduce)

    def columns(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
        whole = c._Communication.apply(x, group, *passes)
        return tuple(F.linear(whole, weight) for weight in weights)

    return columns


def gradients(columns: Columns, policy: RecomputePolicy, dtype: torch.dtype) -> list[Tensor]:
    """Outputs of a branch and the gradients of its input and of its weights, on this rank."""
    torch.manual_seed(dist.get_rank())
    x = torch.randn(TOKENS, INPUTS).to(dtype).requires_grad_()
    weights = [torch.randn(rows, INPUTS).to(dtype).requires_grad_() for rows in OUTPUTS]

    def branch(x: Tensor) -> tuple[Tensor, ...]:
        return columns(element_wise(torch.sin, x), weights)

    outputs = run_layer(policy, branch, x)
    torch.autograd.backward([y.square().sum() for y in outputs])
    return [*outputs, *(each.grad for each in (x, *weights) if each.grad is not None)]


def compare(sequence_parallel: bool, policy: RecomputePolicy) -> list[bool]:
    """Whether each result has the same bits both ways, in fp32 and in bf16."""
    from pretrain.parallel.column_layers import apply_columns
    from pretrain.parallel.groups import ProcessGroups

    group = ProcessGroups.create(Mesh(2, 1)).tensor
    assert group is not None
    equal = []
    for dtype in (torch.float32, torch.bfloat16):
        ways = (
            one_after_the_other(group, sequence_parallel),
            lambda x, weights: apply_columns(x, weights, group, sequence_parallel),
        )
        expected, actual = (gradients(way, policy, dtype) for way in ways)
        assert len(expected) == len(actual) == 2 * len(OUTPUTS) + 1
        equal += [torch.equal(*pair) for pair in zip(actual, expected, strict=True)]
    return equal


@CASES
def test_results_and_gradients_have_the_same_bits(sequence_parallel: bool, policy: RecomputePolicy) -> None:
    for equal in run_ranks(compare, 2, sequence_parallel, policy):
        assert equal == [True] * 2 * (2 * len(OUTPUTS) + 1)


class Events(TorchDispatchMode):
    """Records products, and when collectives start and are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == "aten::mm":
            self.names.append("product")
        return func(*args, **(kwargs or {}))

    def watched(self, name: str) -> Any:
        """Replace a function of `torch.distributed` by one that records."""
        function = getattr(dist, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            work = function(*arguments, **settings)
            self.names.append(name if settings.get("async_op") else f"{name}, waited for at once")
            return work if work is None else Watched(self, name, work)

        return patch.object(dist, name, call)


class Watched:
    """A collective whose wait is recorded."""

    def __init__(self, events: Events, name: str, work: Any) -> None:
        self._events, self._name, self._work = events, name, work

    def wait(self) -> None:
        self._events.names.append(f"{self._name} done")
        self._work.wait()


def events_of_backward(sequence_parallel: bool, policy: RecomputePolicy) -> list[str]:
    from pretrain.parallel.column_layers import apply_columns
    from pretrain.parallel.groups import ProcessGroups

    group = ProcessGroups.create(Mesh(2, 1)).tensor
    assert group is not None
    x = torch.randn(TOKENS, INPUTS, requires_grad=True)
    weights = [torch.randn(rows, INPUTS, requires_grad=True) for rows in OUTPUTS]
    outputs = run_layer(policy, lambda x: apply_columns(x, weights, group, sequence_parallel), x)
    events = Events()
    names = ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor")
    with events, events.watched(names[0]), events.watched(names[1]), events.watched(names[2]):
        torch.autograd.backward([y.sum() for y in outputs])
    return events.names


@CASES
def test_collectives_run_while_products_are_computed(
    sequence_parallel: bool, policy: RecomputePolicy
) -> None:
    products = ["product"] * len(OUTPUTS)
    total = "reduce_scatter_tensor" if sequence_parallel else "all_reduce"
    expected = [*products, total, *products, f"{total} done"]
    if sequence_parallel and policy == "selective":
        gather = "all_gather_into_tensor"
        expected = [gather, *products, f"{gather} done", total, *products, f"{total} done"]
    for events in run_ranks(events_of_backward, 2, sequence_parallel, policy):
        assert events == expected


def saved_by_policy(policies: list[RecomputePolicy]) -> list[float]:
    """Bytes that one layer of a network with sequence parallel saves on one of two ranks.

    The other is not there: threads of real collectives release memory at any time.
    """
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from pretrain.model.attention.causal import CausalMask
    from pretrain.model.transformer import Transformer
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.tensor_parallel import TensorParallelFactory

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    parallel_state.initialize_model_parallel(2, create_gloo_process_groups=False)
    factory = TensorParallelFactory(ProcessGroups.create(Mesh(2, 1)), sequence_parallel=True)
    places = torch.arange(256)[None]

    def held(policy: RecomputePolicy, layers: int) -> int:
        decoder = Transformer(replace(SMALL, layers=layers, recompute=policy), factory).train().model
        decoder(places, places, CausalMask())
        gc.collect()  # networks before this one
        return held_bytes(lambda: decoder(places, places, CausalMask()))

    return [(held(policy, 3) - held(policy, 1)) / 2 for policy in policies]


def test_layers_save_what_the_planner_says() -> None:
    from pretrain.planner.memory import layer_activation_bytes

    policies: list[RecomputePolicy] = ["none", "selective", "full"]
    (measured,) = run_ranks(saved_by_policy, 1, policies)
    for policy, actual in zip(policies, measured, strict=True):
        actual -= 5056 if policy == "full" else 0  # a checkpoint also saves the random generator's state
        assert layer_activation_bytes(SMALL, policy, 256, 2, CPU) == pytest.approx(actual, rel=0.02), policy


def settings_of_groups(cuda: bool) -> dict[str, Any]:
    """What megatron is told of the groups, on a machine that has a GPU or pretends to."""
    from megatron.core import parallel_state

    from pretrain.parallel.groups import ProcessGroups

    dist.init_process_group("gloo")
    told: dict[str, Any] = {}
    create = parallel_state.initialize_model_parallel

    def recorded(**settings: Any) -> None:
        told.update(settings)
        create(tensor_model_parallel_size=settings["tensor_model_parallel_size"])

    parallel_state.initialize_model_parallel = recorded
    torch.cuda.is_available = lambda: cuda
    torch.cuda.set_device = lambda device: None
    ProcessGroups.create(Mesh(2, 1))
    return told


@pytest.mark.parametrize(("cuda", "groups"), [(True, ["tp"]), (False, None)])
def test_collectives_of_tensor_parallel_ranks_have_priority_on_a_gpu(
    cuda: bool, groups: list[str] | None
) -> None:
    for told in run_ranks(settings_of_groups, 2, cuda):
        assert told == {"tensor_model_parallel_size": 2, "high_priority_stream_groups": groups}
