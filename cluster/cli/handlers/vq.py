"""`worldvla vq`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.cli.invocation import Invocation
from pretrain.telemetry.progress import ProgressDisplay

if TYPE_CHECKING:
    from pretrain.config import VqConfig


def run_vq(config: VqConfig, invocation: Invocation) -> None:
    """Train an image tokenizer and print its quality on held-out frames."""
    from pretrain.vq.train import train_image_tokenizer

    with ProgressDisplay(invocation.console) as display:
        bar = display.bar("train the image tokenizer", config.steps)
        report = train_image_tokenizer(config, lambda done, total: bar.update(done, total))
    show = invocation.console.print
    show(f"  {report.path}: {report.train_frames} frames, held out {report.held_out_frames}")
    for group, psnr in report.psnr.items():
        show(f"  PSNR {psnr:.1f} dB on held-out frames of {group}")
    show(f"  {report.codes_used} of {config.codebook_size} codes used, sha256 {report.sha256}")
