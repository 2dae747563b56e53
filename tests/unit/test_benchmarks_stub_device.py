"""The device that is not there: what it answers, and where nothing can be compiled for it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import compile_for, stub_device
from benchmarks.stub_device import TARGETS, build, environment, missing

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: apt-get install gcc")

ASK = """
import ctypes, json
own = ctypes.CDLL(None)
value, answers = ctypes.c_int(), []
for attribute in (75, 76, 97, 10):
    assert own.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0) == 0
    answers.append(value.value)
assert own.cudaGetDeviceCount(ctypes.byref(value)) == 0
print(json.dumps([*answers, value.value, own.cuModuleLoadData()]))
"""


@needs_gcc
@pytest.mark.parametrize(("name", "expected"), [("sm_80", [8, 0, 166_912]), ("sm_90", [9, 0, 232_448])])
def test_the_preloaded_library_says_which_gpu_it_is_and_loads_no_kernel(
    name: str, expected: list[int], tmp_path: Path
) -> None:
    own = environment(TARGETS[name], build(tmp_path), tmp_path)
    command = [sys.executable, "-S", "-c", ASK]
    printed = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [*expected, 32, 1, 801]
    assert own["CUTE_DSL_ARCH"] == f"{name}a"


def test_a_cpu_build_of_torch_and_a_missing_compiler_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc")
    assert missing() is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert missing() == "needs gcc, which is not installed: apt-get install gcc"
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit) as ended:
        compile_for.main(["--smoke"])
    assert ended.value.code == 2
    assert "error: benchmarks.compile_for needs a CUDA build of torch, found" in capsys.readouterr().err


def test_a_name_that_torch_no_longer_has_is_not_replaced() -> None:
    with pytest.raises(AttributeError, match=r"of torch .* has no gone to replace"):
        stub_device._replace(torch.cuda, {"gone": None})
    assert not hasattr(torch.cuda, "gone")


def test_a_host_tensor_is_handed_over_as_one_on_the_device() -> None:
    shaped = torch.empty(3, 5, dtype=torch.bfloat16).T
    wrapped = stub_device._SaidToBeOnCuda(shaped)
    assert wrapped.__dlpack_device__() == (2, 0)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    capsule = wrapped.__dlpack__()
    address = pointer(capsule, b"dltensor")
    device, dimensions = ctypes.c_int32.from_address(address + 8), ctypes.c_int32.from_address(address + 16)
    assert (device.value, dimensions.value) == (2, 2)
    device.value = 1  # as it was, for the release of its memory
