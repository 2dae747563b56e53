"""`worldvla submit`: a training as a Slurm job that looks after itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cluster.invocation import Invocation
from cluster.slurm.config import SubmitConfig
from cluster.slurm.pipeline import Job, jobs
from cluster.slurm.sbatch import gpus_per_node
from cluster.slurm.sweep import runs_of_sweep
from data.errors import InputError
from data.sizes import parse_bytes
from pretrain.checks import check_training
from pretrain.planner.layouts import Plan, Wanted, feasible, machine
from pretrain.run_folder import RunFolder

# Not settings of the training.
_JOB_ALONE = (
    "nodes=",
    "after=",
    "sweep=",
    "stages=",
    "prepare.",
    "final_eval.",
    "slurm.",
    "cluster.address=",
)
_LAYOUT = ("parallel.tensor=", "parallel.data=", "trainer.micro_batch=", "model.recompute=")
_RESERVE, _EFFICIENCY = 0.1, 0.45  # as `worldvla inspect memory` has them
_MICRO_BATCHES = (1, 2, 4, 8)


def submit(config: SubmitConfig, call: Invocation) -> None:
    """Write the batch scripts, show them (`--dry-run`) or hand them to sbatch, and tell the jobs' ids.

    Raises:
        InputError: Settings that cannot be, a layout that does not fit, or sbatch refuses the job.
    """
    arguments = [word for word in call.overrides if not word.startswith(_JOB_ALONE)]
    arguments += choose_layout(config, call.overrides)
    sweep = runs_of_sweep(config, call.overrides)
    folder = RunFolder.of(config.run).slurm.resolve()
    made = jobs(config, call.overrides, arguments, folder, Path.cwd(), sweep)
    if call.dry_run:
        _show(made)
        return
    numbers = _hand_all_over(made, folder)
    told = dict(zip(made, numbers, strict=True))
    first = next((job for job in made if job.stage == "train"), made[0])
    if call.json:
        script, log = folder / first.file, folder / first.log(told[first])
        stages = {job.stage: number for job, number in told.items()}
        print(json.dumps({"job": told[first], "script": str(script), "log": str(log), "stages": stages}))
        return
    for job, number in told.items():
        what = f"{config.run.name} on {config.nodes} nodes" if job.stage == "train" else job.stage
        call.console.print(f"  job {number}: {what}, log {folder / job.log(number)}")
    call.console.print(f"  run folder {folder.parent}")
    listed = ",".join(map(str, numbers))
    call.console.print(
        f"  squeue --job={listed} shows their states, scancel {' '.join(map(str, numbers))} ends them"
    )


def _hand_all_over(made: Sequence[Job], folder: Path) -> list[int]:
    """Give the jobs to sbatch; their ids. If one is refused, those before it leave the queue."""
    numbers: list[int] = []
    try:
        for position, job in enumerate(made):
            numbers.append(_hand_over(job, folder, _dependency(made, position, numbers)))
    except InputError:
        if numbers:
            subprocess.run(["scancel", *map(str, numbers)], check=False)
        raise
    return numbers


def _dependency(made: Sequence[Job], position: int, numbers: Sequence[object]) -> list[str]:
    """Options of sbatch that let a job wait for the one before it."""
    if position == 0:
        return []
    waits = made[position].dependency(made[position - 1], str(numbers[position - 1]))
    return [f"--dependency={waits}", "--kill-on-invalid-dep=yes"]


def _show(made: Sequence[Job]) -> None:
    """Print the scripts; of several also how sbatch is called."""
    placeholders = [f"<{job.stage}'s job>" for job in made]
    for position, job in enumerate(made):
        options = _dependency(made, position, placeholders)
        if len(made) > 1:
            print(f"{chr(10) * bool(position)}# sbatch {' '.join([*options, job.file])}")
        print(job.script, end="")


def choose_layout(config: SubmitConfig, overrides: Sequence[str]) -> list[str]:
    """The layout's words: none where the user gave it, else the quickest that fits the GPUs asked for.

    Raises:
        InputError: The layout that was given does not use the GPUs asked for, or none fits.
    """
    if config.nodes < 1:
        raise InputError(f"nodes={config.nodes}, expected 1 or more")
    gpus = config.nodes * gpus_per_node(config)
    given = any(word.startswith(_LAYOUT[:2]) or word.startswith("parallel=") for word in overrides)
    if gpus and not given:
        plan = _plan(config, gpus)
        layout = plan.layout
        words = [
            f"parallel.tensor={layout.tensor}",
            f"parallel.data={layout.data}",
            f"parallel.sequence_parallel={str(layout.tensor > 1).lower()}",
            f"trainer.micro_batch={layout.micro_batch}",
            f"model.recompute={layout.recompute}",
        ]
        return [word for word in words if not any(o.startswith(word.split("=")[0] + "=") for o in overrides)]
    check_training(config)
    ranks = config.parallel.tensor * config.parallel.data
    if gpus and ranks != gpus:
        raise InputError(
            f"parallel.tensor x parallel.data = {ranks} ranks, but nodes={config.nodes} have {gpus} GPUs; "
            "change one of them, or leave parallel.* out to have it chosen"
        )
    return []


def _plan(config: SubmitConfig, gpus: int) -> Plan:
    cluster = config.cluster
    if cluster.gpu is None or cluster.gpu_memory is None:
        raise InputError(
            "cluster.gpu and cluster.gpu_memory are not set, so that no layout can be chosen; take a profile "
            "(cluster=h100, h200, a100_80gb, a100_40gb), or give parallel.tensor and parallel.data"
        )
    wanted = Wanted(
        model=config.model,
        gpus=gpus,
        gpu_memory=parse_bytes("cluster.gpu_memory", cluster.gpu_memory),
        reserve=_RESERVE,
        sequence_length=config.trainer.sequence_length,
        micro_batches=_MICRO_BATCHES,
        global_batch=config.trainer.global_batch,
        machine=machine(cluster.gpu, _EFFICIENCY, cluster.gpus_per_node),
        offloads=("none",),
        optimizer=config.optim.name,
    )
    return feasible(wanted)[0]


def _hand_over(job: Job, folder: Path, options: Sequence[str]) -> int:
    """Give a job to sbatch; its id."""
    path = folder / job.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(job.script)
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(path)], capture_output=True, text=True, check=False
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
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise InputError(f"sbatch refuses the job: {reason}; the script is {path}")
    return int(done.stdout.strip().split(";")[0])
