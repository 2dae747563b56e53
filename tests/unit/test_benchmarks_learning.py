"""The study: parts run once, continue after a signal, and are refused when their settings have changed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from benchmarks.learning.runner import Runner
from tests.support.study_case import StudyCase

ALL = {
    "collect demonstrations": 1,
    "prepare shards": 1,
    "train chunk_mask_k5_s0": 1,
    "eval chunk_mask_k5_s0_c1": 1,
    "train world_k5_s0": 1,
    "eval world_k5_s0_c1": 1,
    "imagine world_k5_s0_c1": 1,
}


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyCase:
    return StudyCase(tmp_path, monkeypatch)


def test_every_part_runs_once(case: StudyCase, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.run() == 0
    assert case.ran == ALL
    assert case.run() == 0
    assert case.ran == ALL, "all are done"
    capsys.readouterr()
    assert case.run("--list") == 0
    listed = capsys.readouterr().out
    assert "7 of 7 parts are done" in listed
    assert listed.count("\ndone") == 6
    assert (case.work / "logs" / "train-lift-chunk_mask-5-0.log").exists()


def test_a_stopped_study_goes_on_with_the_parts_that_are_not_done(case: StudyCase) -> None:
    case.settings["jobs"] = 1
    case.kill = "train world_k5_s0"
    case.work.mkdir()
    (case.work / "stop").touch()
    assert case.run() == 128 + 15
    marker = json.loads((case.work / "lift" / "runs" / "world_k5_s0" / "part.json").read_text())
    assert marker["done"] is False
    before = case.ran
    assert before["train world_k5_s0"] == 1
    assert before["eval chunk_mask_k5_s0_c1"] == 1
    assert before["imagine world_k5_s0_c1"] == 0
    assert case.run() == 0
    assert case.ran == ALL | {"train world_k5_s0": 2}, "the one that was cut off has run twice, no other"


def test_changed_settings_are_refused_until_the_part_is_repeated(
    case: StudyCase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run() == 0
    case.settings["variants"][1]["settings"] = ["loss.image_weight=1.0"]
    capsys.readouterr()
    assert case.run() == 2
    error = capsys.readouterr().err
    assert str(case.work / "lift" / "runs" / "world_k5_s0") in error
    assert "--again" in error
    assert error.count("\n") == 1
    assert case.ran == ALL, "nothing has run"
    assert case.run("--again", "train", "eval", "imagine", "variant=world") == 0
    repeated = ("train world_k5_s0", "eval world_k5_s0_c1", "imagine world_k5_s0_c1")
    assert case.ran == ALL | dict.fromkeys(repeated, 2)


def test_results_of_a_part_before_that_has_changed_are_refused(
    case: StudyCase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run() == 0
    case.settings["tasks"][0]["demonstrations"] = 5
    assert case.run("--again", "collect") == 0
    capsys.readouterr()
    assert case.run() == 2
    error = capsys.readouterr().err
    assert "shards: made from another result of collect task=lift; remove it, or say --again" in error


def test_results_of_a_part_that_was_repeated_are_refused(
    case: StudyCase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run() == 0
    assert case.run("--again", "train", "variant=world") == 0
    capsys.readouterr()
    assert case.run() == 2
    error = capsys.readouterr().err
    assert "world_k5_s0_c1: made from another result of train task=lift" in error
    assert case.run("--again", "eval", "imagine", "variant=world") == 0
    assert case.run() == 0
    repeated = ("train world_k5_s0", "eval world_k5_s0_c1", "imagine world_k5_s0_c1")
    assert case.ran == ALL | dict.fromkeys(repeated, 2)


def test_a_changed_default_of_a_command_is_noticed(
    case: StudyCase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run("prepare") == 0
    case.defaults = {"horizon": 120}
    capsys.readouterr()
    assert case.run() == 2
    error = capsys.readouterr().err
    assert "demonstrations: made with other settings (horizon: found 100, now 120)" in error


def test_nothing_is_removed_before_all_settings_are_checked(case: StudyCase) -> None:
    assert case.run() == 0
    case.settings["tasks"][0]["demonstrations"] = 5
    assert case.run("--again", "eval", "variant=world") == 2
    assert (case.work / "lift" / "evaluations" / "world_k5_s0_c1" / "results.json").exists()


def test_a_failed_part_holds_up_those_after_it_alone(
    case: StudyCase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run("prepare") == 0
    blocked = case.work / "lift" / "runs" / "world_k5_s0" / "metrics.jsonl"
    blocked.mkdir(parents=True)  # the training cannot write its file
    assert case.run() == 1
    assert case.ran == {name: count for name, count in ALL.items() if not name.endswith("world_k5_s0_c1")}
    shown = capsys.readouterr().out
    assert "failed train task=lift variant=world chunk=5 seed=0: status 1" in shown
    assert "IsADirectoryError" in shown, "the log's end is shown"
    assert "needs train task=lift variant=world chunk=5 seed=0, which failed" in shown
    shutil.rmtree(blocked)
    assert case.run() == 0
    assert case.ran == ALL | {"train world_k5_s0": 2}


def test_parts_are_selected_by_stage_and_labels_with_what_they_need(case: StudyCase) -> None:
    assert case.run("train", "variant=chunk_mask") == 0
    assert set(case.ran) == {"collect demonstrations", "prepare shards", "train chunk_mask_k5_s0"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "'trian': no stage, expected some of collect, vq, prepare, train, eval, imagine"),
        (["task=stack"], "task=stack: no part has task=stack, expected some of lift"),
        (["colour=red"], "expected one of the keys task, variant, chunk, seed, checkpoint"),
        (["vq"], "vq: no part of the study; --list has all of them"),
        (["--again"], "--again without a part would remove the whole study"),
    ],
)
def test_words_without_a_part_are_refused(
    case: StudyCase, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run(*words) == 2
    assert message in capsys.readouterr().err


def test_tables_curves_and_json_are_published(case: StudyCase, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "learning.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- learning: begin -->\nold\n<!-- learning: end -->\nafter\n")
    assert case.run("train", "variant=chunk_mask") == 0
    assert case.run("--publish", "--root", str(tmp_path)) == 0
    begun = page.read_text()
    assert begun.count("| not measured yet |") == 3, "two variants and their difference"
    assert begun.startswith("before\n<!-- learning: begin -->\n")
    assert begun.endswith("<!-- learning: end -->\nafter\n")
    assert "old" not in begun

    case.settings["seeds"] = [0, 1]
    assert case.run() == 0
    assert case.run("--publish", "--root", str(tmp_path)) == 0
    tables = page.read_text()
    assert "| chunk + mask | 5 | **75.0** (40.9 to 92.9) | 3, 3 | 10 | 20 | 10 | 76.6 |" in tables
    assert "| world data | chunk + mask | 5 | +0.0 (-38.5 to +38.5) | paper: not decided |" in tables
    assert "1.000 | 25.0 |" in tables, "mean held-out loss of both seeds; accuracy in percent"
    pictures = sorted(path.name for path in (tmp_path / "docs" / "pictures").iterdir())
    names = ("action-accuracy", "action-loss", "psnr", "success")
    assert pictures == [f"learning-lift-k5-{name}.svg" for name in names]
    success = (tmp_path / "docs" / "pictures" / pictures[3]).read_text()
    assert "chunk + mask 75" in success
    assert success.count("opacity: 0.6") >= 2, "an error bar for each variant"
    written = json.loads((tmp_path / "benchmarks" / "results" / "learning-cpu.json").read_text())
    curves = written["rows"][1]["curves"]
    assert curves["psnr"] == [[3000, 25.0]]
    ends = [curves[name][-1][1] for name in ("success_low", "success", "success_high")]
    assert ends == pytest.approx([40.9, 75.0, 92.9], abs=0.05)
    assert [target["met"] for target in written["targets"]] == [True]
    assert (
        "lift, K = 5: world above chunk_mask: +0.0 % (-38.5 to +38.5), paper: not decided" in written["notes"]
    )


def test_a_page_without_the_marks_is_left_alone(
    case: StudyCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "docs" / "learning.md"
    page.parent.mkdir()
    page.write_text("by hand\n")
    assert case.run("train", "variant=chunk_mask") == 0
    assert case.run("--publish", "--root", str(tmp_path)) == 2
    assert "expected the lines <!-- learning: begin -->" in capsys.readouterr().err
    assert page.read_text() == "by hand\n"
    assert not (page.parent / "pictures").exists()


def test_a_study_without_a_training_is_not_published(
    case: StudyCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run("--publish", "--root", str(tmp_path)) == 2
    assert f"--work {case.work}: no such folder" in capsys.readouterr().err
    assert not case.work.exists()
    case.work.mkdir()
    assert case.run("--publish", "--root", str(tmp_path)) == 2
    assert "no training of the study is done" in capsys.readouterr().err
    assert case.run("--publish") == 2
    assert "--publish of another study needs --root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("successes", "errors", "shown"),
    [(0, 4, "not measured yet | 0 (4 errors), -"), (2, 1, "**66.7** (20.8 to 93.9) | 2 (1 error), -")],
)
def test_episodes_with_errors_are_published_as_such(
    case: StudyCase, tmp_path: Path, successes: int, errors: int, shown: str
) -> None:
    page = tmp_path / "docs" / "learning.md"
    page.parent.mkdir()
    page.write_text("<!-- learning: begin -->\n<!-- learning: end -->\n")
    case.settings["seeds"] = [0, 1]
    case.successes, case.errors = successes, errors
    assert case.run("seed=0") == 0
    assert case.run("--publish", "--root", str(tmp_path)) == 0
    assert f"| chunk + mask | 5 | {shown} |" in page.read_text()


def test_so_few_steps_do_not_have_two_checkpoints_at_one(
    case: StudyCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.settings["tasks"][0]["steps"], case.settings["checkpoints"] = 6, 4
    assert case.run("train") == 1
    assert "takes 6 steps, too few for checkpoints=4; set 3, or more steps" in capsys.readouterr().out


def test_an_ignored_hangup_stays_ignored(case: StudyCase) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        runner = Runner(1, print)
        with runner._signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
