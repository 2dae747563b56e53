"""The runs of a sweep, each with its settings. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.slurm.config import SubmitConfig
from data.errors import InputError
from pretrain.checkpoint.location import checkpoint_location
from pretrain.run_folder import RunFolder
from pretrain.settings import compose


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        overrides: Its own `key=value` words, which follow those of all runs.
        config: All its settings.
    """

    overrides: tuple[str, ...]
    config: SubmitConfig


def sweep_runs(config: SubmitConfig, overrides: Sequence[str]) -> list[SweepRun]:
    """Runs of `sweep=optim.lr=1e-5,5e-6`: `optim.lr=1e-5 run.name=<run>-0` and so on; empty without a sweep.

    Args:
        config: Settings that all runs share.
        overrides: The `key=value` words that they were composed from.

    Raises:
        InputError: Not `key=value,value`, a value that the setting cannot have, or runs that share a location
            for their checkpoints.
    """
    if config.sweep is None:
        return []
    key, separator, values = config.sweep.partition("=")
    choices = values.split(",")
    if not separator or not key or len(choices) < 2 or not all(choices):
        raise InputError(
            f"sweep={config.sweep}: expected a setting with two values or more: sweep='optim.lr=1e-5,5e-6'"
        )
    runs: list[SweepRun] = []
    for number, value in enumerate(choices):
        words = (f"{key}={value}", f"run.name={config.run.name}-{number}")
        run_config = compose("worldvla submit", SubmitConfig, "train", [*overrides, *words])
        runs.append(SweepRun(words, run_config))
    _check_checkpoint_locations(runs)
    return runs


def _check_checkpoint_locations(runs: Sequence[SweepRun]) -> None:
    """Refuse runs that would resume from, and remove, each other's checkpoints."""
    urls = [checkpoint_location(run.config.checkpointing, RunFolder.of(run.config.run)).url for run in runs]
    for url in urls:
        if urls.count(url) > 1:
            raise InputError(
                f"checkpointing.url={url} is the same for {urls.count(url)} runs of the sweep, expected a "
                f"location of its own for each; name it by the run: checkpointing.url='{url}/${{run.name}}'"
            )
