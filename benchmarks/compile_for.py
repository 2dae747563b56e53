"""Compile every GPU kernel of ours without a GPU: FlexAttention, flash-attn-4 and the compiled functions.

For each target a process of its own takes fake tensors for those of the GPU (`benchmarks.stub_device`) and
runs attention and a layer forward and backward at the models' shapes, as a training would: torch.compile,
Triton's compiler and NVIDIA's assembler do the same work; no kernel is started. A kernel that does not
compile fails here, and so does one that needs more shared memory than the GPU has.

Shown: that kernels compile, and their resources: registers and spilled bytes of a thread, shared memory of a
block; of several configurations the largest. Not shown: that they run, are right, or are fast.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kernel_compiler import Compiler, Resources
from benchmarks.stub_device import TARGETS, Target, build, environment, missing, pretend
from pretrain.model.attention.call import AttentionMask, attention

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Size:
    """Shapes to compile for.

    Attributes:
        tokens: T of a micro-batch.
        hidden: H.
        ffn: F.
        heads: Of queries.
        shared: Of keys and values.
    """

    tokens: int
    hidden: int
    ffn: int
    heads: int
    shared: int


SIZES = {"7b": Size(8192, 4096, 11_008, 32, 32), "34b": Size(8192, 8192, 22_016, 64, 8)}


def compile_attention(compiler: Compiler, size: Size, backend: str, by_ids: bool) -> None:
    """Compile attention forward and backward, in bf16, under one form of the mask."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from pretrain.model.attention.block_sparse import from_ids, from_intervals
    from pretrain.model.attention.flex import FLASH, TRITON, TRITON_BLOCK, FlexMask, flash_block

    grouped = "" if size.heads == size.shared else f", {size.heads} heads over {size.shared}"
    compiler.part = f"attention {backend}, {'ids' if by_ids else 'intervals'}{grouped}"
    block = flash_block(torch.cuda.get_device_capability()) if backend == "flash" else TRITON_BLOCK
    with FakeTensorMode():
        first, second, third = (torch.empty(size.tokens, dtype=torch.int32, device="cuda") for _ in range(3))
        mask = from_ids(first, second, block) if by_ids else from_intervals(first, second, third, block)
        query, key, value = (_heads(size, number) for number in (size.heads, size.shared, size.shared))
        attention(query, key, value, FlexMask(mask, FLASH if backend == "flash" else TRITON))
    compiler.take_dumped()


