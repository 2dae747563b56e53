"""The commands of `worldvla`: their names, settings and handlers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """One command of `worldvla`.

    Attributes:
        name: Words on the command line (`"eval"`, `"inspect plan"`).
        summary: What it does, in one line.
        schema: `module:class` of its settings.
        handler: `module:function` in `cluster.cli.handlers` that takes the settings and an `Invocation`.
        config_name: Primary file in `configs/` whose groups apply; None: no groups.
        examples: Command lines for the help.
        json: Whether it has the option `--json`.
        preset: Overrides that precede those of the command line.
        dry_run: Whether it has the option `--dry-run`.
        notes: `module:name` of a text that ends its help; empty: none.
    """

    name: str
    summary: str
    schema: str
    handler: str
    config_name: str | None = None
    examples: tuple[str, ...] = ()
    json: bool = False
    preset: tuple[str, ...] = ()
    dry_run: bool = False
    notes: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """Its options besides `--debug` and `--help`."""
        available = {"--json": self.json, "--dry-run": self.dry_run}
        return tuple(option for option, is_available in available.items() if is_available)

    def load_schema(self) -> type:
        """Import the class of its settings."""
        return _load(self.schema)

    def load_handler(self) -> Callable[..., None]:
        """Import its handler."""
        return _load(self.handler)

    def load_notes(self) -> str:
        """Import the text that ends its help; empty: there is none."""
        return _load(self.notes) if self.notes else ""


COMMANDS = (
    Command(
        "demo",
        "the whole loop on this machine: collect, prepare, train, resume, evaluate, report",
        "cluster.cli.config:DemoConfig",
        "cluster.cli.handlers.demo:run_demo",
        config_name="train",
        examples=("worldvla demo", "worldvla demo run.name=mine trainer.steps=100"),
        preset=("experiment=demo", "data.url=''"),
    ),
    Command(
        "collect",
        "record demonstrations of a scripted expert in a simulator (LIBERO's HDF5 layout)",
        "eval.config:CollectConfig",
        "cluster.cli.handlers.collect:run_collect",
        examples=("worldvla collect suite=robosuite_lift episodes=12 out=demos",),
    ),
    Command(
        "vq",
        "train an image tokenizer (VQ-GAN) on the frames of demonstrations",
        "pretrain.config:VqConfig",
        "cluster.cli.handlers.vq:run_vq",
        examples=("worldvla vq source=demos out=tokenizer.safetensors steps=2000",),
    ),
    Command(
        "prepare",
        "turn demonstrations into token shards with an index",
        "cluster.config:PrepareCommandConfig",
        "cluster.cli.handlers.prepare:run_prepare",
        examples=(
            "worldvla prepare source=demos out=shards",
            "worldvla prepare source=libero_lerobot out=s3://bucket/libero resolution=256 workers=8 "
            "gpus_per_worker=0.5 image_tokenizer=image_256px.safetensors",
        ),
    ),
    Command(
        "train",
        "train on shards, evaluating checkpoints as they are committed",
        "cluster.config:RootConfig",
        "cluster.cli.handlers.train:run_train",
        config_name="train",
        examples=(
            "worldvla train experiment=demo data.url=shards run.name=mine",
            "worldvla train experiment=demo data.url=shards run.name=mine optim.lr=1e-4 model=tiny",
        ),
    ),
    Command(
        "submit",
        "train as a Slurm job that is requeued and resumes by itself",
        "cluster.slurm.config:SubmitConfig",
        "cluster.cli.handlers.submit:run_submit",
        config_name="train",
        examples=(
            "worldvla submit experiment=worldvla_libero_goal_256 nodes=8",
            "worldvla submit experiment=worldvla_libero_goal_256 nodes=2 cluster=a100_80gb "
            "slurm.partition=gpu slurm.time=24:00:00 --dry-run",
        ),
        json=True,
        dry_run=True,
    ),
    Command(
        "eval",
        "run a checkpoint's policy, or the expert, on a task suite",
        "eval.config:EvalCommandConfig",
        "cluster.cli.handlers.evaluate:run_eval",
        examples=(
            "worldvla eval checkpoint=runs/mine/checkpoints/step_00000400 suite=robosuite_lift episodes=4",
            "worldvla eval policy=expert suite=libero_object tasks=[0] episodes=2 out=results",
            "worldvla eval policy=expert suite=robosuite_lift episodes=2 out=results record=episodes",
        ),
        json=True,
    ),
    Command(
        "serve",
        "serve a checkpoint's policy over WebSocket to openpi-client and vla-eval",
        "eval.config:ServeConfig",
        "cluster.cli.handlers.serve:run_serve",
        examples=(
            "worldvla serve checkpoint=runs/mine/checkpoints/step_00000400",
            "worldvla serve checkpoint=runs/mine/checkpoints/step_00000400 host=0.0.0.0 token_file=token.txt",
        ),
        notes="eval.serve.observation_schema:SCHEMA_HELP",
    ),
    Command(
        "imagine",
        "roll a checkpoint's world model out along recorded episodes and compare with their frames",
        "eval.config:ImagineConfig",
        "cluster.cli.handlers.imagine:run_imagine",
        examples=(
            "worldvla imagine checkpoint=runs/mine/checkpoints/step_00000400 frames=8",
            "worldvla imagine checkpoint=runs/mine/checkpoints/step_00000400 frames=50 episodes=16",
            "worldvla imagine checkpoint=runs/mine/checkpoints/step_00000400 protocol=published source=demos",
        ),
        json=True,
    ),
    Command(
        "report",
        "write a run's report.html, or one self-contained page that compares runs",
        "cluster.cli.config:ReportConfig",
        "cluster.cli.handlers.report:run_report",
        examples=(
            "worldvla report run=runs/mine",
            "worldvla report run=runs/mine/eval/step_00000400-libero_goal",
            "worldvla report runs=[runs/mine,runs/other] out=comparison.html",
        ),
    ),
    Command(
        "convert import",
        "import published weights (Chameleon, WorldVLA, RynnVLA-002; vqgan.ckpt) to start a training from",
        "cluster.cli.config:ConvertImportConfig",
        "cluster.cli.handlers.convert:run_convert_import",
        examples=(
            "worldvla convert import source=chameleon-7b out=weights/chameleon-7b",
            "worldvla convert import source=tokenizer/vqgan.ckpt out=weights/image_256px.safetensors "
            "pixels=256",
        ),
    ),
    Command(
        "convert samples",
        "convert published samples of WorldVLA and RynnVLA-002 (pickles, untrusted) into token shards",
        "data.config:ConvertSamplesConfig",
        "cluster.cli.handlers.convert:run_convert_samples",
        examples=(
            "worldvla convert samples source=libero_object_tokens out=shards suite=libero_object "
            "image_tokenizer=image_256px.safetensors text_tokenizer=tokenizer.json",
            "worldvla convert samples source=rynnvla_goal_tokens out=shards suite=libero_goal ranges=rynnvla "
            "world_ranges=worldvla image_tokenizer=image_256px.safetensors text_tokenizer=tokenizer.json",
        ),
    ),
    Command(
        "convert export",
        "export a checkpoint's weights as a folder that transformers or the published code loads",
        "cluster.cli.config:ConvertExportConfig",
        "cluster.cli.handlers.convert:run_convert_export",
        examples=(
            "worldvla convert export checkpoint=runs/mine/checkpoints/step_00000400 out=exported",
            "worldvla convert export checkpoint=weights/chameleon-7b out=exported dtype=float32",
            "worldvla convert export checkpoint=weights/chameleon-7b out=theirs layout=published",
        ),
    ),
    Command(
        "doctor",
        "check this machine or allocation: packages, GPUs, network, storage, renderer, Slurm",
        "cluster.doctor.config:DoctorConfig",
        "cluster.cli.handlers.doctor:run_doctor",
        examples=("worldvla doctor", "worldvla doctor url=s3://bucket/shards folder=/shared/runs --json"),
        json=True,
    ),
    Command(
        "inspect plan",
        "show which windows each rank reads in a step",
        "cluster.inspect.config:InspectPlanConfig",
        "cluster.cli.handlers.inspect:run_inspect_plan",
        examples=("worldvla inspect plan url=shards seed=0 step=7 ranks=4 --json",),
        json=True,
    ),
    Command(
        "inspect data",
        "show what a data set holds (counts, lengths, actions, some frames) and verify every checksum",
        "cluster.inspect.config:InspectDataConfig",
        "cluster.cli.handlers.inspect:run_inspect_data",
        examples=(
            "worldvla inspect data url=shards",
            "worldvla inspect data url=s3://bucket/libero image_tokenizer=image_256px.safetensors --json",
        ),
        json=True,
    ),
    Command(
        "inspect checkpoint",
        "list the checkpoints of a run, a folder or an object store, and verify every checksum",
        "cluster.inspect.config:InspectCheckpointConfig",
        "cluster.cli.handlers.inspect:run_inspect_checkpoint",
        examples=(
            "worldvla inspect checkpoint path=runs/mine",
            "worldvla inspect checkpoint path=s3://bucket/mine/step_00000400 --json",
        ),
        json=True,
    ),
    Command(
        "inspect cluster",
        "show which node runs which ranks, and which node the evaluations",
        "cluster.inspect.config:InspectClusterConfig",
        "cluster.cli.handlers.inspect:run_inspect_cluster",
        config_name="train",
        examples=(
            "worldvla inspect cluster experiment=worldvla_libero_goal_256 nodes=8 parallel.tensor=2 "
            "parallel.data=32",
            "worldvla inspect cluster experiment=demo nodes=2 cpus_per_node=8 --json",
        ),
        json=True,
        preset=("run.name=plan", "data.url=''"),
    ),
    Command(
        "inspect memory",
        "show which layouts fit the GPUs, with estimated memory, communication and step time",
        "cluster.inspect.config:InspectMemoryConfig",
        "cluster.cli.handlers.inspect:run_inspect_memory",
        config_name="inspect_memory",
        examples=(
            "worldvla inspect memory model=7b gpus=64 gpu_memory=80GB",
            "worldvla inspect memory model=34b gpus=16 gpu=H200 gpu_memory=141GB --json",
        ),
        json=True,
    ),
)


def group_members(group: str) -> list[Command]:
    """The commands of a group (`inspect`, `convert`): those of two words whose first is its name."""
    return [command for command in COMMANDS if command.name.startswith(f"{group} ")]


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
