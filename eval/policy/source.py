"""Which policy acts: named on the command line, loaded by another process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import InputError
from eval.config import EvalCommandConfig, ExportedConfig
from eval.policy.expert_policy import ExpertPolicy
from eval.policy.interface import Policy
from pretrain.run_layout import READY, RunLayout, parse_step_name

EXPERT = "expert"
CONFIG = "config.json"  # of exported weights


@dataclass(frozen=True, slots=True)
class PolicyName:
    """Names a policy so that another process can load it: `expert`, or a checkpoint's folder.

    Attributes:
        name: `expert` or the folder.
        batch: Most observations that the checkpoint's policy decides on at once.
        exported: What exported weights do not say themselves.
    """

    name: str
    batch: int = 8
    exported: ExportedConfig = field(default_factory=ExportedConfig)

    @property
    def served(self) -> bool:
        """A checkpoint's policy is; the expert looks into the simulator and stays beside it."""
        return self.name != EXPERT

    def load(self) -> Policy:
        """Load the policy.

        Raises:
            InputError: The checkpoint cannot be used.
        """
        if self.name == EXPERT:
            return ExpertPolicy()
        from eval.policy.checkpoint_policy import CheckpointPolicy  # imports torch

        return CheckpointPolicy(Path(self.name), batch=self.batch, exported=self.exported)

    def identity(self) -> str:
        """Changes with the weights, and with the tokenizers and action ranges that its run has for them.

        A checkpoint's READY holds the checksum of its manifest, and that those of the weights. Exported
        weights may have hundreds of gigabytes: names, lengths and times of their files stand for them.
        """
        if self.name == EXPERT:
            return EXPERT
        folder = Path(self.name)
        ready = folder / READY
        if ready.is_file():
            return _digest([ready, *_beside_weights(folder)])
        files = sorted(path for path in folder.iterdir() if path.is_file())
        found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(f"{found} {self.exported}".encode()).hexdigest()


def _beside_weights(checkpoint: Path) -> list[Path]:
    """Files of the run that decide how a checkpoint sees, reads and moves."""
    run = RunLayout.of_checkpoint(checkpoint)
    return sorted(path for path in (run.action_ranges, *run.tokenizers.glob("*")) if path.is_file())


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of names and contents."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{path.name} {content}\n".encode())
    return found.hexdigest()


def named_policy(config: EvalCommandConfig) -> tuple[PolicyName, int | None, Path]:
    """Policy, step of its checkpoint and folder for the results.

    Raises:
        InputError: Not exactly one policy, one that does not exist, or no folder for the results.
    """
    if (config.checkpoint is None) == (config.policy is None):
        raise InputError("eval: give one of checkpoint=FOLDER and policy=expert")
    if config.checkpoint is None:
        if config.policy != EXPERT:
            raise InputError(f"policy={config.policy}: expected {EXPERT}; or give checkpoint=FOLDER")
        if config.out is None:
            raise InputError(f"policy={EXPERT}: no folder for the results; add out=FOLDER")
        return PolicyName(EXPERT), None, Path(config.out)
    checkpoint = _folder(config.checkpoint)
    if not checkpoint.is_dir():
        raise InputError(
            f"checkpoint={checkpoint}: no such folder; expected runs/<name>/checkpoints/step_..."
        )
    source = PolicyName(str(checkpoint), config.batch, config.exported)
    step = parse_step_name(checkpoint.resolve().name)
    return source, step, Path(config.out) if config.out else _beside(checkpoint, config.suite)


def _folder(checkpoint: str) -> Path:
    """The checkpoint as a folder; from an object store its weights are fetched."""
    if "://" not in checkpoint:
        return Path(checkpoint)
    from pretrain.checkpoint.fetch import local_checkpoint  # imports torch

    return local_checkpoint(checkpoint)


def _beside(checkpoint: Path, suite: str) -> Path:
    """Folder for results: in the checkpoint's run; the suite keeps it apart from the training's own."""
    if (checkpoint / CONFIG).is_file():
        raise InputError(f"checkpoint={checkpoint}: exported weights are in no run folder; add out=FOLDER")
    return RunLayout.of_checkpoint(checkpoint).evaluations / f"{checkpoint.resolve().name}-{suite}"
