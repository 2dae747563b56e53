"""Checkpoints in an object store, fetched for whoever reads folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import InputError
from data.storage.store import open_store
from eval.config import EvalCommandConfig
from eval.policy.loaded_model import load_model
from eval.policy.source import named_policy
from pretrain.checkpoint.fetch import local_checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.weights import load_weights
from tests.support import training_case as case
from tests.support.object_server import BUCKET, ObjectServer, object_server
from tests.support.ranks import run_ranks

URL = f"s3://{BUCKET}/run"
FIRST, LAST = f"{URL}/step_00000002", f"{URL}/step_00000004"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with object_server(monkeypatch) as running:
        yield running


@pytest.fixture
def run(server: ObjectServer, tmp_path: Path) -> Path:
    """A run of four steps on two ranks whose checkpoints of steps 2 and 4 are in the store."""
    config = case.settings(tmp_path, case.write_dataset(tmp_path / "shards"), (1, 2, 3))
    config.checkpointing.url, config.trainer.stop_after = URL, 4
    return case.train(config).path


def _said(work: Any, *args: Any) -> str:
    try:
        work(*args)
    except InputError as error:
        return str(error)
    return "no error"


def _fetch_twice(run: Path) -> None:
    """In a process of its own: nobody may fork after using a store."""
    source, step, out = named_policy(EvalCommandConfig(checkpoint=LAST, suite="fake"))
    folder = run / "fetched" / "step_00000004"
    assert (source.name, step, out) == (str(folder), 4, run / "eval" / "step_00000004-fake")
    whole, here = load_weights(LAST), load_weights(folder)
    assert whole.keys() == here.keys()
    assert all(torch.equal(whole[name], here[name]) for name in whole)
    network = load_model(folder, device="cpu").network
    assert all(torch.equal(tensor, whole[name]) for name, tensor in network.state_dict().items())
    assert not list(folder.glob("*.optimizer*")), "moments stay where they are"
    before = (folder / "READY").stat().st_mtime_ns
    assert local_checkpoint(LAST) == folder
    assert (folder / "READY").stat().st_mtime_ns == before, "fetched once"
    (folder / "READY").write_text("of an older checkpoint of the step")
    local_checkpoint(LAST)
    assert (folder / "READY").stat().st_mtime_ns > before, "and again where the step was saved anew"
    older = run / "fetched" / "step_00000001"
    older.mkdir()
    os.utime(older, (0, 0))
    local_checkpoint(FIRST)
    assert {path.name for path in (run / "fetched").iterdir()} == {"step_00000002", "step_00000004"}


def test_evaluation_takes_a_url(run: Path, server: ObjectServer) -> None:
    run_ranks(_fetch_twice, 1, run)
    read = [path for method, path in server.requests if method == "GET" and "optimizer" in path]
    assert read == [], "moments are not read"


def _damage(run: Path) -> list[str]:
    store = open_store(LAST)
    name = sorted(name for name in Manifest.read(store).files if name.startswith("rank_00001-"))[0]
    content = store.read(name)
    store.write(name, content[:-1] + bytes([content[-1] ^ 1]))
    said = [_said(local_checkpoint, LAST)]
    assert f"{name} differs from its checksum" in said[0]
    store.write(name, content[:-1])
    said.append(_said(local_checkpoint, LAST))
    said.append(_said(local_checkpoint, f"{URL}/step_00000003"))
    (run / "config.yaml").rename(run / "elsewhere.yaml")
    return [*said, _said(local_checkpoint, FIRST), str(list((run / "fetched").iterdir()))]


def test_what_cannot_be_fetched_is_told_and_leaves_nothing(run: Path) -> None:
    ((changed, short, missing, elsewhere, left),) = run_ranks(_damage, 1, run)
    assert changed.startswith(f"{LAST}: damaged: rank_00001-")
    assert " bytes, expected " in short
    assert "no committed checkpoint" in missing
    assert elsewhere.startswith(f"{FIRST}: is of the run {run}, which is not here")
    assert left == "[]"
