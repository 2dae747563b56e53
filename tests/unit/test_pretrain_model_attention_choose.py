"""Which attention backend runs on which hardware, and the errors for a wrong choice."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import FlexKernelOptions

from data.errors import InputError
from pretrain.model.attention import choose, flex
from pretrain.model.attention.choose import check_backend, packed_mask, resolve_backend
from pretrain.model.attention.dense import DenseMask
from pretrain.model.attention.hardware import Hardware, detect
from pretrain.model.attention.varlen import VarlenMask
from pretrain.model.config import AttentionBackend, ModelConfig
from tests.support.packings import worldvla
from tests.support.varlen_reference import PlainKernels

ALL = {"triton": "3.7.0", "flash-attn": "2.8.3", "flash-attn-4": "4.0.0b36"}
CPU = Hardware("cpu", packages=ALL)


def gpu(major: int, minor: int = 0, without: str = "", flash_attention: str = "2.8.3") -> Hardware:
    installed = {**ALL, "flash-attn": flash_attention}
    return Hardware("cuda", (major, minor), {name: v for name, v in installed.items() if name != without})


@pytest.mark.parametrize(
    ("hardware", "dtype", "head_size", "expected"),
    [
        (CPU, torch.bfloat16, 128, "sdpa"),
        (Hardware("mps"), torch.bfloat16, 128, "sdpa"),
        (gpu(7, 5), torch.float16, 128, "sdpa"),
        (gpu(8), torch.bfloat16, 128, "flex"),
        (gpu(8, without="triton"), torch.bfloat16, 128, "sdpa"),
        (gpu(9), torch.bfloat16, 128, "flash"),
        (gpu(9), torch.float32, 128, "sdpa"),
        (gpu(9), torch.bfloat16, 256, "flex"),
        (gpu(9), torch.bfloat16, 12, "sdpa"),
        (gpu(9, without="flash-attn-4"), torch.bfloat16, 128, "flex"),
        (gpu(10), torch.float16, 64, "flash"),
        (gpu(12), torch.bfloat16, 128, "flex"),
    ],
)
def test_auto_depends_on_the_hardware(
    hardware: Hardware, dtype: torch.dtype, head_size: int, expected: AttentionBackend
) -> None:
    assert resolve_backend("auto", hardware, dtype, head_size) == expected
    assert resolve_backend(expected, hardware, dtype, head_size) == expected


def test_every_backend_can_be_requested_on_its_hardware() -> None:
    for name in ("sdpa", "flex", "flash", "flash2"):
        assert resolve_backend(name, gpu(9), torch.bfloat16, 128) == name
    assert resolve_backend("flash2", gpu(8), torch.float16, 256) == "flash2"
    assert resolve_backend("flex", gpu(8), torch.float32, 128) == "flex"


@pytest.mark.parametrize(
    ("name", "hardware", "dtype", "head_size", "message"),
    [
        (
            "flex",
            CPU,
            torch.bfloat16,
            128,
            "needs a CUDA device, found the cpu device; use",
        ),
        ("flash2", CPU, torch.bfloat16, 128, "needs a CUDA device"),
        ("flex", gpu(7, 5), torch.float16, 64, "needs compute capability 8.0 or more, found .* 7.5"),
        ("flex", gpu(8, without="triton"), torch.bfloat16, 64, "package triton, which is not installed"),
        ("flex", gpu(8), torch.float64, 64, "takes bf16, fp16 and fp32, found torch.float64"),
        ("flex", gpu(8), torch.bfloat16, 8, "heads of at least 16, found a head size of 8"),
        ("flash", gpu(8), torch.bfloat16, 128, "needs compute capability 9, 10 or 11 .* found .* 8.0"),
        ("flash", gpu(12), torch.bfloat16, 128, "needs compute capability 9, 10 or 11 .* found .* 12.0"),
        ("flash", gpu(9, without="flash-attn-4"), torch.bfloat16, 128, "package flash-attn-4, which is not"),
        (
            "flash",
            gpu(9),
            torch.float32,
            128,
            "takes bf16 and fp16, found torch.float32",
        ),
        ("flash", gpu(9), torch.bfloat16, 192, "head sizes of up to 128 in steps of 8, found 192"),
        ("flash2", gpu(7, 0), torch.float16, 64, "needs compute capability 8.0"),
        (
            "flash2",
            gpu(8, without="flash-attn"),
            torch.bfloat16,
            64,
            "2.7 or 2.8, which is not .*flash2",
        ),
        ("flash2", gpu(8, flash_attention="1.0.9"), torch.bfloat16, 64, "2.7 or 2.8, found 1.0.9"),
        ("flash2", gpu(8, flash_attention="2.9rc1"), torch.bfloat16, 64, "2.7 or 2.8, found 2.9rc1"),
        ("flash2", gpu(8), torch.float32, 64, "takes bf16 and fp16, found torch.float32"),
        ("flash2", gpu(8), torch.bfloat16, 100, "head sizes of up to 256 in steps of 8, found 100"),
    ],
)
def test_a_backend_that_cannot_run_here_is_refused(
    name: AttentionBackend, hardware: Hardware, dtype: torch.dtype, head_size: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resolve_backend(name, hardware, dtype, head_size)


@pytest.mark.parametrize(
    ("hardware", "name", "block_size", "options"),
    [
        (gpu(8), "auto", (128, 128), flex.TRITON),
        (gpu(9), "flex", (128, 128), flex.TRITON),
        (gpu(9), "auto", (128, 128), flex.FLASH),
        (gpu(10), "auto", (256, 128), flex.FLASH),
    ],
)
def test_the_mask_is_that_of_the_chosen_kernels(
    monkeypatch: pytest.MonkeyPatch,
    hardware: Hardware,
    name: AttentionBackend,
    block_size: tuple[int, int],
    options: FlexKernelOptions,
) -> None:
    monkeypatch.setattr(choose, "detect", lambda device: hardware)
    segments, blocks = worldvla(700)
    mask = packed_mask(segments, blocks, ModelConfig(attention=name), torch.device("cpu"), torch.bfloat16)
    assert isinstance(mask, flex.FlexMask)
    assert block_size == mask.block_mask.BLOCK_SIZE
    assert mask.options == options


def test_the_ablations_reach_every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "detect", lambda device: gpu(9))
    monkeypatch.setattr(choose, "flash_attention_2", PlainKernels)
    for name in ("sdpa", "flex", "flash", "flash2"):
        config = ModelConfig(attention=name, action_mask=False)
        mask = packed_mask([[1] * 5], [[0, 1, 2, 2, 0]], config, torch.device("cpu"), torch.bfloat16)
        if isinstance(mask, VarlenMask):
            assert mask.within is None
        elif isinstance(mask, flex.FlexMask):
            index, zero = torch.arange(5), torch.tensor(0)
            visible = mask.block_mask.mask_mod(zero, zero, index[:, None], index[None])
            assert torch.equal(visible, torch.ones(5, 5).tril().bool())
        else:
            assert isinstance(mask, DenseMask)
            assert mask.dense.sum() == 15


def test_backend_is_checked_before_the_mask_is_built() -> None:
    device = torch.device("cpu")
    assert detect(device).device == "cpu"
    assert check_backend(ModelConfig(), device, torch.bfloat16) == "sdpa"
    with pytest.raises(InputError, match="needs a CUDA device"):
        packed_mask([[1]], [[0]], ModelConfig(attention="flash"), device)
