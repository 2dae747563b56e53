from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data.files import is_disk_full
from data.tokens.action import ACTION_MAX, ACTION_MIN
from eval.evaluation.provenance import Provenance
from eval.evaluation.reproduction import reproduction_table
from eval.evaluation.results import Results, results_table, wilson, write_results
from eval.rollout.episode import EpisodeResult
from eval.simulator.provenance import TESTED_VERSIONS, version_notes
from eval.video import write_video
from tests.support.fake_simulator import TASK
from tests.support.full_disk import MESSAGE, fill


def results(*episodes: EpisodeResult, suite: str = "fake") -> Results:
    return Results(suite, 100, "expert", (TASK,), episodes, {"mujoco": "3"}, True)


def episode(state: int, success: bool, error: str | None = None) -> EpisodeResult:
    return EpisodeResult(0, state, success, 10 + state, error, 0.5)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson_interval(successes: int, trials: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, trials) == pytest.approx(expected, abs=1e-4)


def test_errors_count_neither_as_success_nor_as_failure(tmp_path: Path) -> None:
    outcome = results(episode(0, True), episode(1, False), episode(2, False, "broke"))
    path = write_results(outcome, tmp_path / "eval")
    content = json.loads(path.read_text())
    assert (content["episodes"], content["successes"], content["errors"]) == (3, 1, 1)
    assert content["success_rate"] == 0.5
    assert content["per_task"][0]["mean_steps_to_success"] == 10
    assert [row["error"] for row in content["per_episode"]] == [None, None, "broke"]
    assert content["seeds"] == [0, 1, 2]
    assert content["standin_assets"] is True
    assert content["step"] == 100
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_no_regular_episode_gives_no_rate() -> None:
    outcome = results(episode(0, False, "broke"))
    assert outcome.success_rate is None
    json.dumps(outcome.to_json(), allow_nan=False)


def test_table_shows_counts_without_errors() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(results_table(results(episode(0, True), episode(1, False, "broke"))))
    text = console.export_text()
    assert "lift the fake cube" in text
    assert "1/1" in text
    assert "stand-ins" in text


def test_tasks_of_one_instruction_are_told_apart_by_name() -> None:
    tasks = [replace(TASK, number=0, name="lift_noise_3"), replace(TASK, number=1, name="lift_noise_7")]
    outcome = replace(results(episode(0, True)), tasks=(*tasks, replace(TASK, number=2, instruction="push")))
    console = Console(width=100, record=True)
    console.print(results_table(outcome))
    text = console.export_text()
    assert all(name in text for name in ("lift_noise_3", "lift_noise_7", "push"))
    assert TASK.instruction not in text


def test_published_rates_are_listed() -> None:
    outcome = results(episode(0, True), suite="libero_goal")
    assert outcome.to_json()["published"]["WorldVLA 512 px"] == 0.834
    assert results(episode(0, True), suite="libero_90").to_json()["published"] == {}


def test_video_holds_its_frames(tmp_path: Path) -> None:
    import av

    frames = [np.full((64, 48, 3), 40 * i, np.uint8) for i in range(5)]
    write_video(tmp_path / "a.mp4", frames, 10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(shown) == 5
    assert abs(int(shown[3].mean()) - 120) < 4
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_video_of_odd_size_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even sizes"):
        write_video(tmp_path / "a.mp4", [np.zeros((63, 64, 3), np.uint8)], 10)
    assert list(tmp_path.iterdir()) == []


def test_video_on_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    fill(tmp_path / "a.mp4")
    with pytest.raises(OSError, match=MESSAGE) as raised:
        write_video(tmp_path / "a.mp4", [np.zeros((64, 64, 3), np.uint8)], 10)
    assert is_disk_full(raised.value)
    assert raised.value.filename == str(tmp_path / "a.mp4")


SETTINGS = {
    "cameras": ["wrist"],
    "history": 1,
    "chunk": 4,
    "pixels": 64,
    "action_ranges": {"minimum": list(ACTION_MIN), "maximum": list(ACTION_MAX)},
    "image_tokenizer_sha256": "a" * 64,
    "text_tokenizer_sha256": "b" * 64,
}
PROVENANCE = Provenance("osmesa (Mesa)", "soft", "recomputed", {"mujoco": "3.3.2"}, SETTINGS)


def test_results_name_what_the_outcomes_depend_on() -> None:
    content = replace(results(episode(0, True)), provenance=PROVENANCE, notes=("unverified",)).to_json()
    assert content["renderer"] == "osmesa (Mesa)"
    assert (content["reset"], content["observations"]) == ("soft", "recomputed")
    assert content["policy_settings"] == SETTINGS
    assert content["notes"] == ["unverified"]
    json.dumps(content)
    several = replace(PROVENANCE, policy_settings={**SETTINGS, "embodiment": "aloha"})
    assert str(several).startswith("embodiment aloha, camera wrist, history 1")
    assert str(PROVENANCE) == (
        "camera wrist, history 1, chunk 4, 64 px, action ranges worldvla, image tokenizer aaaaaaaaaaaa, text "
        "tokenizer bbbbbbbbbbbb; osmesa (Mesa), soft resets, observations recomputed, mujoco 3.3.2"
    )
    rounded = replace(PROVENANCE, precision="bf16")
    assert "text tokenizer bbbbbbbbbbbb, bf16; osmesa (Mesa)" in str(rounded)
    assert replace(results(episode(0, True)), provenance=rounded).to_json()["precision"] == "bf16"
    other = {**SETTINGS, "action_ranges": {"minimum": [-1.0] * 7, "maximum": [1.0] * 7}}
    assert "action ranges the data set's own," in str(replace(PROVENANCE, policy_settings=other))


def test_published_rates_are_marked_with_what_is_other_here() -> None:
    outcome = replace(
        results(episode(0, True), suite="libero_goal"),
        provenance=PROVENANCE,
        notes=("mujoco 3.4.0 is not the tested 3.3.2",),
        horizon=39,
    )
    assert outcome.to_json()["published_differences"] == [
        "1 tasks of at least 1 initial states, not 10 of 50",
        "a horizon of 39 steps, not the suite's",
        "some assets are stand-ins",
        "soft resets, not hard ones",
        "observations=recomputed, not published",
    ]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(results_table(outcome))
    console.print(reproduction_table(outcome.suite, outcome.reproduction()))
    text = " ".join(console.export_text().split())
    assert "camera wrist, history 1, chunk 4" in text
    assert re.search(
        r"WorldVLA 512 px \W+ 83\.4 % \W+ 100\.0 % \W+ 20\.7-100\.0 % \W+ not comparable \*", text
    )
    assert "* not the published protocol; here: 1 tasks of at least 1 initial states" in text
    assert "mujoco 3.4.0 is not the tested 3.3.2" in text
    assert results(episode(0, True)).published_differences() == []


def test_versions_other_than_the_tested_ones_are_noted() -> None:
    assert version_notes(TESTED_VERSIONS) == ()
    assert version_notes({"fake": "1"}) == ()
    (note,) = version_notes({**TESTED_VERSIONS, "mujoco": "3.4.0"})
    assert note.startswith("mujoco 3.4.0 is not the tested 3.3.2")
    assert note.endswith("(pip install mujoco==3.3.2)")


def test_the_tested_versions_are_those_that_are_installed_by_the_instructions() -> None:
    root = Path(__file__).parents[2]
    names = ("constraints.txt", "requirements-simulators.txt")
    pinned = [line.strip() for name in names for line in (root / name).read_text().splitlines()]
    assert all(f"{package}=={version}" in pinned for package, version in TESTED_VERSIONS.items())
