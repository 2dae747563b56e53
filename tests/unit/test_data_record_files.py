"""Every file of settings or records that is not what it should be is named, with its path, in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.cli.demo_summary import summary_rows
from cluster.run.checkpoint_evaluations import update_summary
from data.errors import InputError
from data.json_record import read_json_object
from data.storage.index import DatasetIndex
from data.storage.store import open_store
from eval.evaluation.journal import Journal
from eval.report.run_contents import read_run
from pretrain.checkpoint.manifest import Manifest, ready_content
from pretrain.run_folder import RunFolder
from pretrain.settings import read_yaml
from pretrain.telemetry.sinks import read_metrics

DAMAGED = {
    "not text": b"\xff\xfe\x00\x01\n",
    "cut": b'{"step": 1, "lo\n',
    "zeros": b"\x00" * 64 + b"\n",
    "another kind": b"[1, 2]\n",
    "deep": b"[" * 100_000 + b"\n",
}


def read_manifest(folder: Path) -> object:
    (folder / "READY").write_bytes(ready_content((folder / "manifest.json").read_bytes(), ""))
    return Manifest.read(open_store(str(folder)))


def journal(folder: Path) -> object:
    path = Journal(folder, {}).path
    (folder / "episodes.jsonl").rename(path)
    return Journal(folder, {})


def rows(folder: Path) -> object:
    return summary_rows(RunFolder(folder))


READERS: dict[str, Callable[[Path], object]] = {
    "config.yaml": lambda folder: read_yaml(folder / "config.yaml"),
    "metrics.jsonl": lambda folder: read_metrics(folder / "metrics.jsonl"),
    "summary.json": lambda folder: RunFolder(folder).read_summary(),
    "eval/step_00000001/results.json": lambda folder: update_summary(RunFolder(folder)),
    "eval/step_00000002/results.json": rows,
    "eval/step_00000001/imagine.json": rows,
    "index.json": lambda folder: DatasetIndex.load(str(folder)),
    "manifest.json": read_manifest,
    "episodes.jsonl": journal,
    "any.json": lambda folder: read_json_object(folder / "any.json", "make it again"),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(InputError) as caught:
        READERS[name](tmp_path)
    message = str(caught.value)
    named = tmp_path / "episodes-" if name == "episodes.jsonl" else path
    assert str(named).removesuffix(".json") in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "eval/step_00000001/results.json"])
def test_so_is_one_that_the_report_reads(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {}\n")
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(DAMAGED[kind])
    if (name, kind) == ("metrics.jsonl", "another kind"):
        assert read_run(tmp_path).steps == []  # a line that is JSON, and no record, is left out
        return
    with pytest.raises(InputError) as caught:
        read_run(tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder: cannot be read \(Is a directory\); make it again"):
        read_json_object(tmp_path / "folder", "make it again")
