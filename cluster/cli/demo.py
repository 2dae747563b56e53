"""`worldvla demo`: every stage of the system on this machine, from nothing to a report.

A demo that was interrupted goes on where it was; a finished one is left alone and the next gets a
name of its own (`demo-2`).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from cluster.cli.config import DemoConfig
from cluster.cli.demo_summary import print_learned
from cluster.cli.handlers import run_collect, run_prepare, tokenizer_quality
from cluster.config import PrepareCommandConfig
from cluster.invocation import Invocation
from cluster.run.supervisor import plan_run, supervise
from cluster.run.worker_tasks import evaluate_checkpoint, train_rank
from data.errors import InputError
from data.files import write_text_whole
from data.storage.index import INDEX_FILE
from eval.config import CollectConfig
from eval.report.page import write_report
from pretrain.checkpoint.location import checkpoint_location
from pretrain.config import ParallelConfig
from pretrain.run_folder import RunFolder

_STAGES = 6


def run_demo(config: DemoConfig, call: Invocation) -> None:
    """Collect, prepare, train half, resume at another layout, evaluate, report."""
    _check(config)
    plan_run(config)  # too few CPUs, no renderer: told before minutes of collecting
    config = _named(config, call)
    folder = RunFolder.of(config.run)
    data = folder.path.with_name(f"{config.run.name}-data")
    config.data.url = str(data / "shards")
    stages = _Stages(call.console)
    fresh = _collect(config, data / "demonstrations", stages, call)
    shards = _prepare(data, fresh, stages, call)
    _train(config, folder, stages, call)
    stages.begin("report", "one self-contained page: curves, success, videos, imagined frames")
    page = write_report(folder.path)
    stages.end()
    print_learned(call.console, folder, page, tokenizer_quality(shards))


def _check(config: DemoConfig) -> None:
    if config.trainer.stop_after is not None:
        raise InputError("trainer.stop_after: the demo sets it itself, to half of trainer.steps")
    if config.data.url:
        raise InputError("data.url: the demo makes its own data; use `worldvla train` for other shards")
    if config.trainer.steps < 2:
        raise InputError(f"trainer.steps={config.trainer.steps}: the demo stops half way, expected 2 or more")


def _named(config: DemoConfig, call: Invocation) -> DemoConfig:
    """The settings under the first name whose run is not finished."""
    name, number = config.run.name, 1
    while RunFolder.of(config.run).report.exists():
        number += 1
        config = replace(config, run=replace(config.run, name=f"{name}-{number}"))
    if number > 1:
        call.console.print(f"{Path(config.run.dir) / name} is finished; this one is {config.run.name}")
    elif RunFolder.of(config.run).path.exists():
        call.console.print(f"{RunFolder.of(config.run).path} is not finished; going on with it")
    return config


def _collect(config: DemoConfig, folder: Path, stages: _Stages, call: Invocation) -> bool:
    """Record the demonstrations; False where they are already there."""
    settings = CollectConfig(
        suite=config.eval.suite,
        tasks=config.eval.tasks,
        episodes=config.demo.episodes,
        out=str(folder),
        workers=config.demo.workers,
    )
    stages.begin("collect", f"a scripted expert solves {settings.suite} in the simulator")
    marker = folder / "complete.json"
    wanted = json.dumps(asdict(settings), indent=2)
    if marker.exists() and marker.read_text() == wanted:
        call.console.print(f"  {folder}: already there")
        return False
    run_collect(settings, call)
    write_text_whole(marker, wanted)
    return True


def _prepare(data: Path, fresh: bool, stages: _Stages, call: Invocation) -> PrepareCommandConfig:
    stages.begin("prepare", "frames become codes of the image tokenizer, episodes become shards")
    settings = PrepareCommandConfig(source=str(data / "demonstrations"), out=str(data / "shards"))
    if (data / "shards" / INDEX_FILE).exists() and not fresh:
        call.console.print(f"  {settings.out}: already there")
    else:
        run_prepare(settings, call)
    return settings


def _train(config: DemoConfig, folder: RunFolder, stages: _Stages, call: Invocation) -> None:
    """Both halves of the training, and the evaluations that are still open when it has ended."""
    half = config.trainer.steps // 2
    stages.begin("train", f"steps 1 to {half} at {_layout(config.parallel)}")
    if (checkpoint_location(config.checkpointing, folder).latest() or 0) >= half:
        call.console.print("  already there")
    else:
        stopped = replace(config, trainer=replace(config.trainer, stop_after=half))
        supervise(stopped, call.console, train_rank, evaluate_checkpoint)
    other = replace(config.parallel, tensor=config.demo.resume_tensor, data=config.demo.resume_data)
    stages.begin(
        "resume", f"steps {half + 1} to {config.trainer.steps} from that checkpoint at {_layout(other)}"
    )

    def trained() -> None:
        stages.begin("evaluate", "each checkpoint's policy acts in the simulator, its world model imagines")

    supervise(replace(config, parallel=other), call.console, train_rank, evaluate_checkpoint, trained)


def _layout(parallel: ParallelConfig) -> str:
    processes = parallel.tensor * parallel.data
    return (
        f"tensor {parallel.tensor} x data {parallel.data}, ZeRO-{parallel.zero_stage}: {processes} processes"
    )


class _Stages:
    """Headings with numbers, and the time that each stage took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = 0
        self._began = self._stage_began = time.monotonic()

    def begin(self, title: str, what: str) -> None:
        """End the stage before, if any, and begin one."""
        self._close()
        self._number += 1
        self._stage_began = time.monotonic()
        self._console.print(f"\n[bold]{self._number}/{_STAGES} {title}[/bold]: {what}")

    def end(self) -> None:
        """End the last stage."""
        self._close()
        self._console.print(f"\nAll stages took {_clock(time.monotonic() - self._began)}.")

    def _close(self) -> None:
        if self._number:
            self._console.print(f"  done in {_clock(time.monotonic() - self._stage_began)}")


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"
