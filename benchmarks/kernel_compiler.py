"""torch.compile on fake tensors: the kernels that Triton and flash-attn-4 compile, and their resources."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.stub_device import Target


@dataclass(frozen=True, slots=True)
class Resources:
    """One kernel, the largest of its variants.

    Attributes:
        target: `sm_80` or `sm_90`.
        part: What it belongs to.
        kernel: Its name.
        variants: Number of configurations that were compiled.
        registers: Of a thread.
        spilled: Bytes of a thread's registers that are in local memory.
        shared: Bytes of shared memory of a block; None: decided when it is started.
    """

    target: str
    part: str
    kernel: str
    variants: int
    registers: int
    spilled: int
    shared: int | None


class Compiler:
    """Compiles what is called on fake tensors, and keeps the kernels.

    Attributes:
        kernels: Those of Triton: part of the network, and autotuner with its variants.
        flash_4: Those of flash-attn-4: part of the network, name and binary.
        functions: Names of the functions that were given to torch.compile.
    """

    def __init__(self) -> None:
        """Take the place of torch.compile's own backend; for one process, after `pretend`."""
        import torch._functorch.config as functorch
        import torch._inductor.config as inductor
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner

        self.kernels: list[tuple[str, Any]] = []
        self.flash_4: list[tuple[str, str, bytes]] = []
        self.functions: list[str] = []
        self.part = ""
        inductor.compile_threads, inductor.fx_graph_cache = 1, False
        inductor.use_static_cuda_launcher = False
        functorch.enable_autograd_cache = False
        functorch.force_non_lazy_backward_lowering = True  # with the forward pass
        autotuner: Any = CachingAutotuner
        autotuner.precompile = lambda kernel, *_, **__: self._keep(kernel)
        autotuner.run = lambda kernel, *_, **__: None
        self._compile: Callable[..., Any] = torch.compile
        torch.compile = self._compiled  # pyright: ignore[reportAttributeAccessIssue]

    def _compiled(self, function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        name: str = getattr(function, "__name__", type(function).__name__)
        self.functions.append(name)
        part = "" if name == "flex_attention" else name  # attention's part names the mask
        return self._compile(function, backend=partial(self._backend, part), **settings)

    def _backend(self, function: str, graph: Any, inputs: Sequence[Any]) -> Any:
        from torch._guards import detect_fake_mode
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        def inner(graph: Any, inputs: Sequence[Any], **settings: Any) -> Any:
            compiled: Any = compile_fx_inner(graph, inputs, **settings)
            if settings.get("is_backward") and not _symbolic(inputs):
                mode = detect_fake_mode(inputs)
                assert mode is not None
                with mode:  # flash-attn-4 compiles its kernels when they are called, and this pass is not
                    compiled(list(inputs))
            return compiled

        before, self.part = self.part, function or self.part
        try:
            return compile_fx(graph, inputs, inner_compile=inner)  # pyright: ignore[reportArgumentType]
        finally:
            self.part = before

    def _keep(self, kernel: Any) -> None:
        """In place of loading a kernel: compile its variants."""
        kernel._precompile_worker()
        self.kernels.append((self.part, kernel))

    def take_dumped(self) -> None:
        """Take the binaries that flash-attn-4 has written since the last call: names repeat."""
        for path in sorted(Path(os.environ["CUTE_DSL_DUMP_DIR"]).glob("*.cubin")):
            found = re.search(r"flash_attncute(flash_[a-z0-9_]+?)Flash", path.name)
            self.flash_4.append((self.part, found.group(1) if found else path.name, path.read_bytes()))
            path.unlink()

    def resources(self, target: Target) -> list[Resources]:
        """Of all kernels so far.

        Raises:
            RuntimeError: No variant of a kernel fits the GPU's shared memory.
        """
        rows = [_of_triton(target, part, kernel) for part, kernel in self.kernels]
        return rows + [
            Resources(target.architecture, part, name, 1, *_usage(binary), None)
            for part, name, binary in self.flash_4
        ]


def _symbolic(inputs: Sequence[Any]) -> bool:
    """Whether a graph is for any sizes, as after a second shape; flash-attn-4 takes none."""
    sizes = [size for each in inputs for size in (each.shape if isinstance(each, Tensor) else [each])]
    return any(isinstance(size, torch.SymInt) for size in sizes)


def _of_triton(target: Target, part: str, kernel: Any) -> Resources:
    """The resources of one of Triton's kernels.

    Raises:
        RuntimeError: No variant fits the GPU's shared memory.
    """
    compiled = [result.kernel for result in kernel.compile_results]
    shared = [each.metadata.shared for each in compiled]
    name = compiled[0].metadata.name
    if min(shared) > target.shared:
        raise RuntimeError(f"{name}: {min(shared)} bytes of shared memory, {target.name} has {target.shared}")
    used = [_usage(each.asm["cubin"]) for each in compiled]
    registers, spilled = (max(numbers) for numbers in zip(*used, strict=True))
    return Resources(target.architecture, part, name, len(compiled), registers, spilled, max(shared))


def _usage(binary: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread, as NVIDIA's `cuobjdump` reads them."""
    backend: Any = import_module("triton.backends.nvidia")
    program = Path(backend.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(program), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    numbers = re.findall(r"REG:(\d+) STACK:(\d+)", text)
    return max(int(registers) for registers, _ in numbers), max(int(stack) for _, stack in numbers)
