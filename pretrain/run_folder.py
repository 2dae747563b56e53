"""The folder of a run as a command writes it: the check of its settings, its summary, its W&B id."""

from __future__ import annotations

import json
import logging
import platform
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.files import write_text_whole
from data.json_record import read_json_object
from data.locks import LocksMissingError, lock
from pretrain.checkpoint_metadata import settings_section
from pretrain.config import RunConfig, TrainingConfig
from pretrain.run_layout import STEP_PATTERN, RunLayout, parse_step_name
from pretrain.setting_changes import Changes, data_moved, setting_changes
from pretrain.settings import read_yaml, to_mapping, to_yaml

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

    def changes(self, config: TrainingConfig) -> Changes:
        """Check that the folder is new, or belongs to a run of these settings; nothing is written.

        Returns:
            Settings that differ from those of the last start as `run.change` allows; empty for a new folder.

        Raises:
            InputError: The folder cannot be read, or belongs to a run of other settings.
        """
        try:
            if self.config.exists():
                defaults = to_mapping(TrainingConfig())
                return setting_changes(read_yaml(self.config), to_mapping(config), str(self.path), defaults)
            if self.metrics.exists() or self.checkpoints.exists():
                raise InputError(f"{self.path}: holds a run but no config.yaml; choose another run.name")
        except OSError as error:
            raise unwritable_folder(self.path, error) from error
        return {}

    def data_moved(self, config: TrainingConfig) -> bool:
        """Whether the data is at another place now than at the last start, if there was one."""
        return self.config.exists() and data_moved(read_yaml(self.config), to_mapping(config))

    def open(self, config: TrainingConfig) -> None:
        """Create the folder, or check that it belongs to a run of these settings; write `config.yaml`.

        Raises:
            InputError: The folder cannot be written, or belongs to a run of other settings.
        """
        self.changes(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text_whole(self.config, to_yaml(config))  # first: without it the folder is refused
            self.checkpoints.mkdir(exist_ok=True)
            self.tokenizers.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable_folder(self.path, error) from error

    def supersede_evaluations(self, step: int) -> None:
        """Rename the evaluations of later steps: the run goes back to `step`, and has other weights then.

        Raises:
            OSError: The folder cannot be written.
        """
        for path in sorted(self.evaluations.glob(STEP_PATTERN)):
            later = parse_step_name(
                path.name.partition("-")[0]
            )  # `step_00000004-<suite>`: of `worldvla eval`
            if later is not None and later > step:
                names = (path.with_name(f"superseded_{number}_{path.name}") for number in count(1))
                path.rename(next(name for name in names if not name.exists()))

    def read_summary(self) -> dict[str, Any]:
        """Read `summary.json`; an empty dictionary where it does not exist yet.

        Raises:
            InputError: The file is not a JSON object.
        """
        if not self.summary.exists():
            return {}
        return read_json_object(self.summary, "remove it, the run writes a new one")

    def update_summary(self, missing: Mapping[str, Any] | None = None, /, **parts: Any) -> dict[str, Any]:
        """Set some keys of `summary.json`, leave the others, and return the whole.

        Trainer and supervisor both call this: a lock keeps their parts, a rename keeps the file whole.

        Args:
            missing: Values of keys that the file does not have yet.
            parts: Keys to set, and their values.
        """
        with _locked(self.summary_lock):
            summary = {**(missing or {}), **self.read_summary(), **parts}
            write_text_whole(self.summary, json.dumps(summary, indent=2) + "\n")
        return summary


def wandb_run_of(metadata: Mapping[str, Any], name: str) -> str | None:
    """Id in Weights & Biases from a checkpoint's metadata; None if it is another run's, or malformed.

    Args:
        metadata: Of a checkpoint.
        name: `run.name` of the run that resumes from it.
    """
    identity, same = metadata.get("wandb_run"), settings_section(metadata, "run").get("name") == name
    # It becomes part of file names: a checkpoint may come from elsewhere.
    return identity if same and isinstance(identity, str) and _WANDB_RUN.fullmatch(identity) else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, as far as they are installed."""
    return {"python": platform.python_version(), **_installed_versions()}


@cache  # a training asks with each checkpoint, and a look reads the whole metadata of every package
def _installed_versions() -> Mapping[str, str]:
    installed: dict[str, str] = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        with suppress(LocksMissingError):  # a part that another process writes meanwhile may get lost
            lock(file.fileno())
        yield


def unwritable_folder(path: Path, error: OSError) -> InputError:
    """The error about a run folder that the file system refuses."""
    return InputError(
        f"{path}: cannot write the run folder ({error.strerror}); set run.dir to a folder you may write to, "
        "or free space"
    )
