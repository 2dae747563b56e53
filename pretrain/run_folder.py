"""The folder of a run as a command writes it: the check of its settings, its summary, its W&B id."""

from __future__ import annotations

import fcntl
import json
import logging
import platform
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.files import write_text_whole
from data.json_record import read_json_object
from pretrain.config import RunConfig, TrainingConfig
from pretrain.run_layout import RunLayout
from pretrain.settings import read_yaml, to_mapping, to_yaml

# These may differ between two starts of one run: they change where and how fast it runs, not the result.
_MAY_DIFFER = (
    "run.",
    "parallel.",
    "checkpointing.",
    "data.cache.",
    "data.retry_seconds",
    "data.memory_megabytes",
    "data.prefetch",
    "data.readers",
    "eval.",
    "cluster.",
    "telemetry.",
    "validation.",
    "guard.step_timeout",
    "demo.",
    "trainer.stop_after",
    "trainer.log_every",
    "trainer.micro_batch",
    "model.recompute",
    "model.recompute_layers",
    "model.attention",
    "model.compile",
)
_PACKAGES = (
    "worldvla",
    "torch",
    "deepspeed",
    "megatron-core",
    "ray",
    "numpy",
    "wandb",
    "robosuite",
    "mujoco",
    "hf-libero",
)
_DIFFERENCES_SHOWN = 3
_WANDB_RUN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunFolder(RunLayout):
    """A run folder that is written: `RunLayout`, and the files that several commands share."""

    @classmethod
    def of(cls, run: RunConfig) -> RunFolder:
        """The folder that the settings name; it need not exist yet."""
        return cls(Path(run.dir) / run.name)

    def wandb_run(self, known: str | None = None) -> str:
        """Return the run's id in Weights & Biases, the same at every start; created at the first.

        A file that holds no id is replaced: it names no run that could be continued.

        Args:
            known: Id to use where the folder has none yet, from the checkpoint that the run resumes from.
        """
        file = self.wandb_run_id
        if file.exists():
            identity = file.read_bytes().decode("utf-8", "replace").strip()
            if _WANDB_RUN.fullmatch(identity):
                return identity
            _LOG.warning("%s: %r is no id of a run in W&B; the run gets a new one", file, identity[:80])
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(file, known or secrets.token_hex(4))
        return file.read_text(encoding="utf-8").strip()

    def open(self, config: TrainingConfig) -> None:
        """Create the folder, or check that it belongs to a run of these settings; write `config.yaml`.

        Raises:
            InputError: The folder cannot be written, or belongs to a run of other settings.
        """
        try:
            if self.config.exists():
                self._check_same(config)
            elif self.metrics.exists() or self.checkpoints.exists():
                raise InputError(f"{self.path}: holds a run but no config.yaml; choose another run.name")
            self.path.mkdir(parents=True, exist_ok=True)
            write_text_whole(self.config, to_yaml(config))  # first: without it the folder is refused
            self.checkpoints.mkdir(exist_ok=True)
            self.tokenizers.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot write the run folder ({error.strerror}); set run.dir to a folder you "
                "may write to, or free space"
            ) from error

    def _check_same(self, config: TrainingConfig) -> None:
        before, now = _flat(read_yaml(self.config)), _flat(to_mapping(config))
        differing = [
            f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if not key.startswith(_MAY_DIFFER) and before.get(key) != now.get(key)
        ]
        if differing:
            shown = "; ".join(differing[:_DIFFERENCES_SHOWN])
            more = len(differing) - _DIFFERENCES_SHOWN
            raise InputError(
                f"{self.path}: is the folder of a run with other settings ({shown}"
                f"{f'; and {more} more' if more > 0 else ''}); choose another run.name, or give the same "
                "settings"
            )

    def read_summary(self) -> dict[str, Any]:
        """Read `summary.json`; an empty dictionary where it does not exist yet.

        Raises:
            InputError: The file is not a JSON object.
        """
        if not self.summary.exists():
            return {}
        return read_json_object(self.summary, "remove it, the run writes a new one")

    def update_summary(self, **parts: Any) -> dict[str, Any]:
        """Set some keys of `summary.json`, leave the others, and return the whole.

        Trainer and supervisor both call this: a lock keeps their parts, a rename keeps the file whole.
        """
        with _locked(self.summary_lock):
            summary = {**self.read_summary(), **parts}
            write_text_whole(self.summary, json.dumps(summary, indent=2) + "\n")
        return summary


def wandb_run_of(metadata: Mapping[str, Any], name: str) -> str | None:
    """Id in Weights & Biases from a checkpoint's metadata; None if it is another run's, or malformed.

    Args:
        metadata: Of a checkpoint.
        name: `run.name` of the run that resumes from it.
    """
    identity = metadata.get("wandb_run")
    same = metadata.get("config", {}).get("run", {}).get("name") == name
    # It becomes part of file names: a checkpoint may come from elsewhere.
    return identity if same and isinstance(identity, str) and _WANDB_RUN.fullmatch(identity) else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, as far as they are installed."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
