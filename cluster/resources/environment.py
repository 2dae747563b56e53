"""Environment variables of the processes that Ray starts: which are inherited, set and removed.

The only place that decides it; docs/cluster.md has the table for users. A process of a private Ray inherits
what the command has while Ray starts, so the command's own environment is changed for that long. The nodes of
an existing cluster have an environment of their own: there each process is changed when it begins to work.

| variable | value | why |
|---|---|---|
| RAY_USAGE_STATS_ENABLED | 0 | nothing is sent anywhere |
| RAY_AUTH_TOKEN | a fresh secret (private) | Ray would keep one in the home folder, which may be read-only |
| RAY_worker_niceness | 0 (private), unless set | a training has its command's priority, evaluations less |
| SPT_NOENV | 1 (private) | titles of Ray's agents leave their environment as it is, for the guard |
| PYTHONPATH | this project's folder first | the caller's own `data` or `eval` does not hide ours |
| PYTHONSAFEPATH | 1 | `python -m` and `-c` do not import from the working folder |
| PYTHONUTF8 | 1 | files and output are UTF-8 in every locale |
| OMP_NUM_THREADS | 1, unless set | several ranks share the cores |
| TORCH_NCCL_ENABLE_TIMING | 1, unless set | measures a rank's own time of a step (pretrain.telemetry.waits) |
| caches of compilers | by pretrain.compile_caches, unless set | in ranks, by themselves: shared by a node |
| PYTORCH_ALLOC_CONF | by trainer.allocator, unless set (also by its older name) | in ranks, by themselves |
| DS_ACCELERATOR, CUDA_VISIBLE_DEVICES | cpu, "" (runs on CPUs) | DeepSpeed does not look for CUDA |
| TORCHDYNAMO_DISABLE | 1 (runs on CPUs) | saves a second of imports per rank |
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.resources.run_resources import RunResources
from data.errors import InputError
from eval.simulator.rendering import is_default
from pretrain.logs import LEVEL_VARIABLE

PROJECT = Path(__file__).resolve().parents[2]  # the folder that holds our packages
_PRIVATE_TOKEN = secrets.token_hex(32)  # one per process: Ray reads it only once

_SET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONSAFEPATH": "1",
    "PYTHONUTF8": "1",
}
_DEFAULT_PRIVATE = {"RAY_worker_niceness": "0"}
_SET_PRIVATE = {
    "RAY_AUTH_TOKEN": _PRIVATE_TOKEN,
    "SPT_NOENV": "1",
}
# Of a launcher that started the command as one of its processes (mpirun, torchrun): each would describe every
# rank as that one. DeepSpeed refuses OMPI_COMM_WORLD_LOCAL_RANK where it differs from LOCAL_RANK.
_LAUNCHERS = re.compile(r"(OMPI|PMI|PMIX|MV2_COMM_WORLD|TORCHELASTIC)_")
# The interpreter's own switches: of those in capitals only these keep their meaning in a process of Ray.
_PYTHON_KEPT = frozenset(
    f"PYTHON{name}"
    for name in (
        *("HOME", "PATH", "PLATLIBDIR", "EXECUTABLE", "NOUSERSITE", "USERBASE"),
        *("DONTWRITEBYTECODE", "PYCACHEPREFIX", "FAULTHANDLER", "UNBUFFERED", "MALLOC"),
    )
)
# Ray's switches in capitals join clusters, change addresses, logs and runtime environments (RAY_ADDRESS,
# RAY_JOB_CONFIG_JSON_ENV_VAR); its numeric settings have small letters (RAY_health_check_timeout_ms).
_RAY_KEPT = frozenset({"RAY_RUNTIME_ENV_HOOK", "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE"})
_RAY_KEPT_OF_JOBS = _RAY_KEPT | {"RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED"}
_RAY_SETTING = re.compile(r"RAY_[a-z]")
_loaded_with: set[tuple[tuple[str, str], ...]] = set()  # Ray's settings with which a process of it has lived
_INHERITED = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LIBERO_ASSETS", "LIBERO_CONFIG_PATH", LEVEL_VARIABLE)


@contextmanager
def session_environment(cluster: ClusterConfig) -> Iterator[None]:
    """Change this process's environment for the length of a Ray session; restore it afterwards.

    Raises:
        InputError: Ray cannot be loaded with its settings in it.
    """
    before = dict(os.environ)
    changed = environment_for_ray(cluster, before)
    check_ray_settings(changed)
    names = [name for name in before.keys() | changed.keys() if before.get(name) != changed.get(name)]
    _assign({name: changed.get(name) for name in names})
    try:
        yield
    finally:
        _assign({name: before.get(name) for name in names})


def environment_for_ray(cluster: ClusterConfig, caller: Mapping[str, str]) -> dict[str, str]:
    """The environment in which Ray is started or joined.

    Args:
        cluster: Without an address Ray is private.
        caller: Environment of the command.
    """
    private = cluster.address is None
    environment = _cleaned(caller, _RAY_KEPT if private else None) | _SET
    return _DEFAULT_PRIVATE | environment | _SET_PRIVATE if private else environment


def check_ray_settings(environment: Mapping[str, str]) -> None:
    """Refuse values of Ray's own settings (`RAY_health_check_timeout_ms`) that end a process which loads Ray.

    Where there are any, Ray is loaded once in another process: it would end this one without a word. Later
    sessions with the same settings do not repeat that.

    Raises:
        InputError: That process did not live.
    """
    chosen = environment.items() - _DEFAULT_PRIVATE.items()
    settings = tuple(sorted(pair for pair in chosen if _RAY_SETTING.match(pair[0])))
    if not settings or settings in _loaded_with:
        return
    loads = subprocess.run(
        [sys.executable, "-c", "import ray"], env=dict(environment), capture_output=True, check=False
    )
    if loads.returncode < 0:
        raise InputError(
            f"{', '.join(name for name, _ in settings)}: Ray cannot be loaded with these settings of its own "
            "(is each number one?); correct or unset them"
        )
    _loaded_with.add(settings)


def program_environment(caller: Mapping[str, str]) -> dict[str, str]:
    """The environment of another program of ours: a node of a job's Ray, a check of `doctor`."""
    return _cleaned(caller, _RAY_KEPT_OF_JOBS) | _SET


