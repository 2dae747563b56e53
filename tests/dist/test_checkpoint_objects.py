"""Checkpoints in an object store: the same as in a folder, also when the server refuses some requests."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cluster.cli.handlers.inspect import run_inspect_checkpoint
from cluster.cli.invocation import Invocation
from cluster.failures import CommandFailedError
from cluster.inspect.config import InspectCheckpointConfig
from data.errors import InputError
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.save import CheckpointWriter
from pretrain.checkpoint.weights import load_weights
from pretrain.config import CheckpointingConfig
from pretrain.model.transformer import sharded_dimension
from tests.support import checkpoint_case as case
from tests.support.object_server import BUCKET, ObjectServer, object_server
from tests.support.ranks import run_ranks

URL = f"s3://{BUCKET}/run"
WRITER, READER = (2, 2, 3), (1, 2, 1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with object_server(monkeypatch) as running:
        yield running


def _train(settings: CheckpointingConfig) -> tuple[list[float], list[dict[str, Any]]]:
    engine = case.build(case.config(WRITER))
    events: list[dict[str, Any]] = []
    writer = CheckpointWriter(
        URL, engine, settings, report=lambda event, **details: events.append({"event": event, **details})
    )
    for step in (1, 2):
        case.steps(engine, step)
        writer.save(step, {"rank": engine.groups.rank, "tokens": 10 * step})
    losses = case.steps(engine, 4)
    writer.wait()
    return losses, events


def test_saves_are_retried_while_a_store_refuses_them(server: ObjectServer) -> None:
    remaining = [3]

    def refuse(method: str, path: str) -> int | None:
        refused = method == "PUT" and "step_00000002" in path and remaining[0] > 0
        remaining[0] -= refused
        return 403 if refused else None

    server.refuse = refuse
    settings = CheckpointingConfig(keep_last=1, attempts=5, retry_seconds=0.01)
    losses, events = run_ranks(_train, 4, settings)[0]
    assert events
    assert {event["event"] for event in events} == {"checkpoint_failed"}
    assert all("cannot be written" in event["error"] for event in events)
    names = [path for method, path in server.requests if method == "PUT"]
    assert names[-1].endswith("step_00000002/READY"), "committed last"
    continued = run_ranks(case.resume, 2, case.config(READER), f"{URL}/step_00000002", 4)[0]
    assert max(abs(a - b) for a, b in zip(continued, losses, strict=True)) < 1e-5
    ((steps, listed),) = run_ranks(_read_store, 1)
    assert steps == {2: True}, "the older one was removed"
    rows = [(row["step"], row["complete"], row["verified"], row["files"]) for row in listed["checkpoints"]]
    assert rows == [(2, True, True, 9)]


def _read_store() -> tuple[dict[int, bool], dict[str, Any]]:
    """Steps in the store and what `inspect` prints; in its own process: none may fork after using a store."""
    url = f"{URL}/step_00000002"
    weights = load_weights(url)
    parts = [load_weights(url, torch.bfloat16, rank, 4) for rank in range(4)]
    for name, tensor in weights.items():
        dimension = sharded_dimension(name)
        part = parts[0][name] if dimension is None else torch.cat([part[name] for part in parts], dimension)
        assert torch.equal(part, tensor.bfloat16()), name
    with pytest.raises(InputError, match="not a multiple of 5 ranks"):
        load_weights(url, torch.bfloat16, 0, 5)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        call = Invocation(Console(file=io.StringIO()), json=True)
        run_inspect_checkpoint(InspectCheckpointConfig(URL), call)
    return CheckpointLocation(URL).scan(), json.loads(printed.getvalue())


def test_inspect_names_damaged_and_incomplete_checkpoints(tmp_path: Path) -> None:
    root = tmp_path / "run" / "checkpoints"
    run_ranks(case.train_and_save, 2, case.config((1, 2, 3)), root, [1, 2], 2)
    (tmp_path / "run" / "config.yaml").write_text("checkpointing: {url: null}\n")
    (tmp_path / "run" / "eval" / "step_00000002").mkdir(parents=True)
    (tmp_path / "run" / "eval" / "step_00000002" / "results.json").write_text('{"success_rate": 0.5}')
    (root / "step_00000003").mkdir()
    (root / "step_00000004").mkdir()
    (root / "step_00000004" / "SUPERSEDED").touch()
    file = case.file(root / "step_00000001", 1, ".optimizer")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    output = io.StringIO()
    call = Invocation(Console(file=output, width=200))
    with pytest.raises(CommandFailedError, match=f"{file.name} differs from its checksum; take another"):
        run_inspect_checkpoint(InspectCheckpointConfig(str(tmp_path / "run")), call)
    lines = output.getvalue()
    assert "50 %" in lines
    assert "incomplete: no READY" in lines
    assert "set aside: SUPERSEDED" in lines
    assert "damaged: rank_00001" in lines
    run_inspect_checkpoint(InspectCheckpointConfig(str(root / "step_00000001"), verify=False), call)
    with pytest.raises(InputError, match="no committed checkpoint there"):
        run_inspect_checkpoint(InspectCheckpointConfig(str(tmp_path / "nothing")), call)


@pytest.mark.parametrize("as_json", [False, True])
def test_inspect_names_files_that_are_missing_cut_short_or_changed(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "checkpoints"
    run_ranks(case.train_and_save, 2, case.config((1, 2, 3)), root, [1], 1)
    folder = root / "step_00000001"
    missing, short = case.file(folder, 0), case.file(folder, 1)
    changed = case.file(folder, 0, ".optimizer")
    (table,) = folder.glob("pieces-*.safetensors")
    length = short.stat().st_size
    missing.unlink()
    os.truncate(short, length - 5)
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    table.write_bytes(bytes(table.stat().st_size))
    call = Invocation(Console(file=io.StringIO()), json=as_json)
    with pytest.raises(CommandFailedError) as raised:
        run_inspect_checkpoint(InspectCheckpointConfig(str(folder)), call)
    lines = str(raised.value).split("; ")
    assert [line.removeprefix(f"{folder}: damaged: ") for line in lines] == [
        f"{table.name} differs from its checksum",
        f"{missing.name} is missing",
        f"{changed.name} differs from its checksum",
        f"{short.name} has {length - 5} bytes, expected {length}",
        "take another checkpoint",
    ]
    if as_json:
        assert json.loads(capsys.readouterr().out)["verified"] is False
