"""Checkpoints in an object store, fetched to a folder of their run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

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
from pretrain.convert.exporting import export_weights
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
    config.checkpointing.url, config.trainer.stop_after, config.optim.ema = URL, 4, 0.9
    return case.train(config).path


def _error_of(function: Callable[[str], object], url: str) -> str:
    try:
        function(url)
    except InputError as error:
        return str(error)
    return "no error"


def _fetch_twice(run: Path) -> None:
    """Fetch, use and fetch again; in a process of its own, as no process may fork after using a store."""
    source, step, out = named_policy(EvalCommandConfig(checkpoint=LAST, suite="fake"))
    folder = run / "fetched" / "step_00000004"
    assert (source.name, step, out) == (str(folder), 4, run / "eval" / "step_00000004-fake")
    for choice in ("trained", "averaged"):
        stored, fetched = load_weights(LAST, choice=choice), load_weights(folder, choice=choice)
        assert stored.keys() == fetched.keys()
        assert all(torch.equal(stored[name], fetched[name]) for name in stored)
    network = load_model(folder, device="cpu").network
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())
    assert not list(folder.glob("*.optimizer*")), "moments are not fetched"
    summary = export_weights(folder, run.parent / "exported", None, None, 10**9, lambda *_: None)
    assert summary.weights == "averaged (decay 0.9)", "which needs no moments"
    (folder / "mark").touch()
    assert local_checkpoint(LAST) == folder
    assert (folder / "mark").exists(), "fetched once"
    ready = (folder / "READY").read_text()
    (folder / "READY").write_text("of an older checkpoint of the step")
    assert local_checkpoint(LAST) == folder
    assert not (folder / "mark").exists(), "fetched again where the step was saved again"
    assert (folder / "READY").read_text() == ready
    older = run / "fetched" / "step_00000001"
    older.mkdir()
    os.utime(older, (0, 0))
    local_checkpoint(FIRST)
    assert {path.name for path in (run / "fetched").iterdir()} == {"step_00000002", "step_00000004"}


def test_evaluation_reads_a_checkpoint_by_its_url(run: Path, server: ObjectServer) -> None:
    run_ranks(_fetch_twice, 1, run)
    read = [path for method, path in server.requests if method == "GET" and "rank_" in path]
    assert read
    assert not any("optimizer" in path for path in read), "moments are not read"


def _fetch_damaged(run: Path) -> list[str]:
    """Errors about a changed, a truncated and a missing checkpoint and a missing run; what was fetched."""
    store = open_store(LAST)
    name = sorted(name for name in Manifest.read(store).files if name.startswith("rank_00001-"))[0]
    content = store.read(name)
    store.write(name, content[:-1] + bytes([content[-1] ^ 1]))
    errors = [_error_of(local_checkpoint, LAST)]
    assert f"{name} differs from its checksum" in errors[0]
    store.write(name, content[:-1])
    errors.append(_error_of(local_checkpoint, LAST))
    errors.append(_error_of(local_checkpoint, f"{URL}/step_00000003"))
    (run / "config.yaml").rename(run / "elsewhere.yaml")
    return [*errors, _error_of(local_checkpoint, FIRST), str(list((run / "fetched").iterdir()))]


def test_failed_fetch_is_reported_and_leaves_no_file(run: Path) -> None:
    ((changed, short, missing, elsewhere, left),) = run_ranks(_fetch_damaged, 1, run)
    assert changed.startswith(f"{LAST}: damaged: rank_00001-")
    assert " bytes, expected " in short
    assert "no committed checkpoint" in missing
    assert elsewhere.startswith(f"{FIRST}: is of the run {run}, which is not here")
    assert left == "[]"
