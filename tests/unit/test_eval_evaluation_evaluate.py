"""Whole evaluations: settings, files, and continuation after an interruption."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from eval.config import EvalCommandConfig, EvaluationConfig, EvaluationSettings
from eval.evaluation.evaluate import (
    EvaluationProgress,
    Progress,
    check_settings,
    evaluate,
    evaluate_command,
)
from eval.evaluation.folder_lock import only_evaluation
from eval.evaluation.results import Results, results_table
from eval.policy.interface import PolicyRecord
from eval.policy.source import PolicyReference, evaluation_beside_training
from tests.support.fake_suite import MARKS, FakePolicySource, FakeSuite, open_fake_suite
from tests.support.full_disk import MESSAGE, fill


def run(
    out: Path,
    progress: Progress | None = None,
    resume: bool = True,
    suite: str = "fake",
    policy: str = "expert",
    earlier: Path | None = None,
    **changed: Any,
) -> Results:
    settings = EvaluationSettings(**({"suite": suite, "tasks": [0, 1], "episodes": 2, "videos": 1} | changed))
    return evaluate(
        FakePolicySource(policy),
        settings,
        out,
        resume=resume,
        earlier=earlier,
        open_suite=open_fake_suite,
        progress=progress,
    )


def essence(results: Results) -> list[tuple[object, ...]]:
    """Everything about the episodes that does not depend on the wall clock or on videos."""
    return [(e.task, e.initial_state, e.success, e.steps, e.actions_sha256) for e in results.episodes]


def videos_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.mp4") if file.is_file())


def test_evaluation_writes_results_and_the_requested_videos(tmp_path: Path) -> None:
    reported: list[EvaluationProgress] = []
    results = run(tmp_path, reported.append)
    assert results.success_rate == 1.0
    assert [(state.done, state.successes) for state in reported] == [(i, i) for i in range(5)]
    assert {state.total for state in reported} == {4}
    assert str(reported[-1]) == "success 4/4 (100%)"
    videos = [f"fake_{task}_state_00_success.mp4" for task in (0, 1)]
    assert sorted(file.name for file in tmp_path.glob("*.mp4")) == videos
    content = json.loads((tmp_path / "results.json").read_text())
    assert [row["video"] for row in content["per_episode"]] == [videos[0], None, videos[1], None]
    assert [row["initial_state"] for row in content["per_episode"]] == [0, 1, 0, 1]
    assert all(len(row["actions_sha256"]) == 64 for row in content["per_episode"])
    assert content["horizon"] == 40


def test_second_evaluation_runs_only_missing_episodes(tmp_path: Path) -> None:
    first = run(tmp_path)
    (journal,) = tmp_path.glob("episodes-*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # killed while it wrote the third
    reported: list[EvaluationProgress] = []
    again = run(tmp_path, reported.append)
    assert [state.done for state in reported] == [2, 3, 4]

    assert essence(again) == essence(first)
    more: list[EvaluationProgress] = []
    assert len(run(tmp_path, episodes=3, progress=more.append).episodes) == 6
    assert [state.done for state in more] == [4, 5, 6]
    anew: list[EvaluationProgress] = []
    run(tmp_path, resume=False, progress=anew.append)
    assert [state.done for state in anew] == [0, 1, 2, 3, 4]


def test_other_settings_do_not_reuse_episodes(tmp_path: Path) -> None:
    run(tmp_path)
    reported: list[EvaluationProgress] = []
    run(tmp_path, reported.append, horizon=39)
    assert reported[0].done == 0


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("renderer", lambda suite: "egl (NVIDIA Corporation)"),
        ("versions", lambda suite: {"mujoco": "3.4.0"}),
        ("default_reset", "hard"),
    ],
)
def test_another_simulator_does_not_reuse_episodes(
    name: str, other: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    monkeypatch.setattr(FakeSuite, name, other)
    reported: list[EvaluationProgress] = []
    results = run(tmp_path, reported.append)
    assert reported[0].done == 0
    assert len(list(tmp_path.glob("episodes-*.jsonl"))) == 2
    assert [note.startswith("mujoco 3.4.0 is not the tested") for note in results.notes] == [True] * (
        name == "versions"
    )


def test_other_observations_and_policy_settings_do_not_reuse_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    reported: list[EvaluationProgress] = []
    content = run(tmp_path, reported.append, observations="published").to_json()
    assert reported[0].done == 0
    assert (content["observations"], content["renderer"], content["reset"]) == ("published", "none", "soft")
    assert content["policy_settings"] is None
    record = PolicyRecord({"chunk": 9}, ("chunk is 9, the weights were trained with 3",))
    monkeypatch.setattr(FakePolicySource, "record", lambda self: record)
    content = run(tmp_path, reported.append).to_json()
    assert reported[5].done == 0
    assert content["policy_settings"] == {"chunk": 9}
    assert content["notes"] == list(record.notes)


def test_other_weights_of_a_checkpoint_do_not_reuse_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    shown: list[int] = []
    for weights in ("trained", "averaged (decay 0.99)", "averaged (decay 0.999)"):
        record = PolicyRecord(weights=weights)
        monkeypatch.setattr(FakePolicySource, "record", lambda self, record=record: record)
        reported: list[EvaluationProgress] = []
        results = run(tmp_path, reported.append)
        assert results.to_json()["weights"] == weights
        assert f"{weights} weights; none" in str(results.provenance)
        shown.append(reported[0].done)
    assert shown == [4, 0, 0], "episodes of versions that did not record the weights had trained ones"


def test_errors_are_run_again_by_the_next_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKS, str(tmp_path))
    first = run(tmp_path / "out", suite="fake_breaks", retries=0)
    assert (first.successes, first.errors) == (3, 1)
    assert first.success_rate == 1.0
    second = run(tmp_path / "out", suite="fake_breaks")
    assert (second.successes, second.errors) == (4, 0)


def test_damaged_journal_is_explained(tmp_path: Path) -> None:
    run(tmp_path)
    (journal,) = tmp_path.glob("episodes-*.jsonl")
    journal.write_text('{"task": 0}\n' + journal.read_text())
    with pytest.raises(InputError, match=r"line 1 is no episode .*resume=false"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of"),
        ({"policy": "expert", "checkpoint": "x", "out": "o"}, "give one of"),
        ({"policy": "random", "out": "o"}, "expected expert"),
        ({"policy": "expert"}, "add out="),
        ({"checkpoint": "/nowhere/step_1"}, "no such folder"),
        ({"policy": "expert", "out": "o", "episodes": 0}, "episodes=0"),
        ({"policy": "expert", "out": "o", "workers": 0}, "workers=0"),
        ({"policy": "expert", "out": "o", "policy_servers": 0}, "policy_servers=0"),
        ({"policy": "expert", "out": "o", "retries": -1}, "retries=-1"),
        ({"policy": "expert", "out": "o", "step_seconds": 0.0}, "step_seconds=0"),
        ({"policy": "expert", "out": "o", "start_seconds": -1.0}, "start_seconds=-1"),
        ({"policy": "expert", "out": "o", "answer_seconds": float("nan")}, "answer_seconds=nan"),
        ({"policy": "expert", "out": "o", "seed": 47}, "initial states 0 to 49"),
        ({"policy": "expert", "out": "o", "tasks": [3]}, "task 3 does not exist"),
        ({"policy": "expert", "out": "o", "tasks": []}, "selects nothing"),
    ],
)
def test_wrong_settings_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_command(EvalCommandConfig(suite="fake", **options), open_suite=open_fake_suite)


@pytest.mark.parametrize("out", ["/proc/nowhere", "/proc"])
def test_unwritable_folder_is_refused_before_the_first_episode(out: str) -> None:
    reported: list[EvaluationProgress] = []
    with pytest.raises(InputError, match=f"out={out}: cannot write into this folder"):
        run(Path(out), reported.append)
    assert reported == []


def test_checkpoint_identity_depends_on_weights_not_on_file_times(tmp_path: Path) -> None:
    (tmp_path / "READY").write_text("0123 manifest-0123abcd.json")
    weights = tmp_path / "rank_00000-0123abcd.safetensors"
    weights.write_bytes(b"weights")
    before = PolicyReference(str(tmp_path)).identity()
    os.utime(weights, (0, 0))  # fetched again
    assert PolicyReference(str(tmp_path)).identity() == before
    (tmp_path / "READY").write_text("4567 manifest-4567cdef.json")
    assert PolicyReference(str(tmp_path)).identity() != before


def test_checkpoint_identity_changes_with_the_runs_tokenizers_and_ranges(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "READY").write_text("0123 manifest-0123abcd.json")
    files = [tmp_path / "action_ranges.json", tmp_path / "tokenizers" / "text_tokenizer.json"]
    files[1].parent.mkdir()
    identities = [PolicyReference(str(checkpoint)).identity()]
    for path, text in ((files[0], "a"), (files[0], "b"), (files[1], "a"), (files[1], "b")):
        path.write_text(text)
        identities.append(PolicyReference(str(checkpoint)).identity())
    assert len(set(identities)) == 5
    os.utime(files[0], (0, 0))
    assert PolicyReference(str(checkpoint)).identity() == identities[-1]


def test_settings_beside_a_training_are_refused_by_their_full_name() -> None:
    with pytest.raises(InputError, match=r"^eval\.retries=-1: expected at least 0$"):
        check_settings(EvaluationConfig(retries=-1), "eval.")
    with pytest.raises(InputError, match=r"eval\.episodes=51 from eval\.seed=0: .* initial states 0 to 49"):
        check_settings(EvaluationConfig(episodes=51), "eval.")


def test_an_episode_keeps_its_outcome_when_its_video_cannot_be_written(tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "other", videos=0)
    obstacle = tmp_path / "out" / "fake_0_state_00_success.mp4" / "in the way"
    obstacle.mkdir(parents=True)
    results = run(tmp_path / "out")
    assert essence(results) == essence(undisturbed)
    assert [episode.attempts for episode in results.episodes] == [1] * 4
    assert results.errors == 0
    first = results.episodes[0]
    assert (first.video, first.video_error) == (None, f"{obstacle.parent}: Is a directory")
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["per_episode"][0]["video_error"] == first.video_error
    caption = str(results_table(results).caption)
    assert f"videos not written: 1, which changes no outcome; the first: {obstacle.parent}" in caption
    obstacle.rmdir()
    obstacle.parent.rmdir()
    again = run(tmp_path / "out")
    assert essence(again) == essence(undisturbed)
    assert again.episodes[0].video == "fake_0_state_00_success.mp4"
    assert again.episodes[0].video_error is None
    assert videos_in(tmp_path / "out") == [f"fake_{task}_state_00_success.mp4" for task in (0, 1)]


def test_videos_asked_later_show_failures_first_and_change_no_outcome(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"policy": "reaching", "episodes": 4, "tasks": [0]}
    first = run(tmp_path, videos=0, **settings)
    assert [episode.success for episode in first.episodes] == [True, True, True, False]
    assert videos_in(tmp_path) == []
    reported: list[EvaluationProgress] = []
    second = run(tmp_path, reported.append, videos=1, **settings)
    assert essence(second) == essence(first)
    assert videos_in(tmp_path) == ["fake_0_state_03_failure.mp4"]
    assert [(state.done, state.total, state.repeated) for state in reported] == [(4, 4, 1), (4, 4, 0)]
    assert str(reported[0]) == "success 3/4 (75%), videos to record: 1"
    assert [e.video for e in run(tmp_path, videos=1, **settings).episodes] == [
        e.video for e in second.episodes
    ]
    nothing: list[EvaluationProgress] = []
    run(tmp_path, nothing.append, videos=1, **settings)
    assert [state.repeated for state in nothing] == [0], "nothing is run again"
    run(tmp_path, videos=2, **settings)
    assert videos_in(tmp_path) == ["fake_0_state_00_success.mp4", "fake_0_state_03_failure.mp4"]
    (tmp_path / "fake_0_state_03_failure.mp4").unlink()
    run(tmp_path, videos=2, **settings)
    assert videos_in(tmp_path) == ["fake_0_state_00_success.mp4", "fake_0_state_03_failure.mp4"]


def test_a_full_disk_ends_the_evaluation_with_one_line(tmp_path: Path) -> None:
    first = run(tmp_path)
    (journal,) = tmp_path.glob("episodes-*.jsonl")
    fill(journal)
    with pytest.raises(InputError, match=rf"^{journal}: a finished episode .*\({MESSAGE}\); free space"):
        run(tmp_path)
    journal.unlink()
    fill(tmp_path / "results.json")
    with pytest.raises(InputError, match=rf"results\.json: cannot be written \({MESSAGE}\); free space"):
        run(tmp_path)
    assert essence(run(tmp_path)) == essence(first), "the episodes before are stored"


def test_a_second_evaluation_in_the_folder_is_refused(tmp_path: Path) -> None:
    with (
        only_evaluation(tmp_path),
        pytest.raises(
            InputError, match=rf"^out={tmp_path}: another evaluation is writing into this folder \(pr"
        ),
    ):
        run(tmp_path)
    assert run(tmp_path).successes == 4


def test_episodes_of_the_evaluation_beside_the_training_are_taken_over(tmp_path: Path) -> None:
    beside, out = tmp_path / "eval/step_00000010", tmp_path / "eval/step_00000010-fake"
    first = run(beside)
    (journal,) = beside.glob("episodes-*.jsonl")
    with journal.open("ab") as file:
        file.write(b'{"task": 0, "initial')  # it may still be running
    reported: list[EvaluationProgress] = []
    second = run(out, reported.append, episodes=3, earlier=beside)
    assert [state.done for state in reported] == [4, 5, 6]
    assert essence(second)[:2] == essence(first)[:2]
    assert videos_in(out) == videos_in(beside)
    assert journal.read_bytes().endswith(b'"initial'), "another evaluation's file stays as it is"
    anew: list[EvaluationProgress] = []
    run(out, anew.append, resume=False, earlier=beside)
    assert anew[0].done == 0


def test_the_evaluation_beside_the_training_is_found_by_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints/step_00000010"
    checkpoint.mkdir(parents=True)
    assert evaluation_beside_training(PolicyReference(str(checkpoint))) is None
    (tmp_path / "eval/step_00000010").mkdir(parents=True)
    assert evaluation_beside_training(PolicyReference(str(checkpoint))) == tmp_path / "eval/step_00000010"
    (checkpoint / "config.json").touch()
    assert evaluation_beside_training(PolicyReference(str(checkpoint))) is None, "exported weights"
    assert evaluation_beside_training(PolicyReference("expert")) is None


def test_a_journal_that_names_a_video_elsewhere_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    (journal,) = tmp_path.glob("episodes-*.jsonl")
    line = json.loads(journal.read_text().splitlines()[0])
    journal.write_text(json.dumps(line | {"video": "../../elsewhere.mp4"}) + "\n")
    with pytest.raises(InputError, match=r"line 1 is no episode \(its video \.\./\.\./elsewhere\.mp4"):
        run(tmp_path)


def test_the_time_limit_of_an_answer_is_a_setting(tmp_path: Path) -> None:
    # No server ever answers: a machine too slow for the limit gets the same result.
    with pytest.raises(InputError, match=r"no answer within answer_seconds=0\.1\), too slow or hung; raise"):
        run(tmp_path, policy="hanging", answer_seconds=0.1)
