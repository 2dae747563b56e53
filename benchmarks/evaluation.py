"""Evaluation of a policy on a suite, beside the plain loop and beside vla-eval, in one run.

    loop         one environment, one episode after the other, as published evaluation scripts do: LIBERO's
                 own environment, whose every reset builds the model anew; both cameras are rendered at every
                 step, and every token of an action chunk is decoded on its own
    frugal loop  our simulator in one process: a reset is as one that builds the model anew, to the last bit,
                 but does not build it; only frames that the policy uses are rendered, and all actions of a
                 chunk are decoded together
    N workers    the pool: N simulator processes, and one policy server for all of them for a network
    vla-eval     its LIBERO benchmark and its synchronous runner, in an interpreter given by --vla-eval

The policy is `given`, actions that are the same in every run, looking at two 256 px frames before every
fifth step as WorldVLA does; or `network`, the tiny network with random weights. Both act to the horizon. The
time is that of the whole evaluation, the start of processes and simulators included. CPU seconds are those of
all its processes; those of the start (opening the simulators, their first frames) are told apart, and the
rates by CPU second are of the episodes alone. Actions must be the same in all ways, and the simulator's last
states in both loops, to the last bit. vla-eval does not seed its resets, so that its episodes depend on those
before them: the first of a task ends in the same state, the others may differ in the last digits.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import eq
from pathlib import Path

from benchmarks.evaluation_loops import Measured, Outcome, cpu_seconds, loop, pool
from benchmarks.evaluation_peers import VLA_EVAL, check_vla_eval, vla_eval
from benchmarks.evaluation_policies import GivenActionsSource, random_network
from benchmarks.report import Column, Report, arguments
from data.errors import InputError
from eval.pool.messages import EpisodeSpec, PolicySource
from eval.simulator.interface import Suite
from eval.simulator.libero.names import LIBERO_SUITES
from eval.simulator.registry import SUITES, open_suite

_FASTER_POOL = 6.0  # wall time of the plain loop, on two cores
_FASTER_CORE = 2.0  # steps by CPU second of vla-eval
_COLUMNS = (
    Column("suite", "suite"),
    Column("episodes", "episodes"),
    Column("steps", "steps"),
    Column("way", "way"),
    Column("seconds", "wall time", "s", digits=1),
    Column("cpu_seconds", "CPU time", "s", digits=1),
    Column("start", "of it start", "s", digits=1),
    Column("steps_per_second", "steps", "1/s", digits=1),
    Column("faster", "faster than the loop", "x"),
    Column("episodes_per_cpu_second", "episodes", "1/CPU s", digits=3),
    Column("steps_per_cpu_second", "steps", "1/CPU s", digits=1),
    Column("of_loop", "on a core, of the loop", "x"),
    Column("of_vla_eval", "on a core, of vla-eval", "x"),
    Column("same_actions", "same actions"),
    Column("same_states", "same last states", "episodes"),
)
_HIDDEN = ("suite", "steps_per_second")  # of the printed table: they make it too wide

Run = Callable[[], Measured]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("evaluation", __doc__)
    parser.add_argument("--suite", choices=SUITES, default="robosuite_lift", help="default: %(default)s")
    parser.add_argument(
        "--policy", choices=("given", "network"), help="default: given for LIBERO, network for Lift"
    )
    parser.add_argument("--tasks", type=int, help="first tasks of the suite; default: 2 of LIBERO's")
    parser.add_argument("--episodes", type=int, help="of each task; default: 24")
    parser.add_argument("--horizon", type=int, help="steps of an episode; default: the suite's")
    parser.add_argument("--workers", nargs="*", type=int, help="default: 1 2 4, as far as there are cores")
    parser.add_argument("--vla-eval", metavar="PYTHON", help="interpreter that has vla-eval and LIBERO")
    options = parser.parse_args(argv)
    suite = open_suite(options.suite)
    horizon = options.horizon or (10 if options.smoke else suite.tasks[0].horizon)
    work = _work(suite, options.tasks or 2, options.episodes or (2 if options.smoke else 24), horizon)
    cores = len(os.sched_getaffinity(0))
    workers = options.workers
    if workers is None:
        workers = [1] if options.smoke else [n for n in (1, 2, 4) if n <= 2 * cores]
    given = (options.policy or ("given" if options.suite in LIBERO_SUITES else "network")) == "given"

    report = Report("evaluation", f"Evaluation of {options.suite}", _COLUMNS, options.device, _HIDDEN)
    with tempfile.TemporaryDirectory() as folder:
        policy: PolicySource = GivenActionsSource(horizon) if given else random_network(Path(folder))
        ways: dict[str, Run] = {
            "loop": partial(loop, work, policy, frugal=False),
            "frugal loop": partial(loop, work, policy, frugal=True),
        }
        ways |= {f"{n} workers": partial(pool, work, policy, n) for n in workers}
        reason = _why_not_vla_eval(options.vla_eval, options.suite, given)
        if reason is None:
            report.note(f"vla-eval {check_vla_eval(options.vla_eval)}")
            ways[VLA_EVAL] = partial(vla_eval, options.vla_eval, work)
        else:
            report.note(f"vla-eval: not measured ({reason})")
        _measure(report, options.suite, ways)
    _set_targets(report, suite)
    report.note(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {cores} cores")
    report.finish(options.out)
    return 0


def _work(suite: Suite, tasks: int, episodes: int, horizon: int) -> list[EpisodeSpec]:
    """The episodes; in LIBERO what its own scripts observe, so that frames are the same too."""
    observations = "published" if suite.name in LIBERO_SUITES else "recomputed"
    return [
        EpisodeSpec(suite.name, task, state, horizon, observations)
        for task in range(min(tasks, len(suite.tasks)))
        for state in range(episodes)
    ]


def _why_not_vla_eval(interpreter: str | None, suite: str, given: bool) -> str | None:
    """Why vla-eval is not measured.

    Raises:
        InputError: It was asked for, and cannot run these episodes.
    """
    if interpreter is None:
        return "--vla-eval PYTHON was not given"
    if suite not in LIBERO_SUITES or not given:
        raise InputError(
            f"--vla-eval runs {', '.join(LIBERO_SUITES)} with --policy given; leave it out, or change "
            "--suite or --policy"
        )
    return None


def _measure(report: Report, suite: str, ways: dict[str, Run]) -> None:
    """Time every way once and compare its actions and states with the loop's."""
    measured: dict[str, tuple[Measured, float, float]] = {}
    for way, run in ways.items():
        start, cpu_start = time.perf_counter(), cpu_seconds()
        result = run()
        measured[way] = result, time.perf_counter() - start, cpu_seconds() - cpu_start
    rates = {way: _rate(result) for way, (result, *_) in measured.items()}
    first, loop_seconds, _ = measured["loop"]
    actions, states = _actions(first.outcomes), _states(first.outcomes)
    for way, (result, seconds, cpu) in measured.items():
        steps, ends = _steps(result), _states(result.outcomes)
        report.add(
            suite=suite,
            episodes=len(result.outcomes),
            steps=steps,
            way=way,
            seconds=seconds,
            cpu_seconds=cpu,
            start=result.start,
            steps_per_second=steps / seconds,
            faster=loop_seconds / seconds,
            episodes_per_cpu_second=None if result.running is None else len(result.outcomes) / result.running,
            steps_per_cpu_second=rates[way],
            of_loop=_ratio(rates[way], rates["loop"]),
            of_vla_eval=_ratio(rates[way], rates.get(VLA_EVAL)),
            same_actions=_actions(result.outcomes) == actions,
            same_states=None if None in ends else sum(map(eq, ends, states)),
        )
    report.note(f"{len(set(states))} different last states among {len(states)} episodes")


