"""`trainer.deterministic`: what is set, and where it comes too late."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from data.errors import InputError
from pretrain.determinism import CUBLAS_VARIABLE, make_deterministic
from pretrain.model.attention import choose
from pretrain.model.attention.choose import check_backend, resolve_backend
from pretrain.model.attention.hardware import Hardware
from pretrain.model.config import AttentionBackend, ModelConfig

PACKAGES = {"triton": "3.7.1", "flash-attn": "2.8.3", "flash-attn-4": "4.0.0b36"}
H100, B200 = (Hardware("cuda", (major, 0), PACKAGES) for major in (9, 10))


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(CUBLAS_VARIABLE, "")
    monkeypatch.delenv(CUBLAS_VARIABLE)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    yield
    torch.use_deterministic_algorithms(False)


def test_algorithms_cublas_and_cudnn_are_set() -> None:
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ[CUBLAS_VARIABLE] == ":4096:8"
    assert torch.backends.cudnn.benchmark is False


def test_a_size_of_the_user_that_repeats_is_kept_and_another_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS_VARIABLE, ":16:8")
    make_deterministic()
    assert os.environ[CUBLAS_VARIABLE] == ":16:8"
    monkeypatch.setenv(CUBLAS_VARIABLE, ":4096:2:16:8")
    with pytest.raises(InputError, match=r"=:4096:2:16:8: trainer.deterministic=true takes :4096:8 or :16:8"):
        make_deterministic()


def test_a_process_that_has_used_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(InputError, match="has used a GPU already"):
        make_deterministic()
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(CUBLAS_VARIABLE, ":4096:8")
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("hardware", [H100, B200])
def test_auto_takes_a_backend_whose_gradients_repeat(hardware: Hardware) -> None:
    assert resolve_backend("auto", hardware, torch.bfloat16, 128) == "flash"
    assert resolve_backend("auto", hardware, torch.bfloat16, 128, deterministic=True) == "flex"
    with pytest.raises(InputError, match=r"^model.attention=flash: its gradients do not repeat bit for bit"):
        resolve_backend("flash", hardware, torch.bfloat16, 128, deterministic=True)


@pytest.mark.parametrize("name", ["sdpa", "flex", "flash2"])
def test_the_others_can_be_requested(name: AttentionBackend) -> None:
    assert resolve_backend(name, H100, torch.bfloat16, 128, deterministic=True) == name


def test_the_choice_follows_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "detect", lambda device: H100)
    config = ModelConfig(hidden_size=256, heads=2)
    assert check_backend(config, torch.device("cuda"), torch.bfloat16) == "flash"
    make_deterministic()
    assert check_backend(config, torch.device("cuda"), torch.bfloat16) == "flex"
