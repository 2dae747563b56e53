from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.run_folder import RunFolder
from pretrain.run_layout import (
    RunLayout,
    files_by_step,
    parse_step_name,
    rank_log_name,
    rank_name,
    step_name,
)


@pytest.mark.parametrize("step", [0, 100, 99_999_999, 100_000_000])
def test_step_names_are_parsed_back(step: int) -> None:
    assert parse_step_name(step_name(step)) == step


@pytest.mark.parametrize("name", ["best", "step_5", "step_00000100-lift", ".step_00000100", "step_0000010x"])
def test_other_names_are_no_step(name: str) -> None:
    assert parse_step_name(name) is None


def test_names_sort_by_number() -> None:
    assert step_name(100) == "step_00000100"
    assert rank_name(12) == "rank_00012"
    assert sorted(map(rank_log_name, (100, 20, 3))) == ["rank_00003.log", "rank_00020.log", "rank_00100.log"]


def test_files_of_steps_are_listed_in_order_of_the_steps(tmp_path: Path) -> None:
    assert files_by_step(tmp_path, "results.json") == {}
    for name in ("step_100000000", "step_00000020", "step_00000010-lift", "step_5", "step_00000030"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").touch()
    (tmp_path / "step_00000030" / "results.json").unlink()
    assert files_by_step(tmp_path, "results.json") == {
        20: tmp_path / "step_00000020" / "results.json",
        100_000_000: tmp_path / "step_100000000" / "results.json",
    }


def test_paths_of_a_run(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert layout.evaluation(7) == tmp_path / "eval" / "step_00000007"
    assert layout.image_tokenizer == tmp_path / "tokenizers" / "image_tokenizer.safetensors"
    assert RunLayout.of_checkpoint(layout.checkpoints / step_name(7)).path == tmp_path.resolve()
    assert RunLayout.of_checkpoint(layout.fetched / step_name(7)).path == tmp_path.resolve()
    assert RunFolder(tmp_path).config == layout.config


def test_no_two_paths_of_a_run_are_the_same(tmp_path: Path) -> None:
    properties = [name for name in vars(RunLayout) if isinstance(vars(RunLayout)[name], property)]
    assert len(properties) > 15
    paths = [getattr(RunLayout(tmp_path), name) for name in properties]
    assert len(set(paths)) == len(paths)