def _set_targets(report: Report, suite: Suite) -> None:
    rows = {row["way"]: row for row in report.rows}
    pooled = max((row["faster"] for way, row in rows.items() if "workers" in way), default=None)
    report.target(
        f"the pool is at least {_FASTER_POOL:g} times as fast as the loop",
        None if pooled is None else pooled >= _FASTER_POOL,
        pooled,
    )
    if suite.name in LIBERO_SUITES:
        ratio = rows["frugal loop"]["of_vla_eval"]
        report.target(
            f"on a core at least {_FASTER_CORE:g} times as many steps as vla-eval",
            None if ratio is None else ratio >= _FASTER_CORE,
            ratio,
        )
    same = all(row["same_actions"] for row in report.rows)
    same = same and rows["frugal loop"]["same_states"] == rows["frugal loop"]["episodes"]
    report.target("all ways act alike to the last bit", same, None)


def _steps(result: Measured) -> int:
    return sum(outcome.steps for outcome in result.outcomes)


def _rate(result: Measured) -> float | None:
    return None if result.running is None else _steps(result) / result.running


def _ratio(value: float | None, of: float | None) -> float | None:
    return None if value is None or of is None else value / of


def _actions(outcomes: Sequence[Outcome]) -> list[tuple[int, int, bool, int, str]]:
    return sorted((o.task, o.initial_state, o.success, o.steps, o.actions_sha256) for o in outcomes)


def _states(outcomes: Sequence[Outcome]) -> list[str | None]:
    return [o.state_sha256 for o in sorted(outcomes, key=lambda o: (o.task, o.initial_state))]


if __name__ == "__main__":
    sys.exit(main())
