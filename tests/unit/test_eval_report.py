"""The report: from the run folder alone, one file, hostile text harmless, damage named."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import InputError
from eval.charts import Mark, Series, format_number, line_chart, nice_ticks, thin
from eval.report import write_report
from eval.run_folder import read_run

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def metrics_line(step: int) -> str:
    fall = float(np.exp(-step / 40))
    return json.dumps(
        {
            "step": step,
            "loss": 3 * fall + 1,
            "loss_action": 5 * fall + 0.4,
            "loss_image": 6 * fall + 1.5,
            "loss_structure": fall,
            "accuracy_action": 1 - 0.9 * fall,
            "accuracy_image": 0.7 - 0.6 * fall,
            "gradient_norm": 2 + fall,
            "learning_rate": 1e-3,
            "tokens": step * 16_384,
            "tokens_per_second": 5_200.0,
            "mfu": 0.31,
            "step_time": 1.1,
            "data_wait": 0.01,
        }
    )


def write_run(run: Path) -> Path:
    """A run of 120 steps that was resumed at step 60 and evaluated there and at the end."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"run:\n  name: {HOSTILE}\n")
    lines = [metrics_line(step) for step in range(1, 61)]
    lines.append(
        json.dumps({"event": "resumed", "step": 60, "parallel": {"tensor": 1, "data": 2, "zero_stage": 3}})
    )
    lines += [metrics_line(step) for step in range(61, 121)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run / "summary.json").write_text(
        json.dumps(
            {
                "tokens": 120 * 16_384,
                "tokens_per_second": 5_200.0,
                "mfu": 0.31,
                "parallel": {"tensor": 1, "data": 2, "zero_stage": 3},
                "versions": {"torch": "2.13.0", HOSTILE: HOSTILE},
            }
        )
    )
    for step, successes in ((60, 1), (120, 3)):
        (run / f"checkpoints/step_{step:08d}").mkdir(parents=True)
        folder = run / f"eval/step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(
            json.dumps(
                {
                    "step": step,
                    "suite": "robosuite_lift",
                    "episodes": 4,
                    "successes": successes,
                    "errors": 0,
                    "success_rate": successes / 4,
                    "wilson_95": [max(0.0, successes / 4 - 0.3), min(1.0, successes / 4 + 0.25)],
                    "standin_assets": False,
                    "per_episode": [
                        {
                            "task": 0,
                            "initial_state": 3,
                            "success": True,
                            "steps": 47,
                            "error": None,
                            "video": "task_0_episode_0.mp4",
                        }
                    ],
                    "per_task": [
                        {"instruction": HOSTILE, "successes": successes, "episodes": 2, "errors": 0},
                        {"instruction": "lift the cube", "successes": 0, "episodes": 2, "errors": 0},
                    ],
                }
            )
        )
        (folder / "task_0_episode_0.mp4").write_bytes(b"not really a video")
        (folder / "left_by_an_earlier_evaluation.mp4").write_bytes(b"an old video")
        Image.fromarray(np.full((8, 8, 3), step, np.uint8)).save(folder / "imagine.png")
        (folder / "imagine.json").write_text(
            json.dumps(
                {
                    "episode": HOSTILE,
                    "split": "val_ind",
                    "psnr": 24.5,
                    "ssim": 0.91,
                    "frames": [{"psnr": 30.0 - i, "ssim": 0.9, "held_psnr": 20.0} for i in range(5)],
                }
            )
        )
    return run


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
    found = Page(page.read_text())
    assert found.tags.count("svg") == 8  # six curves, success, PSNR by frame
    assert found.tags.count("video") == 2
    assert found.tags.count("img") == 1
    for text in (
        "75 %",
        "resumed, TP 1 x DP 2, ZeRO-3",
        "120 steps",
        "PSNR 24.5 dB",
        "step_00000120",
        "2.13.0",
    ):
        assert text in found.text
    assert [p.name for p in page.parent.glob("*.tmp")] == []


def test_page_tells_that_assets_were_standins(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    assert "stand-in" not in Page(write_report(run).read_text()).text
    for path in run.glob("eval/step_*/results.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"standin_assets": True}))
    assert "assets are stand-ins" in Page(write_report(run).read_text()).text


def test_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    found = Page(write_report(write_run(tmp_path / "demo")).read_text())
    assert "script" not in found.tags
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert re.match(r"data:(image/png|video/mp4);base64,", value or "")
    assert HOSTILE in found.text  # shown as text, in full, unevaluated


def test_name_of_the_folder_is_escaped(tmp_path: Path) -> None:
    found = Page(write_report(write_run(tmp_path / "<b onmouseover=x>&amp;")).read_text())
    assert "b" not in found.tags or "onmouseover" not in dict(found.attributes)
    assert "<b onmouseover=x>&amp;" in found.text


@pytest.mark.parametrize("keep", ["config.yaml", "metrics.jsonl"])
def test_unfinished_run_has_a_page_too(tmp_path: Path, keep: str) -> None:
    run = tmp_path / "demo"
    run.mkdir()
    (run / keep).write_text(metrics_line(1) + "\n" if keep.endswith("jsonl") else "run: {}\n")
    text = Page(write_report(run).read_text()).text
    assert "No checkpoint was evaluated" in text


def test_torn_last_line_and_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 121, "loss": NaN, "loss_action": NaN}\n{"step": 122, "loss": 0.')
    assert len(read_run(run).steps) == 121
    assert "NaN" not in Page(write_report(run).read_text()).text


def test_rate_that_was_not_measured_is_not_called_zero(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    results = run / "eval/step_00000120/results.json"
    content = json.loads(results.read_text())
    results.write_text(json.dumps({**content, "successes": 0, "errors": 4, "success_rate": None}))
    text = Page(write_report(run).read_text()).text
    assert "not measured" in text
    assert "counted as errors, not as failures" in text


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.yaml"):
        write_report(tmp_path)
    run = write_run(tmp_path / "demo")
    (run / "metrics.jsonl").write_text(metrics_line(1) + "\n{oops}\n" + metrics_line(2) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2"):
        write_report(run)
    (run / "metrics.jsonl").write_text("")
    (run / "eval/step_00000060/results.json").write_text("[]")
    with pytest.raises(InputError, match=r"results\.json: found a JSON list"):
        write_report(run)


def test_chart_places_points_inside_its_frame() -> None:
    chart = line_chart(
        "Loss", "nats", [Series("a", [(0, 1.0), (50, 3.0), (100, float("nan"))])], marks=[Mark(25, "resumed")]
    )
    assert chart is not None
    xs, ys = zip(*(map(float, p.split()) for p in chart.lines[0].path[1:].split("L")), strict=True)
    assert (min(xs), max(xs)) == (chart.left, chart.right)
    assert chart.top <= min(ys) < max(ys) <= chart.bottom
    assert ys[0] > ys[1]  # larger values are higher up
    assert chart.marks[0].position == pytest.approx((chart.left + chart.right) / 2)
    assert chart.lines[0].last == "3"


def test_chart_of_nothing_is_none() -> None:
    assert line_chart("Loss", "", [Series("a", []), Series("b", [(0.0, float("inf"))])]) is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (1e-6, 2e-6), (5, 5), (0, 0), (1e9, 3e9)])
def test_ticks_are_round_and_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12


def test_thinned_curve_keeps_its_mean() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert np.mean(thinned, axis=0) == pytest.approx(np.mean(points, axis=0))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (2e-5, "2e-05"),
        (1500, "1500"),
        (12_000, "12k"),
        (3.14e6, "3.14M"),
        (-2, "-2"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text
