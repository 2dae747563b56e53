"""`torchrun --nproc-per-node 4 -m pretrain.main experiment=...`: the trainer without Ray.

Same settings and same losses as `worldvla train`. Nothing is evaluated: run `worldvla eval` on the
checkpoints. Exit codes of a rank, each with one line: 2 for an error that the user can correct, 1 if the
training diverged, 85 if it was asked to end (SIGTERM, SIGUSR1) and wrote a checkpoint, 86 if a step hung.
torchrun itself ends with 1 whatever the code is, and names it in its last lines.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from data.errors import InputError
from data.files import user_mistake
from pretrain.allocator import configure_allocator
from pretrain.checks import check_training
from pretrain.compile_caches import use_compile_caches
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import (
    EXIT_FAILED,
    EXIT_INVALID_INPUT,
    EXIT_PREEMPTED,
    DivergedError,
    PreemptedError,
)
from pretrain.hooks import StepHook
from pretrain.library_warnings import silence_known_warnings
from pretrain.logs import replace_unencodable_output, set_up_logging
from pretrain.run_folder import RunFolder
from pretrain.settings import compose, to_mapping

_POLL_SECONDS = 1.0
_UNUSED_SECTIONS = ("eval", "cluster")


@dataclass
class TorchrunConfig(TrainingConfig):
    """Settings of a training in the form of the experiment files.

    Attributes:
        eval: Settings of evaluations; not used here.
        cluster: Settings of Ray; not used here.
    """

    eval: dict[str, Any] = field(default_factory=dict)
    cluster: dict[str, Any] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    """Train with the settings of the command line; return the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    replace_unencodable_output()
    try:
        set_up_logging(rank)
        config = _compose_settings(arguments)
    except InputError as error:
        if rank == 0:  # the same on every rank
            _print_line(f"error: {error}")
        return EXIT_INVALID_INPUT
    try:
        _run(config, rank)
    except (InputError, OSError) as error:  # possibly of this rank alone, such as a shard that only it reads
        if (mistake := user_mistake(error)) is None:
            raise
        _print_line(f"error{f' on rank {rank}' if rank else ''}: {mistake}")
        return EXIT_INVALID_INPUT
    except DivergedError as error:  # the same on every rank
        if rank == 0:
            _print_line(f"error: {error}")
        return EXIT_FAILED
    except PreemptedError as error:
        if rank == 0:
            _print_line(str(error))
        return EXIT_PREEMPTED
    return 0


def _print_line(line: str) -> None:
    """Print to standard error in one write, so that the lines of several ranks do not mix."""
    sys.stderr.write(f"{line}\n")


def _compose_settings(arguments: list[str]) -> TrainingConfig:
    unused = tuple(f"{name}." for name in _UNUSED_SECTIONS)
    overrides = [text for text in arguments if not text.startswith(unused)]
    config = compose("pretrain.main", TorchrunConfig, "train", overrides)
    check_training(config)
    return config


def _run(config: TrainingConfig, rank: int) -> None:
    import torch.distributed as dist

    silence_known_warnings()
    use_compile_caches()
    os.environ.setdefault("TORCH_NCCL_ENABLE_TIMING", "1")  # for pretrain.telemetry.waits, before any group
    configure_allocator(config.trainer.allocator, os.environ)
    from pretrain.trainer import train  # takes seconds to import: only once the settings are accepted

    if rank == 0:
        with Display(config) as display:
            train(config, hooks=[display])
    else:
        train(config)
    dist.destroy_process_group()


class Display(StepHook):
    """Follows `metrics.jsonl` in a thread and shows it: progress bar, and Weights & Biases.

    It begins with the first step, or where the block ends without an error of the user: only then is the run
    folder known to belong to this run, and not to be another command's.

    Args:
        config: Settings of the run.
    """

    def __init__(self, config: TrainingConfig) -> None:
        """Prepare to follow the run of these settings."""
        from pretrain.telemetry.console import ConsoleSink
        from pretrain.telemetry.sinks import MetricsTail, Sink

        self._config = config
        self._folder = RunFolder.of(config.run)
        self._tail = MetricsTail(self._folder.metrics, from_end=True, skip_damaged=True)
        self._sinks: list[Sink] = [ConsoleSink(config.trainer.stop_after or config.trainer.steps)]
        self._begun, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="display", daemon=True)

    def before_step(self, step: int) -> None:
        """Begin to show."""
        self._begun.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the remaining records and finish."""
        if not isinstance(error, InputError):
            self._begun.set()
        self._closed.set()
        self._thread.join()

    def _follow(self) -> None:
        from pretrain.telemetry.wandb_sink import WandbSink

        wandb_pending = True
        while True:
            closed = self._closed.wait(_POLL_SECONDS)
            records = self._tail.new() if self._begun.is_set() else []
            if wandb_pending and records:
                wandb_pending = False
                settings = self._config.telemetry
                config = to_mapping(self._config)
                self._sinks.append(WandbSink(self._folder.path, self._config.run.name, settings, config))
            for record in records:
                for sink in self._sinks:
                    sink.write(record)
            if closed:
                break
        for sink in self._sinks:
            sink.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
