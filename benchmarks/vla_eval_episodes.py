"""Episodes of vla-eval's LIBERO benchmark, run by vla-eval's own interpreter; `evaluation_peers` starts it.

Nothing of this repository is imported. Its benchmark class and its synchronous runner are used as they are;
the policy answers given actions in the same process, so that its WebSocket costs nothing.

    python vla_eval_episodes.py < INPUT > OUTPUT        both JSON, see `evaluation_peers`
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def main() -> int:
    """Run the episodes of the input; returns the exit status."""
    given = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        _configure(Path(folder), given["assets"])
        result = asyncio.run(_run(given))
    json.dump(result, sys.stdout)
    return 0


def _configure(folder: Path, assets: str) -> None:
    """Point LIBERO to its files: without a configuration its import asks on stdin."""
    found = importlib.util.find_spec("libero")
    if found is None or not found.submodule_search_locations:
        raise SystemExit(
            "LIBERO is not installed beside vla-eval; run: pip install --no-deps hf-libero==0.1.4"
        )
    package = Path(next(iter(found.submodule_search_locations))) / "libero"
    names = {
        "bddl_files": "bddl_files",
        "benchmark_root": ".",
        "datasets": "datasets",
        "init_states": "init_files",
    }
    paths = {"assets": assets} | {name: str(package / path) for name, path in names.items()}
    # JSON strings are YAML strings.
    lines = [f"{name}: {json.dumps(path)}\n" for name, path in paths.items()]
    (folder / "config.yaml").write_text("".join(lines), "utf-8")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    libero: Any = importlib.import_module("libero.libero")
    libero._assets_path_cache = assets


class _GivenActions:
    """What the runner takes for its connection to a policy."""

    def __init__(self, actions: list[list[float]]) -> None:
        self._actions, self._next = actions, 0

    async def start_episode(self, payload: Any) -> None:
        self._next = 0

    async def act(self, observation: Any) -> dict[str, list[float]]:
        self._next += 1
        return {"actions": self._actions[self._next - 1]}

    async def end_episode(self, result: Any) -> None:
        pass


async def _run(given: dict[str, Any]) -> dict[str, Any]:
    libero: Any = importlib.import_module("vla_eval.benchmarks.libero.benchmark")
    construction = _Construction()
    runner = importlib.import_module("vla_eval.runners.sync_runner").SyncEpisodeRunner()
    benchmark = libero.LIBEROBenchmark(suite=given["suite"], seed=0)
    tasks, episodes, running = benchmark.get_tasks(), [], 0.0
    for number, actions in given["actions"].items():
        task = tasks[int(number)]
        for state in given["initial_states"]:
            before = time.process_time()
            result = await runner.run_episode(
                benchmark,
                {**task, "episode_idx": state},
                _GivenActions(actions),
                max_steps=given["horizon"],
            )
            running += time.process_time() - before
            taken = actions[: result["steps"]]
            episodes.append(
                {
                    "task": int(number),
                    "initial_state": state,
                    "success": bool(result["metrics"]["success"]),
                    "steps": result["steps"],
                    "actions_sha256": _sha256(value for action in taken for value in action),
                    "state_sha256": _sha256(benchmark._env.sim.get_state().flatten()),
                }
            )
    benchmark.cleanup()
    start = construction.seconds
    return {"episodes": episodes, "start": start, "running": running - start}


class _Construction:
    """CPU seconds of LIBERO's environments being made, which the benchmark does in a task's first episode."""

    def __init__(self) -> None:
        self.seconds = 0.0
        environments: Any = importlib.import_module("libero.libero.envs")
        make = environments.OffScreenRenderEnv

        def timed(**options: Any) -> Any:
            before = time.process_time()
            environment = make(**options)
            self.seconds += time.process_time() - before
            return environment

        environments.OffScreenRenderEnv = timed


def _sha256(values: Iterable[float]) -> str:
    """SHA-256 of numbers as little-endian float64."""
    return hashlib.sha256(b"".join(struct.pack("<d", value) for value in values)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
