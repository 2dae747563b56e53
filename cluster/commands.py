"""The commands of `worldvla`: names, settings and where each is carried out."""

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
        function: `module:function` that takes the settings and an `Invocation`.
        config_name: Primary file in `configs/` whose groups apply; None: no groups.
        examples: Command lines worth copying.
        json: Whether `--json` is understood.
        preset: Settings that the command begins with.
    """

    name: str
    summary: str
    schema: str
    function: str
    config_name: str | None = None
    examples: tuple[str, ...] = ()
    json: bool = False
    preset: tuple[str, ...] = ()

    def load_schema(self) -> type:
        """Import the class of its settings."""
        return _load(self.schema)

    def load_function(self) -> Callable[..., None]:
        """Import the function that carries it out."""
        return _load(self.function)


COMMANDS = (
    Command(
        "demo",
        "the whole loop on this machine: collect, prepare, train, resume, evaluate, report",
        "cluster.config:DemoConfig",
        "cluster.demo:run_demo",
        config_name="train",
        examples=("worldvla demo", "worldvla demo run.name=mine trainer.steps=100"),
        preset=("experiment=demo", "data.url=''"),
    ),
    Command(
        "collect",
        "record demonstrations of a scripted expert in a simulator (LIBERO's HDF5 layout)",
        "eval.config:CollectConfig",
        "cluster.stages:run_collect",
        examples=("worldvla collect suite=robosuite_lift episodes=12 out=demos",),
    ),
    Command(
        "vq",
        "train an image tokenizer (VQ-GAN) on the frames of demonstrations",
        "pretrain.config:VqConfig",
        "cluster.stages:run_vq",
        examples=("worldvla vq source=demos out=tokenizer.safetensors steps=2000",),
    ),
    Command(
        "prepare",
        "turn demonstrations into token shards with an index",
        "data.config:PrepareConfig",
        "cluster.stages:run_prepare",
        examples=("worldvla prepare source=demos out=shards",),
    ),
    Command(
        "train",
        "train on shards, evaluating checkpoints as they are committed",
        "cluster.config:RootConfig",
        "cluster.stages:run_train",
        config_name="train",
        examples=(
            "worldvla train experiment=demo data.url=shards run.name=mine",
            "worldvla train experiment=demo data.url=shards run.name=mine optim.lr=1e-4 model=tiny",
        ),
    ),
    Command(
        "eval",
        "run a checkpoint's policy, or the expert, on a task suite",
        "eval.config:EvalCommandConfig",
        "cluster.stages:run_eval",
        examples=(
            "worldvla eval checkpoint=runs/mine/checkpoints/step_00000400 suite=robosuite_lift episodes=4",
            "worldvla eval policy=expert suite=libero_object tasks=[0] episodes=2 out=results",
        ),
        json=True,
    ),
    Command(
        "imagine",
        "roll a checkpoint's world model out along a recorded episode, beside the truth",
        "eval.config:ImagineConfig",
        "cluster.stages:run_imagine",
        examples=("worldvla imagine checkpoint=runs/mine/checkpoints/step_00000400 frames=8",),
    ),
    Command(
        "report",
        "write a run's report.html: one self-contained page",
        "cluster.config:ReportConfig",
        "cluster.stages:run_report",
        examples=("worldvla report run=runs/mine",),
    ),
    Command(
        "convert import",
        "published weights (Chameleon, Lumina-mGPT, WorldVLA; vqgan.ckpt) into what a training starts from",
        "cluster.config:ConvertImportConfig",
        "cluster.conversion:convert_import",
        examples=(
            "worldvla convert import source=chameleon-7b out=weights/chameleon-7b",
            "worldvla convert import source=tokenizer/vqgan.ckpt out=weights/image_256px.safetensors "
            "pixels=256",
        ),
    ),
    Command(
        "convert export",
        "a checkpoint's weights as a folder that transformers loads",
        "cluster.config:ConvertExportConfig",
        "cluster.conversion:convert_export",
        examples=(
            "worldvla convert export checkpoint=runs/mine/checkpoints/step_00000400 out=exported",
            "worldvla convert export checkpoint=weights/chameleon-7b out=exported dtype=float32",
        ),
    ),
    Command(
        "inspect plan",
        "which windows each rank reads in a step",
        "cluster.config:InspectPlanConfig",
        "cluster.inspection:inspect_plan",
        examples=("worldvla inspect plan url=shards seed=0 step=7 ranks=4 --json",),
        json=True,
    ),
    Command(
        "inspect data",
        "what a data set holds: episodes, steps, tasks, splits, image codes",
        "cluster.config:InspectDataConfig",
        "cluster.inspection:inspect_data",
        examples=("worldvla inspect data url=shards",),
        json=True,
    ),
    Command(
        "inspect checkpoint",
        "what a checkpoint holds, every file verified against its checksum",
        "cluster.config:InspectCheckpointConfig",
        "cluster.inspection:inspect_checkpoint",
        examples=("worldvla inspect checkpoint path=runs/mine/checkpoints/step_00000400",),
        json=True,
    ),
    Command(
        "inspect memory",
        "which layouts of a training fit the GPUs, with estimated memory, communication and step time",
        "cluster.config:InspectMemoryConfig",
        "cluster.memory_report:inspect_memory",
        config_name="inspect_memory",
        examples=(
            "worldvla inspect memory model=7b gpus=64 gpu_memory=80GB",
            "worldvla inspect memory model=34b gpus=16 gpu=H200 gpu_memory=141GB --json",
        ),
        json=True,
    ),
)


def members(group: str) -> list[Command]:
    """The commands of two words whose first is `group` (`inspect`, `convert`)."""
    return [command for command in COMMANDS if command.name.startswith(f"{group} ")]


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
