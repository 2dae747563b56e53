"""Evaluation of a policy on a suite: the pool of simulators and policy servers against the plain loop.

    loop         one environment, one episode after the other; both cameras are rendered at every step, as in
                 LIBERO's own environment, and every token of an action chunk is decoded on its own: as the
                 published evaluation scripts do
    frugal loop  the same, but only frames that the policy uses are rendered, and all actions of a chunk are
                 decoded together
    N workers    the pool: N simulator processes and one policy server for all of them

The time is that of the whole evaluation, the start of processes and simulators included. CPU seconds are
those of all its processes: they show how much less is computed, the wall time also what parallelism saves.
The policy is the tiny network with random weights, so that every episode lasts to its horizon. Actions must
be the same in all ways, to the last bit.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.report import Column, Report, arguments
from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer
from eval.config import ExportedConfig
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.source import PolicyReference
from eval.pool.messages import EpisodeSpec
from eval.pool.pool import Pool
from eval.rollout.episode import EpisodeResult, run_episode
from eval.simulator.interface import Simulator
from eval.simulator.registry import SUITES, open_suite
from pretrain.convert.chameleon import hugging_face_config
from pretrain.convert.exporting import ARCHITECTURE
from pretrain.model.generate import Order
from pretrain.model.transformer import Transformer, initialise
from pretrain.settings import named_models

_TARGET = 4.0
_SCALE = 8.0  # of the random weights
_COLUMNS = (
    Column("suite", "suite"),
    Column("episodes", "episodes"),
    Column("steps", "steps"),
    Column("way", "way"),
    Column("seconds", "wall time", "s", digits=1),
    Column("cpu_seconds", "CPU time", "s", digits=1),
    Column("steps_per_second", "steps", "1/s", digits=1),
    Column("faster", "faster than the loop", "x"),
    Column("same_actions", "same actions"),
)

Run = Callable[[], list[EpisodeResult]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("evaluation", __doc__)
    parser.add_argument("--suite", choices=SUITES, default="robosuite_lift", help="default: %(default)s")
    parser.add_argument("--tasks", type=int, help="first tasks of the suite; default: 2 of LIBERO's")
    parser.add_argument("--episodes", type=int, help="of each task; default: 24")
    parser.add_argument("--horizon", type=int, help="steps of an episode; default: the suite's")
    parser.add_argument("--workers", nargs="+", type=int, help="default: 1 2 4, as far as there are cores")
    options = parser.parse_args(argv)
    suite = open_suite(options.suite)
    tasks = min(options.tasks or 2, len(suite.tasks))
    episodes = options.episodes or (2 if options.smoke else 24)
    horizon = options.horizon or (10 if options.smoke else suite.tasks[0].horizon)
    cores = len(os.sched_getaffinity(0))
    workers = options.workers or ([1] if options.smoke else [n for n in (1, 2, 4) if n <= 2 * cores])

    with tempfile.TemporaryDirectory() as folder:
        policy = _random_policy(Path(folder))
        work = [
            EpisodeSpec(options.suite, task, state, horizon)
            for task in range(tasks)
            for state in range(episodes)
        ]
        ways: dict[str, Run] = {
            "loop": lambda: _loop(work, policy, frugal=False),
            "frugal loop": lambda: _loop(work, policy, frugal=True),
        }
        ways |= {f"{n} workers": lambda n=n: _pool(work, policy, n) for n in workers}
        report = Report("evaluation", f"Evaluation of {options.suite}", _COLUMNS, options.device)
        _measure(report, options.suite, ways)
    report.note(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {cores} cores")
    report.finish(options.out)
    return 0


def _measure(report: Report, suite: str, ways: dict[str, Run]) -> None:
    """Time every way once and compare its actions with the loop's."""
    first: list[tuple[int, int, bool, int, str]] | None = None
    loop = 0.0
    for way, run in ways.items():
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        results = run()
        seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu_start
        outcome = sorted((r.task, r.initial_state, r.success, r.steps, r.actions_sha256) for r in results)
        if first is None:
            first, loop = outcome, seconds
        steps = sum(result.steps for result in results)
        report.add(
            suite=suite,
            episodes=len(results),
            steps=steps,
            way=way,
            seconds=seconds,
            cpu_seconds=cpu,
            steps_per_second=steps / seconds,
            faster=loop / seconds,
            same_actions=outcome == first,
        )
    pooled = max(row["faster"] for row in report.rows if "workers" in row["way"])
    report.target(f"the pool is at least {_TARGET:g} times as fast as the loop", pooled >= _TARGET, pooled)
    same = all(row["same_actions"] for row in report.rows)
    report.target("all ways act alike to the last bit", same, None)
    different = len({row[-1] for row in first or ()})
    report.note(f"{different} different sequences of actions among {len(first or ())} episodes")


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def _random_policy(folder: Path) -> PolicyReference:
    """The tiny network with random weights, as exported weights, and the tokenizers that ship."""
    config = named_models()["tiny"]
    network = Transformer(config)
    initialise(network, seed=0)
    for parameter in network.parameters():
        if parameter.dim() > 1:  # otherwise every observation would get the same actions
            parameter.data *= _SCALE
    save_file(network.state_dict(), folder / "model.safetensors")
    settings = hugging_face_config(config, "float32", None, ARCHITECTURE)
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    text, image = (
        TextTokenizer.load().save(folder / "tokenizers"),
        folder / "tokenizers" / "image.safetensors",
    )
    ImageTokenizer.load().save(image)
    # Other orders of decoding are other roundings, which choose the same action in fp32 alone.
    return PolicyReference(str(folder), exported=ExportedConfig(str(image), str(text)), precision="fp32")


class _RenderedAtEveryStep:
    """A simulator that renders both cameras after every step, used or not."""

    def __init__(self, simulator: Simulator, pixels: int) -> None:
        self._simulator, self._pixels = simulator, pixels
        self._views: dict[str, NDArray[np.uint8]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulator, name)

    def reset(self, initial_state: int) -> None:
        """Start an episode."""
        self._simulator.reset(initial_state)
        self._render_all()

    def step(self, action: NDArray[np.float64]) -> None:
        """Apply an action."""
        self._simulator.step(action)
        self._render_all()

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        """The frame rendered after the last step."""
        return self._views[camera]

    def _render_all(self) -> None:
        cameras = (AGENT_CAMERA, WRIST_CAMERA)
        self._views = {camera: self._simulator.render(camera, self._pixels) for camera in cameras}


def _loop(work: Sequence[EpisodeSpec], source: PolicyReference, frugal: bool) -> list[EpisodeResult]:
    """Every episode in this process, one after the other."""
    order: Order = "parallel" if frugal else "token"
    policy = CheckpointPolicy(
        Path(source.name), batch=1, exported=source.exported, order=order, precision=source.precision
    )
    results = []
    for task in sorted({spec.task for spec in work}):
        with closing(open_suite(work[0].suite).open(task)) as simulator:
            seen: Any = simulator if frugal else _RenderedAtEveryStep(simulator, policy.pixels)
            for spec in work:
                if spec.task == task:
                    results.append(run_episode(seen, policy, spec.initial_state, spec.horizon))
    return results


def _pool(work: Sequence[EpisodeSpec], policy: PolicyReference, workers: int) -> list[EpisodeResult]:
    with Pool(policy, workers) as pool:
        return list(pool.run(work))


if __name__ == "__main__":
    sys.exit(main())
