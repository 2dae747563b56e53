"""`worldvla demo`: every stage of the system on this machine, from nothing to a report.

An interrupted demo is resumed; a finished one is not changed, and the next gets another name (`demo-2`).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from cluster.cli.config import DemoConfig
from cluster.cli.demo_summary import print_summary
from cluster.cli.handlers.collect import run_collect
from cluster.cli.handlers.prepare import run_prepare, tokenizer_quality
from cluster.cli.invocation import Invocation
from cluster.config import PrepareCommandConfig
from cluster.run.preflight import check_run
from cluster.run.supervisor import supervise
from cluster.run.worker_entry_points import evaluate_checkpoint, train_rank
from data.errors import InputError
from data.files import write_text_whole
from data.storage.index import INDEX_FILE
from eval.config import CollectConfig
from eval.report.page import write_report
from pretrain.checkpoint.location import checkpoint_location
from pretrain.checks import check_training
from pretrain.config import ParallelConfig
from pretrain.run_folder import RunFolder

_STAGES = 6


def run_demo(config: DemoConfig, invocation: Invocation) -> None:
    """Collect, prepare, train some steps, resume at another layout, evaluate, report."""
    _check(config)
    config = _with_free_name(config, invocation)
    folder = RunFolder.of(config.run)
    data = folder.path.with_name(f"{config.run.name}-data")
    config = replace(config, data=replace(config.data, url=str(data / "shards")))
    stages = _Stages(invocation.console)
    collected = _collect(config, data / "demonstrations", stages, invocation)
    shards = _prepare(data, collected, stages, invocation)
    _train(config, folder, stages, invocation)
    stages.begin("report", "one self-contained page: curves, success, videos, imagined frames")
    page = write_report(folder.path)
    stages.end()
    print_summary(invocation.console, folder, page, tokenizer_quality(shards))


def _check(config: DemoConfig) -> None:
    """Refuse, before minutes of collecting, what the later stages would refuse."""
    if config.trainer.stop_after is not None:
        raise InputError("trainer.stop_after: the demo sets it itself; set demo.first_steps")
    if config.data.url:
        raise InputError("data.url: the demo makes its own data; use `worldvla train` for other shards")
    if config.trainer.steps < 2:
        raise InputError(f"trainer.steps={config.trainer.steps}: expected 2 or more, the demo stops between")
    if config.demo.first_steps < 1:
        raise InputError(f"demo.first_steps={config.demo.first_steps}: expected 1 or more")
    for layout in (config, _resumed(config)):
        check_training(layout)
        check_run(layout)


def _with_free_name(config: DemoConfig, invocation: Invocation) -> DemoConfig:
    """The settings with the first `run.name` whose run is not finished."""
    name, number = config.run.name, 1
    while RunFolder.of(config.run).report.exists():
        number += 1
        config = replace(config, run=replace(config.run, name=f"{name}-{number}"))
    if number > 1:
        invocation.console.print(f"{Path(config.run.dir) / name} is finished; this one is {config.run.name}")
    elif RunFolder.of(config.run).path.exists():
        invocation.console.print(f"{RunFolder.of(config.run).path} is not finished; resuming it")
    return config


def _collect(config: DemoConfig, folder: Path, stages: _Stages, invocation: Invocation) -> bool:
    """Record the demonstrations; return False if they have been recorded before."""
    settings = CollectConfig(
        suite=config.eval.suite,
        tasks=config.eval.tasks,
        episodes=config.demo.episodes,
        displaced=config.demo.displaced,
        out=str(folder),
        workers=config.demo.workers,
    )
    stages.begin("collect", f"a scripted expert solves {settings.suite} in the simulator")
    marker = folder / "complete.json"
    content = json.dumps(asdict(settings), indent=2)
    if marker.exists() and marker.read_bytes() == content.encode():
        invocation.console.print(f"  {folder}: complete already")
        return False
    for earlier in folder.glob("*.hdf5"):  # of other settings, or of a demo that was interrupted
        earlier.unlink()
    run_collect(settings, invocation)
    write_text_whole(marker, content)
    return True


def _prepare(data: Path, collected: bool, stages: _Stages, invocation: Invocation) -> PrepareCommandConfig:
    stages.begin("prepare", "frames become codes of the image tokenizer, episodes become shards")
    settings = PrepareCommandConfig(source=str(data / "demonstrations"), out=str(data / "shards"))
    if (data / "shards" / INDEX_FILE).exists() and not collected:
        invocation.console.print(f"  {settings.out}: complete already")
    else:
        run_prepare(settings, invocation)
    return settings


def _train(config: DemoConfig, folder: RunFolder, stages: _Stages, invocation: Invocation) -> None:
    """Train at both layouts, and wait for the evaluations that have not ended by then."""
    first = min(config.demo.first_steps, config.trainer.steps // 2)
    stages.begin("train", f"steps 1 to {first} at {_layout(config.parallel)}")
    if (checkpoint_location(config.checkpointing, folder).latest() or 0) >= first:
        invocation.console.print("  complete already")
    else:
        stopped = replace(config, trainer=replace(config.trainer, stop_after=first))
        supervise(stopped, invocation.console, train_rank, evaluate_checkpoint)
    resumed = _resumed(config)
    last = config.trainer.steps
    stages.begin("resume", f"steps {first + 1} to {last} from that checkpoint at {_layout(resumed.parallel)}")

    def on_trained() -> None:
        stages.begin("evaluate", "each checkpoint's policy acts in the simulator, its world model imagines")

    supervise(resumed, invocation.console, train_rank, evaluate_checkpoint, on_trained)


def _resumed(config: DemoConfig) -> DemoConfig:
    """The settings of the training after it has stopped and resumed."""
    stage = config.demo
    parallel = replace(
        config.parallel,
        tensor=stage.resume_tensor,
        data=stage.resume_data,
        zero_stage=stage.resume_zero_stage,
    )
    return replace(config, parallel=parallel)


def _layout(parallel: ParallelConfig) -> str:
    processes = parallel.tensor * parallel.data
    return (
        f"tensor {parallel.tensor} x data {parallel.data}, ZeRO-{parallel.zero_stage}: {processes} processes"
    )


class _Stages:
    """Prints numbered headings, and the time that each stage took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._number = 0
        self._began = self._stage_began = time.monotonic()

    def begin(self, title: str, what: str) -> None:
        """End the previous stage, if any, and begin one."""
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
