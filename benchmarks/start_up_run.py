"""A fresh process that starts a training of one rank and says after each part when it ended.

    python -m benchmarks.start_up_run MODEL LAYERS DEVICE LENGTH COMPILE

Nothing heavy is imported at the top: imports are the first part. A line of JSON a part is printed:
its name and the seconds since the epoch at its end (for `benchmarks.start_up`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

PARTS = ("imports", "process groups", "weights", "first step", "second step")
MARK = "start-up "  # before each line: libraries print, too


def main(argv: Sequence[str]) -> int:
    """Start the training; returns the exit status."""
    name, layers, device, length, compiled = argv[0], int(argv[1]), argv[2], int(argv[3]), argv[4]
    if device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    from pretrain.compile_caches import use_compile_caches

    use_compile_caches()
    import pretrain.main  # noqa: F401 - what a rank imports
    from benchmarks.packed import packed_batch
    from benchmarks.step_run import ALONE
    from pretrain.config import TrainerConfig, TrainingConfig
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.mesh import Mesh
    from pretrain.settings import named_models

    _say("imports")
    os.environ.update({key: os.environ.get(key, value) for key, value in ALONE.items()})
    groups = ProcessGroups.create(Mesh(1, 1))
    _say("process groups")
    whole = named_models()[name]
    positions = max(whole.max_positions, 1024)  # a longer rotary table
    model = replace(whole, layers=layers, recompute="full", compile=compiled, max_positions=positions)
    precision = "bf16" if device == "cuda" else "fp32"
    trainer = TrainerConfig(global_batch=1, micro_batch=1, sequence_length=length, precision=precision)
    engine = Engine.build(TrainingConfig(trainer=trainer, model=model), groups)
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    _say("weights")
    batches = [packed_batch(1, length, 64 if length < 1024 else 256)]
    for part in PARTS[3:]:
        float(engine.step(batches, learning_rate=1e-6).loss)  # waits for the device
        _say(part)
    return 0


def _say(part: str) -> None:
    print(MARK + json.dumps({"part": part, "time": time.time()}), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
