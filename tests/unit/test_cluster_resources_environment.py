"""What reaches the processes of Ray from the environment of the command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from cluster.resources import environment
from cluster.resources.environment import (
    PROJECT,
    check_ray_settings,
    clean_worker,
    environment_for_ray,
    program_environment,
    session_environment,
    worker_environment,
)
from cluster.resources.run_resources import RunResources
from data.errors import InputError

PRIVATE, EXISTING = ClusterConfig(), ClusterConfig(address="auto")
ON_CPUS = RunResources(ranks=1, cpus_per_rank=1, gpus_per_rank=0, evaluation_cpus=0)

LAUNCHERS = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_MCA_btl",
    "PMI_RANK",
    "PMI_FD",
    "PMIX_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RUN_ID",
)
PYTHON = (
    "PYTHONHASHSEED",
    "PYTHONINSPECT",
    "PYTHONSTARTUP",
    "PYTHONWARNINGS",
    "PYTHONOPTIMIZE",
    "PYTHONDEVMODE",
    "PYTHONVERBOSE",
    "PYTHONPROFILEIMPORTTIME",
    "PYTHONIOENCODING",
    "PYTHONBREAKPOINT",
    "PYTHONASYNCIODEBUG",
    "PYTHONTRACEMALLOC",
)
RAY = (
    "RAY_ADDRESS",
    "RAY_NAMESPACE",
    "RAY_REDIS_ADDRESS",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_LOGGER_LEVEL",
    "RAY_BACKEND_LOG_LEVEL",
    "RAY_GCS_SERVER_PORT",
    "RAY_ROTATION_MAX_BYTES",
    "RAY_OVERRIDE_DASHBOARD_URL",
    "RAY_TMPDIR",
)
SET = tuple(environment._SET)


@pytest.mark.parametrize("name", [*LAUNCHERS, *PYTHON, *RAY])
def test_a_private_ray_does_not_get_what_would_break_it(name: str) -> None:
    assert name not in environment_for_ray(PRIVATE, {name: "nonsense"})


@pytest.mark.parametrize("name", [*LAUNCHERS, *PYTHON])
def test_nor_does_an_existing_cluster(name: str) -> None:
    assert name not in environment_for_ray(EXISTING, {name: "nonsense"})


@pytest.mark.parametrize("name", RAY)
def test_what_describes_an_existing_cluster_stays(name: str) -> None:
    assert environment_for_ray(EXISTING, {name: "x"})[name] == "x"


@pytest.mark.parametrize("cluster", [PRIVATE, EXISTING])
@pytest.mark.parametrize("name", SET)
def test_our_own_values_replace_the_callers(cluster: ClusterConfig, name: str) -> None:
    value = environment_for_ray(cluster, {name: "nonsense"})[name]
    assert value == environment._SET[name]


def test_a_private_rays_workers_have_the_priority_of_the_command_unless_the_caller_chose() -> None:
    chosen = [environment_for_ray(PRIVATE, caller) for caller in ({}, {"RAY_worker_niceness": "7"})]
    assert [each["RAY_worker_niceness"] for each in chosen] == ["0", "7"]
    assert "RAY_worker_niceness" not in environment_for_ray(EXISTING, {})


def test_our_own_ray_setting_is_not_tried_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_loaded_with", set())
    monkeypatch.setattr(environment.subprocess, "run", None)  # calling it would raise
    check_ray_settings(environment_for_ray(PRIVATE, {}))
    with pytest.raises(TypeError):
        check_ray_settings(environment_for_ray(PRIVATE, {"RAY_worker_niceness": "7"}))


def test_a_private_ray_has_a_secret_of_its_own() -> None:
    token = environment_for_ray(PRIVATE, {"RAY_AUTH_TOKEN": "known"})["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert environment_for_ray(EXISTING, {"RAY_AUTH_TOKEN": "known"})["RAY_AUTH_TOKEN"] == "known"


@pytest.mark.parametrize(
    "name",
    [
        "RAY_health_check_timeout_ms",
        "RAY_RUNTIME_ENV_HOOK",
        "SLURM_JOB_ID",
        "CUDA_VISIBLE_DEVICES",
        "AWS_REGION",
        "PYTHONUSERBASE",
        "LC_ALL",
        "WANDB_MODE",
    ],
)
def test_everything_else_is_inherited(name: str) -> None:
    assert environment_for_ray(PRIVATE, {name: "x"})[name] == "x"


def test_a_node_of_a_job_keeps_the_jobs_secret_and_joins_nothing_else() -> None:
    caller = {"RAY_AUTH_TOKEN": "a", "RAY_AUTH_MODE": "token", "RAY_ADDRESS": "b:1", "PYTHONINSPECT": "1"}
    kept = program_environment({**caller, "PMI_RANK": "0"})
    assert (kept["RAY_AUTH_TOKEN"], kept["RAY_AUTH_MODE"]) == ("a", "token")
    assert not {"RAY_ADDRESS", "PYTHONINSPECT", "PMI_RANK"} & kept.keys()


def test_our_folder_is_the_first_for_imports_and_the_working_folder_none(tmp_path: Path) -> None:
    paths = environment_for_ray(PRIVATE, {"PYTHONPATH": f":{tmp_path}::relative:"})["PYTHONPATH"]
    assert paths.split(":") == [str(PROJECT), str(tmp_path), os.path.abspath("relative")]
    assert environment_for_ray(PRIVATE, {})["PYTHONPATH"] == str(PROJECT)
    on_other_machines = worker_environment(ON_CPUS, existing_cluster=True)
    assert on_other_machines["PYTHONPATH"] == f"{PROJECT}:${{PYTHONPATH}}"
    assert on_other_machines["PYTHONSAFEPATH"] == "1"


def test_the_commands_own_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    before = dict(os.environ)
    with session_environment(PRIVATE):
        assert not {"RAY_ADDRESS", "OMPI_COMM_WORLD_LOCAL_RANK"} & os.environ.keys()
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert dict(os.environ) == before


def test_a_process_on_another_machine_forgets_that_machines_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for name in LAUNCHERS:
        monkeypatch.setenv(name, "0")
    clean_worker()
    assert not set(LAUNCHERS) & os.environ.keys()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    clean_worker(gpus=0.5)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    clean_worker(gpus=0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_renderer_that_nobody_chose_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.simulator import rendering

    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert worker_environment(ON_CPUS)["MUJOCO_GL"] == "egl"
    monkeypatch.setitem(
        rendering._defaults, "MUJOCO_GL", "egl"
    )  # what `choose_backend` does on a GPU's machine
    assert "MUJOCO_GL" not in worker_environment(ON_CPUS)
    assert "MUJOCO_GL" not in environment_for_ray(PRIVATE, {"MUJOCO_GL": "egl"})


def test_the_table_for_users_is_complete() -> None:
    text = (PROJECT / "docs" / "cluster.md").read_text(encoding="utf-8")
    table = text.partition("## Environment")[2].partition("\n## ")[0]
    names = {*SET, *environment._SET_PRIVATE, *environment._DEFAULT_PRIVATE}
    names |= {*environment._PYTHON_KEPT, *environment._RAY_KEPT}
    names |= {*environment._INHERITED, "PYTHONPATH", "RAY_ADDRESS", "OMPI_", "PMI_", "TORCHELASTIC_"}
    assert sorted(name for name in names if name not in table) == []


def test_settings_with_which_ray_cannot_be_loaded_are_named_and_others_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "_loaded_with", set())
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    good = {**variables, "RAY_health_check_timeout_ms": "20000"}
    bad = {**variables, "RAY_health_check_timeout_ms": "soon"}
    check_ray_settings(good)
    with pytest.raises(InputError, match=r"^RAY_health_check_timeout_ms: Ray cannot be loaded .*unset"):
        check_ray_settings(bad)
    started: list[object] = []

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        started.append(arguments)
        return subprocess.CompletedProcess([], -6)

    monkeypatch.setattr(environment.subprocess, "run", run)
    check_ray_settings(good)
    assert started == []
    with pytest.raises(InputError):
        check_ray_settings(bad)
    assert len(started) == 1
