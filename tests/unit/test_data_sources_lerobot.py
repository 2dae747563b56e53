"""LeRobot data sets of every layout are read as written; damaged ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.config import PrepareCommandConfig
from data.config import CameraNames, SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.prepare.parts import plan_parts
from data.sources.registry import open_source, read_demonstrations
from pretrain.settings import compose
from tests.support.lerobot_layout import CAMERAS, Recorded, recorded, write_lerobot, write_video

VIDEO_ERROR = 6  # grey levels that the encoder may lose; neighbouring frames differ by dozens


def episodes() -> list[Recorded]:
    return [recorded(7, 0), recorded(5, 1, "Push  the CUBE"), recorded(9, 2)]


def read(folder: Path, **settings: Any) -> list[Demonstration]:
    return list(read_demonstrations(SourceConfig(str(folder), **settings)))


@pytest.mark.parametrize(
    ("version", "stored", "codec", "error"),
    [
        ("v2.0", "image", "", 0),
        ("v2.1", "video", "libx264", VIDEO_ERROR),
        ("v2.1", "image", "", 0),
        ("v3.0", "video", "libx264", VIDEO_ERROR),
        ("v3.0", "video", "libsvtav1", VIDEO_ERROR),
        ("v3.0", "image", "", 0),
    ],
)
def test_demonstrations_are_read_as_they_were_written(
    tmp_path: Path, version: str, stored: str, codec: str, error: int
) -> None:
    written = episodes()
    found = read(write_lerobot(tmp_path / "cube set", version, written, stored, codec))
    assert [d.key for d in found] == ["episode_000000", "episode_000001", "episode_000002"]
    assert [d.instruction for d in found] == ["lift the cube", "push the cube", "lift the cube"]
    assert [d.task for d in found] == ["Lift_the_cube", "Push_the_CUBE", "Lift_the_cube"]
    assert {d.suite for d in found} == {"cube_set"}
    for demonstration, episode in zip(found, written, strict=True):
        assert np.array_equal(demonstration.actions, episode.action)
        assert np.array_equal(demonstration.states, episode.state)
        assert list(demonstration.frames) == ["agent", "wrist"]
        for frames, camera in zip(demonstration.frames.values(), CAMERAS, strict=True):
            assert frames.dtype == np.uint8
            difference = frames.astype(int) - episode.frames[camera]
            assert np.abs(difference).mean(axis=(1, 2, 3)).max() <= error


@pytest.mark.parametrize("stored", ["image", "video"])
def test_rows_are_sorted_by_their_frame_index(tmp_path: Path, stored: str) -> None:
    written = episodes()
    folder = write_lerobot(tmp_path / "set", "v3.0", written, stored)
    before = read(folder)
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), path)
    for one, two in zip(before, read(folder), strict=True):
        assert np.array_equal(one.actions, two.actions)
        assert np.array_equal(one.states, two.states)
        assert all(np.array_equal(one.frames[camera], two.frames[camera]) for camera in one.frames)


def test_references_are_listed_without_reading_videos(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", "v3.0", episodes())
    for video in folder.rglob("*.mp4"):
        video.unlink()
    references = open_source(SourceConfig(str(folder))).references()
    assert [r.length for r in references] == [7, 5, 9]
    assert {r.cameras for r in references} == {("agent", "wrist")}
    with pytest.raises(InputError, match="mp4: no such file, expected a video"):
        open_source(SourceConfig(str(folder))).read(references[0])
    with pytest.raises(InputError, match=r"file-000\.mp4: cannot be looked up"):  # before anything is encoded
        plan_parts(references, step_bytes=1, limit=1_000_000, settings="")


def test_a_changed_video_makes_its_part_another_one(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", "v2.1", episodes())
    references = open_source(SourceConfig(str(folder))).references()
    before = plan_parts(references, step_bytes=1, limit=1, settings="")
    write_video(next(folder.rglob("*wrist_image/episode_000001.mp4")), recorded(9, 7).frames[CAMERAS[0]])
    after = plan_parts(references, step_bytes=1, limit=1, settings="")
    assert [one.plan == two.plan for one, two in zip(before, after, strict=True)] == [True, False, True]


def test_cameras_states_and_rotation_can_be_chosen(tmp_path: Path) -> None:
    written = episodes()
    folder = write_lerobot(tmp_path / "set", "v2.1", written, "image")
    found = read(
        folder,
        cameras=CameraNames(agent=CAMERAS[1]),
        state=["observation.state"],
        action=["action"],
        rotate=True,
    )
    assert list(found[0].frames) == ["agent"]
    assert np.array_equal(found[0].frames["agent"], written[0].frames[CAMERAS[1]][:, ::-1, ::-1])


def test_the_command_line_names_cameras_and_states() -> None:
    words = ["source=a", "out=b", "cameras={agent:observation.images.image,wrist:w}", "state=[pose,grip]"]
    made = compose("prepare", PrepareCommandConfig, None, words)
    assert made.cameras == CameraNames("observation.images.image", "w")
    assert made.state == ["pose", "grip"]
    assert (
        compose("prepare", PrepareCommandConfig, None, [*words, "cameras.wrist=other"]).cameras.wrist
        == "other"
    )
    assert compose("prepare", PrepareCommandConfig, None, words[:2]).cameras.requested() == {}


def test_a_state_of_several_parts_is_joined(tmp_path: Path) -> None:
    written = episodes()
    folder = write_lerobot(tmp_path / "set", "v2.1", written, "image")
    features = json.loads((folder / "meta/info.json").read_text())
    features["features"] |= {
        "pose": {"dtype": "float32", "shape": [7], "names": None},
        "grip": {"dtype": "float32", "shape": [1], "names": None},
    }
    (folder / "meta/info.json").write_text(json.dumps(features))
    for i, episode in enumerate(written):
        path = folder / f"data/chunk-000/episode_{i:06d}.parquet"
        table = pq.read_table(path).append_column("pose", [list(episode.state[:, :7])])
        pq.write_table(table.append_column("grip", [episode.state[:, 7]]), path)
    assert np.array_equal(read(folder, state=["pose", "grip"])[2].states, written[2].state)
    assert not read(folder, state=[])[2].states.any()
    changed_info(lambda info: info["features"]["grip"].update(shape=[2]))(folder)
    with pytest.raises(
        InputError, match=r"pose \+ grip has shape \(7, 8\), expected numbers \[T, 9\]; .*state=\[\]"
    ):
        read(folder, state=["pose", "grip"])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"cameras": CameraNames(agent="top")},
            r"no camera 'top' for agent, the data set has observation\.images",
        ),
        ({"action": ["torque"]}, r"no torque among .*; name the right one with action=NAME"),
        ({"state": ["pose"]}, r"no pose among .*; name the right one with state=\[NAME\]"),
        ({"drop_first": "always"}, r"drop_first=always: is for RLDS only, .* is lerobot"),
        ({"format": "rlds"}, "dataset_info.json: cannot be read"),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    folder = write_lerobot(tmp_path / "set", "v2.1", episodes()[:1], "image")
    with pytest.raises(InputError, match=reason):
        read(folder, **settings)


def changed_info(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "meta" / "info.json"
        info = json.loads(path.read_text())
        change(info)
        path.write_text(json.dumps(info))

    return damage


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = next(folder.rglob(name))
        path.write_bytes(change(path.read_bytes()))

    return damage


def shorter_video(folder: Path) -> None:
    write_video(next(folder.rglob("*.mp4")), recorded(4, 0).frames[CAMERAS[0]])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (changed_info(lambda i: i.update(codebase_version="v1.6")), r"LeRobot format v1\.6, expected v2\.0"),
        (changed_info(lambda i: i.update(fps=0)), "fps is 0, expected a number above 0"),
        (changed_info(lambda i: i.pop("features")), "features"),
        (
            changed_info(lambda i: i.update(data_path="/etc/{episode_index}")),
            "expected a path in the data set",
        ),
        (changed_info(lambda i: i.update(data_path="../{episode_index}")), "expected a path in the data set"),
        (
            changed_info(lambda i: i.update(data_path="{episode_index.real}")),
            "expected a path in the data set",
        ),
        (changed_info(lambda i: i.update(data_path="{secret}")), "unknown field secret"),
        (rewritten("info.json", lambda b: b[:-9]), "not valid JSON"),
        (
            rewritten("episodes.jsonl", lambda b: b.replace(b'["Lift the cube"]', b'["a", "b"]')),
            "2 different instructions",
        ),
        (rewritten("episodes.jsonl", lambda b: b.replace(b"Lift the cube", b" ")), "instruction is empty"),
        (rewritten("episodes.jsonl", lambda b: b.replace(b'"length": 7', b'"length": 8')), "expected 8"),
        (
            rewritten("episodes.jsonl", lambda b: b + b),
            r"meta/episodes\) name episode 0 several times, 1 epis",
        ),
        (rewritten("*.parquet", lambda b: b[:200]), "not a readable Parquet table"),
        (rewritten("*.mp4", lambda b: b[:200]), "not a readable video"),
        (shorter_video, r"no frame at 0\.400 s .*time step 4 of 7"),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    folder = write_lerobot(tmp_path / "set", "v2.1", episodes()[:1])
    damage(folder)
    with pytest.raises(InputError, match=reason):
        read(folder)


def test_frames_in_the_middle_of_a_long_video_are_the_right_ones(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", "v3.0", [recorded(20, seed) for seed in range(4)])
    source = open_source(SourceConfig(str(folder)))
    last = source.read(source.references()[3])
    expected = recorded(20, 3).frames[CAMERAS[0]]
    assert np.abs(last.frames["agent"].astype(int) - expected).max() <= 2 * VIDEO_ERROR


@pytest.mark.parametrize(("version", "stored"), [("v3.0", "video"), ("v2.1", "image")])
def test_changed_bytes_anywhere_are_read_or_refused(tmp_path: Path, version: str, stored: str) -> None:
    folder = write_lerobot(tmp_path / "set", version, [recorded(6, 0)], stored)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    random = np.random.default_rng(1)
    refused = 0
    for i in range(80):
        path = files[i % len(files)]
        content = path.read_bytes()
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[random.integers(0, len(content), 12)] = random.integers(0, 256, 12)
        path.write_bytes(damaged.tobytes())
        try:
            read(folder)
        except InputError:
            refused += 1
        path.write_bytes(content)
    assert refused > 30


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("name", ["action", "observation.state", "timestamp"])
def test_a_missing_column_is_named_with_those_that_there_are(tmp_path: Path, version: str, name: str) -> None:
    folder = write_lerobot(tmp_path / "set", version, episodes()[:1], "image")
    path = next((folder / "data").rglob("*.parquet"))
    pq.write_table(pq.read_table(path).drop([name]), path)
    with pytest.raises(
        InputError, match=rf"{path.name}: no column {name}, it has .*frame_index.*its info\.json"
    ):
        read(folder)


@pytest.mark.parametrize("part", ["data", "meta/episodes"])
def test_a_missing_table_is_named(tmp_path: Path, part: str) -> None:
    folder = write_lerobot(tmp_path / "set", "v3.0", episodes()[:1], "image")
    next((folder / part).rglob("*.parquet")).unlink()
    with pytest.raises(InputError, match=r"no such file, expected a Parquet table|no meta/episodes/chunk"):
        read(folder)


def test_an_action_of_several_parts_is_joined(tmp_path: Path) -> None:
    written = episodes()
    folder = write_lerobot(tmp_path / "set", "v2.1", written, "image")
    changed_info(
        lambda info: info["features"].update(
            pose={"dtype": "float32", "shape": [6], "names": None},
            grip={"dtype": "bool", "shape": [1], "names": None},
        )
    )(folder)
    for i, episode in enumerate(written):
        path = folder / f"data/chunk-000/episode_{i:06d}.parquet"
        table = pq.read_table(path).append_column("pose", [list(episode.action[:, :6])])
        pq.write_table(table.append_column("grip", [episode.action[:, 6] > 0]), path)
    found = read(folder, action=["pose", "grip"])
    for demonstration, episode in zip(found, written, strict=True):
        assert np.array_equal(demonstration.actions[:, :6], episode.action[:, :6])
        assert np.array_equal(demonstration.actions[:, 6], episode.action[:, 6] > 0)
    changed_info(lambda info: info["features"]["pose"].update(shape=[5]))(folder)
    with pytest.raises(InputError, match=r"pose has shape \(7, 6\), expected numbers \[T, 5\]"):
        read(folder, action=["pose"])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_episode_of_several_tasks_is_refused_or_one_is_chosen(tmp_path: Path, version: str) -> None:
    folder = write_lerobot(tmp_path / "set", version, episodes()[:2], "image")
    if version == "v2.1":
        rewritten("episodes.jsonl", lambda b: b.replace(b'["Lift the cube"]', b'["Open it", "Close it"]'))(
            folder
        )
    else:
        path = next((folder / "meta/episodes").rglob("*.parquet"))
        table = pq.read_table(path)
        tasks = [["Open it", "Close it"], ["Push  the CUBE"]]
        pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", [tasks]), path)
    with pytest.raises(InputError, match=r"episode 0: 2 different instructions \('Open it', 'Close it'\)"):
        read(folder)
    first, second = read(folder, several_instructions="first")
    assert (first.instruction, first.task, second.instruction) == ("open it", "Open_it", "push the cube")
    assert read(folder, several_instructions="last")[0].instruction == "close it"
    assert [each.instruction for each in read(folder, skip_bad=1.0)] == ["push the cube"]


def test_tasks_in_other_alphabets_are_different_tasks(tmp_path: Path) -> None:
    texts = ["把红色方块放进盒子里", "把绿色方块放进盒子里", "half a pair: \ud83d"]
    written = [recorded(5, number, text) for number, text in enumerate(texts)]
    folder = write_lerobot(tmp_path / "set", "v2.1", written, "image")
    found = read(folder)
    assert len({each.task for each in found}) == 3
    assert [each.instruction for each in found[:2]] == texts[:2]
    assert found[2].instruction.encode().endswith("\N{REPLACEMENT CHARACTER}".encode())
