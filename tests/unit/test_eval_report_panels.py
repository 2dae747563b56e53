"""Each evaluation in the report: its verdict, its episodes, and the policy's actions beside the expert's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from eval.evaluation.results import Results, write_results
from eval.report import rollout_media
from eval.report.action_charts import action_charts, parts_most_at
from eval.report.action_data import Curves, read_open_loop, read_rollout
from eval.report.evaluation_panels import panels
from eval.report.page import write_report
from eval.report.rollout_media import videos
from eval.report.run_contents import read_run
from eval.rollout.episode import EpisodeResult
from eval.rollout.trace import ActionTrace, trace_of
from eval.simulator.interface import EMBODIMENT, TaskInfo
from eval.video import write_video
from tests.support.report_run import HOSTILE

LIFT = TaskInfo("robosuite_lift", 0, "lift", "lift the red cube", 120, "Lift")
FILM = [np.full((32, 32, 3), value, np.uint8) for value in (0, 200)]


def trace(steps: int = 7, entropy: tuple[float, float] | None = (0.5, 2.5)) -> ActionTrace:
    """Three chunks of three actions; the expert parts from the policy at step 5, and ends before step 6."""
    expert = np.zeros((steps, 7))
    expert[5, 2], expert[6] = 0.7, np.nan
    spread = None if entropy is None else np.linspace(*entropy, 3)[:, None].repeat(3, axis=1)
    return ActionTrace(EMBODIMENT.action, np.zeros((3, 3, 7)), steps, spread, expert)


def open_loop(**more: Any) -> dict[str, Any]:
    first = {"episode": "lift/demo_7", "split": "val_ind", "instruction": "lift"}
    first |= {"predicted": [[0.1] * 7] * 4, "expert": [[0.3] * 7] * 4, "entropy": [1.0] * 4}
    content = {"names": list(EMBODIMENT.action), "error": 0.043, "constant_error": 0.09}
    content |= {"mean_absolute_error": [0.2] * 7, "partings": [{"frame": 2, "error": 0.1}]}
    return content | {"episodes": [first]} | more


def evaluate(folder: Path, outcomes: tuple[bool, ...], step: int = 40, **more: Any) -> Path:
    episodes = []
    for state, outcome in enumerate(outcomes):
        video = f"lift_state_{state:02d}.mp4"
        write_video(folder / video, FILM, 5)
        trace().write(trace_of(folder / video))
        episodes.append(EpisodeResult(0, state, outcome, 50, None, 0.5, video=video))
    results = Results(LIFT.suite, step, "runs/r/step", (LIFT,), tuple(episodes), {}, False)
    path = write_results(results, folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    (folder / "open_loop.json").write_text(json.dumps(open_loop()))
    Image.fromarray(FILM[0]).save(folder / "open_loop.png")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/config.yaml").write_text("run:\n  name: r\n")
    return tmp_path / "r"


@pytest.mark.parametrize(
    ("outcomes", "success", "tone"),
    [
        ((True,) * 4 + (False,), "80 %", "good"),
        ((True, False), "50 %", "fair"),
        ((True, False, False), "33 %", "bad"),
    ],
)
def test_the_verdict_says_good_or_bad_and_why(
    run: Path, outcomes: tuple[bool, ...], success: str, tone: str
) -> None:
    evaluate(run / "eval/step_00000040", outcomes)
    (panel,) = panels(read_run(run), [])
    assert (panel.title, panel.verdict.success, panel.verdict.tone) == (
        "robosuite_lift, step 40",
        success,
        tone,
    )
    assert panel.verdict.facts == [
        ("error against the expert, open loop; best constant action 9.0 %", "4.3 % of the ranges"),
        ("entropy, first to last decision", "0.50 to 2.50 of 5.55 nats"),
    ]
    page = write_report(run).read_text()
    assert f'<div class="verdict {tone}">' in page
    assert f"<b>{success}</b> success: {tone}" in page


def test_a_policy_without_distributions_has_no_entropy(run: Path) -> None:
    folder = evaluate(run / "eval/step_00000040", (True,), decoder="continuous")
    trace(entropy=None).write(folder / "lift_state_00.actions.json")
    (panel,) = panels(read_run(run), [])
    assert panel.verdict.facts[1][1] == "none: an action head has no distribution"
    assert [chart.title for chart in panel.figures[0].charts] == list(EMBODIMENT.action)
    assert "no entropy" in panel.figures[0].explanation


def test_a_failing_and_a_solved_episode_and_the_demonstration_have_curves(run: Path) -> None:
    evaluate(run / "eval/step_00000020", (False,), step=20)
    evaluate(run / "eval/step_00000040", (True, False, True, False))
    last, earlier = panels(read_run(run), [])
    assert [figure.title for figure in last.figures] == [
        "In the simulator, state 1: not solved in 50 steps",
        "In the simulator, state 0: solved in 50 steps",
        "On held-out demonstrations: error 4.3 % of the ranges",
    ]
    assert "They part most at step 5." in last.figures[0].explanation
    assert last.figures[2].caption == "They part most at step 2 (10 %): x 0.10, expert 0.30."
    assert (earlier.is_newest, earlier.figures) == (False, [])
    titles = [chart.title for chart in last.figures[0].charts]
    assert titles == [*EMBODIMENT.action, "entropy"]
    page = write_report(run).read_text()
    assert page.count("<svg") == 3 * 8 + 1, "three small multiples, and success by step"
    assert page.count("<summary>Earlier evaluations</summary>") == 1
    assert page.index("robosuite_lift, step 40</h3>") < page.index("robosuite_lift, step 20</h3>")


def test_all_episodes_are_thumbnails_failures_first(run: Path) -> None:
    evaluate(run / "eval/step_00000040", (True, False, True, False))
    tiles, omitted = videos(read_run(run))
    assert omitted == 0
    assert [tile.short_caption for tile in tiles] == [
        "state 1: not solved in 50 steps",
        "state 3: not solved in 50 steps",
        "state 0: solved in 50 steps",
        "state 2: solved in 50 steps",
    ]
    page = write_report(run).read_text()
    assert "4 of 4 episodes, failures first. In real time: 5 frames a second, one for every 4 steps" in page
    assert page.count('class="failure"><video') == 2
    assert page.count('class="success"><video') == 2


def test_of_many_episodes_some_are_shown_and_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_media, "MAX_VIDEOS", 3)
    evaluate(run / "eval/step_00000040", (True,) * 5)
    contents = read_run(run)
    tiles, omitted = videos(contents)
    assert (len(tiles), omitted) == (3, 2)
    (panel,) = panels(contents, tiles)
    assert panel.shown.startswith("3 of 5 episodes, failures first; 2 more videos are in its folder.")


def test_videos_that_are_all_too_large_for_the_page_are_said(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_media, "_MAX_VIDEO_BYTES", 1)
    evaluate(run / "eval/step_00000040", (True, False))
    contents = read_run(run)
    (panel,) = panels(contents, videos(contents)[0])
    assert panel.shown == "Its 2 videos, too large for this page, stay in its folder."
    assert panel.shown in write_report(run).read_text()


def test_small_charts_have_a_range_where_nothing_moves_and_gaps_where_nobody_says_anything() -> None:
    curves = Curves(EMBODIMENT.action, np.zeros((3, 7)), np.full((3, 7), np.nan), np.zeros(3))
    charts = action_charts(curves, "here")
    assert [chart.y_range for chart in charts] == [(-0.1, 0.1)] * 7 + [(0.0, 1.0)]
    assert [[series.label for series in chart.series] for chart in charts] == [["policy"]] * 7 + [["entropy"]]
    assert all(chart.small for chart in charts)
    assert parts_most_at(curves) is None


def open_loop_of(run: Path, **changed: Any) -> Path:
    """An evaluation whose stored comparison with a demonstration is changed; its folder."""
    folder = run / "eval/step_00000040"
    evaluate(folder, (True,))
    file = folder / "open_loop.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return folder


@pytest.mark.parametrize(
    ("ranges", "named"),
    [
        ({}, "x 0.10, expert 0.30"),
        ({"minimum": [-1] * 7, "maximum": [1] * 7}, "x 0.10, expert 0.30"),
        ({"minimum": [-1] * 7, "maximum": [9, 0, 0, 0, 0, 0, 0]}, "y 0.00, expert 0.10"),
        (
            {"minimum": [-1] * 7, "maximum": [9, 0, 0, 0, 0, 0, 0], "present": [True, False] * 3 + [True]},
            "x 0.10",
        ),
        ({"minimum": [0] * 7, "maximum": [1, 0, 0, 0, 0, 0, 0]}, "x 0.10, expert 0.30"),
    ],
)
def test_the_number_that_parts_most_is_found_by_shares_of_the_ranges(
    run: Path, ranges: dict[str, Any], named: str
) -> None:
    predicted, expert = np.zeros((6, 7)), np.zeros((6, 7))
    predicted[2, 0], expert[2, :2] = 0.1, [0.3, 0.1]
    episode = {"episode": "e", "split": "val_ind", "predicted": predicted.tolist(), "expert": expert.tolist()}
    partings = [{"frame": 2, "error": 0.1}]
    folder = open_loop_of(run, episodes=[episode], partings=partings, **({"minimum": None} | ranges))
    assert read_open_loop(folder) is not None
    (panel,) = panels(read_run(run), [])
    assert panel.figures[-1].caption.startswith(f"They part most at step 2 (10 %): {named}")


@pytest.mark.parametrize("error", [1e308, -0.05, 1e299, float("nan"), True])
def test_a_comparison_with_an_impossible_error_is_not_shown(run: Path, error: float) -> None:
    assert read_open_loop(open_loop_of(run, error=error)) is None
    found = read_open_loop(open_loop_of(run, error=0.1, constant_error=error))
    assert found is not None
    assert found.constant_error is None


def test_a_comparison_with_numbers_that_are_not_finite_is_not_shown(run: Path) -> None:
    folder = open_loop_of(run)
    file = folder / "open_loop.json"
    content = json.loads(file.read_text())
    content["episodes"][0]["expert"][0][0] = float("nan")
    file.write_text(json.dumps(content))
    assert read_open_loop(folder) is None


def test_the_demonstration_of_a_run_without_held_out_ones_is_not_called_so(run: Path) -> None:
    folder = run / "eval/step_00000040"
    evaluate(folder, (True,))
    file = folder / "open_loop.json"
    content = json.loads(file.read_text())
    content["episodes"][0]["split"] = "train"
    file.write_text(json.dumps(content))
    (panel,) = panels(read_run(run), [])
    assert panel.figures[-1].title == "On demonstrations of the training: error 4.3 % of the ranges"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"names": [], "chunks": [[[]]], "steps": 1},
        {"names": ["x"] * 99, "chunks": [[[0] * 99]], "steps": 1},
        {"names": ["x"], "chunks": [[[0]], [[0, 1]]], "steps": 1},
        {"names": ["x"], "chunks": [[[0]]], "steps": 0},
        {"names": ["x"], "chunks": "x", "steps": 1},
        {"names": ["x"], "chunks": [[0]], "steps": 1},
    ],
)
def test_what_is_no_trace_is_not_shown(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "a.actions.json").write_text(json.dumps(content))
    assert read_rollout(tmp_path / "a.actions.json") is None


def test_values_that_are_no_finite_numbers_are_gaps(tmp_path: Path) -> None:
    path = tmp_path / "a.actions.json"
    path.write_text(
        '{"names": [7], "chunks": [[[1], [true], ["x"], [NaN], [1e999], [1%s]]], "steps": 6}' % ("0" * 400)
    )
    read = read_rollout(path)
    assert read is not None
    assert read.curves.names == ("7",)
    assert read.curves.policy[0] == 1
    assert np.isnan(read.curves.policy[1:]).all()
    assert read_rollout(tmp_path / "nothing.actions.json") is None


def test_hostile_and_damaged_files_of_actions(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = evaluate(run / "eval/step_00000040", (True,))
    content = open_loop(names=[HOSTILE + str(i) for i in range(7)])
    content["episodes"][0]["episode"] = HOSTILE
    (folder / "open_loop.json").write_text(json.dumps(content))
    page = write_report(run).read_text()
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    (folder / "open_loop.json").write_text('{"episodes": [')
    with pytest.raises(InputError, match=r"open_loop\.json: not JSON"):
        write_report(run)
    monkeypatch.setattr("eval.report.action_data._MAX_BYTES", 5)
    with pytest.raises(InputError, match=r"open_loop\.json: has 14 bytes, expected at most 5"):
        read_open_loop(folder)
