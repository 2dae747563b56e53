"""The first pass of a backend that fails names it and what to set; later failures are as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.utils.checkpoint import checkpoint

from data.errors import InputError
from pretrain.model.attention import first_call
from pretrain.model.attention.call import AttentionMask, attention
from pretrain.model.attention.choose import packed_mask
from pretrain.model.attention.first_call import explained_backward, is_proven
from pretrain.model.attention.flex import FLASH, TRITON, FlexMask
from pretrain.model.attention.varlen import VarlenMask
from pretrain.model.config import AttentionBackend, ModelConfig
from tests.support.packings import worldvla
from tests.support.varlen_reference import PlainKernels

CPU = torch.device("cpu")
Act = Callable[[], None]


def nothing() -> None:
    pass


def failing(error: BaseException, cause: BaseException | None = None) -> Act:
    def fail() -> None:
        raise error from cause

    return fail


class _Doubled(Function):
    @staticmethod
    def forward(ctx: object, query: Tensor, act: Act) -> Tensor:
        ctx.act = act  # type: ignore[attr-defined]
        return query * 2

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.act()  # type: ignore[attr-defined]
        return gradients[0] * 2, None


@dataclass(frozen=True)
class FakeMask(AttentionMask):
    """Doubles the queries; acts first, in each direction."""

    name: AttentionBackend = "flash"
    forward: Act = nothing
    backward: Act = nothing

    @property
    def backend(self) -> AttentionBackend:
        return self.name

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.forward()
        output = _Doubled.apply(query, self.backward)
        assert isinstance(output, Tensor)
        return output


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_call, "_passes", first_call._FirstPasses())


def tensors(grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    leaf = torch.ones(1, 2, 4, 8, requires_grad=grad)
    query, key, value = leaf * 1, leaf * 1, leaf * 1
    return query, key, value


@pytest.mark.parametrize(
    ("backend", "remedy"),
    [("flash", "model.attention=flex, or sdpa"), ("flex", "model.attention=sdpa"), ("flash2", "flex, or")],
)
def test_a_first_forward_pass_that_fails_names_backend_error_and_remedy(
    backend: AttentionBackend, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = ModuleNotFoundError("No module named 'cutlass'\n  in a long log")
    with pytest.raises(InputError) as raised, caplog.at_level(logging.ERROR):
        attention(*tensors(), FakeMask(backend, forward=failing(error)))
    text = str(raised.value)
    assert text.startswith(f"attention backend {backend}: its first forward pass failed on this machine")
    assert "with ModuleNotFoundError: No module named 'cutlass' in a long log; set " in text
    assert remedy in text
    assert "\n" not in text
    assert raised.value.__cause__ is error
    assert "Traceback" in caplog.text


def test_a_long_message_is_cut_in_the_line_and_whole_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("x" * 5000)
    with pytest.raises(InputError) as raised:
        attention(*tensors(), FakeMask(forward=failing(error)))
    assert len(str(raised.value)) < 600
    assert "x" * 5000 in caplog.text


def test_later_failures_pass_unchanged() -> None:
    attention(*tensors(grad=False), FakeMask())
    with pytest.raises(ZeroDivisionError):
        attention(*tensors(), FakeMask(forward=failing(ZeroDivisionError())))
    assert not is_proven("flash")  # its backward pass has not run


@pytest.mark.parametrize("wrapped", [False, True])
def test_out_of_memory_keeps_its_type(wrapped: bool) -> None:
    memory = torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
    act = failing(RuntimeError("backend='inductor' raised"), memory) if wrapped else failing(memory)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        attention(*tensors(), FakeMask(forward=act))
    assert raised.value is memory
    with pytest.raises(torch.OutOfMemoryError), explained_backward():
        attention(*tensors(), FakeMask(backward=act)).sum().backward()


def test_a_first_backward_pass_that_fails_is_explained_too() -> None:
    output = attention(*tensors(), FakeMask("flex", backward=failing(NotImplementedError("no atomics"))))
    with (
        pytest.raises(
            InputError, match=r"flex: its first backward pass .* NotImplementedError: no atomics; set"
        ),
        explained_backward(),
    ):
        output.sum().backward()


def test_errors_of_other_parts_of_the_backward_pass_are_not_its() -> None:
    query, key, value = tensors()
    before = _Doubled.apply(query, failing(ZeroDivisionError("before attention")))
    assert isinstance(before, Tensor)
    after = attention(before, key, value, FakeMask("flex"))
    with pytest.raises(ZeroDivisionError, match="before attention"), explained_backward():
        after.sum().backward()
    assert is_proven("flex")
    with pytest.raises(KeyError), explained_backward():
        raise KeyError("data")


def test_both_passes_are_followed_once() -> None:
    attention(*tensors(), FakeMask()).sum().backward()
    assert is_proven("flash")
    assert not is_proven("flex")
    with pytest.raises(ZeroDivisionError), explained_backward():
        attention(*tensors(), FakeMask(backward=failing(ZeroDivisionError()))).sum().backward()
    query, key, value = tensors()
    hooks = len(query._backward_hooks or {})
    attention(query, key, value, FakeMask())
    assert len(query._backward_hooks or {}) == hooks


def test_a_recomputed_layer_is_followed_too() -> None:
    act = failing(NotImplementedError("in the kernel"))
    output = checkpoint(attention, *tensors(), FakeMask("flex", backward=act), use_reentrant=False)
    assert isinstance(output, Tensor)
    with pytest.raises(InputError, match="flex: its first backward pass"), explained_backward():
        output.sum().backward()


def test_masks_name_their_backends() -> None:
    packed = worldvla(300)
    assert FlexMask.packed(*packed, CPU, options=TRITON).backend == "flex"
    assert FlexMask.packed(*packed, CPU, options=FLASH).backend == "flash"
    assert VarlenMask.packed(*packed, CPU, PlainKernels()).backend == "flash2"
    assert packed_mask(*packed, ModelConfig(), CPU).backend == "sdpa"
    assert is_proven("sdpa")
