"""Several evaluations in one report: joined or told apart, named by their suites; videos can be found."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from eval.contact_sheet import label, tile
from eval.evaluation.results import Results, write_results
from eval.report.comparison import comparable_runs, comparison_charts
from eval.report.evaluation_tables import (
    evaluation_row,
    failure_rows,
    protocol_rows,
    success_chart,
    task_rows,
)
from eval.report.headline import figures
from eval.report.page import write_report
from eval.report.rollout_media import speed_text, videos
from eval.report.run_contents import RunContents, read_run
from eval.report.world_model_rollouts import world_model_rollouts
from eval.rollout.episode import EpisodeResult
from eval.simulator.interface import TaskInfo
from eval.video import read_preview, write_video
from tests.support.full_disk import MESSAGE, fill

LIFT = (TaskInfo("robosuite_lift", 0, "lift", "lift the red cube", 120, "Lift"),)
OBJECTS = tuple(
    TaskInfo("libero_object", number, f"pick_{name}", f"pick up the {name}", 280, "L")
    for number, name in enumerate(("soup", "milk"))
)


def film(last: int = 200) -> list[np.ndarray]:
    """Three grey frames; the last one has this brightness."""
    return [np.full((64, 64, 3), value, np.uint8) for value in (0, 100, last)]


def evaluate(
    folder: Path,
    tasks: tuple[TaskInfo, ...] = LIFT,
    outcomes: tuple[bool | None, ...] = (True, False),
    step: int | None = 40,
    recorded: bool = True,
    **more: Any,
) -> Path:
    """Write the results of an evaluation; outcome None is an error."""
    episodes = []
    for task in tasks:
        for state, outcome in enumerate(outcomes):
            video = f"{task.name}_state_{state:02d}.mp4" if recorded else None
            if video is not None:
                write_video(folder / video, film(), 10)
            error = "broke" if outcome is None else None
            steps = 50 + state if outcome else task.horizon
            episodes.append(EpisodeResult(task.number, state, bool(outcome), steps, error, 0.5, video=video))
    versions = {"mujoco": "3.3.2"}
    results = Results(tasks[0].suite, step, "runs/r/step", tasks, tuple(episodes), versions, False)
    path = write_results(results, folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("run: {}\n")
    return tmp_path / "r"


def rows(run: RunContents) -> list[tuple[str, str, str, str]]:
    found = [evaluation_row(evaluation) for evaluation in run.evaluations]
    return [(row.step, row.suite, row.success, row.episodes) for row in found]


def test_two_evaluations_of_one_checkpoint_are_joined(run: Path) -> None:
    evaluate(run / "eval/step_00000020", outcomes=(False, False), step=20)
    evaluate(run / "eval/step_00000040", outcomes=(True, None))
    evaluate(run / "eval/step_00000040-robosuite_lift", outcomes=(True, True, False, True))
    contents = read_run(run)
    assert rows(contents) == [("20", "robosuite_lift", "0 %", "2"), ("40", "robosuite_lift", "75 %", "4")]
    chart = success_chart(contents)
    assert chart is not None
    assert [(series.label, series.points) for series in chart.series] == [
        ("robosuite_lift", [(20.0, 0.0), (40.0, 75.0)])
    ]
    results = contents.evaluations[-1].results
    assert (results["successes"], results["errors"], results["seeds"]) == (3, 0, [0, 1, 2, 3])
    assert results["wilson_95"] == pytest.approx([0.3006, 0.9544], abs=1e-3)
    assert results["mean_steps_to_success"] == pytest.approx((50 + 51 + 53) / 3)
    assert task_rows(contents) == [], "one task, though it was evaluated twice"
    assert len(videos(contents)[0]) == 4 + 2, "no video twice"


def test_evaluations_of_superseded_checkpoints_are_left_out(run: Path) -> None:
    evaluate(run / "eval/step_00000040", outcomes=(True,))
    evaluate(run / "eval/superseded_1_step_00000040", outcomes=(False,) * 4)
    assert rows(read_run(run)) == [("40", "robosuite_lift", "100 %", "1")]


def test_episodes_of_both_evaluations_count(run: Path) -> None:
    evaluate(run / "eval/step_00000040", tasks=OBJECTS[:1], outcomes=(True, False))
    evaluate(run / "eval/step_00000040-libero_object", tasks=OBJECTS[1:], outcomes=(True, True, True))
    contents = read_run(run)
    assert rows(contents) == [("40", "libero_object", "80 %", "5")]
    assert [(row.task, row.successes, row.episodes) for row in task_rows(contents)] == [
        ("pick up the soup", "1", "2"),
        ("pick up the milk", "3", "3"),
    ]


def test_evaluations_under_other_conditions_are_told_apart(run: Path) -> None:
    evaluate(run / "eval/step_00000020", horizon=120, renderer="osmesa (Mesa)", step=20)
    evaluate(run / "eval/step_00000040", horizon=120, renderer="osmesa (Mesa)")
    evaluate(run / "eval/short", horizon=60, outcomes=(False,), renderer="osmesa (Mesa)")
    contents = read_run(run)
    assert rows(contents) == [
        ("20", "robosuite_lift (horizon 120)", "50 %", "2"),
        ("40", "robosuite_lift (horizon 120)", "50 %", "2"),
        ("40", "robosuite_lift (horizon 60)", "0 %", "1"),
    ]
    assert [figure.label for figure in figures(contents)] == [
        "Success on robosuite_lift (horizon 120)",
        "Success on robosuite_lift (horizon 60)",
    ]


def test_what_an_earlier_version_did_not_record_tells_nothing_apart(run: Path) -> None:
    evaluate(run / "eval/step_00000020", step=20)
    evaluate(run / "eval/step_00000040", renderer="egl (NVIDIA)")
    assert [row[1] for row in rows(read_run(run))] == ["robosuite_lift"] * 2


def test_every_suite_has_a_headline_of_its_own(run: Path) -> None:
    evaluate(run / "eval/step_00000020", outcomes=(False,), step=20)
    evaluate(run / "eval/step_00000040")
    evaluate(run / "eval/step_00000040-libero_object", tasks=OBJECTS, outcomes=(False, False))
    contents = read_run(run)
    assert [(f.label, f.value, f.note) for f in figures(contents)] == [
        ("Success on libero_object", "0 %", "4 episodes, step 40"),
        ("Success on robosuite_lift", "50 %", "2 episodes, step 40"),
    ]
    assert [(row.suite, row.step, row.task) for row in task_rows(contents)] == [
        ("libero_object", "40", "pick up the soup"),
        ("libero_object", "40", "pick up the milk"),
        ("robosuite_lift", "40", "lift the red cube"),
    ]


def test_the_last_evaluation_of_a_suite_may_be_of_an_earlier_step(run: Path) -> None:
    evaluate(run / "eval/step_00000020-libero_object", tasks=OBJECTS, outcomes=(False,), step=20)
    evaluate(run / "eval/step_00000040", outcomes=(True,))
    contents = read_run(run)
    assert [(row.suite, row.step) for row in failure_rows(contents, {})[0]] == [("libero_object", "20")] * 2
    assert {(row.suite, row.step) for row in task_rows(contents)} == {
        ("libero_object", "20"),
        ("robosuite_lift", "40"),
    }


def test_protocol_of_every_suite_is_shown(run: Path) -> None:
    more = {"renderer": "osmesa (Mesa)", "policy_settings": {"cameras": ["agent", "wrist"]}}
    evaluate(run / "eval/step_00000040", outcomes=(True,) * 4, **more)
    evaluate(run / "eval/step_00000040-libero_object", tasks=OBJECTS, seeds=[0, 7])
    lift, objects = protocol_rows(read_run(run))[::-1]
    assert (lift.horizon, lift.states, lift.cameras) == ("120 steps", "0 to 3", "agent, wrist")
    assert (lift.renderer, lift.versions) == ("osmesa (Mesa)", "mujoco 3.3.2")
    assert (objects.horizon, objects.states, objects.cameras) == ("280 steps", "0, 7", "not recorded")
    assert "osmesa (Mesa)" in write_report(run).read_text()


def test_discrete_and_continuous_results_of_one_checkpoint_are_told_apart(run: Path) -> None:
    settings = {"cameras": ["agent", "wrist"], "state_ranges": {"minimum": [0.0], "maximum": [1.0]}}
    both = settings | {"decoders": ["discrete", "continuous"]}
    discrete = run / "eval/step_00000040-robosuite_lift-discrete"
    evaluate(discrete, outcomes=(True, False), policy_settings=both, decoder="discrete")
    continuous = run / "eval/step_00000040-robosuite_lift-continuous"
    evaluate(continuous, outcomes=(True, True, True), policy_settings=both, decoder="continuous")
    # An earlier version had the discrete decoder alone, and did not record it.
    evaluate(run / "eval/step_00000020", outcomes=(False,), step=20, policy_settings=settings)
    contents = read_run(run)
    assert rows(contents) == [
        ("20", "robosuite_lift (decoder discrete)", "0 %", "1"),
        ("40", "robosuite_lift (decoder continuous)", "100 %", "3"),
        ("40", "robosuite_lift (decoder discrete)", "50 %", "2"),
    ]
    assert [(row.decoder, row.cameras, row.state) for row in protocol_rows(contents)] == [
        ("continuous", "agent, wrist", "yes"),
        ("discrete", "agent, wrist", "yes"),
    ]
    text = write_report(run).read_text()
    assert "<th>Decoder</th>" in text
    assert "<td>continuous</td>" in text


def test_what_else_a_policy_could_do_tells_nothing_apart(run: Path) -> None:
    for step, decoders in ((20, ["discrete"]), (40, ["discrete", "continuous"])):
        settings = {"cameras": ["agent"], "decoders": decoders}
        evaluate(run / f"eval/step_{step:08d}", step=step, policy_settings=settings, decoder="discrete")
    assert [row[1] for row in rows(read_run(run))] == ["robosuite_lift"] * 2


def test_failures_link_to_their_tiles_and_captions_name_suite_and_task(run: Path) -> None:
    evaluate(run / "eval/step_00000040", outcomes=(True, False))
    evaluate(run / "eval/step_00000040-libero_object", tasks=OBJECTS, outcomes=(False,))
    contents = read_run(run)
    tiles, _ = videos(contents)
    failures, _ = failure_rows(contents, {tile.file: tile.anchor for tile in tiles})
    assert [(row.suite, row.task, row.anchor) for row in failures] == [
        ("libero_object", "pick up the soup", "video-1"),
        ("libero_object", "pick up the milk", "video-2"),
        ("robosuite_lift", "lift the red cube", "video-3"),
    ]
    assert [tile.caption for tile in tiles] == [
        "libero_object, pick up the soup, step 40, initial state 0: not solved in 280 steps",
        "libero_object, pick up the milk, step 40, initial state 0: not solved in 280 steps",
        "robosuite_lift, lift the red cube, step 40, initial state 1: not solved in 120 steps",
        "robosuite_lift, lift the red cube, step 40, initial state 0: solved in 50 steps",
    ]
    text = write_report(run).read_text()
    assert '<a href="#video-3" title="lift_state_01.mp4">' in text
    assert '<figure id="video-3" class="failure"><video ' in text


def test_a_video_that_could_not_be_written_is_said_in_the_table(run: Path) -> None:
    folder = evaluate(run / "eval/step_00000040", outcomes=(False,), recorded=False)
    content = json.loads((folder / "results.json").read_text())
    content["per_episode"][0]["video_error"] = f"lift.mp4: {MESSAGE}"
    (folder / "results.json").write_text(json.dumps(content))
    ((row,), _) = failure_rows(read_run(run), {})
    assert (row.video, row.anchor) == (f"no video: lift.mp4: {MESSAGE}", None)


def test_a_tile_shows_the_last_frame_and_the_page_the_speed(run: Path) -> None:
    evaluate(run / "eval/step_00000040", outcomes=(True,))
    ((shown,), _) = videos(read_run(run))
    assert shown.poster is not None
    kind, content = shown.poster.split(",")
    assert kind == "data:image/jpeg;base64"
    poster = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert poster.shape == (64, 64, 3)
    assert abs(float(poster.mean()) - 200) < 8
    assert speed_text([shown]) == "In real time: 10 frames a second, one for every 2 steps of the simulator."
    text = write_report(run).read_text()
    assert "In real time: 10 frames a second" in text
    assert 'poster="data:image/jpeg;base64,' in text


def test_a_video_that_cannot_be_decoded_has_no_poster(run: Path) -> None:
    folder = evaluate(run / "eval/step_00000040", outcomes=(True,))
    (folder / "lift_state_00.mp4").write_bytes(b"no video")
    assert read_preview(folder / "lift_state_00.mp4") is None
    ((shown,), _) = videos(read_run(run))
    assert (shown.poster, shown.frames_per_second) == (None, None)
    assert speed_text([shown]) == ""
    assert "poster=" not in write_report(run).read_text()


def test_speed_of_a_world_model_video_is_said(run: Path) -> None:
    folder = run / "eval/step_00000040"
    folder.mkdir(parents=True)
    Image.fromarray(film()[0]).save(folder / "imagine.png")
    write_video(folder / "imagine.mp4", film(), 5)
    (rollout,) = world_model_rollouts(read_run(run))
    assert rollout.speed == "5 frames a second, one for every time step"
    assert (rollout.poster or "").startswith("data:image/jpeg;base64,")


def test_an_evaluation_alone_has_a_report(tmp_path: Path) -> None:
    folder = evaluate(tmp_path / "results", tasks=OBJECTS, step=None, outcomes=(True, False))
    page = write_report(folder)
    assert page == folder / "report.html"
    text = page.read_text()
    assert "Success on libero_object" in text
    assert "Evaluation of runs/r/step." in text
    assert "video-4" in text
    for heading in ("<h2>Learning</h2>", "<h2>Setting</h2>"):
        assert heading not in text
    contents = read_run(folder)
    assert [row[0] for row in rows(contents)] == ["-"]
    assert success_chart(contents) is None
    assert videos(contents)[0][0].caption.startswith("libero_object, pick up the soup, initial state 1: ")


def test_policies_without_a_step_are_told_apart_by_name(run: Path) -> None:
    for name in ("expert", "elsewhere"):
        evaluate(run / f"eval/{name}", step=None, policy=name)
    assert [row[:2] for row in rows(read_run(run))] == [
        ("-", "robosuite_lift (policy elsewhere)"),
        ("-", "robosuite_lift (policy expert)"),
    ]


def test_policies_whose_paths_begin_alike_are_not_joined(run: Path) -> None:
    for name in ("a", "b"):
        evaluate(run / f"eval/{name}", step=None, policy=f"/scratch/me/project/exports/{name}")
    labels = [row[1] for row in rows(read_run(run))]
    assert len(set(labels)) == 2
    assert all(label.startswith("robosuite_lift (policy /scratch/me/project/expo... ") for label in labels)


def test_runs_beside_one_another_are_told_apart_by_common_conditions(tmp_path: Path) -> None:
    for name, horizon in (("a", 120), ("b", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("run: {}\n")
        evaluate(tmp_path / name / "eval/step_00000040", horizon=horizon)
    runs = comparable_runs([tmp_path / "a", tmp_path / "b"])
    assert [chart.title for chart in comparison_charts(runs, ["a", "b"])] == [
        "Success on robosuite_lift (horizon 120)",
        "Success on robosuite_lift (horizon 60)",
    ]


def test_a_video_outside_the_folder_is_not_embedded(run: Path) -> None:
    folder = evaluate(run / "eval/step_00000040", outcomes=(True,))
    (run / "secret.mp4").write_bytes(b"secret")
    content = json.loads((folder / "results.json").read_text())
    content["per_episode"][0]["video"] = "../../secret.mp4"
    (folder / "results.json").write_text(json.dumps(content))
    assert videos(read_run(run)) == ([], 0)


def test_a_report_on_a_full_disk_is_refused_with_one_line(run: Path) -> None:
    fill(run / "report.html")
    with pytest.raises(InputError, match=rf"report\.html: cannot write the report \({MESSAGE}\); choose "):
        write_report(run)


def test_contact_sheet_has_labels_beside_its_rows_and_above_its_columns() -> None:
    frames = np.zeros((2, 3, 64, 64, 3), np.uint8)
    plain = tile(frames)
    sheet = label(plain, ["given", "frame 1", "frame 2"], ["true", "predicted"])
    top, left = sheet.shape[0] - plain.shape[0], sheet.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(sheet[top:, left:], plain)
    dark = (sheet.min(axis=2) < 128).astype(int)
    for column in range(3):
        begin = left + column * 66
        assert dark[:top, begin : begin + 64].sum() > 20, f"no label above column {column}"
    for row in range(2):
        begin = top + row * 66
        assert dark[begin : begin + 64, :left].sum() > 20, f"no label beside row {row}"
    assert dark[:top, :left].sum() == 0


STRANGE: list[Any] = [None, "text", -1, 1e300, [], [1, "a"], {"a": []}, True, [[]], "</script>"]


@pytest.mark.parametrize("value", STRANGE, ids=repr)
def test_strange_values_in_results_do_not_stop_the_report(run: Path, value: Any) -> None:
    keys = ("step", "suite", "horizon", "wilson_95", "seeds", "versions", "per_task", "renderer", "policy")
    evaluate(run / "eval/step_00000040", **dict.fromkeys(keys, value), recorded=False)
    evaluate(run / "eval/step_00000040-again", policy_settings=value, recorded=False)
    assert "</script>" not in write_report(run).read_text()


@pytest.mark.parametrize("value", STRANGE, ids=repr)
def test_strange_values_of_episodes_do_not_stop_the_report(run: Path, value: Any) -> None:
    keys = ("task", "initial_state", "success", "steps", "error", "video", "video_error")
    for name in ("step_00000040", "step_00000040-again"):
        folder = evaluate(run / "eval" / name, outcomes=(False,) * len(keys), recorded=False)
        content = json.loads((folder / "results.json").read_text())
        for row, key in zip(content["per_episode"], keys, strict=True):
            row[key] = value
        (folder / "results.json").write_text(json.dumps(content))
    assert "</script>" not in write_report(run).read_text()
