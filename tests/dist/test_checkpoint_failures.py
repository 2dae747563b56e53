"""What goes wrong while saving, or lies damaged on the disk, is named and leaves older checkpoints whole."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from pretrain.checkpoint import save, storage
from pretrain.checkpoint.load import load, load_weights
from pretrain.checkpoint.manifest import Manifest, latest
from pretrain.checkpoint.save import CheckpointError, CheckpointWriter
from tests.dist import checkpoint_case as case
from tests.dist.harness import RankFailedError, run_ranks

LAYOUT = (1, 2, 3)


def _save_and_die(root: Path) -> None:
    """Rank 0 is killed after every file was written and before the commit of the second checkpoint."""
    engine = case.build(case.config(LAYOUT))
    writer = CheckpointWriter(root, engine)
    case.steps(engine, 1)
    writer.save(1, {})
    writer.wait()

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Manifest.write = die  # type: ignore[method-assign]
    case.steps(engine, 2)
    writer.save(2, {})
    writer.wait()


def _go_on(root: Path) -> list[str]:
    engine = case.build(case.config(LAYOUT))
    newest = latest(root)
    assert newest is not None
    load(newest, engine)
    CheckpointWriter(root, engine).wait()
    return sorted(path.name for path in root.iterdir())


def test_killed_while_saving_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RankFailedError, match=r"rank 0 died|rank 1 failed"):
        run_ranks(_save_and_die, 2, tmp_path)
    assert len(list(tmp_path.glob(".tmp-step_00000002-*/rank_*.safetensors"))) == 2
    found = run_ranks(_go_on, 2, tmp_path)
    assert found[0] == ["step_00000001"], "loaded, and the torn save is cleaned away"


def _full_disk(root: Path) -> tuple[str, str]:
    """Rank 1 cannot write its file of the second checkpoint; the third is written again."""
    engine = case.build(case.config(LAYOUT))
    writer = CheckpointWriter(root, engine)
    writer.save(1, {})
    writer.wait()
    really_save = storage.save_file

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if engine.groups.rank == 1:
        storage.save_file = fail  # type: ignore[assignment]
    writer.save(2, {})
    try:
        writer.wait()
        message = "no error"
    except CheckpointError as error:
        message = str(error)
    newest = latest(root)
    assert newest is not None
    storage.save_file = really_save
    writer.save(3, {})
    writer.wait()
    return message, newest.name


def test_a_full_disk_on_one_rank_is_told_on_all_and_the_next_save_works(tmp_path: Path) -> None:
    for message, newest in run_ranks(_full_disk, 2, tmp_path):
        assert "checkpoint of step 2 was not written" in message
        assert "No space left on device" in message
        assert newest == "step_00000001"
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".tmp-")}
    assert names == {"step_00000001", "step_00000003"}


def _commit_fails(root: Path, layout: case.Layout, error: Exception) -> str:
    engine = case.build(case.config(layout))
    writer = CheckpointWriter(root, engine)

    def fail(*_: Any) -> None:
        raise error

    save.sync_folder = fail
    writer.save(1, {})
    try:
        writer.wait()
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_a_commit_that_fails_on_the_first_rank_is_told_on_all(tmp_path: Path) -> None:
    for message in run_ranks(_commit_fails, 2, tmp_path, LAYOUT, OSError(5, "Input/output error")):
        assert "rank 0: [Errno 5] Input/output error" in message
    assert latest(tmp_path) is None


def test_a_save_that_dies_of_a_defect_is_told_as_well(tmp_path: Path) -> None:
    (message,) = run_ranks(_commit_fails, 1, tmp_path, (1, 1, 1), TypeError("a defect"))
    assert message == "checkpoint of step 1 was not written: its thread died, see the traceback above"


def _load_damaged(path: Path) -> str:
    engine = case.build(case.config(LAYOUT))
    try:
        load(path, engine)
    except InputError as error:
        return str(error)
    return "no error"


def test_one_flipped_byte_is_named_by_every_rank(tmp_path: Path) -> None:
    run_ranks(case.train_and_save, 2, case.config(LAYOUT), tmp_path, [1], 1)
    checkpoint = tmp_path / "step_00000001"
    file = checkpoint / "rank_00001.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for message in run_ranks(_load_damaged, 2, checkpoint):
        damage = "rank_00001.safetensors differs from its checksum"
        assert message == f"{checkpoint}: damaged: {damage}; take another checkpoint"
    with pytest.raises(InputError, match=r"rank_00001.safetensors differs from its checksum"):
        load_weights(checkpoint)
    file.write_bytes(content[:100])
    with pytest.raises(InputError, match=r"rank_00001.safetensors has 100 bytes, expected"):
        load_weights(checkpoint)


def _keep_two(root: Path) -> None:
    engine = case.build(case.config(LAYOUT))
    writer = CheckpointWriter(root, engine, keep_last=2)
    for step in (1, 2, 3, 3):
        writer.save(step, {})
    writer.wait()


def test_older_checkpoints_go_and_a_step_may_be_saved_again(tmp_path: Path) -> None:
    run_ranks(_keep_two, 2, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
