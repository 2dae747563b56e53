"""Choice of where a run starts, made once by the command or by rank 0 and then handed to every rank.

Light to import: a command needs it before any rank exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.checkpoint.load import load_metadata
from pretrain.checkpoint.location import checkpoint_location
from pretrain.checkpoint.origin import Origin, choose_origin
from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder, wandb_run_of


@dataclass(frozen=True, slots=True)
class RunStart:
    """Where one start of a run begins: chosen once, then handed to every rank. Plain data.

    Attributes:
        origin: Checkpoint of the first weights; None: random weights.
        wandb_run: Id of the run in Weights & Biases.
    """

    origin: Origin | None
    wandb_run: str

    @property
    def resumed_from(self) -> str | None:
        """The checkpoint that the run resumes from; None for a new run."""
        return str(self.origin.checkpoint) if self.origin is not None and self.origin.resumes else None


def open_run(config: TrainingConfig, folder: RunFolder) -> RunStart:
    """Choose where a run starts and open its folder; one process calls this, before the ranks train.

    Nothing is written before the origin is known to be usable.

    Args:
        config: Settings that `check_training` has accepted.
        folder: Folder of the run.

    Raises:
        InputError: The folder or a checkpoint cannot be used.
    """
    location = checkpoint_location(config.checkpointing, folder)
    origin = choose_origin(config.checkpointing, config.model, location, config.run.name)
    folder.open(config)
    metadata = load_metadata(origin.checkpoint) if origin is not None and origin.resumes else {}
    return RunStart(origin, folder.wandb_run(wandb_run_of(metadata, config.run.name)))
