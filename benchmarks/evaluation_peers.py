"""vla-eval beside our evaluation: its LIBERO benchmark in its own interpreter, with given actions.

An environment for it: a venv with `vla-eval`, `torch`, the packages of the `sim` extra and, with `--no-deps`,
those of requirements-simulators.txt and `matplotlib`, which LIBERO imports. LIBERO's assets are ours.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.evaluation_loops import Measured, Outcome
from benchmarks.evaluation_policies import given_actions
from data.errors import InputError
from eval.pool.messages import EpisodeSpec
from eval.simulator.libero.assets import find_assets

VLA_EVAL = "vla-eval"
_EPISODES = Path(__file__).with_name("vla_eval_episodes.py")
_SAME_VERSIONS = ("mujoco", "robosuite", "hf-libero", "numpy")
_VERSIONS = "import sys, json; from importlib.metadata import version; " + (
    "print(json.dumps([version(name) for name in sys.argv[1:]]))"
)


def check_vla_eval(interpreter: str) -> str:
    """The version of vla-eval that an interpreter has.

    Raises:
        InputError: It has none, or other versions of the simulator than this one.
    """
    names = (VLA_EVAL, *_SAME_VERSIONS)
    try:
        answer = _run([interpreter, "-I", "-c", _VERSIONS, *names], "")
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[-1]
        raise InputError(
            f"--vla-eval {interpreter}: cannot be used ({reason}); expected a Python with {', '.join(names)}"
        ) from error
    found = dict(zip(names, json.loads(answer), strict=True))
    for name in _SAME_VERSIONS:
        if found[name] != version(name):
            raise InputError(
                f"--vla-eval {interpreter}: {name} {found[name]}, here {version(name)}; install that there"
            )
    return found[VLA_EVAL]


def vla_eval(interpreter: str, work: Sequence[EpisodeSpec]) -> Measured:
    """Run the episodes by vla-eval; renderer and threads are those of this process."""
    tasks = sorted({spec.task for spec in work})
    given = {
        "suite": work[0].suite,
        "horizon": work[0].horizon,
        "initial_states": sorted({spec.initial_state for spec in work}),
        "actions": {task: given_actions(task, work[0].horizon).tolist() for task in tasks},
        "assets": str(find_assets()),
    }
    answer = json.loads(_run([interpreter, "-I", str(_EPISODES)], json.dumps(given)))
    outcomes = [Outcome(**episode) for episode in answer["episodes"]]
    return Measured(outcomes, answer["start"], answer["running"])


def _run(command: list[str], text: str) -> str:
    """Output of a command that sees none of this repository's modules."""
    environment = {name: value for name, value in os.environ.items() if name != "LIBERO_CONFIG_PATH"}
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", env=environment)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout
