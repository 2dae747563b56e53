"""Choice of the attention backend by hardware, and construction of its mask.

| backend  | kernels                                       | compute capability | types            |
|----------|-----------------------------------------------|--------------------|------------------|
| `sdpa`   | torch's attention, dense mask: the reference  | any, and CPU       | any              |
| `flex`   | FlexAttention, Triton                         | 8.0 and up         | fp32, bf16, fp16 |
| `flash`  | FlexAttention, flash-attn-4                   | 9, 10, 11          | bf16, fp16       |
| `flash2` | flash-attn 2 varlen, mask split into passes  | 8.0 and up         | bf16, fp16       |

`auto` takes in bf16 and fp16 the first of `flash`, `flex` and `sdpa` that the hardware supports, in other
types `sdpa`, and with `trainer.deterministic` never `flash`. On an A100 `flex` is preferred to `flash2`: one
kernel that skips hidden blocks needs neither copies of keys and values nor three outputs to merge, and it is
part of torch. `flash2` runs only on request; `benchmarks/attention.py` compares them.
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from data.errors import InputError
from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.dense import DenseMask
from pretrain.model.attention.flex import FLASH, FlexMask, flash_block
from pretrain.model.attention.hardware import (
    FLASH_4_GENERATIONS,
    FLASH_ATTENTION_2,
    FLASH_ATTENTION_4,
    TRITON,
    Hardware,
    detect,
)
from pretrain.model.attention.host import on_device
from pretrain.model.attention.varlen import VarlenMask, flash_attention_2
from pretrain.model.config import AttentionBackend, ModelConfig
from pretrain.model.mask import effective_blocks

# On 9 its kernel adds the queries' gradient of several blocks of keys with atomics, in any order. On 10 and
# 11 it can add them in a fixed order, which torch then wants in the mask; ours do not hold it.
_NOT_REPEATED = (
    "its gradients do not repeat bit for bit, which trainer.deterministic=true asks for; use "
    "model.attention=flex or flash2"
)

HALF_TYPES = (torch.bfloat16, torch.float16)


def packed_mask(
    segments: ArrayLike | Tensor,
    blocks: ArrayLike | Tensor,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> AttentionMask:
    """The mask of packed training sequences, built once for each micro-batch.

    Args:
        segments: Segment ids [B, S], on the host.
        blocks: Block ids [B, S], on the host.
        config: Backend and ablations of the mask.
        device: On which attention is computed.
        dtype: Of queries, keys and values.

    Raises:
        InputError: The requested backend is not available here.
    """
    backend = check_backend(config, device, dtype)
    segments, blocks = torch.as_tensor(segments), torch.as_tensor(blocks)
    blocks = effective_blocks(blocks, config.action_mask, config.history_actions_visible)
    if backend == "flex":
        return FlexMask.packed(segments, blocks, device)
    if backend == "flash":
        block_size = flash_block(detect(device).capability)
        return FlexMask.packed(segments, blocks, device, block_size, FLASH)
    if backend == "flash2":
        return VarlenMask.packed(segments, blocks, device, flash_attention_2())
    return DenseMask.packed(on_device(segments, device), on_device(blocks, device))


def check_backend(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """The backend that `config.attention` selects here: `sdpa`, `flex`, `flash` or `flash2`.

    Args:
        config: Backend and head size.
        device: On which attention is computed.
        dtype: Of queries, keys and values.

    Raises:
        InputError: It is not available here; states what was found and what to do.
    """
    return resolve_backend(
        config.attention,
        detect(device),
        dtype,
        config.head_size,
        torch.are_deterministic_algorithms_enabled(),
    )


def resolve_backend(
    name: AttentionBackend,
    hardware: Hardware,
    dtype: torch.dtype,
    head_size: int,
    deterministic: bool = False,
) -> AttentionBackend:
    """The selection as a pure function; see `check_backend`."""
    if name == "auto":
        fast: tuple[AttentionBackend, ...] = ("flash", "flex") if dtype in HALF_TYPES else ()
        for candidate in fast:
            if unsupported_reason(candidate, hardware, dtype, head_size, deterministic) is None:
                return candidate
        return "sdpa"
    reason = unsupported_reason(name, hardware, dtype, head_size, deterministic)
    if reason is not None:
        raise InputError(f"model.attention={name}: {reason}; or set model.attention=auto")
    return name


def unsupported_reason(
    name: AttentionBackend,
    hardware: Hardware,
    dtype: torch.dtype,
    head_size: int,
    deterministic: bool = False,
) -> str | None:
    """Why a backend cannot run here and what to do about it; None if it can.

    Args:
        name: `sdpa`, `flex`, `flash` or `flash2`.
        hardware: On which it would run.
        dtype: Of queries, keys and values.
        head_size: D.
        deterministic: Whether its gradients have to repeat bit for bit (`trainer.deterministic`).
    """
    if name == "sdpa":
        return None
    if hardware.device != "cuda":
        return f"needs a CUDA device, found {hardware.name}; use model.attention=sdpa here"
    reason = {"flex": _flex, "flash": _flash, "flash2": _flash2}[name](hardware, dtype, head_size)
    if reason is None and deterministic and name == "flash":
        return _NOT_REPEATED
    return reason


def _flex(hardware: Hardware, dtype: torch.dtype, head_size: int) -> str | None:
    if hardware.capability < (8, 0):
        return f"needs compute capability 8.0 or more, found {hardware.name}; use an A100 or later"
    if TRITON not in hardware.packages:
        return "needs the package triton, which is not installed; install a CUDA build of torch"
    if dtype not in (*HALF_TYPES, torch.float32):
        return f"takes bf16, fp16 and fp32, found {dtype}; change the precision"
    if head_size < 16:  # tl.dot multiplies tiles of at least 16 x 16
        return f"takes heads of at least 16, found a head size of {head_size}; use fewer or wider heads"
    return None


def _flash(hardware: Hardware, dtype: torch.dtype, head_size: int) -> str | None:
    if hardware.capability[0] not in FLASH_4_GENERATIONS:
        return f"needs compute capability 9, 10 or 11 (H100, H200, B200), found {hardware.name}; use one"
    if FLASH_ATTENTION_4 not in hardware.packages:
        return "needs the package flash-attn-4, which is not installed; `pip install -e '.[cuda]'`"
    if fault := hardware.faults.get(FLASH_ATTENTION_4):
        return fault
    # Wider heads use tiles of other sizes, which blocks of 128 keys do not fit.
    return _half_types(dtype) or _head_size(head_size, largest=128)


def _flash2(hardware: Hardware, dtype: torch.dtype, head_size: int) -> str | None:
    if hardware.capability < (8, 0):
        return f"needs compute capability 8.0 or more, found {hardware.name}; use an A100 or later"
    installed = hardware.packages.get(FLASH_ATTENTION_2)
    tools, package = "hatchling editables wheel", "--no-build-isolation -e '.[flash2]'"
    install = f"`pip install {tools}` and `pip install {package}` build it"
    if installed is None:
        return f"needs the package flash-attn 2.7 or 2.8, which is not installed; {install}"
    if not installed.startswith(("2.7.", "2.8.")):
        return f"needs the package flash-attn 2.7 or 2.8, found {installed}; {install}"
    return _half_types(dtype) or _head_size(head_size, largest=256)


def _half_types(dtype: torch.dtype) -> str | None:
    return None if dtype in HALF_TYPES else f"takes bf16 and fp16, found {dtype}; use trainer.precision=bf16"


def _head_size(head_size: int, largest: int) -> str | None:
    if head_size % 8 or head_size > largest:
        return f"takes head sizes of up to {largest} in steps of 8, found {head_size}; choose such a size"
    return None
