"""The runs of one submission: one, or those of a sweep, each with the settings that it will have. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.slurm.config import SubmitConfig
from data.errors import InputError
from pretrain.checkpoint.location import checkpoint_location
from pretrain.run_folder import RunFolder
from pretrain.settings import compose


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a sweep.

    Attributes:
        words: Its own `key=value` words, which follow those of all runs.
        config: All its settings.
    """

    words: tuple[str, ...]
    config: SubmitConfig


def runs_of_sweep(config: SubmitConfig, overrides: Sequence[str]) -> list[Run]:
    """`sweep=optim.lr=1e-5,5e-6` -> runs with `optim.lr=1e-5 run.name=<run>-0` and so on; no sweep: none.

    Args:
        config: Settings that all runs share.
        overrides: The words of the command line that they come from.

    Raises:
        InputError: Not `key=value,value`, a value that the setting cannot have, or runs that would keep
            their checkpoints in one place.
    """
    if config.sweep is None:
        return []
    key, separator, values = config.sweep.partition("=")
    listed = values.split(",")
    if not separator or not key or len(listed) < 2 or not all(listed):
        raise InputError(
            f"sweep={config.sweep}: expected a setting with two values or more: sweep='optim.lr=1e-5,5e-6'"
        )
    runs: list[Run] = []
    for number, value in enumerate(listed):
        words = (f"{key}={value}", f"run.name={config.run.name}-{number}")
        runs.append(Run(words, compose("worldvla submit", SubmitConfig, "train", [*overrides, *words])))
    _check_places(runs)
    return runs


def _check_places(runs: Sequence[Run]) -> None:
    """Refuse runs that would go on from, and remove, each other's checkpoints."""
    places = [checkpoint_location(run.config.checkpointing, RunFolder.of(run.config.run)).url for run in runs]
    for place in places:
        if places.count(place) > 1:
            raise InputError(
                f"checkpointing.url={place} is the same for {places.count(place)} runs of the sweep, "
                "expected a place of its own for each; name it by the run: "
                f"checkpointing.url='{place}/${{run.name}}'"
            )
