"""`torchrun --nproc-per-node 4 -m pretrain.main experiment=...`: the trainer without Ray.

The same settings as `worldvla train`, the same losses. Nothing is evaluated: run `worldvla eval` on the
checkpoints. Exit codes of a rank, each with one line: 2 for what the user can mend, 1 where the training
diverged, 85 where it was asked to end (SIGTERM, SIGUSR1) and wrote a checkpoint, 86 where a step hung.
torchrun itself ends with 1 whatever the code is, and names it in its last lines.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from data.errors import InputError
from pretrain.checks import check_training
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import REQUEUE, DivergedError, PreemptedError
from pretrain.library_warnings import silence_known_warnings
from pretrain.run_folder import RunFolder
from pretrain.settings import compose, to_mapping

_SECONDS_BETWEEN_LOOKS = 1.0
_NOT_HERE = ("eval", "cluster")


@dataclass
class TorchrunConfig(TrainingConfig):
    """A training's settings as the experiment files hold them.

    Attributes:
        eval: Settings of evaluations, which are not run here.
        cluster: Settings of Ray, which is not used here.
    """

    eval: dict[str, Any] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    """Train with the settings of the command line; the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        config = _settings(arguments)
    except InputError as error:
        if rank == 0:  # the same on every rank
            _tell(f"error: {error}")
        return 2
    try:
        _run(config)
    except InputError as error:  # perhaps this rank's alone: a shard that only it reads
        _tell(f"error{f' on rank {rank}' if rank else ''}: {error}")
        return 2
    except DivergedError as error:  # the same on every rank
        if rank == 0:
            _tell(f"error: {error}")
        return 1
    except PreemptedError as error:
        if rank == 0:
            _tell(str(error))
        return REQUEUE
    return 0


def _tell(line: str) -> None:
    """One write, so that the lines of several ranks do not mix."""
    sys.stderr.write(f"{line}\n")


def _settings(arguments: list[str]) -> TrainingConfig:
    overrides = [text for text in arguments if not text.startswith(tuple(f"{name}." for name in _NOT_HERE))]
    config = compose("pretrain.main", TorchrunConfig, "train", overrides)
    check_training(config)
    return config


def _run(config: TrainingConfig) -> None:
    import torch.distributed as dist

    silence_known_warnings()
    os.environ.setdefault("TORCH_NCCL_ENABLE_TIMING", "1")  # for pretrain.telemetry.waits, before any group
    from pretrain.trainer import train  # seconds of import: only after the settings are known to be right

    if int(os.environ.get("RANK", "0")) == 0:
        RunFolder.of(config.run).stop_request.unlink(missing_ok=True)  # of an earlier start
    display = Display(config) if int(os.environ.get("RANK", "0")) == 0 else None
    try:
        train(config)
    finally:
        if display is not None:
            display.close()
    dist.destroy_process_group()


class Display:
    """Follows `metrics.jsonl` in a thread: a progress bar, and Weights & Biases."""

    def __init__(self, config: TrainingConfig) -> None:
        """Begin to follow the run of these settings."""
        from pretrain.telemetry.console import ConsoleSink
        from pretrain.telemetry.sinks import MetricsTail, Sink

        self._config = config
        self._folder = RunFolder.of(config.run)
        self._tail = MetricsTail(self._folder.metrics, from_end=True)
        self._sinks: list[Sink] = [ConsoleSink(config.trainer.stop_after or config.trainer.steps)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="display", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show what is left and finish."""
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        from pretrain.telemetry.wandb_sink import WandbSink

        wandb_due = True
        while True:
            over = self._over.wait(_SECONDS_BETWEEN_LOOKS)
            records = self._tail.new()
            if wandb_due and records:  # only now is the run folder known to be this run's
                wandb_due = False
                settings = self._config.telemetry
                config = to_mapping(self._config)
                self._sinks.append(WandbSink(self._folder.path, self._config.run.name, settings, config))
            for record in records:
                for sink in self._sinks:
                    sink.write(record)
            if over:
                break
        for sink in self._sinks:
            sink.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
