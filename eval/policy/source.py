"""Reference to a policy: named on the command line, loaded by another process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.contracts import Decoder, WeightsChoice
from data.errors import InputError
from eval.config import EvalCommandConfig, ExportedConfig, Precision
from eval.policy.expert_policy import ExpertPolicy
from eval.policy.interface import Policy, PolicyRecord
from pretrain.run_layout import READY, TRAINED_SUFFIX, RunLayout, parse_step_name

EXPERT = "expert"
CONFIG = "config.json"  # of exported weights


@dataclass(frozen=True, slots=True)
class PolicyReference:
    """Refers to a policy so that another process can load it: `expert`, or a checkpoint's folder.

    Attributes:
        name: `expert` or the folder.
        batch: Maximum number of observations that the checkpoint's policy decides on at once.
        exported: Files and settings beside a folder of exported weights.
        device: Device of the checkpoint's policy, `cpu` or `cuda`; None: a GPU if there is one.
        precision: Arithmetic of the checkpoint's network.
        decoder: How the checkpoint's policy decides; None: as in `eval.config.EvaluationSettings`.
        embodiment: Data set as whose robot the checkpoint's policy acts; None: the only one that fits.
        in_simulator: Whether it acts in a simulator, whose numbers the robot's must be.
        weights: Which weights of the checkpoint its policy has.
    """

    name: str
    batch: int = 8
    exported: ExportedConfig = field(default_factory=ExportedConfig)
    device: str | None = None
    precision: Precision = "auto"
    decoder: Decoder | None = None
    embodiment: str | None = None
    in_simulator: bool = True
    weights: WeightsChoice = "auto"

    @property
    def uses_server(self) -> bool:
        """True for a checkpoint's policy; the expert queries the simulator and runs beside it."""
        return self.name != EXPERT

    def load(self) -> Policy:
        """Load the policy.

        Raises:
            InputError: The checkpoint cannot be used.
        """
        if self.name == EXPERT:
            return ExpertPolicy()
        from eval.policy.checkpoint_policy import CheckpointPolicy  # imports torch

        return CheckpointPolicy(
            Path(self.name),
            self.device,
            self.batch,
            self.exported,
            precision=self.precision,
            decoder=self.decoder,
            embodiment=self.embodiment,
            in_simulator=self.in_simulator,
            weights=self.weights,
        )

    def record(self) -> PolicyRecord:
        """Settings, verified, and notes on them; no weight is read.

        Raises:
            InputError: The checkpoint cannot be used, lacks the decoder, or has no embodiment that fits.
        """
        if self.name == EXPERT:
            return PolicyRecord()
        from eval.policy.description import chosen_decoder, describe  # imports torch
        from eval.policy.embodiment import acting_source
        from eval.policy.precision import chosen_arithmetic

        description = describe(Path(self.name), self.exported, self.weights)
        arithmetic = chosen_arithmetic(self.precision, self.device)
        decoder = chosen_decoder(Path(self.name), self.decoder, description.settings, description.action_head)
        settings = description.settings
        source = acting_source(Path(self.name), settings.sources, self.embodiment, self.in_simulator)
        acting = settings.acting_json(source)
        return PolicyRecord(acting, description.notes, arithmetic, decoder, description.weights)

    def identity(self) -> str:
        """Digest of the weights, and of the run's tokenizers and action ranges.

        A checkpoint's READY holds the checksum of its manifest, which holds those of the weights. Exported
        weights may have hundreds of gigabytes: names, sizes and modification times of their files are used.
        """
        if self.name == EXPERT:
            return EXPERT
        folder = Path(self.name)
        ready = folder / READY
        if ready.is_file():
            return _digest([ready, *_run_files(folder)])
        files = sorted(path for path in folder.iterdir() if path.is_file())
        listing = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(f"{listing} {self.exported}".encode()).hexdigest()


