"""A simulator that renders on a GPU and CUDA are in processes of their own."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.config import PrepareCommandConfig
from cluster.run import worker_entry_points
from data.errors import InputError
from data.tokens.image import ImageTokenizer
from eval.demonstrations.worker_pool import WorkerPool
from eval.simulator import rendering
from eval.simulator.lift import LiftSuite
from eval.simulator.rendering import check_apart_from_cuda, choose_backend, render_in_software


@pytest.fixture(autouse=True)
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and every renderer, where the user has chosen none."""
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0" or exists(path))
    monkeypatch.setattr(rendering, "_defaults", {})
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: f"lib{name}.so")
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # undone afterwards
        monkeypatch.delenv(name)


def computes_with_cuda(monkeypatch: pytest.MonkeyPatch, initialised: bool = True) -> None:
    cuda = SimpleNamespace(is_initialized=lambda: initialised)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))


def test_a_simulator_is_not_opened_on_the_gpu_beside_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = LiftSuite()
    assert os.environ["MUJOCO_GL"] == "egl"
    computes_with_cuda(monkeypatch)
    with pytest.raises(InputError, match=r"^MUJOCO_GL=egl: .* in a process that computes with CUDA; unset"):
        suite.open(0)


@pytest.mark.parametrize(("backend", "initialised"), [("osmesa", True), ("egl", False)])
def test_either_alone_is_no_mistake(backend: str, initialised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", backend)
    computes_with_cuda(monkeypatch, initialised)
    check_apart_from_cuda()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.delitem(sys.modules, "torch")
    check_apart_from_cuda()


def test_software_rendering_says_why_and_is_no_choice_of_the_user(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        render_in_software("it tokenises with CUDA")
    assert caplog.messages == [
        "simulators of this process render in software (MUJOCO_GL=osmesa): it tokenises with CUDA"
    ]
    assert choose_backend() == "osmesa"
    assert rendering.is_default("MUJOCO_GL", "osmesa")


def test_the_users_renderer_stays_and_nothing_is_said_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    render_in_software("it tokenises with CUDA")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    render_in_software("it tokenises with CUDA")
    assert os.environ["MUJOCO_GL"] == "egl"
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("gpus", "replay", "backend"), [(1.0, True, "osmesa"), (0.0, True, None), (1.0, False, None)]
)
def test_a_preparer_that_tokenises_on_the_gpu_replays_in_software(
    gpus: float, replay: bool, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageTokenizer, "load", lambda path, device: SimpleNamespace(device=device))
    monkeypatch.setattr("data.prepare.preparer.Preparer", lambda *parts: parts)
    config = PrepareCommandConfig(replay=replay, gpus_per_worker=gpus)
    _, tokenizer, *_ = worker_entry_points.make_preparer(config)  # pyright: ignore[reportGeneralTypeIssues]
    assert tokenizer.device == ("cuda" if gpus else "cpu")
    assert os.environ.get("MUJOCO_GL") == backend


@pytest.mark.parametrize(("backend", "apart"), [("egl", True), ("osmesa", False)])
def test_one_worker_that_renders_on_the_gpu_has_a_process_of_its_own(
    backend: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", backend)
    with WorkerPool(1) as pool:
        (number,) = pool.map(os.getpid, [()])
    assert (number != os.getpid()) is apart
