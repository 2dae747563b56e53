"""The jobs of one submission, in order: prepare -> train -> final evaluation, each an ordinary command.

Pure: settings in, scripts out. `cluster.slurm.submit` hands them to sbatch, each to start when the one before
has succeeded; a job whose predecessor failed is removed from the queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.overrides import key_of, override
from cluster.slurm.config import STAGES, SubmitConfig
from cluster.slurm.sbatch import render, render_stage
from cluster.slurm.sweep import SweepRun
from data.errors import InputError
from eval.config import EvaluationSettings
from eval.evaluation.setting_checks import check_decoder, check_weights
from eval.simulator.registry import check_suite_name
from pretrain.checkpoint.location import checkpoint_location
from pretrain.run_folder import RunFolder
from pretrain.run_layout import step_name

SECTIONS = {"prepare": "prepare", "eval": "final_eval"}  # stage -> key of its settings


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a submission.

    Attributes:
        stage: One of `STAGES`.
        script: The batch script.
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
        prefix = "job" if self.stage == "train" else self.stage
        return f"{prefix}-{number}{'_*' if self.runs else ''}.log"

    def dependency(self, predecessor: Job, number: str) -> str:
        """`afterok:17`, or `aftercorr:17` if each task of an array waits for the same task of the other."""
        task_by_task = predecessor.runs and self.runs
        return f"{'aftercorr' if task_by_task else 'afterok'}:{number}"


def plan_jobs(
    config: SubmitConfig,
    overrides: Sequence[str],
    arguments: Sequence[str],
    folder: Path,
    caller: Path,
    sweep: Sequence[SweepRun],
) -> list[Job]:
    """The jobs that the settings request.

    Args:
        config: Settings of the training and of the jobs.
        overrides: `key=value` words of the command line, of which `prepare.*` and `final_eval.*` are those of
            their stages.
        arguments: `key=value` words of `worldvla train`, without `cluster.address`.
        folder: For scripts and logs: `<run folder>/slurm`.
        caller: Folder that relative paths of the settings are relative to.
        sweep: The runs of a job array; empty: one run.

    Raises:
        InputError: Stages that contradict each other or the settings.
    """
    given = {section: _section_overrides(section, overrides) for section in SECTIONS.values()}
    _check_stages(config, given)
    _check_suites(config, given["final_eval"])
    for training in [run.config for run in sweep] or [config]:
        _check_policies(training, given["final_eval"])
    jobs: list[Job] = []
    if "prepare" in config.stages:
        words = _prepare_arguments(config, given["prepare"])
        jobs.append(Job("prepare", render_stage(config, "prepare", words, folder, caller)))
    if "train" in config.stages:
        script = render(config, arguments, folder, caller, [run.overrides for run in sweep])
        jobs.append(Job("train", script, len(sweep)))
    if "eval" in config.stages:
        words = _eval_arguments(config, given["final_eval"])
        words += [] if sweep else [_checkpoint_argument(config)]
        per_run = [[_checkpoint_argument(run.config)] for run in sweep]
        jobs.append(Job("eval", render_stage(config, "eval", words, folder, caller, per_run), len(sweep)))
    return jobs


def _section_overrides(section: str, overrides: Sequence[str]) -> list[str]:
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


def _check_suites(config: SubmitConfig, final: Sequence[str]) -> None:
    """Refuse suites that do not exist now, and not after hours in the queue."""
    if "train" in config.stages and config.eval.every > 0:
        check_suite_name(config.eval.suite, "eval.suite")
    if "eval" in config.stages:
        if "suite" in map(key_of, final):
            check_suite_name(config.final_eval.suite, "final_eval.suite")
        else:
            check_suite_name(config.eval.suite, "eval.suite")


def _check_policies(config: SubmitConfig, final: Sequence[str]) -> None:
    """Refuse decoders and weights that the checkpoints of the training will not have, likewise."""
    if "train" not in config.stages:
        return
    if config.eval.every > 0:
        check_decoder(config.eval.decoder, "eval.decoder", config)
        check_weights(config.eval.weights, "eval.weights", config)
    if "eval" in config.stages:
        given = set(map(key_of, final))
        section, settings = ("final_eval", config.final_eval) if "decoder" in given else ("eval", config.eval)
        check_decoder(settings.decoder, f"{section}.decoder", config)
        section, settings = ("final_eval", config.final_eval) if "weights" in given else ("eval", config.eval)
        check_weights(settings.weights, f"{section}.weights", config)


def _prepare_arguments(config: SubmitConfig, given: Sequence[str]) -> list[str]:
    """Arguments of `worldvla prepare`, which writes the data set that the training reads."""
    if config.data.sources or not config.data.url:
        raise InputError(
            "stages has prepare, but the training reads no single data set (data.url); prepare each with "
            "worldvla prepare"
        )
    if not config.prepare.source:
        raise InputError("stages has prepare, but nothing to prepare; name it: prepare.source=FOLDER")
    if config.prepare.out:
        raise InputError(
            f"prepare.out={config.prepare.out}: the data is written to where the training reads it, data.url="
            f"{config.data.url}; leave it out"
        )
    return [*given, f"out={config.data.url}"]


def _eval_arguments(config: SubmitConfig, given: Sequence[str]) -> list[str]:
    """Arguments of `worldvla eval` except for the checkpoint."""
    if config.final_eval.checkpoint is not None or config.final_eval.policy is not None:
        raise InputError(
            "final_eval names a checkpoint or a policy, expected neither: the run's last checkpoint is "
            "evaluated; leave it out"
        )
    defaults: dict[str, object] = {
        "suite": config.eval.suite,
        "episodes": config.eval.episodes,
        "workers": config.eval.workers,
    }
    defaults |= {} if config.eval.tasks is None else {"tasks": config.eval.tasks}
    defaults |= {} if config.eval.horizon is None else {"horizon": config.eval.horizon}
    plain = EvaluationSettings()
    for name in ("seed", "observations", "reset", "precision", "decoder", "embodiment", "weights"):
        if (value := getattr(config.eval, name)) != getattr(plain, name):
            defaults[name] = value
    keys = {key_of(word) for word in given}
    return [*(override(key, value) for key, value in defaults.items() if key not in keys), *given]


def _checkpoint_argument(config: SubmitConfig) -> str:
    """`checkpoint=<the run's last>`."""
    location = checkpoint_location(config.checkpointing, RunFolder.of(config.run)).url
    if config.checkpointing.url is not None and "://" not in location:
        # A folder outside the run's: as a URL, its weights are fetched to where the tokenizers are.
        location = Path(location).expanduser().absolute().as_uri()
    return override("checkpoint", f"{location}/{step_name(config.last_step)}")
