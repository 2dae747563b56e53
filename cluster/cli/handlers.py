"""What each command does once its settings are known; the demo runs the same functions."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.config import ReportConfig
from cluster.config import PrepareCommandConfig, RootConfig
from cluster.console import Board, Pace
from cluster.invocation import Invocation
from data.config import PrepareConfig
from data.errors import InputError
from eval.config import CollectConfig, EvalCommandConfig, ImagineConfig

if TYPE_CHECKING:
    from pretrain.config import VqConfig


def run_collect(config: CollectConfig, call: Invocation) -> None:
    """`worldvla collect`."""
    from eval.demonstrations.collect import collect

    with Board(call.console) as board:
        bar = board.bar("collect")
        bar.update(0, config.episodes, note=f"{config.suite}, opening the simulator")
        found = collect(config, lambda done, wanted: bar.update(done, wanted, note="demonstrations"))
    for task in found:
        call.console.print(
            f"  {task.path}: {task.episodes} demonstrations, {task.steps} steps, "
            f'"{task.task.instruction}" ({task.attempts} attempts)'
        )


def run_vq(config: VqConfig, call: Invocation) -> None:
    """`worldvla vq`."""
    from pretrain.vq.train import train_image_tokenizer

    with Board(call.console) as board:
        bar = board.bar("train the image tokenizer", config.steps)
        report = train_image_tokenizer(config, lambda done, total: bar.update(done, total))
    call.console.print(f"  {report.path}: {report.train_frames} frames, held out {report.held_out_frames}")
    for group, psnr in report.psnr.items():
        call.console.print(f"  PSNR {psnr:.1f} dB on held-out frames of {group}")
    call.console.print(f"  {report.codes_used} of {config.codebook_size} codes used, sha256 {report.sha256}")


def run_prepare(config: PrepareCommandConfig, call: Invocation) -> None:
    """`worldvla prepare`."""
    from cluster.run.prepare_group import check_workers, run_on_ray
    from cluster.run.worker_tasks import make_preparer
    from data.prepare.command import prepare

    check_workers(config)
    several = config.workers > 1
    preparer = make_preparer(replace(config, gpus_per_worker=0.0) if several else config)
    with Board(call.console) as board:
        bar, pace = board.bar("prepare"), Pace("episodes")
        bar.update(0, note="listing demonstrations")
        index = prepare(
            preparer,
            lambda done, total: bar.update(done, total, note=pace.note(done, total)),
            partial(run_on_ray, config, make_preparer) if several else None,
        )
    steps = int(index.episodes.lengths.sum())
    shards = len(index.episodes.shards)
    call.console.print(
        f"  {config.out}: {len(index.episodes)} episodes, {steps} steps in {shards} shards; "
        f"{index.image.rows} x {index.image.columns} codes a frame"
    )
    splits = (f"{split} {len(index.split(split))}" for split in ("train", "val_ind", "val_ood"))
    call.console.print(f"  episodes by split: {', '.join(splits)}")
    call.console.print(f"  image tokenizer on held-out frames: {tokenizer_quality(config)}")


def tokenizer_quality(config: PrepareConfig) -> str:
    """PSNR of the image tokenizer by camera, in words."""
    from data.prepare.reconstruction import reconstruction_psnr
    from data.tokens.image import ImageTokenizer

    found = reconstruction_psnr(config, ImageTokenizer.load(config.image_tokenizer))
    return ", ".join(f"{camera} PSNR {psnr:.1f} dB" for camera, psnr in found.items())


def run_train(config: RootConfig, call: Invocation) -> None:
    """`worldvla train`."""
    from cluster.run.supervisor import supervise
    from cluster.run.worker_tasks import evaluate_checkpoint, train_rank
    from data.stream.datasets import open_sources
    from eval.report.page import write_report

    open_sources(config.data)  # a wrong url is told now and not when all ranks have started
    folder = supervise(config, call.console, train_rank, evaluate_checkpoint)
    page = write_report(folder.path)
    call.console.print(f"  run folder {folder.path}, report {page}")


def run_eval(config: EvalCommandConfig, call: Invocation) -> None:
    """`worldvla eval`.

    Raises:
        CommandFailedError: Every episode ended in an error: nothing was measured.
    """
    from cluster.failures import CommandFailedError
    from eval.evaluation.evaluate import evaluate_command
    from eval.evaluation.results import results_table

    with Board(call.console) as board:
        bar = board.bar(f"evaluate {config.suite}")
        bar.update(0, note="opening the simulator")
        results = evaluate_command(config, lambda t: bar.update(t.done, t.total, note=str(t)))
    if call.json:
        print(json.dumps(results.to_json(), indent=2))
    else:
        call.console.print(results_table(results))
    if results.success_rate is None:
        first = results.episodes[0]
        raise CommandFailedError(
            f"eval: all {results.errors} episodes ended in an error, the first in {first.error}; nothing was "
            "measured: mend the cause, the same command tries them again"
        )


def run_imagine(config: ImagineConfig, call: Invocation) -> None:
    """`worldvla imagine`."""
    from eval.world_model.imagine import imagine
    from eval.world_model.table import scores_table

    call.console.print(f"  imagining {config.frames} frames")
    result = imagine(config)
    if call.json:
        print(result.scores.read_text(encoding="utf-8"), end="")
        return
    first = result.rollouts[0]
    scores = f"PSNR {result.psnr:.1f} dB, SSIM {result.ssim:.3f} over {len(result.frames)} frames"
    count = f"of {len(result.rollouts)} episodes, the first {first.episode} ({first.split})"
    call.console.print(f"  {result.picture}: {scores} {count}")
    if result.gif is not None:
        call.console.print(f"  {result.gif}: true beside predicted frames")
    call.console.print(scores_table(result))


def run_report(config: ReportConfig, call: Invocation) -> None:
    """`worldvla report`."""
    if (config.run is None) == (config.runs is None):
        raise InputError("report: give one of run=FOLDER and runs=[FOLDER,FOLDER]")
    for folder in [config.run] if config.runs is None else config.runs:
        if not Path(folder or "").is_dir():
            raise InputError(f"run={folder}: no such folder; name a run's folder (runs/<name>)")
    if config.runs is not None:
        from eval.report.comparison import write_comparison

        call.console.print(f"  {write_comparison(config.runs, config.out)}")
    elif config.run is not None:
        from eval.report.page import write_report

        call.console.print(f"  {write_report(Path(config.run))}")
