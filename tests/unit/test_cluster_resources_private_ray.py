"""How a private Ray is started; Ray itself is not. A test reads Ray's source: what we replace must exist."""

from __future__ import annotations

import inspect
import os
import signal
import tempfile
from pathlib import Path

import pytest
import ray
from ray._private import auto_init_hook, node, ray_constants, services, utils, worker
from ray.scripts import scripts

from cluster.config import ClusterConfig
from cluster.failures import CommandFailedError
from cluster.resources import private_ray as private_ray_module
from cluster.resources.private_ray import (
    NEEDED_PROCESSES,
    UNUSED_PROCESSES,
    job_config,
    private_ray,
    temporary_folder,
    undisturbed_start,
)
from cluster.resources.run_resources import RunResources
from data.errors import InputError

RESOURCES = RunResources(ranks=1, cpus_per_rank=1, gpus_per_rank=0, evaluation_cpus=0)


def test_ray_still_starts_its_processes_and_sets_its_handler_by_these_names() -> None:
    assert "process = ConsolePopen(" in inspect.getsource(services.start_ray_process)
    assert "ray._private.utils.set_sigterm_handler(sigterm_handler)" in inspect.getsource(worker.init)
    assert "signal.signal(signal.SIGTERM, sigterm_handler)" in inspect.getsource(utils.set_sigterm_handler)
    assert "if enable_auto_connect and not ray.is_initialized()" in inspect.getsource(auto_init_hook)
    assert inspect.getsource(worker.connect).count("job_config._runtime_env_has_working_dir()") == 2
    assert all(f"self.{name}(" in inspect.getsource(node.Node) for name in UNUSED_PROCESSES)
    assert worker._global_node is None
    assert NEEDED_PROCESSES == (
        ray_constants.PROCESS_TYPE_GCS_SERVER,
        ray_constants.PROCESS_TYPE_RAYLET,
    )
    assert "result.append((process_type, process_info.process))" in inspect.getsource(
        node.Node.dead_processes
    )
    assert "target=listen_error_messages," in inspect.getsource(worker.connect)
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    flags = {flag for option in scripts.start.params for flag in option.opts}
    assert {"--include-log-monitor", "--no-monitor"} <= flags


def test_processes_of_a_start_have_sessions_of_their_own() -> None:
    program = ["sh", "-c", "exit $(ps -o sid= -p $$ | grep -cw $$)"]
    with undisturbed_start(own_session=True):
        assert services.ConsolePopen(program).wait() == 1
    assert services.ConsolePopen(program).wait() == 0, "as before, afterwards"
    with undisturbed_start():
        assert services.ConsolePopen(program).wait() == 0


def test_the_handler_of_sigterm_stays_during_a_start() -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("ours"))
    try:
        with undisturbed_start():
            utils.set_sigterm_handler(lambda *_: received.append("Ray's"))
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == ["ours"]


def test_a_job_hands_no_folder_of_the_caller_to_its_processes() -> None:
    assert job_config()._runtime_env_has_working_dir()
    assert "working_dir" not in job_config().runtime_env


@pytest.mark.parametrize(
    "error", [ValueError("num_cpus must be\npositive"), Exception("timed out"), OSError(28, "full")]
)
def test_a_ray_that_does_not_start_is_one_line_and_leaves_nothing(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "wv"

    def init(**options: object) -> None:
        assert options["address"] == "local", "it would join the cluster of RAY_ADDRESS"
        logs = folder / "session_2026" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.err").write_text("first\nno space for sockets\n")
        raise error

    monkeypatch.setattr(private_ray_module, "temporary_folder", lambda: folder)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(
            CommandFailedError, match=r"^Ray does not start \(.*; raylet.err: no space for sockets\)"
        ) as caught,
        private_ray(ClusterConfig(), RESOURCES),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert not folder.exists()
    assert private_ray_module._MARK not in os.environ


def test_a_temporary_folder_with_a_long_path_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(long))
    folder = temporary_folder()
    folder.rmdir()
    assert folder.parent == Path("/tmp")


@pytest.mark.parametrize("name", ["gettempdir", "mkdtemp"])
def test_no_place_for_rays_files_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', ...]")

    monkeypatch.setattr(tempfile, name, refuse)
    with pytest.raises(
        InputError, match=r"no folder for Ray's files \(No usable .*; set TMPDIR to one that you"
    ):
        temporary_folder()
