"""Bare weights are read in little more memory than they occupy, without DeepSpeed and DCP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data.storage.store import open_store
from pretrain.checkpoint.boxed_tensor import BoxedTensor
from pretrain.checkpoint.boxes import boxes_of_range
from pretrain.checkpoint.commit import Shard, commit, write_shard
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.manifest import Manifest
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes

WRITERS = 3  # data-parallel ranks at ZeRO-3, whose ranges begin and end anywhere
MODEL = ModelConfig(
    vocabulary_size=16_384, hidden_size=1024, ffn_size=2816, layers=8, heads=8, max_positions=64
)
SMALL = ModelConfig(vocabulary_size=256, hidden_size=32, ffn_size=48, layers=1, heads=4, max_positions=64)

CASES = [("bfloat16", 0, 1), ("bfloat16", 1, 2), ("float32", 1, 2)]  # dtype, tensor-parallel rank and size
# Each case is a process, forked from one that has the imports; it reads a small checkpoint first, so that its
# threads are not counted.
READ = """
import json, os, sys
from pathlib import Path
import torch
from pretrain.checkpoint.weights import load_weights

def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0]) * 1024

def measure(small, url, dtype, tensor_rank, tensor_size):
    load_weights(small)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = memory("VmRSS")
    weights = load_weights(url, getattr(torch, dtype), tensor_rank, tensor_size)
    peak = memory("VmHWM") - before
    size = sum(tensor.nbytes for tensor in weights.values())
    probe = {name: float(weights[name].flatten()[-1]) for name in ("lm_head.weight", "model.norm.weight")}
    libraries = ("deepspeed", "megatron", "torch.distributed.checkpoint")
    heavy = [name for name in libraries if name in sys.modules]
    return {"peak": peak, "size": size, "probe": probe, "heavy": heavy}

for case in json.loads(sys.argv[3]):
    if os.fork() == 0:
        print(json.dumps(measure(*sys.argv[1:3], *case)), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def _write(root: Path, model: ModelConfig) -> Path:
    """A checkpoint of step 1 whose parameters all hold 1, 2, 3, ...; without moments."""
    location, shapes, shards = CheckpointLocation(root), expected_shapes(model), []
    for writer in range(WRITERS):
        tensors: dict[str, BoxedTensor] = {}
        for number, (name, shape) in enumerate(sorted(shapes.items())):
            count = torch.Size(shape).numel()
            start, stop = writer * count // WRITERS, (writer + 1) * count // WRITERS
            flat = torch.full((stop - start,), float(number + 1))
            tensors[f"master/{name}"] = BoxedTensor(shape, boxes_of_range(shape, start, stop), flat)
        shards.append(write_shard(location, 1, writer, "0123abcd", Shard(tensors, model)))
    commit(location, 1, 1, {}, "0123abcd", shards, shapes)
    return root / "step_00000001"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("large"), MODEL)


@pytest.fixture(scope="module")
def measurements(small: Path, large: Path) -> list[dict[str, Any]]:
    """What each case needs, in their order."""
    command = [sys.executable, "-c", READ, str(small), str(large), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reading_takes_at_most_a_fifth_more_than_the_weights(
    large: Path, measurements: list[dict[str, Any]], case: tuple[str, int, int]
) -> None:
    measured, (dtype, _, size) = measurements[CASES.index(case)], case
    stored = Manifest.read(open_store(str(large)))
    names = sorted(stored.weights)
    assert measured["probe"] == {name: names.index(name) + 1 for name in measured["probe"]}
    whole = stored.bytes * getattr(torch, dtype).itemsize / 4
    assert whole / size * 0.95 < measured["size"] < whole / size * 1.05
    assert measured["peak"] <= 1.2 * measured["size"]
    assert measured["heavy"] == []
