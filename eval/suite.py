"""Evaluate a policy on a suite: episodes from the fixed initial states, results and videos on disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from eval.config import EvalCommandConfig
from eval.output import writable_folder
from eval.policy import ExpertPolicy, Policy
from eval.results import Results, write_results
from eval.rollout import VIDEO_STRIDE, EpisodeResult, run_episode
from eval.simulator.interface import EVALUATION_STATES, TaskInfo
from eval.simulator.registry import open_suite, select_tasks
from eval.video import write_video
from eval.workers import Executor, Workers, kept_simulator

Progress = Callable[[int, int], None]
"""Called with (episodes done, episodes in all)."""

EXPERT = "expert"
VIDEOS_PER_TASK = 4
_CONTROL_FREQUENCY = 20  # steps a second of simulated time


@dataclass(frozen=True, slots=True)
class PolicyName:
    """Names a policy so that another process can load it: `expert`, or a checkpoint's folder."""

    name: str

    def load(self) -> Policy:
        """Load the policy.

        Raises:
            InputError: The checkpoint cannot be used.
        """
        if self.name == EXPERT:
            return ExpertPolicy()
        from eval.checkpoint_policy import CheckpointPolicy  # imports torch

        return CheckpointPolicy(Path(self.name))


def evaluate_command(config: EvalCommandConfig, progress: Progress | None = None) -> Results:
    """`worldvla eval`: run the named policy and write `results.json` and the videos.

    Raises:
        InputError: Bad settings, missing simulator parts, unusable checkpoint.
    """
    name, step, out = _named(config)
    return evaluate(
        name,
        config.suite,
        tasks=config.tasks,
        episodes=config.episodes,
        out=out,
        step=step,
        horizon=config.horizon,
        workers=config.workers,
        first_state=config.seed,
        progress=progress,
    )


def evaluate(
    policy: PolicyName,
    suite: str,
    *,
    tasks: list[int] | None,
    episodes: int,
    out: Path,
    step: int | None = None,
    horizon: int | None = None,
    workers: int = 1,
    first_state: int = 0,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Results:
    """Run a policy on a suite and write `results.json` and the videos into `out`.

    Args:
        policy: What acts.
        suite: Name of the suite.
        tasks: Task numbers; None: all.
        episodes: Episodes a task, from initial states `first_state`, `first_state + 1`, ...
        out: Folder for results and videos.
        step: Optimiser step of the checkpoint, for the results.
        horizon: Longest episode; None takes the suite's.
        workers: Simulator processes; 1 runs everything in this process.
        first_state: First initial state.
        executor: Runs the episodes elsewhere (a cluster's workers); None: `workers` local processes.
        progress: Is told of each finished episode.

    Raises:
        InputError: Bad settings, missing simulator parts, unusable checkpoint.
    """
    opened = open_suite(suite)
    numbers = select_tasks(opened, tasks)
    _check(episodes, workers, first_state, horizon)
    units = [
        (policy, suite, number, first_state + i, horizon, i < VIDEOS_PER_TASK)
        for number in numbers
        for i in range(episodes)
    ]
    writable_folder(out)
    results: list[EpisodeResult] = []
    videos: list[str | None] = []
    with nullcontext(executor) if executor is not None else Workers(workers) as pool:
        for done, result in enumerate(pool.map(run_unit, units), start=1):
            videos.append(_write_video(out, opened.tasks[result.task], result))
            result.frames.clear()
            results.append(result)
            if progress is not None:
                progress(done, len(units))
    outcome = Results(
        suite=suite,
        step=step,
        policy=policy.name,
        tasks=tuple(opened.tasks[number] for number in numbers),
        episodes=tuple(results),
        videos=tuple(videos),
        versions=opened.versions(),
        standin_assets=opened.standin_assets,
    )
    write_results(outcome, out)
    return outcome


_loaded: dict[PolicyName, Policy] = {}


def run_unit(
    policy: PolicyName, suite: str, task: int, initial_state: int, horizon: int | None, video: bool
) -> EpisodeResult:
    """One episode in this process, whose policy and simulator are kept for the next one."""
    if policy not in _loaded:
        _loaded.clear()
        _loaded[policy] = policy.load()
    return run_episode(kept_simulator(suite, task), _loaded[policy], initial_state, horizon, video)


def _named(config: EvalCommandConfig) -> tuple[PolicyName, int | None, Path]:
    """Policy, step of its checkpoint and folder for the results."""
    if (config.checkpoint is None) == (config.policy is None):
        raise InputError("eval: give one of checkpoint=FOLDER and policy=expert")
    if config.checkpoint is None:
        if config.policy != EXPERT:
            raise InputError(f"policy={config.policy}: expected {EXPERT}; or give checkpoint=FOLDER")
        if config.out is None:
            raise InputError(f"policy={EXPERT}: no folder for the results; add out=FOLDER")
        return PolicyName(EXPERT), None, Path(config.out)
    checkpoint = Path(config.checkpoint)
    if not checkpoint.is_dir():
        raise InputError(
            f"checkpoint={checkpoint}: no such folder; expected runs/<name>/checkpoints/step_..."
        )
    step = step_of(checkpoint)
    beside = checkpoint.resolve().parent.parent / "eval" / checkpoint.resolve().name
    return PolicyName(str(checkpoint)), step, Path(config.out) if config.out else beside


def step_of(checkpoint: Path) -> int | None:
    """Step in a checkpoint's name (`step_00000100`); None for another name."""
    prefix, _, digits = checkpoint.resolve().name.partition("_")
    return int(digits) if prefix == "step" and digits.isdecimal() else None


def _check(episodes: int, workers: int, first_state: int, horizon: int | None) -> None:
    for name, value in (("episodes", episodes), ("workers", workers), ("horizon", horizon)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: expected at least 1")
    if first_state < 0 or first_state + episodes > EVALUATION_STATES:
        raise InputError(
            f"episodes={episodes} from seed={first_state}: evaluation has initial states 0 to "
            f"{EVALUATION_STATES - 1}; ask for fewer episodes"
        )


def _write_video(out: Path, task: TaskInfo, result: EpisodeResult) -> str | None:
    """Write the episode's video, if it was filmed, and return its file name."""
    if not result.frames:
        return None
    outcome = "error" if result.error is not None else "success" if result.success else "failure"
    name = f"{task.name}_state_{result.initial_state:02d}_{outcome}.mp4"
    write_video(out / name, result.frames, _CONTROL_FREQUENCY // VIDEO_STRIDE)
    return name
