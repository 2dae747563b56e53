"""`worldvla imagine`."""

from __future__ import annotations

from cluster.cli.invocation import Invocation
from eval.config import ImagineConfig


def run_imagine(config: ImagineConfig, invocation: Invocation) -> None:
    """Roll the world model out along recorded episodes and print its scores."""
    from eval.world_model.imagine import imagine
    from eval.world_model.table import scores_table

    show = invocation.console.print
    show(f"  imagining {config.frames} frames")
    result = imagine(config)
    if invocation.json:
        print(result.scores.read_text(encoding="utf-8"), end="")
        return
    first = result.rollouts[0]
    scores = f"PSNR {result.psnr:.1f} dB, SSIM {result.ssim:.3f} over {len(result.frames)} frames"
    episodes = f"of {len(result.rollouts)} episodes, the first {first.episode} ({first.split})"
    show(f"  {result.picture}: {scores} {episodes}")
    if result.gif is not None:
        show(f"  {result.gif}: true beside predicted frames")
    show(scores_table(result))
