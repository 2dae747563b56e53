"""The jobs of `worldvla submit`: planned from the settings, shown, or handed to sbatch."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.slurm.config import SubmitConfig
from cluster.slurm.layout_choice import choose_layout
from cluster.slurm.pipeline import Job, plan_jobs
from cluster.slurm.sweep import sweep_runs
from data.errors import InputError
from pretrain.run_folder import RunFolder

# Settings of the jobs and not of the training.
_JOB_SETTINGS = (
    "nodes=",
    "after=",
    "sweep=",
    "stages=",
    "prepare.",
    "final_eval.",
    "slurm.",
    "cluster.address=",
)


@dataclass(frozen=True, slots=True)
class Submission:
    """The jobs of one command, in order; each starts when the one before has succeeded.

    Attributes:
        jobs: The jobs.
        folder: For scripts and logs: `<run folder>/slurm`.
        layout: The layout that was chosen, as `key=value` words; empty: it was given.
    """

    jobs: Sequence[Job]
    folder: Path
    layout: Sequence[str] = ()

    @property
    def main_job(self) -> Job:
        """The training, or the first job without one."""
        return next((job for job in self.jobs if job.stage == "train"), self.jobs[0])

    def show(self) -> str:
        """The scripts; of several also how sbatch is called."""
        placeholders = [f"<{job.stage}'s job>" for job in self.jobs]
        parts: list[str] = []
        for position, job in enumerate(self.jobs):
            if len(self.jobs) > 1:
                options = _dependency(self.jobs, position, placeholders)
                parts.append("\n" * bool(position) + f"# sbatch {' '.join([*options, job.file])}\n")
            parts.append(job.script)
        return "".join(parts)

    def submit(self) -> dict[Job, int]:
        """Hand the jobs to sbatch. If one is refused, those before it are cancelled.

        Returns:
            The id of each job.

        Raises:
            InputError: No Slurm client, a folder that cannot be written, or sbatch refuses a job.
        """
        ids: list[int] = []
        try:
            for position, job in enumerate(self.jobs):
                ids.append(_submit_job(job, self.folder, _dependency(self.jobs, position, ids)))
        except InputError:
            if ids:
                subprocess.run(["scancel", *map(str, ids)], check=False)
            raise
        return dict(zip(self.jobs, ids, strict=True))


def plan_submission(config: SubmitConfig, overrides: Sequence[str]) -> Submission:
    """The jobs that the settings request.

    Args:
        config: Settings of the training and of the jobs.
        overrides: The `key=value` words that they were composed from: the jobs compose theirs from them.

    Raises:
        InputError: Settings that are out of range, or a layout that does not fit.
    """
    arguments = [word for word in overrides if not word.startswith(_JOB_SETTINGS)]
    layout = choose_layout(config, overrides)
    arguments += layout
    folder = RunFolder.of(config.run).slurm.resolve()
    runs = sweep_runs(config, overrides)
    return Submission(plan_jobs(config, overrides, arguments, folder, Path.cwd(), runs), folder, layout)


def _dependency(jobs: Sequence[Job], position: int, ids: Sequence[object]) -> list[str]:
    """Options of sbatch that make a job wait for the one before it."""
    if position == 0:
        return []
    condition = jobs[position].dependency(jobs[position - 1], str(ids[position - 1]))
    return [f"--dependency={condition}", "--kill-on-invalid-dep=yes"]


def _submit_job(job: Job, folder: Path, options: Sequence[str]) -> int:
    """Write a job's script and hand it to sbatch; return the job's id."""
    path = folder / job.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(job.script, encoding="utf-8")
        process = subprocess.run(
            ["sbatch", "--parsable", *options, str(path)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise InputError(
            "sbatch not found: this machine has no Slurm client; submit from a login node, or look at the "
            "script with --dry-run"
        ) from error
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); set run.dir to a folder you may write to"
        ) from error
    if process.returncode:
        reason = " ".join(process.stderr.split()) or f"exit code {process.returncode}"
        raise InputError(f"sbatch refuses the job: {reason}; the script is {path}")
    # Plugins of a site may print before it.
    answer = (process.stdout.strip().splitlines() or [""])[-1]
    job_id = answer.split(";")[0].strip()  # of several clusters the name follows
    if not job_id.isdecimal():
        raise InputError(
            f"sbatch answers {answer[:80]!r}, expected the id of the job; look with squeue whether it was "
            f"accepted; the script is {path}"
        )
    return int(job_id)