def _run_files(checkpoint: Path) -> list[Path]:
    """Files of the run that the policy depends on: tokenizers and action ranges."""
    run = RunLayout.of_checkpoint(checkpoint)
    return sorted(path for path in (run.action_ranges, *run.tokenizers.glob("*")) if path.is_file())


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of names and contents."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def named_policy(config: EvalCommandConfig) -> tuple[PolicyReference, int | None, Path]:
    """Policy, step of its checkpoint and folder for the results.

    Raises:
        InputError: Not exactly one policy, one that does not exist, or no folder for the results.
    """
    if (config.checkpoint is None) == (config.policy is None):
        raise InputError("eval: give one of checkpoint=FOLDER and policy=expert")
    if config.checkpoint is None:
        if config.policy != EXPERT:
            raise InputError(f"policy={config.policy}: expected {EXPERT}; or give checkpoint=FOLDER")
        if config.decoder is not None:
            raise InputError(f"decoder={config.decoder}: policy={EXPERT} has no network; leave it out")
        if config.embodiment is not None:
            raise InputError(f"embodiment={config.embodiment}: policy={EXPERT} has no network; leave it out")
        if config.weights != "auto":
            raise InputError(f"weights={config.weights}: policy={EXPERT} has no network; leave it out")
        if config.out is None:
            raise InputError(f"policy={EXPERT}: no folder for the results; add out=FOLDER")
        return PolicyReference(EXPERT), None, Path(config.out)
    source, step = checkpoint_policy(
        config.checkpoint,
        config.batch,
        config.exported,
        config.precision,
        config.decoder,
        config.embodiment,
        weights=config.weights,
    )
    out = Path(config.out) if config.out else _results_folder(source, config.suite)
    return source, step, out


def checkpoint_policy(
    checkpoint: str,
    batch: int,
    exported: ExportedConfig,
    precision: Precision,
    decoder: Decoder | None,
    embodiment: str | None,
    in_simulator: bool = True,
    weights: WeightsChoice = "auto",
) -> tuple[PolicyReference, int | None]:
    """A checkpoint's policy and the step of the checkpoint.

    See `EvalCommandConfig` and `PolicyReference` for the arguments.

    Raises:
        InputError: There is no such checkpoint.
    """
    folder = _local_folder(checkpoint)
    if not folder.is_dir():
        raise InputError(f"checkpoint={folder}: no such folder; expected runs/<name>/checkpoints/step_...")
    source = PolicyReference(
        str(folder),
        batch,
        exported,
        precision=precision,
        decoder=decoder,
        embodiment=embodiment,
        in_simulator=in_simulator,
        weights=weights,
    )
    return source, parse_step_name(folder.resolve().name)


def evaluation_beside_training(policy: PolicyReference) -> Path | None:
    """Folder of the evaluation that its training has made of a checkpoint's policy, if there is one."""
    if policy.name == EXPERT or (Path(policy.name) / CONFIG).is_file():
        return None
    checkpoint = Path(policy.name).resolve()
    folder = RunLayout.of_checkpoint(checkpoint).evaluations / checkpoint.name
    return folder if folder.is_dir() else None


def _local_folder(checkpoint: str) -> Path:
    """The checkpoint as a folder on this machine; weights in an object store are fetched."""
    if "://" not in checkpoint:
        return Path(checkpoint)
    from pretrain.checkpoint.fetch import local_checkpoint  # imports torch

    return local_checkpoint(checkpoint)


def _results_folder(policy: PolicyReference, suite: str) -> Path:
    """Folder for results in the checkpoint's run; named by the suite, apart from the training's own.

    Also by decoder, embodiment and kind of weights where the checkpoint has several: each has results of its
    own, the average those without a suffix.

    Raises:
        InputError: Exported weights, or as `PolicyReference.record`.
    """
    checkpoint = Path(policy.name)
    if (checkpoint / CONFIG).is_file():
        raise InputError(f"checkpoint={checkpoint}: exported weights are in no run folder; add out=FOLDER")
    record = policy.record()
    settings = record.settings or {}
    parts = [checkpoint.resolve().name, suite]
    parts += [str(record.decoder)] if len(settings.get("decoders", ())) > 1 else []
    parts += [str(settings["embodiment"])] if "embodiment" in settings else []
    if policy.weights == "trained":
        from pretrain.checkpoint.policy_files import has_average  # imports torch

        if has_average(checkpoint):
            parts[-1] += TRAINED_SUFFIX
    return RunLayout.of_checkpoint(checkpoint).evaluations / "-".join(parts)
