"""The batch script of a job: settings in, readable bash out (template `slurm/ray.sbatch.j2`). Pure."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2

from cluster.config import Network
from cluster.slurm.config import SlurmConfig, SubmitConfig
from data.errors import InputError
from pretrain.installation import checkout, project_file

TEMPLATE, STAGE_TEMPLATE = "ray.sbatch.j2", "stage.sbatch.j2"
# Variables for NCCL by the network between the nodes (`cluster.network`).
NETWORKS: dict[Network, dict[str, str]] = {
    "infiniband": {"NCCL_IB_TIMEOUT": "22"},
    "efa": {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "FI_EFA_USE_HUGE_PAGE": "0"},
    "tcp": {"NCCL_IB_DISABLE": "1"},
}
# Their meanings, for the table in the script.
_MEANINGS = {
    "NCCL_IB_TIMEOUT": "17 s until an unanswered message is an error",
    "NCCL_IB_DISABLE": "sockets only",
    "FI_PROVIDER": "libfabric uses the EFA cards",
    "FI_EFA_USE_DEVICE_RDMA": "cards read the GPUs' memory",
    "FI_EFA_USE_HUGE_PAGE": "huge pages do not survive forks",
}
_OPTION = re.compile(r"[a-z][a-z-]*(=[A-Za-z0-9_.,:@%/&|*()\[\]+-]+)?")
_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def render(
    config: SubmitConfig,
    arguments: Sequence[str],
    folder: Path,
    caller: Path,
    sweep: Sequence[Sequence[str]] = (),
) -> str:
    """Render the script of a training job.

    Args:
        config: Settings of the training and of the job.
        arguments: `key=value` words of `worldvla train`, without `cluster.address`.
        folder: For the job's logs and token: `<run folder>/slurm`, on a file system that all nodes share.
        caller: Folder that relative paths of the settings are relative to, on such a file system as well.
        sweep: Further arguments of each run of a job array; empty: one run.

    Raises:
        InputError: A setting that Slurm or bash would misinterpret.
    """
    slurm, cluster = config.slurm, config.cluster
    gpus = gpus_per_node(config)
    return _template(TEMPLATE).render(
        **_setup(config, arguments, caller, sweep),
        title=f"Trains {config.run.name} on {config.nodes} nodes"
        + (f" x {gpus} {cluster.gpu or 'GPUs'}." if gpus else "."),
        options=_options(config, folder, len(sweep)),
        signal_seconds=slurm.signal_seconds,
        folder=folder,
        cpus=slurm.cpus_per_node or '"${SLURM_CPUS_ON_NODE}"',
        gpus=gpus,
        object_store=cluster.object_store_megabytes * 2**20,
        start_timeout=slurm.start_timeout,
        meanings=_MEANINGS,
        requeue=slurm.requeue,
        most_requeues=slurm.most_requeues,
    )


def render_stage(
    config: SubmitConfig,
    stage: str,
    arguments: Sequence[str],
    folder: Path,
    caller: Path,
    sweep: Sequence[Sequence[str]] = (),
) -> str:
    """Render the script of a job that runs one command on one node, before or after the training.

    Args:
        config: Settings of the training and of the jobs.
        stage: The command, `prepare` or `eval`.
        arguments: Its `key=value` words.
        folder: For the job's logs.
        caller: Folder that relative paths of the settings are relative to.
        sweep: Further arguments of each task of a job array; empty: no array.

    Raises:
        InputError: A setting that Slurm or bash would misinterpret.
    """
    action = "Prepares the data of" if stage == "prepare" else "Evaluates"
    return _template(STAGE_TEMPLATE).render(
        **_setup(config, arguments, caller, sweep),
        title=f"{action} {config.run.name}.",
        options=_options(config, folder, len(sweep), stage),
        command=stage,
    )


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(project_file("slurm")),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        comment_start_string="<#",  # bash writes ${#nodes[@]}
        comment_end_string="#>",
        autoescape=False,  # bash, not HTML: values pass the filter `quote`
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment.get_template(name)


def _setup(
    config: SubmitConfig, arguments: Sequence[str], caller: Path, sweep: Sequence[Sequence[str]]
) -> dict[str, object]:
    """Template variables that all jobs share: their environment and the arguments of their command."""
    _check(config.slurm)
    slurm = config.slurm
    network = slurm.network or config.cluster.network
    variables = NETWORKS[network] if gpus_per_node(config) else {}
    return {
        "project": checkout(),
        "caller": caller,
        "modules": slurm.modules,
        "venv": None if slurm.container else slurm.venv or _environment(),
        "network": variables,
        "environment": variables | _variables(slurm),
        "arguments": arguments,
        "sweep": sweep,
        # A step has all processes of its node: each rank binds itself (pretrain.parallel.affinity).
        "binding": "--cpu-bind=none" + (" --gpu-bind=none" if gpus_per_node(config) else ""),
        "container_options": _container_options(slurm, caller),
    }


def _environment() -> Path | None:
    """The virtual environment of a job: `.venv` of the checkout, else the one that this command runs in."""
    if project := checkout():
        return project / ".venv"
    return Path(sys.prefix) if sys.prefix != sys.base_prefix else None


def gpus_per_node(config: SubmitConfig) -> int:
    """GPUs of each node that a job requests; 0 where the ranks run on CPUs."""
    return 0 if config.cluster.gpus_per_rank == 0 else config.cluster.gpus_per_node


def _check(slurm: SlurmConfig) -> None:
    """Refuse settings that Slurm or bash would misinterpret.

    Raises:
        InputError: Names the setting, what it is and what was expected.
    """
    if slurm.time is not None and not _TIME.fullmatch(slurm.time):
        raise InputError(f"slurm.time={slurm.time}, expected D-HH:MM:SS, HH:MM:SS or minutes")
    named = ("partition", "account", "qos", "constraint")
    options = [f"{name}={value}" for name in named if (value := getattr(slurm, name)) is not None]
    for option in [*options, *slurm.sbatch]:
        if not _OPTION.fullmatch(option):
            raise InputError(
                f"slurm: {option!r} is no option of sbatch; expected name or name=value without spaces and "
                "leading dashes"
            )
    for name in _variables(slurm):
        if not _VARIABLE.fullmatch(name):
            raise InputError(f"slurm.environment: {name!r} is no name of a variable; expected NAME=value")
        if _SECRET.search(name):
            raise InputError(
                f"slurm.environment: {name} looks like a secret, and the script is stored in the run "
                "folder; export it in the shell instead, sbatch passes it on"
            )
    for name, value, minimum in (
        ("cpus_per_node", slurm.cpus_per_node, 1),
        ("signal_seconds", slurm.signal_seconds, 1),
        ("most_requeues", slurm.most_requeues, 0),
        ("start_timeout", slurm.start_timeout, 1),
    ):
        if value is not None and value < minimum:
            raise InputError(f"slurm.{name}={value}, expected {minimum} or more")


def _variables(slurm: SlurmConfig) -> dict[str, str]:
    """Variables by name, from `NAME=value`."""
    parts = [text.partition("=") for text in slurm.environment]
    return {name: value for name, _, value in parts}


def _options(config: SubmitConfig, folder: Path, runs: int, stage: str = "train") -> list[str]:
    """Options of sbatch, without the leading dashes."""
    slurm, gpus, training = config.slurm, gpus_per_node(config), stage == "train"
    name = config.run.name if training else f"{config.run.name}-{stage}"
    options = [f"job-name={name}", f"nodes={config.nodes if training else 1}", "ntasks-per-node=1"]
    options.append("exclusive" if slurm.cpus_per_node is None else f"cpus-per-task={slurm.cpus_per_node}")
    options += [f"gpus-per-node={gpus}"] if gpus else []
    named = ("partition", "account", "qos", "constraint", "time")
    options += [f"{name}={value}" for name in named if (value := getattr(slurm, name)) is not None]
    options += [f"signal=B:USR1@{slurm.signal_seconds}"] if training else []
    options += ["requeue" if slurm.requeue else "no-requeue"]
    options += ["no-kill"] if training and config.cluster.least_data is not None else []
    log = f"{'job' if training else stage}-%{'A_%a' if runs else 'j'}.log"
    options += ["open-mode=append", f"output={folder / log}"]
    options += [f"array=0-{runs - 1}"] if runs else []
    if config.after is not None and stage == config.stages[0]:
        options += [f"dependency=afterok:{config.after}", "kill-on-invalid-dep=yes"]
    for option in (*options, *slurm.sbatch):
        if not _OPTION.fullmatch(option):
            raise InputError(
                f"{option!r} cannot stand in a batch script; choose names of letters, digits and _ . -"
            )
    return [*options, *slurm.sbatch]


def _container_options(slurm: SlurmConfig, caller: Path) -> str:
    """Options of srun that start its tasks in the container, in the caller's folder; empty without one."""
    if slurm.container is None:
        return ""
    folders = dict.fromkeys(path for path in (checkout(), caller) if path)
    mounts = ",".join([*(f"{path}:{path}" for path in folders), *slurm.mounts])
    options = {"image": slurm.container, "mounts": mounts, "workdir": str(caller)}
    return "".join(f" --container-{name}={shlex.quote(value)}" for name, value in options.items())