def _heads(size: Size, number: int) -> Tensor:
    width = size.hidden // size.heads
    x = torch.empty(1, size.tokens, number, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    return x.transpose(1, 2)


class _WithoutAttention(AttentionMask):
    """In place of attention, which is compiled by itself."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The queries: attention has a result of their shape."""
        return query


def compile_layer(compiler: Compiler, size: Size, swin_norm: bool) -> None:
    """Compile the functions of a layer and of the final norm, forward and backward, in bf16 with dropout.

    Besides a plain forward pass: one whose layer returns the stream as one tensor, as `full` recomputation
    asks for, and the reading of a prompt into a cache.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from pretrain.model.cache import DecodingCache
    from pretrain.model.config import ModelConfig
    from pretrain.model.factory import LayerFactory
    from pretrain.model.layers import RotaryPositions
    from pretrain.model.transformer import Decoder

    compiler.part = "layer"
    torch.compiler.reset()  # else its sizes would be symbolic after those of another layer
    config = ModelConfig(
        hidden_size=size.hidden,
        ffn_size=size.ffn,
        heads=size.heads,
        key_value_heads=size.shared,
        layers=1,
        swin_norm=swin_norm,
        dropout=0.1,
    )
    with FakeTensorMode(), torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)  # a fake parameter cannot be cast
        network = Decoder(config, LayerFactory()).train()
        torch.set_default_dtype(torch.float32)
        tokens, mask = torch.empty(1, size.tokens, dtype=torch.int64), _WithoutAttention()
        network(tokens, tokens, mask)
        stream = torch.empty(size.tokens, size.hidden, dtype=torch.bfloat16, requires_grad=True)
        angles = torch.empty(size.tokens, 1, config.head_size, dtype=torch.bfloat16)
        rotary = RotaryPositions(1, size.tokens, angles, angles)
        network.layers[0]((stream,), rotary, mask, whole=True)
        cache = DecodingCache(config, 1, size.tokens, torch.device("cuda"), torch.bfloat16)
        with torch.no_grad():
            network.eval().prefill(tokens, tokens, mask, cache)


def compile_everything(target: Target, smoke: bool) -> tuple[list[Resources], list[str]]:
    """Every kernel of a target; for a process that has called `pretend`.

    Args:
        target: To compile for.
        smoke: Only one mask.

    Returns:
        The kernels, and the names of the functions that were compiled.
    """
    compiler = Compiler()
    backends = ["flex"] + (["flash"] if target.capability == (9, 0) and _has_flash_4() else [])
    for backend in backends:
        compile_attention(compiler, SIZES["7b"], backend, by_ids=False)
        if not smoke:
            compile_attention(compiler, SIZES["7b"], backend, by_ids=True)
            compile_attention(compiler, SIZES["34b"], backend, by_ids=False)
    compile_layer(compiler, SIZES["7b"], swin_norm=False)
    compile_layer(compiler, SIZES["34b"], swin_norm=True)
    rows = compiler.resources(target)
    # The same kernel at another place of the network is one.
    return list(dict.fromkeys(rows)), sorted(set(compiler.functions))


def _has_flash_4() -> bool:
    try:
        return bool(version("flash-attn-4"))
    except PackageNotFoundError:
        return False


def compile_for(target: Target, smoke: bool = False) -> tuple[list[Resources], list[str]]:
    """Compile for a target in a process of its own.

    Args:
        target: To compile for.
        smoke: As in `compile_everything`.

    Returns:
        The kernels, and the names of the functions that were compiled.

    Raises:
        RuntimeError: Something does not compile; its traceback is on standard error.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cute").mkdir()
        own = environment(target, build(folder), folder)
        out = folder / "kernels.json"
        words = ["--child", target.architecture, "--out", str(out), *(["--smoke"] if smoke else [])]
        command = [sys.executable, "-m", "benchmarks.compile_for", *words]
        if subprocess.run(command, env=os.environ | own, cwd=_ROOT, check=False).returncode:
            raise RuntimeError(f"{target.architecture}: not everything compiles, see above")
        content = json.loads(out.read_text("utf-8"))
    return [Resources(**row) for row in content["kernels"]], content["functions"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile for the targets and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_for",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--smoke", action="store_true", help="one mask")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--child", choices=sorted(TARGETS), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if (reason := missing()) is not None:
        parser.exit(2, f"error: benchmarks.compile_for {reason}\n")
    if chosen.child:
        target = TARGETS[chosen.child]
        pretend(target)
        kernels, functions = compile_everything(target, chosen.smoke)
        content = {"kernels": [asdict(each) for each in kernels], "functions": functions}
        chosen.out.write_text(json.dumps(content), "utf-8")
        return
    from benchmarks.report import Column, Report

    columns = [Column("part", "part"), Column("kernel", "kernel"), Column("variants", "variants")]
    report = Report(
        "compile_for",
        "Kernels compiled without a GPU",
        [
            Column("target", "target"),
            *columns,
            Column("registers", "registers"),
            Column("spilled", "spilled", "B a thread"),
            Column("shared", "shared memory", "B"),
        ],
        "cpu",
    )
    for name in chosen.targets:
        for row in compile_for(TARGETS[name], chosen.smoke)[0]:
            report.add(**asdict(row))
    report.note("compiled, not run; flash-attn-4 chooses its shared memory when a kernel is started")
    report.finish(chosen.out)


if __name__ == "__main__":
    main()
