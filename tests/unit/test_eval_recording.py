"""One episode as it is recorded, its statistics, and the data set made of recorded episodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from data.config import SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.sources.registry import read_demonstrations
from eval.policy.expert_policy import ExpertPolicy
from eval.recording import lerobot_writer
from eval.recording.lerobot_format import CAMERA_FEATURES
from eval.recording.lerobot_writer import write_data_set
from eval.recording.recorded_episode import CAMERAS, RecordedEpisode, episode_folder
from eval.recording.recorder import EpisodeRecorder, RecordingPlace
from eval.recording.statistics import FeatureStatistics, FrameStatistics
from eval.rollout.episode import EpisodeResult, run_episode
from tests.support.fake_simulator import FakeSimulator
from tests.support.full_disk import MESSAGE
from tests.support.lerobot_layout import PIXELS

LEVELS = 12  # of red between two steps, more than the codec loses
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)


class ColourfulSimulator(FakeSimulator):
    """Its frames tell step and camera."""

    def render(self, camera: str, pixels: int) -> np.ndarray:
        frame = super().render(camera, pixels)
        frame[..., 0] *= LEVELS
        frame[..., 1] = 200 if camera == "wrist" else 50
        return frame


def record(
    folder: Path, initial_state: int, instruction: str = "lift the fake cube"
) -> tuple[EpisodeResult, ColourfulSimulator]:
    """Run the expert once and record it."""
    simulator = ColourfulSimulator()
    simulator.task = replace(simulator.task, instruction=instruction)
    recorder = EpisodeRecorder(RecordingPlace(folder, PIXELS), lambda: None)
    result = run_episode(simulator, ExpertPolicy(), initial_state, observer=recorder)
    return recorder.store(result, simulator.task), simulator


def recorded(folder: Path, *initial_states: int) -> list[RecordedEpisode]:
    for state in initial_states:
        record(folder, state)
    return [RecordedEpisode.read(episode_folder(folder, 0, state)) for state in initial_states]


def read(data_set: Path) -> list[Demonstration]:
    """The data set by this project's own reader."""
    return list(read_demonstrations(SourceConfig(source=str(data_set))))


def rows_of(data_set: Path, name: str = "data/chunk-000/file-000.parquet") -> dict[str, list[Any]]:
    return pq.read_table(data_set / name).to_pydict()


def test_an_episode_is_recorded_as_the_policy_met_it_and_stays_the_same(tmp_path: Path) -> None:
    alone = run_episode(FakeSimulator(), ExpertPolicy(), 2)
    result, simulator = record(tmp_path, 2)
    assert (result.actions_sha256, result.steps, result.success) == (alone.actions_sha256, alone.steps, True)
    assert result.recording_error is None
    assert simulator.renders == [
        (step, camera, PIXELS) for step in range(result.steps) for camera in ("agent", "wrist")
    ]
    episode = RecordedEpisode.read(episode_folder(tmp_path, 0, 2))
    np.testing.assert_array_equal(episode.actions, np.array(simulator.actions, np.float32))
    assert episode.states.shape == (result.steps, 8)
    np.testing.assert_array_equal(episode.states[0][:3], np.array([0.0, 0.0, 0.2], np.float32))
    moved = episode.states[0][:3] + 0.05 * episode.actions[0][:3]
    np.testing.assert_allclose(episode.states[1][:3], moved, atol=1e-6)
    assert (episode.initial_state, episode.success) == (2, True)
    assert episode.actions_sha256 == result.actions_sha256


def test_frames_are_found_by_their_time(tmp_path: Path) -> None:
    (episode,) = recorded(tmp_path, 1)
    for camera in CAMERAS:
        with av.open(str(episode.video(camera))) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            assert (stream.average_rate, stream.frames) == (20, episode.length)
            assert stream.codec_context.name == "h264"
        assert [frame.time for frame in frames] == [step / 20 for step in range(episode.length)]
        assert [frame.key_frame for frame in frames] == [step % 2 == 0 for step in range(episode.length)]


