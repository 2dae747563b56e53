"""WebDataset's tar files in: steps and episodes, by keys and by fields, in several files, and damage."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import CameraNames, SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.recipe_settings import Operation, Part
from data.sources.registry import open_source, read_demonstrations
from tests.support.lerobot_layout import CAMERAS, Recorded, recorded
from tests.support.webdataset_layout import mp4, png, step_sample, write_episodes, write_steps, writer


def read(source: Path, **settings: Any) -> list[Demonstration]:
    return list(read_demonstrations(SourceConfig(str(source), **settings)))


def assert_same(found: Demonstration, wanted: Recorded, loss: float = 0) -> None:
    assert np.array_equal(found.actions, wanted.action.astype(np.float64))
    assert np.array_equal(found.states, wanted.state)
    assert found.instruction == wanted.task.lower()
    for camera, name in zip(("agent", "wrist"), CAMERAS, strict=True):
        difference = found.frames[camera].astype(int) - wanted.frames[name]
        assert np.abs(difference).mean() <= loss


@pytest.mark.parametrize("arrays", [False, True])
def test_steps_become_episodes_by_their_keys(tmp_path: Path, arrays: bool) -> None:
    written = [recorded(5, 0), recorded(3, 1, "Open the drawer")]
    write_steps(tmp_path / "robot" / "a.tar", [("ep-1", written[0]), ("ep-2", written[1])], arrays)
    found = read(tmp_path / "robot")
    for demonstration, wanted in zip(found, written, strict=True):
        assert_same(demonstration, wanted)
    assert [(each.key, each.suite, each.task) for each in found] == [
        ("a/ep-1", "robot", "lift_the_cube"),
        ("a/ep-2", "robot", "open_the_drawer"),
    ]
    turned = read(tmp_path / "robot", rotate=True, cameras=CameraNames("wrist.png"))[0]
    assert np.array_equal(turned.frames["agent"], written[0].frames[CAMERAS[1]][:, ::-1, ::-1])


def test_samples_that_are_episodes_have_tables_and_videos(tmp_path: Path) -> None:
    written = [recorded(5, 0), recorded(8, 1, "Open the drawer")]
    write_episodes(tmp_path / "a.tar", list(zip(("0", "1"), written, strict=True)))
    for demonstration, wanted in zip(read(tmp_path), written, strict=True):
        assert_same(demonstration, wanted, loss=4)


def test_an_episode_goes_on_in_the_next_file_where_its_steps_count_on(tmp_path: Path) -> None:
    whole = recorded(9, 0)

    def part(first: int, last: int) -> Recorded:
        frames = {name: frames[first:last] for name, frames in whole.frames.items()}
        return Recorded(whole.task, frames, whole.action[first:last], whole.state[first:last])

    write_steps(tmp_path / "shard-000.tar", [("ep", part(0, 4))])
    write_steps(tmp_path / "shard-001.tar", [("ep", part(4, 7))], first=4)
    write_steps(tmp_path / "shard-002.tar", [("ep", part(7, 9))])  # begins at 0: another one
    pattern = tmp_path / "shard-{000..002}.tar"
    first, second = read(pattern)
    assert_same(first, part(0, 7))
    assert_same(second, part(7, 9))
    assert [first.key, second.key] == ["shard-000/ep", "shard-002/ep"]
    assert len(read(tmp_path / "shard-00{0,2}.tar")) == 2
    assert len(read(tmp_path / "shard-000.tar")) == 1
    with pytest.raises(InputError, match=r"shard-003\.tar: cannot be read \(No such file or directory\)"):
        read(tmp_path / "shard-{000..003}.tar")
    with pytest.raises(InputError, match=r"names 100000000 files, expected at most 1000000"):
        read(tmp_path / "shard-{00000000..99999999}.tar")


def test_a_field_tells_episodes_apart_where_keys_do_not(tmp_path: Path) -> None:
    written = [recorded(4, 0), recorded(3, 1)]
    with writer(tmp_path / "a.tar") as out:
        number = 0
        for name, episode in zip(("x", "y"), written, strict=True):
            for step in range(episode.length):
                sample = step_sample(f"{name}_{step}", episode, step)
                out.write({**sample, "__key__": f"{number:08d}"})
                number += 1
    with pytest.raises(InputError, match=r"its key has no `_` .* episode_field=NAME \(json:episode_index\)"):
        read(tmp_path)
    found = read(tmp_path, episode_field="json:episode")
    for demonstration, wanted in zip(found, written, strict=True):
        assert_same(demonstration, wanted)
    assert [each.key for each in found] == ["a/x", "a/y"]


def test_parts_are_joined_and_texts_chosen_as_in_other_formats(tmp_path: Path) -> None:
    episode = recorded(4, 0)
    with writer(tmp_path / "a.tar") as out:
        for step in range(4):
            out.write(
                {
                    "__key__": f"e_{step}",
                    "front.jpg": png(episode.frames[CAMERAS[0]][step]),
                    "meta.json": {
                        "obs": {"pose": episode.state[step, :6].tolist(), "grip": 0.5},
                        "act": {"arm": episode.action[step, :6].tolist(), "open": step % 2 == 0},
                        "words": ["Lift it", "Raise it"],
                    },
                }
            )
    settings = {
        "action": ["meta.json:act/arm", "meta.json:act/open"],
        "state": ["meta.json:obs/pose", "meta.json:obs/grip", "meta.json:obs/grip"],
        "instruction": ["meta.json:words"],
    }
    with pytest.raises(InputError, match=r"2 different instructions .*several_instructions=first"):
        read(tmp_path, **settings)
    (found,) = read(tmp_path, **settings, several_instructions="last")
    assert found.instruction == "raise it"
    assert np.array_equal(found.actions[:, 6], [1, 0, 1, 0])
    assert np.array_equal(found.states[:, 6:], np.full((4, 2), 0.5, np.float32))
    with pytest.raises(InputError, match=r"no json:torque among meta\.json:act/arm, meta\.json:act/open, "):
        read(tmp_path, **{**settings, "action": ["json:torque"]})
    with pytest.raises(InputError, match=r"no camera 'top.jpg' for agent, the data set has front\.jpg"):
        read(tmp_path, **settings, cameras=CameraNames("top.jpg"))


def three_episodes(folder: Path) -> Path:
    return write_steps(folder / "a.tar", [(f"ep{i}", recorded(3, i)) for i in range(3)])


def headers(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return archive.getmembers()


def cut_in(path: Path, name: str) -> None:
    member = next(each for each in headers(path) if each.name == name)
    path.write_bytes(path.read_bytes()[: member.offset_data + 1])


def flip_header(path: Path, name: str) -> None:
    member = next(each for each in headers(path) if each.name == name)
    content = bytearray(path.read_bytes())
    content[member.offset_data - 512] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda p: cut_in(p, "ep1_000001.wrist.png"),
            r"a\.tar: cut short in member ep1_000001\.wrist\.png at ",
        ),
        (
            lambda p: flip_header(p, "ep1_000001.png"),
            r"no whole header .* after member ep1_0000.* at offset \d+",
        ),
        (
            lambda p: p.write_bytes(p.read_bytes()[: headers(p)[17].offset]),
            r"no whole header .*the file ends",
        ),
    ],
)
def test_damage_is_named_and_counts_as_a_bad_episode(tmp_path: Path, damage: Any, reason: str) -> None:
    path = three_episodes(tmp_path)
    write_steps(tmp_path / "b.tar", [("ep9", recorded(2, 9))])
    damage(path)
    with pytest.raises(InputError, match=f"demonstrations that cannot be used: 1: .*{reason}"):
        read(tmp_path)
    assert [each.key for each in read(tmp_path, skip_bad=1)] == ["a/ep0", "b/ep9"]


def test_a_new_episode_that_is_damaged_leaves_the_one_before_whole(tmp_path: Path) -> None:
    path = three_episodes(tmp_path)
    cut_in(path, "ep1_000000.png")
    assert [each.key for each in read(tmp_path, skip_bad=1)] == ["a/ep0"]
    references = open_source(SourceConfig(str(tmp_path))).references()
    assert [(each.key, bool(each.fault)) for each in references] == [("a/ep0", False), ("a/ep1", True)]


def add(path: Path, name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"x", link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    with tarfile.open(path, "a") as archive:
        archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("ep3_0.json", tarfile.SYMTYPE, r"'ep3_0\.json' at offset \d+ is a link or a device"),
        ("ep3_0.png", tarfile.LNKTYPE, "is a link or a device"),
        ("ep3_0.png", tarfile.CHRTYPE, "is a link or a device"),
        ("/ep3_0.png", tarfile.REGTYPE, "leads out of its folder"),
        ("../../ep3_0.png", tarfile.REGTYPE, "leads out of its folder"),
    ],
)
def test_members_that_lead_elsewhere_are_refused(tmp_path: Path, name: str, kind: bytes, reason: str) -> None:
    add(three_episodes(tmp_path), name, kind, link="/etc/passwd")
    with pytest.raises(InputError, match=reason):
        read(tmp_path)
    assert len(read(tmp_path, skip_bad=1)) == 3


def npy(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"action.npy": npy("{'descr': '|O', 'fortran_order': False, 'shape': (7,), }")},
            "not a readable npy",
        ),
        (
            {"action.npy": npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({1 << 40},), }}")},
            "bytes",
        ),
        (
            {"action.npy": npy("{'descr': '<U1', 'fortran_order': False, 'shape': (7,), }") + b"1\0\0\0" * 7},
            "of <U1",
        ),
        ({"action.npy": b"\x80\x04."}, r"action\.npy: not a readable npy file"),
        ({"action.npy": np.zeros(6)}, r"action\.npy has \[6, 7\] numbers in different steps"),
        ({"action.npy": np.full(7, np.nan)}, r"action\.npy\[2, 0\] is nan"),
        ({"json": b"[" * 100_000}, "not valid JSON"),
        ({"json": b'{"instruction": ["a", 1]}'}, r"json:instruction is \['a', 1\], expected a text"),
        ({"json": b'{"instruction": "another"}'}, "2 different instructions"),
        ({"wrist.png": None}, r"no member wrist\.png, it has action\.npy, json, png, state\.npy"),
        ({"png": b"GIF89a"}, r"a/ep2: sample|: png: a frame is no readable PNG or JPEG"),
    ],
)
def test_a_bad_sample_is_the_fault_of_its_episode(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with writer(tmp_path / "a.tar") as out:
        for index in range(3):
            episode = recorded(3, index)
            for step in range(3):
                sample = step_sample(f"ep{index}_{step}", episode, step, arrays=True)
                if (index, step) == (1, 2):
                    sample = {k: v for k, v in {**sample, **changes}.items() if v is not None}
                out.write(sample)
    with pytest.raises(InputError, match=reason):
        read(tmp_path)
    assert [each.key for each in read(tmp_path, skip_bad=1)] == ["a/ep0", "a/ep2"]


def test_missing_frames_are_found_without_decoding_any(tmp_path: Path) -> None:
    with writer(tmp_path / "a.tar") as out:
        for step in range(3):
            sample = step_sample(f"ep_{step}", recorded(3, 0), step)
            if step == 2:
                del sample["wrist.png"]
            out.write(sample)
    (reference,) = open_source(SourceConfig(str(tmp_path))).references()
    assert "no member wrist.png, it has json, png; export" in reference.fault


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        (mp4(recorded(4, 0).frames[CAMERAS[0]]), r"the video has 4 time steps, expected 5"),
        (mp4(recorded(6, 0).frames[CAMERAS[0]]), r"agent\.mp4: has more frames than 5 time steps"),
        (b"no video", r"agent\.mp4: not a readable video"),
    ],
)
def test_videos_have_a_frame_for_each_step(tmp_path: Path, video: bytes, reason: str) -> None:
    episode = recorded(5, 0)
    with writer(tmp_path / "a.tar") as out:
        sample = {"agent.mp4": video, "action.npy": episode.action, "state.npy": episode.state, "txt": "Lift"}
        out.write({"__key__": "0", **sample})
    with pytest.raises(InputError, match=reason):
        read(tmp_path)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    """Whatever they are called: stock decoders would run them."""
    ran = tmp_path / "ran"
    program = b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR."
    path = three_episodes(tmp_path / "set")
    for kind in ("pyd", "pickle", "pkl", "pth", "cls"):
        add(path, f"ep2_000002.{kind}", content=program)
    assert len(read(tmp_path / "set")) == 3
    with pytest.raises(InputError, match=r"no pyd among json:action, json:state; name the right one"):
        read(tmp_path / "set", action=["pyd"])
    assert not ran.exists()


def test_steps_out_of_order_are_refused(tmp_path: Path) -> None:
    episode = recorded(3, 0)
    with writer(tmp_path / "a.tar") as out:
        for step in (0, 2, 1):
            out.write(step_sample(f"ep_{step}", episode, step))
    with pytest.raises(InputError, match="step 1 comes after step 2, expected ascending numbers"):
        read(tmp_path)


def test_shuffled_samples_are_refused_at_once(tmp_path: Path) -> None:
    one, two = recorded(3, 0), recorded(3, 1)
    with writer(tmp_path / "a.tar") as out:
        for step in range(2):
            out.write(step_sample(f"x_{step}", one, step))
            out.write(step_sample(f"y_{step}", two, step))
    with pytest.raises(InputError, match=r"samples of episode a/x lie in several places, .*not shuffled"):
        read(tmp_path, skip_bad=4)


def test_two_members_of_one_name_are_named(tmp_path: Path) -> None:
    add(three_episodes(tmp_path), "ep2_000002.json", content=b"{}")
    with pytest.raises(InputError, match=r"two members of one name \(ep2_000002\.json"):
        read(tmp_path)


def test_settings_and_sources_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    three_episodes(tmp_path / "set")
    (tmp_path / "set" / "index.json").write_text('{"schema": 4, "fingerprint": "a"}')
    with pytest.raises(InputError, match=r"index\.json: this is a prepared data set.*data\.url"):
        open_source(SourceConfig(str(tmp_path / "set")))
    (tmp_path / "set" / "index.json").write_text('{"__kind__": "an index of another program"}')
    assert len(read(tmp_path / "set")) == 3
    (tmp_path / "set" / "a.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(InputError, match="compressed with gzip, expected a plain tar file"):
        read(tmp_path / "set")
    with pytest.raises(InputError, match=r"no \*\.tar file there"):
        read(tmp_path, format="webdataset")
    (tmp_path / "b.hdf5").touch()
    with pytest.raises(InputError, match=r"episode_field=json:e: is for WebDataset only, .* is libero"):
        open_source(SourceConfig(str(tmp_path), episode_field="json:e"))


def test_steps_of_another_robot_have_its_numbers(tmp_path: Path) -> None:
    with writer(tmp_path / "a.tar") as out:
        for step in range(3):
            numbers = {"arm": [step, 1.0, 2.0], "grip": step % 2, "label": "Close it", "other": ""}
            out.write(
                {
                    "__key__": f"e_{step}",
                    "front.jpg": png(np.zeros((8, 8, 3), np.uint8)),
                    "meta.json": numbers,
                }
            )
    config = SourceConfig(
        str(tmp_path),
        action=[
            Part("meta.json:arm", dimensions=["j0", "j1", "j2"]),
            Part("meta.json:grip", [Operation("scale", factor=2.0, offset=-1.0)], ["gripper"]),
        ],
        state=["meta.json:arm"],
        instruction=["meta.json:other", "meta.json:label"],
        several_instructions="draw",
    )
    source = open_source(config)
    robot = source.embodiment()
    assert (robot.action, robot.state) == (("j0", "j1", "j2", "gripper"), ("s0", "s1", "s2"))
    assert source.no_ops().kind == "change"
    (found,) = [source.read(reference) for reference in source.references()]
    assert found.actions.tolist() == [[0, 1, 2, -1], [1, 1, 2, 1], [2, 1, 2, -1]]
    assert found.instruction == "close it"
    with pytest.raises(
        InputError, match=r"draw_camera=\[front.jpg\]: is for RLDS and LeRobot only, .* webdataset"
    ):
        open_source(replace(config, draw_camera=["front.jpg"]))
