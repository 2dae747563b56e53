"""The jobs of one submission, in order: prepare -> train -> final evaluation, each an ordinary command.

Pure: settings in, scripts out. `cluster.slurm.submit` hands them to sbatch, each to start when the one before
has ended well; a job whose forerunner failed leaves the queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.slurm.config import STAGES, SubmitConfig
from cluster.slurm.sbatch import render, render_stage
from cluster.slurm.sweep import Run
from data.errors import InputError
from pretrain.checkpoint.location import checkpoint_location
from pretrain.run_folder import RunFolder
from pretrain.run_layout import step_name

SECTIONS = {"prepare": "prepare", "eval": "final_eval"}  # stage -> settings of its own


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a submission.

    Attributes:
        stage: One of `STAGES`.
        script: What sbatch gets.
        runs: Tasks of its array; 0: no array.
    """

    stage: str
    script: str
    runs: int = 0

    @property
    def file(self) -> str:
        """Name of the script in the folder of the submission."""
        return "submit.sbatch" if self.stage == "train" else f"{self.stage}.sbatch"

    def log(self, number: int) -> str:
        """Name of the job's log in that folder; several for an array."""
        return f"{log_prefix(self.stage)}-{number}{'_*' if self.runs else ''}.log"

    def dependency(self, forerunner: Job, number: str) -> str:
        """`afterok:17`, or `aftercorr:17` where each task of an array waits for its own of the one before."""
        pairs = forerunner.runs and self.runs
        return f"{'aftercorr' if pairs else 'afterok'}:{number}"


def log_prefix(stage: str) -> str:
    """How the logs of a stage begin."""
    return "job" if stage == "train" else stage


def jobs(
    config: SubmitConfig,
    overrides: Sequence[str],
    arguments: Sequence[str],
    folder: Path,
    caller: Path,
    sweep: Sequence[Run],
) -> list[Job]:
    """The jobs that the settings ask for.

    Args:
        config: Settings of the training and of the jobs.
        overrides: `key=value` words of the command line, of which `prepare.*` and `final_eval.*` are those of
            their stages.
        arguments: `key=value` words of `worldvla train`, without `cluster.address`.
        folder: For scripts and logs: `<run folder>/slurm`.
        caller: Folder that relative paths of the settings start from.
        sweep: The runs of a job array; empty: one run.

    Raises:
        InputError: Stages that cannot be.
    """
    given = {section: _words_of(section, overrides) for section in SECTIONS.values()}
    _check_stages(config, given)
    made: list[Job] = []
    if "prepare" in config.stages:
        words = _prepare_words(config, given["prepare"])
        made.append(Job("prepare", render_stage(config, "prepare", words, folder, caller)))
    if "train" in config.stages:
        each = [run.words for run in sweep]
        made.append(Job("train", render(config, arguments, folder, caller, each), len(sweep)))
    if "eval" in config.stages:
        words = _eval_words(config, given["final_eval"])
        each = [[_checkpoint_word(run.config)] for run in sweep]
        words += [] if sweep else [_checkpoint_word(config)]
        made.append(Job("eval", render_stage(config, "eval", words, folder, caller, each), len(sweep)))
    return made


def _words_of(section: str, overrides: Sequence[str]) -> list[str]:
    return [word.removeprefix(f"{section}.") for word in overrides if word.startswith(f"{section}.")]


def _check_stages(config: SubmitConfig, given: Mapping[str, Sequence[str]]) -> None:
    known = [stage for stage in STAGES if stage in config.stages]
    if not known or known != list(config.stages):
        raise InputError(
            f"stages=[{','.join(config.stages)}], expected some of [{','.join(STAGES)}], each once and in "
            "this order"
        )
    for stage, section in SECTIONS.items():
        if given[section] and stage not in known:
            raise InputError(
                f"{section}.{given[section][0]} is given, but stages=[{','.join(known)}] has no {stage}; add "
                "it there, or leave the setting out"
            )


def _prepare_words(config: SubmitConfig, given: Sequence[str]) -> list[str]:
    """Words of `worldvla prepare`, which fills the place that the training reads."""
    if config.data.sources or not config.data.url:
        raise InputError(
            "stages has prepare, but the training reads no single data set (data.url); prepare each with "
            "worldvla prepare"
        )
    if not config.prepare.source:
        raise InputError("stages has prepare, but nothing to prepare; name it: prepare.source=FOLDER")
    if config.prepare.out:
        raise InputError(
            f"prepare.out={config.prepare.out}: the data goes to where the training reads it, data.url="
            f"{config.data.url}; leave it out"
        )
    return [*given, f"out={config.data.url}"]


def _eval_words(config: SubmitConfig, given: Sequence[str]) -> list[str]:
    """Words of `worldvla eval` but for the checkpoint."""
    if config.final_eval.checkpoint is not None or config.final_eval.policy is not None:
        raise InputError(
            "final_eval names a checkpoint or a policy, expected neither: the run's last checkpoint is "
            "evaluated; leave it out"
        )
    ours = config.eval
    words = [f"suite={ours.suite}", f"episodes={ours.episodes}", f"workers={ours.workers}"]
    words += [] if ours.tasks is None else [f"tasks=[{','.join(map(str, ours.tasks))}]"]
    words += [] if ours.horizon is None else [f"horizon={ours.horizon}"]
    named = {word.partition("=")[0] for word in given}
    return [*(word for word in words if word.partition("=")[0] not in named), *given]


def _checkpoint_word(config: SubmitConfig) -> str:
    """`checkpoint=<the run's last>`."""
    trainer, place = config.trainer, checkpoint_location(config.checkpointing, RunFolder.of(config.run))
    last = trainer.steps if trainer.stop_after is None else min(trainer.steps, trainer.stop_after)
    where = place.url
    if config.checkpointing.url is not None and "://" not in where:
        # A folder apart from the run's: by a URL its weights are fetched to where the tokenizers lie.
        where = Path(where).expanduser().absolute().as_uri()
    return f"checkpoint={where}/{step_name(last)}"
