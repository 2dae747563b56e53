"""Evaluate a policy on a suite: episodes from the fixed initial states, results and videos on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import InputError
from eval.config import EvalCommandConfig
from eval.evaluation.journal import Journal
from eval.evaluation.results import Results, write_results
from eval.output_folder import writable_folder
from eval.policy.source import named_policy
from eval.pool.messages import EpisodeSpec, OpenSuite, PolicySource, TimeLimits
from eval.pool.pool import Pool
from eval.rollout.episode import EpisodeResult
from eval.simulator.interface import EVALUATION_STATES, Suite
from eval.simulator.registry import open_suite as open_registered
from eval.simulator.registry import select_tasks


@dataclass(frozen=True, slots=True)
class Tally:
    """How far an evaluation is.

    Attributes:
        done: Episodes with a result.
        wanted: Episodes in all.
        successes: Solved ones among those done.
        errors: Those among them that the simulator broke off.
    """

    done: int
    wanted: int
    successes: int
    errors: int

    def __str__(self) -> str:
        counted = self.done - self.errors
        text = f"success {self.successes}/{counted}"
        text += f" ({self.successes / counted:.0%})" if counted else ""
        return f"{text}, {self.errors} errors" if self.errors else text


Progress = Callable[[Tally], None]


@dataclass(frozen=True, slots=True)
class Resources:
    """What an evaluation may take.

    Attributes:
        workers: Simulator processes.
        policy_servers: Processes that run the policy.
        batch: Most observations that one of them is given at once.
        retries: Further tries of an episode that the simulator broke off.
        limits: Seconds after which a process that does not get on is replaced.
    """

    workers: int = 1
    policy_servers: int = 1
    batch: int = 8
    retries: int = 2
    limits: TimeLimits = field(default_factory=TimeLimits)


def evaluate_command(
    config: EvalCommandConfig, progress: Progress | None = None, open_suite: OpenSuite = open_registered
) -> Results:
    """`worldvla eval`: run the named policy and write `results.json` and the videos; see `evaluate`.

    Raises:
        InputError: Bad settings, missing simulator parts, unusable checkpoint.
    """
    policy, step, out = named_policy(config)
    return evaluate(
        policy,
        config.suite,
        tasks=config.tasks,
        episodes=config.episodes,
        out=out,
        step=step,
        horizon=config.horizon,
        resources=Resources(
            config.workers,
            config.policy_servers,
            config.batch,
            config.retries,
            TimeLimits(step=config.step_seconds),
        ),
        first_state=config.seed,
        videos=config.videos,
        resume=config.resume,
        open_suite=open_suite,
        progress=progress,
    )


def evaluate(
    policy: PolicySource,
    suite: str,
    *,
    tasks: list[int] | None,
    episodes: int,
    out: Path,
    step: int | None = None,
    horizon: int | None = None,
    resources: Resources | None = None,
    first_state: int = 0,
    videos: int = 4,
    resume: bool = True,
    open_suite: OpenSuite = open_registered,
    progress: Progress | None = None,
) -> Results:
    """Run a policy on a suite and write `results.json` and the videos into `out`.

    Episodes that `out` already holds of the same policy, suite, horizon and versions are not run again,
    except those that ended in an error.

    Args:
        policy: What acts.
        suite: Name of the suite.
        tasks: Task numbers; None: all.
        episodes: Episodes a task, from initial states `first_state`, `first_state + 1`, ...
        out: Folder for results and videos.
        step: Optimiser step of the checkpoint, for the results.
        horizon: Longest episode; None takes the suite's.
        resources: Processes and their limits; None: the smallest.
        first_state: First initial state.
        videos: Episodes of each task that are filmed, the first ones.
        resume: Go on with the episodes that are there.
        open_suite: Opens the suite, in any process.
        progress: Is told of each finished episode.

    Raises:
        InputError: Bad settings, missing simulator parts, unusable checkpoint.
        PolicyFailedError: The policy raised an exception.
    """
    resources = resources or Resources()
    opened = open_suite(suite)
    numbers = select_tasks(opened, tasks)
    _check(episodes, resources, first_state, horizon, videos)
    journal = Journal(writable_folder(out), _identity(policy, opened, horizon), resume)
    known = journal.done()
    specs = [
        EpisodeSpec(
            suite,
            number,
            first_state + i,
            horizon or opened.tasks[number].horizon,
            out if i < videos else None,
        )
        for number in numbers
        for i in range(episodes)
    ]
    found = {key: known[key] for spec in specs if (key := (spec.task, spec.initial_state)) in known}
    missing = [spec for spec in specs if (spec.task, spec.initial_state) not in found]
    _tell(progress, found, len(specs))
    for result in _run(policy, missing, resources, open_suite):
        journal.add(result)
        found[result.task, result.initial_state] = result
        _tell(progress, found, len(specs))
    outcome = Results(
        suite=suite,
        step=step,
        policy=policy.name,
        tasks=tuple(opened.tasks[number] for number in numbers),
        episodes=tuple(found[key] for key in sorted(found)),
        versions=opened.versions(),
        standin_assets=opened.standin_assets,
        horizon=horizon,
    )
    write_results(outcome, out)
    return outcome


def _run(
    policy: PolicySource, specs: list[EpisodeSpec], resources: Resources, open_suite: OpenSuite
) -> Iterator[EpisodeResult]:
    if not specs:
        return
    with Pool(
        policy,
        resources.workers,
        resources.policy_servers,
        resources.batch,
        resources.retries,
        resources.limits,
        open_suite,
    ) as pool:
        yield from pool.run(specs)


def _identity(policy: PolicySource, suite: Suite, horizon: int | None) -> dict[str, object]:
    """All that the outcome of an episode depends on."""
    return {
        "policy": policy.identity(),
        "suite": suite.name,
        "horizon": horizon,
        "versions": suite.versions(),
        "standin_assets": suite.standin_assets,
    }


def _tell(progress: Progress | None, found: dict[tuple[int, int], EpisodeResult], wanted: int) -> None:
    if progress is not None:
        successes = sum(result.success for result in found.values())
        errors = sum(result.error is not None for result in found.values())
        progress(Tally(len(found), wanted, successes, errors))


def _check(episodes: int, resources: Resources, first_state: int, horizon: int | None, videos: int) -> None:
    at_least_one = {
        "episodes": episodes,
        "horizon": horizon,
        "workers": resources.workers,
        "policy_servers": resources.policy_servers,
        "batch": resources.batch,
    }
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: expected at least 1")
    for name, value in {"retries": resources.retries, "videos": videos}.items():
        if value < 0:
            raise InputError(f"{name}={value}: expected at least 0")
    if resources.limits.step <= 0:
        raise InputError(f"step_seconds={resources.limits.step}: expected more than 0")
    if first_state < 0 or first_state + episodes > EVALUATION_STATES:
        raise InputError(
            f"episodes={episodes} from seed={first_state}: evaluation has initial states 0 to "
            f"{EVALUATION_STATES - 1}; ask for fewer episodes"
        )
