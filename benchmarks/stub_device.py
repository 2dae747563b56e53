"""A CUDA device that is not there, on which torch, Triton and flash-attn-4 compile kernels but start none.

Three layers, each as small as possible: a preloaded library that answers for driver and runtime
(`stub_driver.c`), properties of the GPU in place of torch's own questions, and fake tensors, which have
shapes and no memory. Python's part of a compiled graph runs as on the GPU, up to the start of each kernel.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("stub_driver.c")
LIBRARY = "libcuda.so.1"  # the name that Triton links
_KIND_OF_CUDA = 2  # kDLCUDA


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU to compile for.

    Attributes:
        name: Of the GPU.
        capability: Compute capability.
        shared: Most shared memory of a block in bytes, by NVIDIA's programming guide.
        multiprocessors: Their number.
    """

    name: str
    capability: tuple[int, int]
    shared: int
    multiprocessors: int

    @property
    def architecture(self) -> str:
        """As compilers write it: `sm_90`."""
        return "sm_{}{}".format(*self.capability)


TARGETS = {
    target.architecture: target
    for target in (
        Target("A100", (8, 0), 163 * 1024, 108),
        Target("H100", (9, 0), 227 * 1024, 132),
    )
}


def missing() -> str | None:
    """What this machine lacks for compiling, and what to do; None: nothing."""
    if torch.version.cuda is None:
        return f"needs a CUDA build of torch, found {torch.__version__}; install that"
    if shutil.which("gcc") is None:
        return "needs gcc, which is not installed: apt-get install gcc"
    return None


def build(folder: Path) -> Path:
    """Compile the preloaded library into a folder; return its path."""
    library = folder / LIBRARY
    name = f"-Wl,-soname,{LIBRARY}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", name, "-o", str(library), str(SOURCE)], check=True)
    return library


def environment(target: Target, library: Path, caches: Path) -> dict[str, str]:
    """Variables of a process in which `pretend` is called.

    Args:
        target: To compile for.
        library: Of `build`.
        caches: Folder for what compilers keep: nothing compiled before is taken.
    """
    major, minor = target.capability
    return {
        "LD_PRELOAD": str(library),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "STUB_MAJOR": str(major),
        "STUB_MINOR": str(minor),
        "STUB_SHARED": str(target.shared),
        "FLASH_ATTENTION_ARCH": target.architecture,
        "CUTE_DSL_ARCH": f"{target.architecture}a",
        "CUTE_DSL_KEEP_CUBIN": "1",
        "CUTE_DSL_DUMP_DIR": str(caches / "cute"),
    }


def pretend(target: Target) -> None:
    """Let this process take fake tensors on `cuda` for tensors of the target; it cannot be undone.

    The process has the variables of `environment`.
    """
    _answer_for_the_device(target)
    _run_graphs_without_memory()
    if os.environ["CUTE_DSL_ARCH"] == "sm_90a":
        _hand_over_fake_tensors()


def _answer_for_the_device(target: Target) -> None:
    major, minor = target.capability
    properties = SimpleNamespace(
        name=target.name,
        major=major,
        minor=minor,
        multi_processor_count=target.multiprocessors,
        total_memory=80 * 2**30,
        regs_per_multiprocessor=65_536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        shared_memory_per_block=48 * 1024,
        shared_memory_per_block_optin=target.shared,
        warp_size=32,
        L2_cache_size=50 * 2**20,
        gcnArchName="",
    )
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: target.capability,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: target.name,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "is_current_stream_capturing": lambda: False,
    }
    silent = ("_lazy_init", "set_device", "set_rng_state", "synchronize")
    _replace(torch.cuda, answers | {name: _nothing() for name in silent})
    _replace(torch.cuda._DeviceGuard, {"__enter__": _nothing(), "__exit__": _nothing()})


def _run_graphs_without_memory() -> None:
    """Replace what a compiled graph does with the memory of its tensors before a kernel is started."""
    import torch._inductor.compile_fx as compile_fx
    from torch._inductor.fx_passes import fuse_attention, pad_mm

    core: Any = torch._C
    _replace(core, {"_cuda_getCurrentRawStream": lambda device: 0})
    _replace(
        core._dynamo.guards,
        {
            "_empty_strided_cuda": lambda size, stride, dtype: torch.empty_strided(
                size, stride, dtype=dtype, device="cuda"
            ),
            "_reinterpret_tensor": lambda tensor, size, stride, offset=0: tensor.as_strided(
                size, stride, tensor.storage_offset() + offset
            ),
            "copy_if_misaligned": lambda tensor, *_: tensor,
        },
    )
    _replace(compile_fx, {"get_input_idxs_to_check": lambda *_: []})  # their alignment in memory
    # Patterns of matrix products and of attention written out, made of tensors on the device: none is in our
    # functions.
    _replace(fuse_attention, {"_sfdp_init": _nothing()})
    _replace(pad_mm, {"_pad_mm_init": _nothing()})


def _hand_over_fake_tensors() -> None:
    """Let flash-attn-4 read shapes and strides of a fake tensor from one on the host, said to be on a GPU."""
    from torch._subclasses.fake_tensor import FakeTensor

    try:
        utilities: Any = import_module("flash_attn.cute.cute_dsl_utils")
    except ImportError:
        return  # not installed
    read = utilities.from_dlpack
    _replace(
        utilities,
        {"from_dlpack": lambda x, **kw: read(_SaidToBeOnCuda(x) if isinstance(x, FakeTensor) else x, **kw)},
    )


class _SaidToBeOnCuda:
    """DLPack's form of an empty tensor on the host, with the device changed."""

    def __init__(self, like: Tensor) -> None:
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        with unset_fake_temporarily():
            self._tensor = torch.empty_strided(tuple(like.shape), tuple(like.stride()), dtype=like.dtype)

    def __dlpack__(self, **_: Any) -> object:
        capsule = torch.utils.dlpack.to_dlpack(self._tensor)  # type: ignore[attr-defined]
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        address = pointer(capsule, b"dltensor")
        ctypes.c_int32.from_address(address + 8).value = _KIND_OF_CUDA  # behind the pointer to the data
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _KIND_OF_CUDA, 0


def _replace(place: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if not hasattr(place, name):
            raise AttributeError(f"{place!r} of torch {torch.__version__} has no {name} to replace")
        setattr(place, name, value)


def _nothing() -> Callable[..., None]:
    """A function that does nothing; a new one each time: torch lists its own functions by identity."""
    return lambda *_, **__: None
