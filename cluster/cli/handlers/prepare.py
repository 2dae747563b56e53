"""`worldvla prepare`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cluster.cli.invocation import Invocation
from cluster.config import PrepareCommandConfig
from data.config import PrepareConfig
from pretrain.telemetry.progress import ProgressDisplay, SpeedEstimate


def run_prepare(config: PrepareCommandConfig, invocation: Invocation) -> None:
    """Turn demonstrations into shards, in this process or on Ray, and print what they hold."""
    from cluster.run.prepare_group import check_workers, run_on_ray
    from cluster.run.worker_entry_points import make_preparer
    from data.prepare.preparer import prepare

    check_workers(config)
    on_ray = config.workers > 1
    preparer = make_preparer(replace(config, gpus_per_worker=0.0) if on_ray else config)
    with ProgressDisplay(invocation.console) as display:
        bar, speed = display.bar("prepare"), SpeedEstimate("episodes")
        bar.update(0, detail="listing demonstrations")
        index = prepare(
            preparer,
            lambda done, total: bar.update(done, total, detail=speed.update(done, total)),
            partial(run_on_ray, config, make_preparer) if on_ray else None,
        )
    steps, shards = int(index.episodes.lengths.sum()), len(index.episodes.shards)
    splits = (f"{split} {len(index.split(split))}" for split in ("train", "val_ind", "val_ood"))
    show = invocation.console.print
    variants = f", variants of each episode: {index.variants}" if index.variants else ""
    show(
        f"  {config.out}: {len(index.episodes)} episodes, {steps} steps in {shards} shards; "
        f"{index.image.rows} x {index.image.columns} codes a frame{variants}"
    )
    show(f"  episodes by split: {', '.join(splits)}")
    show(f"  image tokenizer on held-out frames: {tokenizer_quality(config)}")


def tokenizer_quality(config: PrepareConfig) -> str:
    """PSNR of the image tokenizer on held-out frames, per camera, as text."""
    from data.prepare.reconstruction import reconstruction_psnr
    from data.tokens.image import ImageTokenizer

    psnr_of_camera = reconstruction_psnr(config, ImageTokenizer.load(config.image_tokenizer))
    return ", ".join(f"{camera} PSNR {psnr:.1f} dB" for camera, psnr in psnr_of_camera.items())
