"""Settings of collection, evaluation, imagination and reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EvaluationConfig:
    """Evaluation while training.

    Attributes:
        every: Steps between evaluated checkpoints, a multiple of `checkpointing.every`; 0: never.
        suite: Task suite (`robosuite_lift`, `libero_object`, ...).
        tasks: Task numbers within the suite; null: all.
        episodes: Episodes per task.
        horizon: Longest episode in simulator steps; null takes the suite's own.
        workers: Simulator workers.
    """

    every: int = 0
    suite: str = "robosuite_lift"
    tasks: list[int] | None = None
    episodes: int = 4
    horizon: int | None = None
    workers: int = 1


@dataclass
class EvalCommandConfig:
    """`worldvla eval`: a policy on a suite. One of `checkpoint` and `policy` is given.

    Attributes:
        checkpoint: Checkpoint folder (`runs/<name>/checkpoints/step_00000100`).
        policy: `expert` for the scripted expert.
        out: Folder for `results.json` and the videos; null: beside the checkpoint's run.
        suite, tasks, episodes, horizon, workers: As in `EvaluationConfig`.
        seed: Base seed of the environments.
    """

    checkpoint: str | None = None
    policy: str | None = None
    suite: str = "robosuite_lift"
    tasks: list[int] | None = None
    episodes: int = 4
    horizon: int | None = None
    workers: int = 1
    out: str | None = None
    seed: int = 0


@dataclass
class CollectConfig:
    """`worldvla collect`: demonstrations of the scripted expert.

    Attributes:
        suite: Task suite.
        tasks: Task numbers; null: all.
        episodes: Successful episodes wanted per task.
        out: Folder for one HDF5 file per task, in LIBERO's layout.
        resolution: Side of the rendered frames in pixels.
        workers: Simulator processes.
        seed: First seed of the initial states; disjoint from evaluation's.
    """

    suite: str = "robosuite_lift"
    tasks: list[int] | None = None
    episodes: int = 12
    out: str = "???"
    resolution: int = 64
    workers: int = 2
    seed: int = 1000


@dataclass
class ImagineConfig:
    """`worldvla imagine`: a world-model rollout beside the truth.

    Attributes:
        checkpoint: Checkpoint folder.
        episode: Key of the episode in the run's data; null: the first validation episode.
        frames: Frames to predict.
        temperature: Of the image codes' choice; 0 takes the likeliest, as the published evaluation does.
        guidance: Scale of classifier-free guidance towards the action; 1: none.
        seed: Of the draws at a temperature above 0.
        out: Folder for picture and video; null: beside the checkpoint's evaluation.
    """

    checkpoint: str = "???"
    episode: str | None = None
    frames: int = 8
    temperature: float = 0.0
    guidance: float = 1.0
    seed: int = 0
    out: str | None = None