def test_an_episode_that_broke_down_is_not_recorded(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(RecordingPlace(tmp_path, PIXELS), lambda: None)
    simulator = FakeSimulator(breaks_at=3)
    result = run_episode(simulator, ExpertPolicy(), 0, observer=recorder)
    assert recorder.store(result, simulator.task).error == "the fake simulator failed"
    assert list(tmp_path.iterdir()) == []


def test_the_data_set_is_read_as_the_episodes_were_run(tmp_path: Path) -> None:
    results = {state: record(tmp_path / "episodes", state) for state in (0, 3)}
    episodes = [RecordedEpisode.read(episode_folder(tmp_path / "episodes", 0, state)) for state in results]
    write_data_set(tmp_path / "set", episodes, PIXELS)
    demonstrations = read(tmp_path / "set")
    assert len(demonstrations) == 2
    for demonstration, (result, simulator) in zip(demonstrations, results.values(), strict=True):
        assert demonstration.instruction == "lift the fake cube"
        np.testing.assert_array_equal(demonstration.actions, np.array(simulator.actions, np.float32))
        assert sorted(demonstration.frames) == ["agent", "wrist"]
        for camera, green in (("agent", 50), ("wrist", 200)):
            frames = demonstration.frames[camera].astype(int)
            assert frames.shape == (result.steps, PIXELS, PIXELS, 3)
            expected = np.array([[LEVELS * step, green, step] for step in range(result.steps)])
            assert np.abs(frames - expected[:, None, None]).max() < LEVELS / 2, "no frame is of another step"


def test_rows_metadata_and_tasks_are_those_of_the_format(tmp_path: Path) -> None:
    lengths = [record(tmp_path / "episodes", state)[0].steps for state in (0, 1)]
    lengths.append(record(tmp_path / "episodes", 2, "lift it again")[0].steps)
    episodes = [RecordedEpisode.read(episode_folder(tmp_path / "episodes", 0, n)) for n in range(3)]
    episodes[1] = replace(episodes[1], success=False)
    write_data_set(tmp_path / "set", episodes, PIXELS)
    rows, total = rows_of(tmp_path / "set"), sum(lengths)
    ends = np.cumsum(lengths) - 1
    assert rows["index"] == list(range(total))
    assert np.flatnonzero(rows["next.done"]).tolist() == ends.tolist()
    assert np.flatnonzero(rows["next.success"]).tolist() == [ends[0], ends[2]]
    assert [rows["task_index"][end] for end in ends] == [0, 0, 1]
    assert rows["frame_index"][: lengths[0] + 1] == [*range(lengths[0]), 0]
    np.testing.assert_array_equal(rows["timestamp"][:3], np.array([0.0, 0.05, 0.1], np.float32))
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 20, "panda")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, total, 2)
    assert info["splits"] == {"train": "0:3"}
    assert set(info["features"]) == {*rows, *CAMERA_FEATURES.values()}
    for feature in info["features"].values():
        assert (
            feature["names"] is None
            or len(feature["names"]) == feature["shape"][-1]
            or (feature["dtype"] == "video")
        )
    tasks = pq.read_table(tmp_path / "set/meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "task": ["lift the fake cube", "lift it again"]}
    assert json.loads((tasks.schema.metadata or {})[b"pandas"])["index_columns"] == ["task"]
    described = rows_of(tmp_path / "set", "meta/episodes/chunk-000/file-000.parquet")
    assert described["length"] == lengths
    assert described["dataset_to_index"] == np.cumsum(lengths).tolist()
    assert described["initial_state"] == [0, 1, 2]
    assert described["success"] == [True, False, True]
    for feature in CAMERA_FEATURES.values():
        assert described[f"videos/{feature}/file_index"] == [0, 1, 2]
        assert described[f"videos/{feature}/to_timestamp"] == [length / 20 for length in lengths]


def test_files_and_chunks_of_a_large_set_are_numbered_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = recorded(tmp_path / "episodes", 0, 1, 2)
    monkeypatch.setattr(lerobot_writer, "FILES_PER_CHUNK", 2)
    monkeypatch.setattr(lerobot_writer, "_ROWS_PER_FILE", episodes[0].length + episodes[1].length)
    write_data_set(tmp_path / "set", episodes, PIXELS)
    files = sorted(str(file.relative_to(tmp_path / "set")) for file in (tmp_path / "set").rglob("*-0*/*"))
    wrist = CAMERA_FEATURES["wrist"]
    assert [file for file in files if file.startswith("data")] == [
        "data/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
    ]
    assert [file for file in files if wrist in file] == [
        f"videos/{wrist}/chunk-000/file-000.mp4",
        f"videos/{wrist}/chunk-000/file-001.mp4",
        f"videos/{wrist}/chunk-001/file-000.mp4",
    ]
    demonstrations = read(tmp_path / "set")
    for demonstration, episode in zip(demonstrations, episodes, strict=True):
        np.testing.assert_array_equal(demonstration.actions, episode.actions)


def test_statistics_are_numpys_over_all_steps(tmp_path: Path) -> None:
    episodes = recorded(tmp_path / "episodes", 0, 4)
    write_data_set(tmp_path / "set", episodes, PIXELS)
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    described = rows_of(tmp_path / "set", "meta/episodes/chunk-000/file-000.parquet")
    actions = [episode.actions.astype(np.float64) for episode in episodes]
    every = np.concatenate(actions)
    for name, function in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
        np.testing.assert_allclose(stats["action"][name], function(every, axis=0), atol=1e-7)
        for number, one in enumerate(actions):
            found = described[f"stats/action/{name}"][number]
            np.testing.assert_allclose(found, function(one, axis=0), atol=1e-7)
    assert stats["action"]["count"] == [len(every)]
    assert (stats["next.done"]["min"], stats["next.done"]["max"]) == ([False], [True])
    steps = LEVELS * np.concatenate([np.arange(len(one)) for one in actions])
    red, green, _ = np.array(stats[CAMERA_FEATURES["wrist"]]["mean"])
    np.testing.assert_allclose([red, green], [[[steps.mean() / 255]], [[200 / 255]]])
    np.testing.assert_allclose(stats[CAMERA_FEATURES["agent"]]["std"][0], [[steps.std() / 255]], atol=1e-9)


def test_statistics_of_frames_are_fractions_by_channel() -> None:
    statistics = FrameStatistics()
    for frame in FRAMES:
        statistics.add(frame)
    result = statistics.result()
    pixels = FRAMES.reshape(-1, 3) / 255
    for found, function in zip(
        (result.minimum, result.maximum, result.mean, result.std),
        (np.min, np.max, np.mean, np.std),
        strict=True,
    ):
        assert found.shape == (3, 1, 1)
        np.testing.assert_allclose(found.ravel(), function(pixels, axis=0))
    assert result.count == len(FRAMES)


def test_combined_statistics_are_those_of_all_steps_together() -> None:
    values = np.random.default_rng(1).normal(size=(30, 2))
    parts = [FeatureStatistics.of_values(part) for part in (values[:3], values[3:20], values[20:])]
    whole, combined = FeatureStatistics.of_values(values), FeatureStatistics.combined(parts)
    np.testing.assert_allclose(combined.mean, whole.mean)
    np.testing.assert_allclose(combined.std, whole.std)
    np.testing.assert_array_equal(combined.maximum, whole.maximum)
    assert combined.count == 30


def test_videos_are_linked_and_copied_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (episode,) = recorded(tmp_path / "episodes", 0)
    write_data_set(tmp_path / "linked", [episode], PIXELS)

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    write_data_set(tmp_path / "copied", [episode], PIXELS)
    name = f"videos/{CAMERA_FEATURES['agent']}/chunk-000/file-000.mp4"
    assert (tmp_path / "linked" / name).samefile(episode.video("agent"))
    assert not (tmp_path / "copied" / name).samefile(episode.video("agent"))
    assert (tmp_path / "copied" / name).read_bytes() == episode.video("agent").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, MESSAGE)

    monkeypatch.setattr("os.link", full)
    with pytest.raises(OSError, match=MESSAGE):
        write_data_set(tmp_path / "none", [episode], PIXELS)


def test_an_episode_that_cannot_be_recorded_keeps_its_outcome(tmp_path: Path) -> None:
    folder = episode_folder(tmp_path, 0, 0)
    folder.write_text("in the way")
    result, _ = record(tmp_path, 0)
    assert (result.success, result.error) == (True, None)
    assert result.recording_error == f"{folder}: Not a directory"
    folder.unlink()
    result, _ = record(tmp_path, 0)
    assert result.recording_error is None
    record(tmp_path, 0)
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name], "an older recording is replaced"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("episode.json", b"{"),
        ("episode.json", b'{"length": 9}'),
        ("steps.npz", b"PK"),
        ("steps.npz", b""),
    ],
)
def test_a_damaged_recording_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (episode,) = recorded(tmp_path, 0)
    (episode.folder / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^{episode.folder}/(episode\.json|steps\.npz): "):
        RecordedEpisode.read(episode.folder)
    (episode.folder / name).unlink()
    with pytest.raises(InputError, match=rf"^{episode.folder}/{name}: a recorded episode is damaged"):
        RecordedEpisode.read(episode.folder)


def test_every_camera_has_a_name_that_readers_know() -> None:
    assert set(CAMERA_FEATURES) == set(CAMERAS)
