"""Evaluations with `record=DIR`: which episodes are recorded, when, and what is never taken for a set."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.sources.registry import read_demonstrations
from eval.config import EvalCommandConfig, EvaluationSettings
from eval.evaluation import episode_recordings
from eval.evaluation.evaluate import EvaluationProgress, evaluate, evaluate_command
from eval.evaluation.results import Results
from eval.policy.interface import PolicyRecord
from tests.support.fake_suite import FakePolicySource, open_fake_suite
from tests.support.full_disk import MESSAGE
from tests.unit.test_eval_evaluation_evaluate import essence

PIXELS = 16


def run(folder: Path, record: str | None = "set", pixels: int | None = PIXELS, **changed: Any) -> Results:
    """Evaluate into `folder/out`, with the data set in `folder/set`."""
    policy, progress = changed.pop("policy", "reaching"), changed.pop("progress", None)
    resume = changed.pop("resume", True)
    settings = EvaluationSettings(
        **({"suite": "fake", "tasks": [0, 1], "episodes": 2, "videos": 0} | changed)
    )
    return evaluate(
        FakePolicySource(policy),
        settings,
        folder / "out",
        resume=resume,
        open_suite=open_fake_suite,
        progress=progress,
        record=None if record is None else folder / record,
        record_pixels=pixels if record else None,
    )


def read(data_set: Path) -> list[Demonstration]:
    return list(read_demonstrations(SourceConfig(source=str(data_set))))


def lengths(data_set: Path) -> list[int]:
    return [len(demonstration.actions) for demonstration in read(data_set)]


class Seen:
    """The numbers of episodes that an evaluation reports as done, and as still to be run again."""

    def __init__(self) -> None:
        self.states: list[EvaluationProgress] = []

    def __call__(self, state: EvaluationProgress) -> None:
        self.states.append(state)

    @property
    def repeated(self) -> list[int]:
        return [state.repeated for state in self.states]


def change_journal(out: Path, initial_state: int, **values: Any) -> None:
    """Change what an evaluation has stored of an episode of task 0."""
    (journal,) = out.glob("episodes-*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if (line["task"], line["initial_state"]) == (0, initial_state):
            line.update(values)
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_episode_is_recorded_by_any_number_of_workers_and_stays_the_same(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", record=None)
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        results = run(folder, workers=workers)
        assert essence(results) == essence(plain)
        assert results.notes == ()
        assert lengths(folder / "set") == [episode.steps for episode in results.episodes]
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / n / "set").rglob("*.json")} for n in "12")
    assert one == two
    for first, second in zip(read(tmp_path / "1/set"), read(tmp_path / "2/set"), strict=True):
        np.testing.assert_array_equal(first.actions, second.actions)
        np.testing.assert_array_equal(first.frames["wrist"], second.frames["wrist"])


def test_finished_episodes_are_run_again_for_their_recording_and_keep_their_outcome(tmp_path: Path) -> None:
    first = run(tmp_path, record=None)
    seen = Seen()
    second = run(tmp_path, progress=seen)
    assert essence(second) == essence(first)
    assert seen.repeated == [4, 3, 2, 1, 0]
    assert str(seen.states[0]) == "success 4/4 (100%), episodes to record: 4"
    assert lengths(tmp_path / "set") == [episode.steps for episode in first.episodes]
    seen = Seen()
    run(tmp_path, progress=seen)
    assert seen.repeated == [0], "nothing is run again"
    seen = Seen()
    more = run(tmp_path, progress=seen, episodes=3)
    assert [state.done for state in seen.states] == [4, 5, 6]
    assert seen.repeated == [0, 0, 0]
    assert lengths(tmp_path / "set") == [episode.steps for episode in more.episodes]
    lost = tmp_path / "set/.episodes/task_001_state_02"
    for file in lost.iterdir():
        file.unlink()
    lost.rmdir()
    seen = Seen()
    run(tmp_path, progress=seen, episodes=3)
    assert seen.repeated == [1, 0]
    assert len(lengths(tmp_path / "set")) == 6


def test_a_recording_does_not_touch_videos_nor_a_video_recordings(tmp_path: Path) -> None:
    first = run(tmp_path, record=None, videos=1)
    second = run(tmp_path, videos=1)
    assert [episode.video for episode in second.episodes] == [episode.video for episode in first.episodes]
    (tmp_path / "out/fake_0_state_00_success.mp4").unlink()
    before = (tmp_path / "set/.episodes/task_000_state_00/steps.npz").stat().st_mtime_ns
    run(tmp_path, videos=1)
    assert (tmp_path / "out/fake_0_state_00_success.mp4").is_file()
    assert (tmp_path / "set/.episodes/task_000_state_00/steps.npz").stat().st_mtime_ns == before


def test_an_interrupted_evaluation_leaves_no_set_and_goes_on(tmp_path: Path) -> None:
    def interrupt(state: EvaluationProgress) -> None:
        if state.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=interrupt)
    assert [entry.name for entry in (tmp_path / "set").iterdir()] == [".episodes"]
    with pytest.raises(InputError):
        read(tmp_path / "set")
    seen = Seen()
    results = run(tmp_path, progress=seen)
    assert [state.done for state in seen.states] == [2, 3, 4]
    assert seen.repeated == [0, 0, 0], "the recorded ones are not run again"
    assert lengths(tmp_path / "set") == [episode.steps for episode in results.episodes]


def test_a_set_is_whole_or_none_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    calls: list[bool] = []

    class KilledError(Exception):
        """Stands for SIGKILL: nothing is cleaned up after it."""

    def killed(folder: Path) -> None:
        calls.append((tmp_path / "set/meta").exists())
        if len(calls) == kill_at:
            raise KilledError

    for kill_at, parts in enumerate((2, 1, 0, 1, 2), start=1):
        with monkeypatch.context() as patch:
            calls.clear()
            patch.setattr(episode_recordings, "sync_folder", killed)
            with pytest.raises(KilledError):
                run(tmp_path, episodes=3)
        assert calls == [False] * kill_at
        assert len(list((tmp_path / "set").iterdir())) == 1 + parts
        with pytest.raises(InputError, match=r"meta/info\.json"):
            read(tmp_path / "set")
        assert len(run(tmp_path, episodes=3).episodes) == len(lengths(tmp_path / "set")) == 6


def test_a_repetition_that_went_otherwise_is_not_in_the_set_and_not_run_again(tmp_path: Path) -> None:
    first = run(tmp_path, record=None, tasks=[0])
    change_journal(tmp_path / "out", 0, actions_sha256="0" * 64)  # as another GPU had computed it
    for expected in ([2, 1, 0], [0]):
        seen = Seen()
        results = run(tmp_path, tasks=[0], progress=seen)
        assert seen.repeated == expected
        assert results.episodes[0].actions_sha256 == "0" * 64
        assert lengths(tmp_path / "set") == [first.episodes[1].steps]
        assert results.notes == (
            f"record={tmp_path}/set: 1 of 2 episodes; not recorded, the first: task 0, initial state 0: run "
            f"again for its recording it ended otherwise (success True in {first.episodes[0].steps} steps)",
        )
        assert json.loads((tmp_path / "out/results.json").read_text())["notes"] == list(results.notes)


def test_episodes_of_an_earlier_version_are_recorded(tmp_path: Path) -> None:
    run(tmp_path, record=None, tasks=[0])
    change_journal(tmp_path / "out", 0, actions_sha256="")
    results = run(tmp_path, tasks=[0])
    assert lengths(tmp_path / "set") == [episode.steps for episode in results.episodes]
    assert all(len(episode.actions_sha256) == 64 for episode in results.episodes)


def test_an_episode_with_an_error_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SUITE_MARKS", str(tmp_path))
    results = run(tmp_path, suite="fake_breaks", retries=0)
    assert results.errors == 1
    assert len(lengths(tmp_path / "set")) == 3
    assert results.notes == (
        f"record={tmp_path}/set: 3 of 4 episodes; not recorded, the first: task 1, initial state 1: broke "
        "once",
    )
    assert run(tmp_path, suite="fake_breaks").notes == ()
    assert len(lengths(tmp_path / "set")) == 4


def test_results_are_stored_where_recordings_cannot_be_written(tmp_path: Path) -> None:
    obstacle = tmp_path / "set/.episodes/task_000_state_01"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("in the way")
    with pytest.raises(InputError) as raised:
        run(tmp_path)
    assert str(raised.value) == (
        f"record={tmp_path}/set: 1 of 4 episodes could not be recorded, the first: {obstacle}: Not a "
        "directory; their results are stored, no data set is written: free space there, or make it "
        "writable, and the same command records them"
    )
    assert len(json.loads((tmp_path / "out/results.json").read_text())["per_episode"]) == 4
    assert not (tmp_path / "set/meta").exists()
    obstacle.unlink()
    seen = Seen()
    assert run(tmp_path, progress=seen).notes == ()
    assert seen.repeated == [1, 0]
    assert len(lengths(tmp_path / "set")) == 4


def test_a_full_disk_at_the_end_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, MESSAGE)

    with monkeypatch.context() as patch:
        patch.setattr("os.link", full)
        with pytest.raises(
            InputError, match=rf"^record={tmp_path}/set: the data set cannot be written \({MESSAGE}"
        ):
            run(tmp_path)
    assert [entry.name for entry in (tmp_path / "set").iterdir()] == [".episodes"]
    assert (tmp_path / "out/results.json").is_file()
    seen = Seen()
    run(tmp_path, progress=seen)
    assert [state.done for state in seen.states] == [4]
    assert len(lengths(tmp_path / "set")) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"policy": "expert"},
            "holds recordings of another evaluation (reaching, fake, 16 px), this one is expert",
        ),
        (
            {"horizon": 39},
            "holds recordings of another evaluation (reaching, fake, 16 px), this one is reaching",
        ),
        (
            {"pixels": 32},
            "this one is reaching, fake, 32 px; checkpoint, simulator and settings must be the same",
        ),
    ],
)
def test_the_set_of_another_evaluation_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    run(tmp_path)
    seen = Seen()
    with pytest.raises(InputError) as raised:
        run(tmp_path, progress=seen, **changed)
    assert message in str(raised.value)
    assert seen.states == []
    assert len(lengths(tmp_path / "set")) == 4


def test_a_folder_of_something_else_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/thesis.tex").touch()
    (tmp_path / "file").touch()
    seen = Seen()
    for record, message in (
        ("set", r"holds something else \(thesis\.tex\), expected a new folder"),
        ("file", r"cannot be read \(Not a directory\)"),
        ("s3://bucket/set", "expected a folder on this machine"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path, record=record, progress=seen)
    assert seen.states == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "set"]
    assert [entry.name for entry in (tmp_path / "set").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"record_pixels": 64}, "record_pixels=64: nothing is recorded; add record=FOLDER"),
        ({"record": "set", "record_pixels": 63}, "record_pixels=63: expected an even number from 16 to 1024"),
        ({"record": "set", "record_pixels": 8}, "record_pixels=8: expected an even number from 16 to 1024"),
        (
            {"record": "set", "record_pixels": 1026},
            "record_pixels=1026: expected an even number from 16 to 1024",
        ),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    config = EvalCommandConfig(suite="fake", policy="expert", out=str(tmp_path / "out"), **options)
    with pytest.raises(InputError) as raised:
        evaluate_command(config, open_suite=open_fake_suite)
    assert str(raised.value) == message
    assert list(tmp_path.iterdir()) == []


def test_frames_are_as_large_as_the_policys_and_256_for_one_that_sees_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "expert", pixels=None, policy="expert", tasks=[0], episodes=1)
    assert read(tmp_path / "expert/set")[0].frames["agent"].shape[1:] == (256, 256, 3)
    monkeypatch.setattr(FakePolicySource, "record", lambda self: PolicyRecord({"pixels": 32}))
    run(tmp_path / "policy", pixels=None, tasks=[0], episodes=1)
    assert read(tmp_path / "policy/set")[0].frames["wrist"].shape[1:] == (32, 32, 3)


def test_a_damaged_description_of_the_folder_is_named(tmp_path: Path) -> None:
    run(tmp_path, tasks=[0], episodes=1)
    path = tmp_path / "set/.episodes/evaluation.json"
    path.write_text("{")
    with pytest.raises(InputError, match=rf"^{path}: not JSON .*; delete {tmp_path}/set and record anew"):
        run(tmp_path, tasks=[0], episodes=1)


def test_two_evaluations_do_not_record_into_one_folder(tmp_path: Path) -> None:
    run(tmp_path, tasks=[0], episodes=1)
    with (
        episode_recordings.only_evaluation(tmp_path / "set/.episodes"),
        pytest.raises(InputError, match=rf"^record={tmp_path}/set/\.episodes: another evaluation is writing"),
    ):
        run(tmp_path, tasks=[0], episodes=1)


def test_all_is_recorded_anew_without_resuming(tmp_path: Path) -> None:
    run(tmp_path, tasks=[0])
    steps = tmp_path / "set/.episodes/task_000_state_00/steps.npz"
    with steps.open("rb") as before:  # open, so that no other file gets its number
        run(tmp_path, tasks=[0], resume=False)
        assert not os.path.samestat(os.fstat(before.fileno()), steps.stat())
    assert len(lengths(tmp_path / "set")) == 2
