"""The study keeps what it has made when a setting, a file or its own end is not as expected."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from benchmarks.learning import cells, grid
from benchmarks.learning.__main__ import main
from benchmarks.learning.runner import ROOT
from benchmarks.learning.settings import DEFAULT_FILE
from data.errors import InputError
from tests.support.study_case import StudyCase
from tests.support.waiting import wait_until

MARKS = "<!-- learning: begin -->\n<!-- learning: end -->\n"
SHARDS = "lift/shards/results.json"
TRAINED = "lift/runs/world_k5_s0/metrics.jsonl"
STEP = '{"step": 10, "tokens": 3000, "tokens_per_second": 1.0}\n'


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyCase:
    return StudyCase(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("words", "kept"), [(["prepare"], SHARDS), (["prepare", "train"], SHARDS), (["train"], TRAINED)]
)
def test_a_part_is_repeated_only_with_settings_that_its_command_takes(
    case: StudyCase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    kept: str,
) -> None:
    assert case.run() == 0
    ran = case.ran

    def refuse(words: Sequence[str] = (), *_: object) -> dict[str, object]:
        if "collect demonstrations" in words:
            return case.defaults
        raise InputError("unknown setting 'foo'")

    monkeypatch.setattr(grid, "command_settings", refuse)
    monkeypatch.setattr(cells, "step_content", refuse)
    capsys.readouterr()
    assert case.run("--again", *words) == 2
    assert capsys.readouterr().err == "error: unknown setting 'foo'\n"
    assert (case.work / kept).exists()
    assert case.ran == ran


def test_a_part_whose_data_are_repeated_with_it_is_made_from_the_new_ones(case: StudyCase) -> None:
    assert case.run("train") == 0
    case.settings["tasks"][0]["demonstrations"] = 5
    assert case.run("--again", "collect", "prepare", "train") == 0
    assert case.run("train") == 0
    assert set(case.ran.values()) == {2}


@pytest.mark.parametrize("words", [["variant=world", "variant=chunk_mask"], ["variant=chunk_mask,world"]])
def test_values_of_a_key_that_is_given_twice_add_up(case: StudyCase, words: list[str]) -> None:
    assert case.run("train", *words) == 0
    assert {name for name in case.ran if name.startswith("train")} == {
        "train world_k5_s0",
        "train chunk_mask_k5_s0",
    }


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluations/world_k5_s0_c1/results.json", "{}", "successes, errors and episodes are [None"),
        (
            "evaluations/world_k5_s0_c1/results.json",
            '{"successes": 4, "episodes": 4, "errors": 1}',
            "successes, errors and episodes are [4, 1, 4]",
        ),
        ("imagined/world_k5_s0_c1/imagine.json", '{"psnr": NaN, "no_change_psnr": 1}', "psnr and no_change"),
        ("runs/world_k5_s0/metrics.jsonl", "", "does not end with step 10"),
        (
            "runs/world_k5_s0/metrics.jsonl",
            '{"step": 4, "tokens": 9, "tokens_per_second": 9}\n',
            "does not end with step 10",
        ),
        ("runs/world_k5_s0/metrics.jsonl", '{"step": 10', "cannot be read"),
    ],
)
def test_damaged_results_are_one_line(
    case: StudyCase, capsys: pytest.CaptureFixture[str], file: str, content: str, message: str
) -> None:
    assert case.run() == 0
    (case.work / "lift" / file).write_text(content)
    capsys.readouterr()
    assert case.run("--publish", "--root", str(case.work)) == 2
    error = capsys.readouterr().err
    assert file in error
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "damage", [{"seconds": "x"}, {"seconds": None}, {"size": 0}, {"size": "x"}, {"done": "no"}, {"id": 3}]
)
def test_a_damaged_marker_is_one_line(
    case: StudyCase, capsys: pytest.CaptureFixture[str], damage: dict[str, object]
) -> None:
    assert case.run("prepare") == 0
    marker = case.work / "lift" / "shards" / "part.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | damage))
    capsys.readouterr()
    assert case.run("--list") == 2
    assert capsys.readouterr().err.endswith(f"not a marker of this program; remove {marker.parent}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("5\n" + STEP, "line 1 is none of a training's metrics"),
        (STEP.replace("tokens", "tokns", 1), "line 1 is none"),
        (STEP + '{"event": "validation"}\n', "line 2 is none"),
        (STEP + '{"event": "validation", "step": 4, "val_ind/loss_action": "x"}\n', "line 2 is none"),
        (STEP + '{"event": ["validation"], "loss_x": []}\n', "line 2 is none"),
        (STEP + '{"event": "validation", "step": 11}\n', "does not end with step 10"),
        (STEP.replace("3000", "NaN"), "line 1 is none"),
        (STEP.replace("3000", "9" * 400), "line 1 is none"),
    ],
)
def test_metrics_that_cannot_be_counted_are_one_line(
    case: StudyCase, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    assert case.run("train") == 0
    (case.work / TRAINED).write_text(content)
    capsys.readouterr()
    assert case.run("--publish", "--root", str(case.work)) == 2
    error = capsys.readouterr().err
    assert f"{case.work / TRAINED}: {message}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("blocked", ["benchmarks", "docs/pictures", "benchmarks/results"])
def test_nothing_is_published_where_a_folder_cannot_be_written(
    case: StudyCase, tmp_path: Path, capsys: pytest.CaptureFixture[str], blocked: str
) -> None:
    assert case.run("train") == 0
    page = tmp_path / "docs" / "learning.md"
    page.parent.mkdir()
    page.write_text(MARKS)
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file")
    capsys.readouterr()
    assert case.run("--publish", "--root", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --root={tmp_path}/")
    assert error.count("\n") == 1
    assert page.read_text() == MARKS


@pytest.mark.parametrize(("place", "is_file"), [("study.lock", False), ("logs", True), ("lift/runs", True)])
def test_something_else_in_the_place_of_a_folder_or_file_is_one_line(
    case: StudyCase, capsys: pytest.CaptureFixture[str], place: str, is_file: bool
) -> None:
    path = case.work / place
    path.parent.mkdir(parents=True)
    path.write_text("") if is_file else path.mkdir()
    assert case.run() == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1


def test_the_study_that_ships_is_published_by_its_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    settings = str(DEFAULT_FILE.resolve().relative_to(ROOT))
    assert main(["--work", str(tmp_path), "--settings", settings, "--publish"]) == 2
    assert "no training of the study is done" in capsys.readouterr().err


_KILLED = """
import sys
from collections.abc import Sequence
from pathlib import Path
from benchmarks.learning.parts import Part
from benchmarks.learning.runner import Runner
work = Path(sys.argv[1])
words = ("-c", "import os, time; print(os.getpid(), flush=True); time.sleep(3600)")
part = Part("collect", {"task": "lift"}, work, work / "lift", (), lambda: words, dict, lambda: 1.0)
Runner(1, print).run([part])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_what_a_killed_study_ran_ends_with_it(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "collect-lift.log"
    study = subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], cwd=ROOT)
    try:
        wait_until(lambda: study.poll() is not None or (log.exists() and log.read_text().endswith("\n")))
        part = psutil.Process(int(log.read_text()))
    finally:
        study.send_signal(signal.SIGKILL)
        study.wait()
    wait_until(lambda: not part.is_running() or part.status() == psutil.STATUS_ZOMBIE)
