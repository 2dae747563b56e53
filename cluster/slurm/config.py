"""Settings of `worldvla submit`: the jobs of a training, and what they request from Slurm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from cluster.config import Network, PrepareCommandConfig, RootConfig
from eval.config import EvalCommandConfig

Stage = Literal["prepare", "train", "eval"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass
class SlurmConfig:
    """What a job requests from Slurm, and what it sets up on its nodes.

    Attributes:
        partition: Partition; null: the cluster's default.
        account: Account that is charged; null: the user's default.
        qos: Quality of service; null: the default.
        constraint: Features that nodes must have (`"h100&ib"`); null: any.
        time: Time limit (`D-HH:MM:SS`, `HH:MM:SS` or minutes); null: the partition's.
        cpus_per_node: CPUs of each node; null: the whole node, for this job alone.
        signal_seconds: Slurm signals the job so many seconds before its time limit; it then writes a
            checkpoint and is requeued.
        requeue: Requeue the job after preemption, a lost node or the time limit; it then resumes.
        most_requeues: Times that the job may be requeued.
        modules: Environment modules to load.
        venv: Virtual environment; null: `.venv` of the checkout, or the one of this command where worldvla is
            installed.
        container: Image for `srun --container-image` (pyxis); null: no container.
        mounts: `host:container` folders of the container.
        environment: Variables to set on every node (`["NCCL_DEBUG=INFO"]`). Secrets do not belong here:
            sbatch passes on what the shell exports.
        network: Overrides `cluster.network`; null: that.
        start_timeout: Seconds within which Ray must run on every node.
        sbatch: Further options of sbatch, without the leading dashes (`["mail-type=END"]`).
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    cpus_per_node: int | None = None
    signal_seconds: int = 300
    requeue: bool = True
    most_requeues: int = 100
    modules: list[str] = field(default_factory=list)
    venv: str | None = None
    container: str | None = None
    mounts: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    network: Network | None = None
    start_timeout: int = 300
    sbatch: list[str] = field(default_factory=list)


@dataclass
class SubmitConfig(RootConfig):
    """`worldvla submit`: the settings of `worldvla train`, and of the job that runs it.

    Attributes:
        nodes: Nodes of the job.
        after: Job id that must have succeeded before this one starts; null: none.
        sweep: Setting of the training and its values (`optim.lr=1e-5,5e-6`): a job array with one run each,
            named `<run.name>-<number>`; null: one run.
        stages: Jobs that follow each other, some of `prepare`, `train` and `eval` in this order; each starts
            when the one before has succeeded.
        prepare: Settings of the stage `prepare`, as `worldvla prepare` has them (`prepare.source=demos`); it
            writes to `data.url`.
        final_eval: Settings of the stage `eval`, as `worldvla eval` has them; suite, tasks, episodes, horizon
            and workers default to those of `eval`. The run's last checkpoint is evaluated.
        slurm: What the jobs request from Slurm.
    """

    nodes: int = 1
    after: int | None = None
    sweep: str | None = None
    stages: list[Stage] = field(default_factory=lambda: ["train"])
    prepare: PrepareCommandConfig = field(default_factory=lambda: PrepareCommandConfig(source="", out=""))
    final_eval: EvalCommandConfig = field(default_factory=EvalCommandConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
