"""All kernels compile for an A100 and an H100; no GPU is needed, but torch's CUDA build."""

from __future__ import annotations

import inspect

import pytest

from benchmarks.compile_for import compile_for
from benchmarks.stub_device import TARGETS, missing
from pretrain.model import pointwise

REASON = missing()

pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=f"compiling for a GPU {REASON}"),
    pytest.mark.timeout(1500),
]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_kernel_compiles_and_fits_the_gpu(name: str) -> None:
    target = TARGETS[name]
    kernels, functions = compile_for(target, smoke=True)
    assert {each.target for each in kernels} == {name}
    assert all(0 < each.registers <= 255 and each.variants > 0 for each in kernels)
    attention = [each.kernel for each in kernels if each.part == "attention flex, intervals"]
    assert sum("backward" in each for each in attention) >= 1
    assert sum("backward" not in each for each in attention) == 1
    parts = {each.part for each in kernels}
    for function in functions:
        assert function in parts or function == "flex_attention"
    own = [
        each.__name__
        for _, each in inspect.getmembers(pointwise, inspect.isfunction)
        if each.__module__ == pointwise.__name__ and not each.__name__.startswith("_")
    ]
    assert set(own) - {"compiled", "is_compiled"} <= set(functions), "a function of a layer was not compiled"
