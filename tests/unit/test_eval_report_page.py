"""The report: one file made from the run folder alone; hostile text is harmless, damage is named."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from cluster.cli.config import ReportConfig
from cluster.cli.handlers.report import run_report
from cluster.cli.invocation import Invocation
from data.errors import InputError
from eval.report.comparison import comparison_charts, task_comparison, write_comparison
from eval.report.evaluation_tables import failure_rows
from eval.report.page import write_report
from eval.report.reproduction_table import reproduction_rows
from eval.report.rollout_media import videos
from eval.report.run_contents import read_run
from eval.report.training_charts import history, learning_charts, speed_charts
from tests.support.report_run import HOSTILE, metrics_line, write_run


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_shows_the_run(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "demo"))
    assert page == tmp_path / "demo/report.html"
    parsed = Page(page.read_text())
    assert parsed.tags.count("svg") == 18  # ten of learning, six of speed, success, PSNR by frame
    assert parsed.tags.count("video") == 2
    assert parsed.tags.count("img") == 1
    for text in (
        "75 %",
        "resumed, TP 1 x DP 2, ZeRO-3",
        "120 steps",
        "PSNR 24.5 dB",
        "step_00000120",
        "2.13.0",
        "new episodes",
        "new tasks",
        "feed-forward",
        "rank 7",
        "0.35 s",
        "not measured",
        "GPU reserved",
        "since the last start",
        "Waiting for data, a step",
    ):
        assert text in parsed.text
    assert [p.name for p in page.parent.glob("*.tmp")] == []


def test_held_out_splits_are_drawn_beside_the_training(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "demo"))
    charts = learning_charts(run)
    lines = {chart.title: [series.label for series in chart.series] for chart in charts}
    assert lines["Loss of actions"] == ["training", "new episodes", "new tasks"]
    assert lines["Loss of images"] == ["training", "new episodes"], "what has no label has no curve"
    assert lines["Error of the action head"] == ["training", "new episodes", "new tasks"]
    assert all(len(chart.marks) == 1 for chart in charts), "only the resume is marked"
    assert [len(chart.series) for chart in charts if chart.unit == "by group"] == [6, 6]
    assert history(run) == ["Resumed at step 60 on TP 1 x DP 2, ZeRO-3."]


def test_losses_of_several_data_sets_have_a_chart_of_their_own(tmp_path: Path) -> None:
    names = [f"robot_{number}" for number in range(7)]
    lines = [{"step": step, **{f"loss_action/{name}": 2.0 / step for name in names}} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (chart,) = learning_charts(read_run(tmp_path))
    assert (chart.title, chart.unit) == ("Loss of actions", "nats a token, by data set")
    assert [series.label for series in chart.series] == names
    assert {series.tone for series in chart.series} == {1, 2, 3, 4, 5, 6}
    assert list(chart.series[0].points) == [(1.0, 2.0), (2.0, 1.0)]


def test_speed_shows_only_what_was_measured(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "demo"))
    charts = {chart.title: chart for chart in speed_charts(run)}
    assert len(charts["Stall by checkpoints"].series[0].points) == 2
    assert charts["Stall by checkpoints"].series[0].dots
    assert [series.label for series in charts["Own time of the ranks"].series] == [
        "median",
        "90 %",
        "slowest",
    ]
    (run.path / "metrics.jsonl").write_text('{"step": 1, "tokens_per_second": 5, "mfu": 0.1}\n')
    titles = [chart.title for chart in speed_charts(read_run(run.path))]
    assert titles == ["Throughput", "Model FLOPs utilisation"]


def test_page_states_that_assets_were_standins(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    assert "stand-in" not in Page(write_report(run).read_text()).text
    for path in run.glob("eval/step_*/results.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"standin_assets": True}))
    assert "assets are stand-ins" in Page(write_report(run).read_text()).text


def test_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    parsed = Page(write_report(write_run(tmp_path / "demo")).read_text())
    assert "script" not in parsed.tags
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "poster"):
            assert re.match(r"data:(image/png|image/jpeg|video/mp4);base64,|#video-\d+$", value or "")
        if name == "xlink:href":
            assert re.match(r"#\w+$", value or "")
    assert HOSTILE in parsed.text  # shown as text, in full, unevaluated


def test_name_of_the_folder_is_escaped(tmp_path: Path) -> None:
    parsed = Page(write_report(write_run(tmp_path / "<b onmouseover=x>&amp;")).read_text())
    assert "b" not in parsed.tags or "onmouseover" not in dict(parsed.attributes)
    assert "<b onmouseover=x>&amp;" in parsed.text


@pytest.mark.parametrize("keep", ["config.yaml", "metrics.jsonl"])
def test_unfinished_run_has_a_page_too(tmp_path: Path, keep: str) -> None:
    run = tmp_path / "demo"
    run.mkdir()
    (run / keep).write_text(metrics_line(1) + "\n" if keep.endswith("jsonl") else "run: {}\n")
    text = Page(write_report(run).read_text()).text
    assert "No checkpoint was evaluated" in text


def test_unfinished_last_line_and_non_finite_values_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 121, "loss": NaN, "loss_action": NaN}\n{"step": 122, "loss": 0.')
    assert len(read_run(run).steps) == 121
    assert "NaN" not in Page(write_report(run).read_text()).text


def test_missing_success_rate_is_not_shown_as_zero(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    results = run / "eval/step_00000120/results.json"
    content = json.loads(results.read_text())
    results.write_text(json.dumps({**content, "successes": 0, "errors": 4, "success_rate": None}))
    text = Page(write_report(run).read_text()).text
    assert "not measured" in text
    assert "counted as errors, not as failures" in text


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.yaml, no metrics\.jsonl and no results\.json"):
        write_report(tmp_path)
    run = write_run(tmp_path / "demo")
    (run / "metrics.jsonl").write_text(metrics_line(1) + "\n{oops}\n" + metrics_line(2) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2"):
        write_report(run)
    (run / "metrics.jsonl").write_text("")
    (run / "eval/step_00000060/results.json").write_text("[]")
    with pytest.raises(InputError, match=r"results\.json: found \[\], expected a JSON object"):
        write_report(run)


def test_failing_episodes_come_first_and_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / "eval/step_00000120/results.json"
    results = json.loads(path.read_text())
    failing = {"task": 0, "initial_state": 1, "success": False, "steps": 120, "error": None}
    results["per_episode"] += [
        {**failing, "video": "z_failure.mp4"},
        {**failing, "initial_state": 2, "video": "a_failure.mp4"},
        {**failing, "task": 1, "error": HOSTILE, "video": None},
    ]
    results["per_task"][1]["number"] = 1
    path.write_text(json.dumps(results))
    for name in ("z_failure.mp4", "a_failure.mp4"):
        (path.parent / name).write_bytes(b"a video")
    tiles = videos(read_run(run))[0]
    rows, num_omitted = failure_rows(read_run(run), {tile.file: tile.anchor for tile in tiles})
    assert [(row.task, row.initial_state, row.outcome, row.video, row.anchor) for row in rows] == [
        ("task 0", "1", "not solved in 120 steps", "z_failure.mp4", "video-1"),
        ("lift the cube", "1", f"error: {HOSTILE}", "no video", None),
    ]
    assert num_omitted == 0
    assert [tile.caption for tile in tiles[:3]] == [
        "robosuite_lift, task 0, step 120, initial state 1: not solved in 120 steps",
        "robosuite_lift, task 0, step 120, initial state 2: not solved in 120 steps",
        "robosuite_lift, task 0, step 120, initial state 3: solved in 47 steps",
    ]
    parsed = Page(write_report(run).read_text())
    assert ("href", "#video-1") in parsed.attributes
    assert ("id", "video-1") in parsed.attributes
    assert "script" not in parsed.tags


def test_published_rates_stand_beside_the_measured_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / "eval/step_00000120/results.json"
    content = json.loads(path.read_text()) | {"suite": "libero_10"}
    content |= {"success_rate": 0.6, "wilson_95": [0.55, 0.65], "published_differences": []}
    path.write_text(json.dumps(content))
    rows = {row.model: row for row in reproduction_rows(read_run(run))}
    inside, outside = rows["WorldVLA 256 px"], rows["RynnVLA-002 discrete"]
    assert (inside.published, inside.measured, inside.interval) == ("59.0 %", "60.0 %", "55.0 to 65.0 %")
    assert (inside.verdict, outside.verdict) == ("inside the interval", "outside the interval")
    assert len(rows) == 6
    assert "<td>outside the interval</td>" in write_report(run).read_text()
    path.write_text(json.dumps(content | {"published_differences": ["soft resets, not hard ones"]}))
    assert "<td>not comparable: soft resets, not hard ones</td>" in write_report(run).read_text()
    path.write_text(json.dumps(content | {"suite": "robosuite_lift"}))
    assert reproduction_rows(read_run(run)) == []


def test_runs_are_compared_on_one_page(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two" / "<b>two")
    page = write_comparison([one, two], tmp_path / "page.html")
    text = page.read_text()
    parsed = Page(text)
    assert "script" not in parsed.tags
    assert "<b>two" not in text
    charts = comparison_charts([read_run(one), read_run(two)], ["one", "two"])
    assert [chart.title for chart in charts] == [
        "Success on robosuite_lift",
        "Loss of actions",
        "Loss of images",
    ]
    assert [len(series.intervals) for series in charts[0].series] == [2, 2]
    (row,) = [row for row in task_comparison([read_run(one), read_run(two)]) if row.task == "lift the cube"]
    assert row.cells == ("0/2 (-)", "0/2 (-)")


def test_the_page_of_a_run_can_be_elsewhere(tmp_path: Path) -> None:
    run, page = write_run(tmp_path / "run"), tmp_path / "été #1.html"
    run_report(ReportConfig(run=str(run), out=str(page)), invocation())
    assert page.read_text() == write_report(run).read_text()
    made = write_report(run, tmp_path / "elsewhere" / "page.html")
    assert made.read_text() == page.read_text()
    assert write_report(run, "") == write_report(run)
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    with pytest.raises(InputError, match=r"cannot write the report \(.*\); choose a writable place"):
        write_report(run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "checkpoints", "page"])
def test_a_page_replaces_no_file_of_another_kind(tmp_path: Path, name: str) -> None:
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for config in (ReportConfig(run=str(run)), ReportConfig(runs=[str(run), str(other)])):
        with pytest.raises(InputError, match=f"{name}: expected the name of a file that ends in .html"):
            run_report(replace(config, out=str(run / name)), invocation())
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def invocation() -> Invocation:
    return Invocation(Console(file=io.StringIO()), False, (), False)


def test_comparison_needs_several_runs_and_makes_its_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(InputError, match="found 1, expected 2 to 4"):
        write_comparison([run], tmp_path / "page.html")
    assert write_comparison([run, run], tmp_path / "elsewhere" / "page.html").exists()


def test_scores_over_the_published_numbers_of_frames_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / "eval/step_00000120/imagine.json"
    horizon = {"frames": 10, "psnr": 29.5, "ssim": 0.9, "lpips": None, "fvd": 255.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"horizons": [horizon]}))
    text = write_report(run).read_text()
    assert "<td>this checkpoint</td>" in text
    for value in ("255", "29.5", "0.9", "-"):
        assert f'<td class="n">{value}</td>' in text


def test_rollouts_of_trained_weights_are_shown_beside_those_of_the_average(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    averaged = run / "eval/step_00000120"
    shutil.copytree(averaged, run / "eval/step_00000120-trained")
    file = averaged / "imagine.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": "averaged (decay 0.99)"}))
    text = write_report(run).read_text()
    captions = re.findall(r"<figcaption>(Step 120, episode [^<]*)</figcaption>", text)
    assert ["averaged weights" in caption for caption in captions] == [True, False]
    assert ["trained weights" in caption for caption in captions] == [False, True]
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