def worker_environment(resources: RunResources, existing_cluster: bool = False) -> dict[str, str]:
    """Variables that Ray itself sets in every process that it starts for this command.

    Args:
        resources: Of the run.
        existing_cluster: Whether the processes inherit the environment of other machines.
    """
    environment = {
        name: value for name in _INHERITED if (value := os.environ.get(name)) and not is_default(name, value)
    }
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    environment["TORCH_NCCL_ENABLE_TIMING"] = os.environ.get("TORCH_NCCL_ENABLE_TIMING", "1")
    if resources.gpus_per_rank == 0:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    if existing_cluster:
        environment |= {name: value for name, value in _SET.items() if name.startswith("PYTHON")}
        environment["PYTHONPATH"] = f"{PROJECT}:${{PYTHONPATH}}"  # Ray inserts the value of that machine
    return environment


def clean_worker(gpus: float | None = None) -> None:
    """Remove from this process of Ray what does not apply to it; before it imports torch or a simulator.

    Args:
        gpus: GPUs that it was given: without any it sees none (Ray hides none); None: as Ray has set it.
    """
    for name in [name for name in os.environ if _LAUNCHERS.match(name)]:
        del os.environ[name]
    if gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _cleaned(caller: Mapping[str, str], ray_kept: Collection[str] | None) -> dict[str, str]:
    """The variables of the caller that reach Ray.

    Args:
        caller: Environment of the command.
        ray_kept: Of Ray's switches in capitals only these stay; None: all of them.
    """

    def is_removed(name: str) -> bool:
        if name.startswith("PYTHON"):
            return name.isupper() and name not in _PYTHON_KEPT
        if name.startswith("RAY_"):
            return ray_kept is not None and name.isupper() and name not in ray_kept
        return _LAUNCHERS.match(name) is not None

    environment = {
        name: value
        for name, value in caller.items()
        if not (is_removed(name) or is_default(name, value))  # each process chooses its renderer by its GPU
    }
    environment["PYTHONPATH"] = _module_path(caller.get("PYTHONPATH", ""))
    return environment


def _module_path(caller: str) -> str:
    """PYTHONPATH with this project first; an empty part of it would be the working folder."""
    parts = [os.path.abspath(part) for part in caller.split(os.pathsep) if part]
    return os.pathsep.join(dict.fromkeys([str(PROJECT), *parts]))


def _assign(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
