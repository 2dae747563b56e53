"""The trainer under torchrun: errors of a rank as one line and an exit code."""

from __future__ import annotations

import pytest

from pretrain import main as main_module
from pretrain.config import TrainingConfig
from pretrain.main import main


def test_a_full_disk_is_one_line_of_the_rank_that_met_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(config: TrainingConfig, rank: int) -> None:
        raise OSError(28, "No space left on device", "runs/r/metrics.jsonl")

    monkeypatch.setattr(main_module, "_compose_settings", lambda arguments: TrainingConfig())
    monkeypatch.setattr(main_module, "_run", full)
    monkeypatch.setenv("RANK", "3")
    assert main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error on rank 3: runs/r/metrics.jsonl: cannot be written (No space left on device)"
    )


def test_another_error_of_the_system_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: TrainingConfig, rank: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(main_module, "_compose_settings", lambda arguments: TrainingConfig())
    monkeypatch.setattr(main_module, "_run", fail)
    with pytest.raises(OSError, match="Input/output"):
        main([])
