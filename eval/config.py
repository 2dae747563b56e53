"""Settings of collection, evaluation, imagination and reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.config import SourceConfig
from data.contracts import Decoder, WeightsChoice

Stale = Literal["queue", "cancel"]
Observations = Literal["recomputed", "published"]
Reset = Literal["hard", "soft"]
Precision = Literal["auto", "fp32", "bf16"]
WorldModelProtocol = Literal["tokens", "published"]
"""How predicted frames are scored (docs/evaluation.md): against decoded codes, or as published."""


@dataclass
class EvaluationSettings:
    """Episodes of an evaluation and the processes that run them.

    Attributes:
        suite: Task suite (`robosuite_lift`, `libero_object`, ...).
        tasks: Task numbers within the suite; null: all.
        episodes: Episodes per task.
        seed: First initial state; those of evaluation are 0 to 49.
        horizon: Maximum length of an episode in simulator steps; null takes the suite's own.
        workers: Simulator workers, one CPU each.
        policy_servers: Processes that run the checkpoint's policy for all workers.
        batch: Maximum number of observations that one of them decides on at once.
        retries: Further attempts at an episode that ended in a simulator error.
        step_seconds: A simulator that takes longer for one step or frame is killed and replaced.
        start_seconds: A simulator that takes longer to open or reset, or a policy server that takes longer to
            load the policy, is killed and replaced.
        answer_seconds: A policy server that takes longer for one answer is killed and replaced.
        videos: Episodes of each task that are recorded, the first ones: a video, and the actions for the
            report. Where finished episodes have too few, some of them are run again for it, failures first.
            null: all.
        observations: What frames and proprioception show: the present state (`recomputed`), or what
            LIBERO's and robosuite's scripts observe, 2 to 4 ms older (`published`, for published weights).
        precision: Arithmetic of the checkpoint's network: `bf16` (its weights are rounded, as in training),
            `fp32`, or `auto`: bf16 on a GPU that has it, else fp32. The image tokenizer always computes in
            fp32.
        decoder: How the checkpoint's policy decides: on action tokens (`discrete`), or by its action head
            (`continuous`); null: `continuous` where the checkpoint has a head, else `discrete`.
        embodiment: Name of the data set, of several that the checkpoint was trained on, as whose robot its
            policy acts: by its ranges and its chunk (a data set's name is the last part of its URL); null:
            the only one whose actions, and states where they are used, are the simulator's.
        reset: How an episode starts. `hard`: to the last bit as in a simulator that was just built, as in
            LIBERO's scripts and published protocols. `soft`: the last episode's simulator is set back, which
            differs in the last digits. null: as the suite does, `hard` for LIBERO's, `soft` for robosuite's.
        weights: Weights of the checkpoint: their average (`averaged`, of a training with `optim.ema`), the
            `trained` ones, or `auto`: the average where there is one.
    """

    suite: str = "robosuite_lift"
    tasks: list[int] | None = None
    episodes: int = 4
    seed: int = 0
    horizon: int | None = None
    workers: int = 1
    policy_servers: int = 1
    batch: int = 8
    retries: int = 2
    step_seconds: float = 60.0
    start_seconds: float = 900.0
    answer_seconds: float = 600.0
    videos: int | None = 4
    observations: Observations = "recomputed"
    precision: Precision = "auto"
    decoder: Decoder | None = None
    embodiment: str | None = None
    reset: Reset | None = None
    weights: WeightsChoice = "auto"


@dataclass
class EvaluationConfig(EvaluationSettings):
    """Evaluation while training.

    Attributes:
        every: Steps between evaluated checkpoints, a multiple of `checkpointing.every`; 0: never.
        gpus: GPUs for the policy, apart from the training's; a share (0.5) lets evaluations share one. 0: the
            policy runs on the CPUs.
        stale: What happens to unfinished evaluations of older checkpoints when a newer one is due: `queue`
            (all are completed) or `cancel`.
        imagine_frames: Frames of the world-model rollouts of every evaluated checkpoint; 0: none, as in a
            training without world samples (`data.mixture.world=0`). Always by the protocol `tokens` (see
            `ImagineConfig`): a training reads no demonstrations.
        imagine_episodes: Number of held-out episodes that are rolled out, and on which the policy's actions
            are compared with the expert's (open loop); 0: none.
        lpips_weights, fvd_network: As in `ImagineConfig`.
    """

    every: int = 0
    gpus: float = 0.0
    stale: Stale = "queue"
    imagine_frames: int = 8
    imagine_episodes: int = 1
    lpips_weights: str | None = None
    fvd_network: str | None = None


@dataclass
class ExportedConfig:
    """Files and settings beside a folder of exported weights (config.json and safetensors files).

    `policy.json`, which `worldvla convert export` writes there, has the settings and the files' checksums.

    Attributes:
        image_tokenizer: File of the image tokenizer that the weights were trained with.
        text_tokenizer: File of the text tokenizer; null: `tokenizer.json` beside the weights.
        action_ranges: `action_ranges.json` of the run that it was trained in; null: as in `policy.json`,
            without it WorldVLA's ranges of LIBERO's seven numbers.
        pixels: Side of the frames; null: as in `policy.json`, without it as in the image tokenizer's file.
        history: M, number of time steps whose frames an observation has; null: as in `policy.json`, without
            it 2.
        chunk: K, actions in a chunk; null: as in `policy.json`, without it those of the action head, else 5.
        cameras: Cameras of the policy, in the order of its training; null: as in `policy.json`, without it
            `agent`. Whether it uses the robot's state is in `policy.json`, without it: not.
    """

    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    action_ranges: str | None = None
    pixels: int | None = None
    history: int | None = None
    chunk: int | None = None
    cameras: list[str] | None = None


@dataclass
class EvalCommandConfig(EvaluationSettings):
    """`worldvla eval`: a policy on a suite. One of `checkpoint` and `policy` is given.

    Attributes:
        checkpoint: Checkpoint folder (`runs/<name>/checkpoints/step_00000100`), URL of one in an object store
            (its weights are fetched to `fetched/` of its run's folder), or a folder of exported weights.
        policy: `expert` for the scripted expert.
        out: Folder for `results.json` and the videos; null: beside the checkpoint's run.
        record: Folder for a LeRobot data set of all episodes as they were run: frames of both cameras, state
            and action of every step. Finished episodes without a recording are run again for it. null: none.
        record_pixels: Side of its frames, even; null: that of the policy's, for the expert 256.
        resume: Continue with the finished episodes in `out`; false: run all anew.
        exported: Files and settings beside a folder of exported weights.
    """

    checkpoint: str | None = None
    policy: str | None = None
    out: str | None = None
    record: str | None = None
    record_pixels: int | None = None
    resume: bool = True
    exported: ExportedConfig = field(default_factory=ExportedConfig)


@dataclass
class ServeConfig:
    """`worldvla serve`: a checkpoint's policy for evaluation harnesses, over WebSocket.

    Attributes:
        checkpoint: Checkpoint folder, URL or folder of exported weights, as for `worldvla eval`.
        port: Port; 0 takes a free one, which the line of the start names.
        host: Address to listen on. One that other machines reach needs a token.
        unprotected: Listen on such an address without a token.
        token_file: File with the token that clients need; null: that of WORLDVLA_SERVE_TOKEN, if any.
        batch: Maximum number of observations of concurrent clients that are decided on at once.
        precision: Arithmetic of the network, as for `worldvla eval`.
        decoder: How the policy decides, as for `worldvla eval`.
        embodiment: Name of the data set, of several that the checkpoint was trained on, as whose robot the
            policy acts; null: the only one.
        weights: Weights of the checkpoint, as for `worldvla eval`.
        clients: Maximum number of clients at once; the next one is refused.
        idle_seconds: A client that sends nothing for so long, or does not read its answer, is disconnected.
        start_seconds: A policy that takes longer to load is given up.
        answer_seconds: A policy that takes longer for one answer is loaded again.
        exported: Files and settings beside a folder of exported weights.
    """

    checkpoint: str = "???"
    port: int = 8000
    host: str = "127.0.0.1"
    unprotected: bool = False
    token_file: str | None = None
    batch: int = 8
    precision: Precision = "auto"
    decoder: Decoder | None = None
    embodiment: str | None = None
    weights: WeightsChoice = "auto"
    clients: int = 64
    idle_seconds: float = 600.0
    start_seconds: float = 900.0
    answer_seconds: float = 600.0
    exported: ExportedConfig = field(default_factory=ExportedConfig)


@dataclass
class CollectConfig:
    """`worldvla collect`: demonstrations of the scripted expert.

    Attributes:
        suite: Task suite.
        tasks: Task numbers; null: all.
        episodes: Number of successful episodes per task.
        out: Folder for one HDF5 file per task, in LIBERO's layout.
        resolution: Side of the rendered frames in pixels.
        workers: Simulator processes.
        seed: First seed of the initial states; disjoint from evaluation's.
        displaced: Probability that a demonstration begins where a policy gets when it errs: the gripper was
            moved to a drawn place near the object before, its fingers opened or closed.
    """

    suite: str = "robosuite_lift"
    tasks: list[int] | None = None
    episodes: int = 12
    out: str = "???"
    resolution: int = 64
    workers: int = 2
    seed: int = 1000
    displaced: float = 0.0


@dataclass
class ImagineDataConfig:
    """Data of world-model rollouts.

    Attributes:
        url: Folder or URL of the data set, where that is not the one in the run's settings; null: that one.
    """

    url: str | None = None


@dataclass
class RolloutConfig:
    """World-model rollouts, of all cameras that the run was trained with (`data.cameras`).

    Attributes:
        checkpoint: Checkpoint folder, or URL as for `worldvla eval`.
        data: The data set, where it was moved.
        episode: Key of an episode in the data; null: the first held-out ones.
        episodes: Number of held-out episodes to roll out; FVD needs many.
        frames: Number of time steps to predict of each, P at once (`data.predicted_frames` of the run);
            WorldVLA's scores are over 10 and 50.
        batch: Number of episodes rolled out side by side.
        lpips_weights: Weights as torchvision publishes them, of AlexNet (`alexnet-owt-7be5be79.pth`), for
            `protocol=published` of VGG-16 (`vgg16-397923af.pth`); null: LPIPS is not computed.
        fvd_network: I3D as TorchScript (`i3d_torchscript.pt`); null: FVD is not computed.
        temperature: Sampling temperature of the image codes; 0 takes the likeliest, as the published
            evaluation does.
        guidance: Scale of classifier-free guidance towards the action; 1: none.
        seed: Seed of sampling at a temperature above 0.
        precision: As for `worldvla eval`.
        weights: As for `worldvla eval`.
        gif: Write the video as GIF too, for viewers without MP4; 256 colours a frame.
        out: Folder for picture and video; null: beside the checkpoint's evaluation.
    """

    checkpoint: str = "???"
    data: ImagineDataConfig = field(default_factory=ImagineDataConfig)
    episode: str | None = None
    episodes: int = 1
    frames: int = 8
    batch: int = 16
    lpips_weights: str | None = None
    fvd_network: str | None = None
    temperature: float = 0.0
    guidance: float = 1.0
    seed: int = 0
    precision: Precision = "auto"
    weights: WeightsChoice = "auto"
    gif: bool = False
    out: str | None = None


@dataclass
class ImagineConfig(SourceConfig, RolloutConfig):
    """`worldvla imagine`: world-model rollouts beside the true frames.

    For `protocol=published` the settings of demonstrations (`source`, `format`, `cameras`, ...) are those
    that `worldvla prepare` was given for the data set; else they are not used.

    Attributes:
        source: Folder (or file) of the demonstrations, for the camera's frames; empty: none.
        protocol: How predictions are scored: `tokens` (against the frames of the true codes), or as
            `published` (against the cameras' frames, in MP4 at 256 px, the given frame counted, LPIPS with
            VGG, every prediction decoded and encoded again before it is the next input).
        replay: Whether the data set was prepared with `replay=true`: then the frames are those of a replay.
    """

    source: str = ""
    protocol: WorldModelProtocol = "tokens"
    replay: bool = False
