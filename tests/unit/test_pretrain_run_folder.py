from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest

from data.errors import InputError
from pretrain import run_folder
from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder, versions
from pretrain.settings import from_mapping, read_yaml


def config(tmp_path: Path, **sections: dict[str, object]) -> TrainingConfig:
    values: dict[str, dict[str, object]] = {
        "run": {"name": "r", "dir": str(tmp_path)},
        "data": {"url": "shards"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return from_mapping("test", TrainingConfig, values)


def test_a_new_folder_gets_its_settings(tmp_path: Path) -> None:
    settings = config(tmp_path)
    folder = RunFolder.of(settings.run)
    folder.open(settings)
    assert folder.path == tmp_path / "r"
    assert from_mapping("config.yaml", TrainingConfig, read_yaml(folder.config)) == settings
    assert folder.checkpoints.is_dir()


def test_layout_and_length_of_a_start_may_differ(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.open(config(tmp_path, trainer={"stop_after": 5}))
    other = config(
        tmp_path,
        parallel={"data": 2, "zero_stage": 1},
        checkpointing={"every": 7},
        telemetry={"wandb": "offline"},
        data={"cache": {"dir": "/local/cache", "size": "1TB"}, "retry_seconds": 9, "prefetch": 2},
    )
    folder.open(other)
    assert read_yaml(folder.config)["parallel"]["data"] == 2


def test_a_folder_of_other_settings_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.open(config(tmp_path))
    before = folder.config.read_bytes()
    with pytest.raises(
        InputError, match=r"other settings \(optim.lr was 5e-06, now 0.5\); choose another run.name"
    ):
        folder.open(config(tmp_path, optim={"lr": 0.5}))
    assert folder.config.read_bytes() == before


def test_a_setting_that_the_earlier_version_did_not_have_was_at_its_default(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.open(config(tmp_path))
    text = folder.config.read_text()
    assert "  split: train\n" in text
    folder.config.write_text(text.replace("  split: train\n", ""))
    with pytest.raises(InputError, match=r"data.split was .train., now .all."):
        folder.open(config(tmp_path, data={"split": "all"}))
    folder.open(config(tmp_path))
    assert folder.config.read_text() == text


def test_a_folder_with_a_run_but_no_settings_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.checkpoints.mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds a run but no config.yaml"):
        folder.open(config(tmp_path))


def test_a_folder_whose_opening_was_killed_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "write_text_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.open(TrainingConfig())
    folder.open(TrainingConfig())
    assert folder.config.exists()
    assert folder.checkpoints.is_dir()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"r: cannot write the run folder \(.+\); set run.dir"):
        RunFolder(tmp_path / "r").open(config(tmp_path))
    with pytest.raises(InputError, match=r"cannot write the run folder \(File name too long\)"):
        RunFolder(tmp_path / ("r" * 300)).open(config(tmp_path))


def test_parts_of_the_summary_do_not_overwrite_each_other(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_summary() == {}
    folder.update_summary(steps=5, loss={"first": 2.0, "last": 1.0})
    folder.update_summary(evaluations=[{"step": 5}])
    assert folder.update_summary(steps=6) == {
        "steps": 6,
        "loss": {"first": 2.0, "last": 1.0},
        "evaluations": [{"step": 5}],
    }


def _add(folder: RunFolder, name: str) -> None:
    for value in range(20):
        folder.update_summary(**{name: value})


def test_two_processes_update_the_summary_at_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    processes = [
        multiprocessing.get_context("fork").Process(target=_add, args=(folder, name)) for name in "ab"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert folder.read_summary() == {"a": 19, "b": 19}


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.summary.write_text("{")
    with pytest.raises(InputError, match=r"summary.json: not JSON"):
        folder.read_summary()


def test_versions_name_what_results_depend_on() -> None:
    assert {"python", "torch", "deepspeed"} <= versions().keys()


def test_versions_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = versions()
    monkeypatch.delattr("importlib.metadata.version")
    assert versions() == first


def test_the_summary_is_written_on_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    RunFolder(tmp_path).update_summary(steps=5)
    assert RunFolder(tmp_path).update_summary(loss=1.0) == {"steps": 5, "loss": 1.0}
