"""Which episodes are recorded as video, and what becomes of repetitions for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.evaluation.episode_videos import recorded_again, with_videos
from eval.evaluation.evaluate import EvaluationProgress
from eval.evaluation.results import results_table
from eval.pool.messages import EpisodeSpec
from eval.rollout.episode import EpisodeResult
from tests.unit.test_eval_evaluation_evaluate import essence, run, videos_in


def specs(count: int) -> list[EpisodeSpec]:
    return [EpisodeSpec("fake", 0, state, 40) for state in range(count)]


def result(state: int, success: bool, video: str | None = None) -> EpisodeResult:
    return EpisodeResult(0, state, success, 9, None, 0.1, video=video, actions_sha256="a" * 64)


@pytest.mark.parametrize(
    ("finished", "count", "unfinished", "repeated"),
    [
        ({}, 2, {0: True, 1: True, 2: False, 3: False}, []),
        ({}, 9, {0: True, 1: True, 2: True, 3: True}, []),
        ({0: True}, 1, {1: False, 2: False, 3: False}, [0]),
        ({0: True, 1: False, 3: False}, 0, {2: False}, []),
        ({0: True, 1: False, 3: False}, 2, {2: False}, [1, 3]),
        ({0: True, 1: False, 3: True}, 3, {2: True}, [0, 1]),
        ({0: True, 1: True, 2: False, 3: False}, 3, {}, [0, 2, 3]),
    ],
)
def test_the_first_episodes_are_recorded_and_of_finished_ones_the_failures(
    tmp_path: Path, finished: dict[int, bool], count: int, unfinished: dict[int, bool], repeated: list[int]
) -> None:
    results = {(0, state): result(state, success) for state, success in finished.items()}
    to_run = with_videos(specs(4), results, count, tmp_path)
    found = {s.initial_state: s.videos == tmp_path for s in to_run if (0, s.initial_state) not in results}
    assert found == unfinished
    assert [s.initial_state for s in to_run if (0, s.initial_state) in results] == repeated
    assert all(s.videos == tmp_path for s in to_run if (0, s.initial_state) in results)


def test_a_repetition_that_went_otherwise_gives_no_video_and_changes_nothing(tmp_path: Path) -> None:
    kept = result(0, success=False)
    (tmp_path / "v.mp4").touch()
    same = recorded_again(kept, result(0, success=False, video="v.mp4"), tmp_path)
    assert same == replace(kept, video="v.mp4")
    other_actions = replace(kept, video="v.mp4", actions_sha256="b" * 64)
    without_actions = replace(kept, actions_sha256="")  # of an earlier version
    assert recorded_again(without_actions, other_actions, tmp_path).video == "v.mp4"
    assert recorded_again(kept, other_actions, tmp_path).video is None
    (tmp_path / "v.mp4").touch()
    other = recorded_again(kept, result(0, success=True, video="v.mp4"), tmp_path)
    assert not other.success
    assert other.video is None
    assert other.video_error == "run again for its video it ended otherwise (success True in 9 steps)"
    assert not (tmp_path / "v.mp4").exists()
    broken = recorded_again(kept, replace(kept, error="broke", steps=0), tmp_path)
    assert (broken.error, broken.steps) == (None, 9)
    assert broken.video_error == "run again for its video it ended otherwise (error: broke)"


def test_a_repetition_that_went_otherwise_is_not_made_again(tmp_path: Path) -> None:
    first = run(tmp_path, tasks=[0], videos=0)
    (journal,) = tmp_path.glob("episodes-*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if line["initial_state"] == 0:  # as another GPU had computed it
            line["actions_sha256"] = "0" * 64
        line.pop("repeated_otherwise", None)  # as an earlier version wrote it
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again: list[int] = []

    def repeated(state: EvaluationProgress) -> None:
        again.append(state.repeated)

    for expected in ([1, 0], [0]):
        again.clear()
        shown = run(tmp_path, repeated, tasks=[0], videos=1)
        assert again == expected
        assert essence(shown)[:1] != essence(first)[:1], "of the changed line"
        assert videos_in(tmp_path) == []
        assert str(results_table(shown).caption).endswith(
            "videos not written: 1, which changes no outcome; the first: run again for its video it ended "
            f"otherwise (success True in {first.episodes[0].steps} steps); they are not run again for it; "
            "larger videos=N records others"
        )
    run(tmp_path, tasks=[0], videos=2)
    assert videos_in(tmp_path) == ["fake_0_state_01_success.mp4"]
