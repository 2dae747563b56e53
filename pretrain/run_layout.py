"""Names of everything in a run folder; nothing is read or written here, except that folders are listed.

runs/<name>/
  config.yaml             settings of the newest start
  metrics.jsonl           one JSON object per logged step
  events.jsonl            starts, failures and restarts, with the time of day
  summary.json            results of the run
  action_ranges.json      the ranges over which the data set's actions were quantised
  report.html             the self-contained page
  checkpoints/step_00000100/READY   a committed checkpoint (its other files: pretrain.checkpoint.manifest)
  tokenizers/             the text and image tokenizer, so that a checkpoint can be used alone
  eval/step_00000100/results.json   evaluation of the checkpoint of a step, with its videos
  eval/step_00000100-<suite>/       the same by `worldvla eval`
  fetched/step_00000100/  weights of checkpoints in an object store
  logs/rank_00000.log     output of each training process
  profile/                traces of the torch profiler
  slurm/                  batch scripts of submitted jobs, and their output
  wandb/                  files of Weights & Biases; run_id: the run's id there
  .stop                   asks a training to end with a checkpoint
  .supervisor.lock  .summary.lock
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
IMAGINE_STEM = "imagine"  # of the world model's picture, video and scores in an evaluation's folder
IMAGINE_PUBLISHED_STEM = "imagine_published"  # of the same, scored by the published protocol
TRAINED_SUFFIX = "-trained"  # of a folder of results of trained weights beside those of their average
OPEN_LOOP_STEM = "open_loop"  # of the policy's comparison with held-out demonstrations, data and picture
IMAGE_TOKENIZER_FILE = "image_tokenizer.safetensors"
READY = "READY"  # commits a checkpoint: holds the checksum of its manifest
STEP_PATTERN = "step_*"  # glob
RANK_PATTERN = "rank_*"  # glob
_STEP_NAME = re.compile(r"step_(\d{8,})")


def step_name(step: int) -> str:
    """Folder name of a step: `step_00000100`."""
    return f"step_{step:08d}"


def parse_step_name(name: str) -> int | None:
    """The step of a folder's name; None for any other name."""
    match = _STEP_NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def rank_name(rank: int) -> str:
    """Name of a training process: `rank_00000`."""
    return f"rank_{rank:05d}"


def rank_log_name(rank: int) -> str:
    """File name of a training process's output: `rank_00000.log`."""
    return f"{rank_name(rank)}.log"


def files_by_step(folder: Path, name: str, suffix: str = "") -> dict[int, Path]:
    """The existing files `folder/step_...<suffix>/name` by their steps, ascending."""
    paths = [path for path in folder.glob(f"{STEP_PATTERN}/{name}") if path.parent.name.endswith(suffix)]
    of_steps = [(parse_step_name(path.parent.name.removesuffix(suffix)), path) for path in paths]
    steps = {step: path for step, path in of_steps if step is not None}
    return dict(sorted(steps.items()))


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Paths in a run folder.

    Attributes:
        path: The folder itself; it need not exist.
    """

    path: Path

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> Self:
        """The run that a checkpoint folder (`<run>/checkpoints/step_...`, or in `fetched/`) belongs to."""
        return cls(checkpoint.resolve().parent.parent)

    @classmethod
    def of_evaluation(cls, folder: Path) -> Self:
        """The run that an evaluation's folder (`<run>/eval/step_...`) belongs to."""
        return cls(folder.parent.parent)

    @property
    def config(self) -> Path:
        """Settings of the newest start."""
        return self.path / CONFIG_FILE

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One JSON object per event, from the first start on."""
        return self.path / "events.jsonl"

    @property
    def summary(self) -> Path:
        """Results of the run."""
        return self.path / "summary.json"

    @property
    def summary_lock(self) -> Path:
        """Lock held while the summary is updated."""
        return self.path / ".summary.lock"

    @property
    def action_ranges(self) -> Path:
        """Ranges over which the actions of the data set became tokens: `minimum` and `maximum`, 7 numbers."""
        return self.path / "action_ranges.json"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def fetched(self) -> Path:
        """Folder of the weights that were fetched from an object store."""
        return self.path / "fetched"

    @property
    def tokenizers(self) -> Path:
        """Folder of the text and image tokenizer."""
        return self.path / "tokenizers"

    @property
    def image_tokenizer(self) -> Path:
        """Weights of the image tokenizer."""
        return self.tokenizers / IMAGE_TOKENIZER_FILE

    @property
    def evaluations(self) -> Path:
        """Folder of the evaluations."""
        return self.path / "eval"

    def evaluation(self, step: int) -> Path:
        """Folder of the evaluation of the checkpoint of a step."""
        return self.evaluations / step_name(step)

    @property
    def logs(self) -> Path:
        """Folder of the processes' output."""
        return self.path / "logs"

    @property
    def profile(self) -> Path:
        """Folder of the profiler's traces."""
        return self.path / "profile"

    @property
    def slurm(self) -> Path:
        """Folder of the batch scripts and their output."""
        return self.path / "slurm"

    @property
    def wandb(self) -> Path:
        """Folder of Weights & Biases."""
        return self.path / "wandb"

    @property
    def wandb_run_id(self) -> Path:
        """Id of the run in Weights & Biases."""
        return self.wandb / "run_id"

    @property
    def stop_request(self) -> Path:
        """File that asks a training to end with a checkpoint."""
        return self.path / ".stop"

    @property
    def supervisor_lock(self) -> Path:
        """Lock held by the command that trains in this folder."""
        return self.path / ".supervisor.lock"
