"""Preparation: filter, splits, statistics, deterministic bytes, and no index of unfinished data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.config import CameraNames, PrepareConfig
from data.contracts import Compression, SplitOrder
from data.errors import InputError
from data.prepare import preparer as prepare_module
from data.prepare.frames import fit_frames, resize_frames, square_frames
from data.prepare.index_builder import assign_splits
from data.prepare.preparer import FrameEncoder, Preparer
from data.prepare.statistics import summarise
from data.sources.interface import DemonstrationReference
from data.sources.no_ops import moving_steps
from data.storage.episode_cache import EpisodeCache
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.tokens.action import encode
from tests.support.lerobot_layout import recorded
from tests.support.libero_layout import demonstration, write_file
from tests.support.webdataset_layout import write_steps


@dataclasses.dataclass(frozen=True)
class MeanTokenizer:
    """Codes are the mean red of 8 x 8 pixels: enough to recognise a frame."""

    pixels: int = 64
    rows: int = 8
    columns: int = 8
    codebook_size: int = 256
    sha256: str = "a" * 64

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        assert len(frames) <= 4
        return frames[..., 0].reshape(-1, 8, 8, 8, 8).mean(axis=(2, 4)).astype(np.uint16)


def prepare(
    config: PrepareConfig, tokenizer: FrameEncoder, progress: Callable[[int, int], None] | None = None
) -> DatasetIndex:
    return prepare_module.prepare(Preparer(config, tokenizer), progress)


def settings(tmp_path: Path, **changes: object) -> PrepareConfig:
    config = PrepareConfig(
        source=str(tmp_path / "demos"), out=str(tmp_path / "out"), batch_size=4, shard_megabytes=1
    )
    return dataclasses.replace(config, **changes)


def test_no_ops_are_those_of_the_published_method() -> None:
    still, move = [0.0] * 6, [0.0, 0, 0, 0, 0, 1e-3]
    actions = [[*still, -1], [*move, -1], [*still, -1], [*still, 1], [*still, 1], [*move, 1], [*still, -1]]
    assert moving_steps(actions).tolist() == [False, True, False, True, False, True, True]


def test_the_gripper_is_compared_with_the_last_step_that_remains() -> None:
    actions = np.zeros((3, 7))
    actions[:, 6] = [-1, 1, 1]
    actions[0, 0] = 1
    assert moving_steps(actions).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("tasks", "splits"),
    [
        (["lift"] * 1, ["train"]),
        (["lift"] * 12, ["train"] * 11 + ["val_ind"]),
        ([f"t{i}" for i in range(10)], ["train"] * 9 + ["val_ood"]),
        (["b"] * 2 + ["a"] * 20, ["train"] * 2 + ["train"] * 18 + ["val_ind"] * 2),
        ([f"t{i:02}" for i in reversed(range(11))], ["val_ood"] + ["train"] * 10),
    ],
)
def test_splits_are_those_of_the_published_method(tasks: list[str], splits: list[str]) -> None:
    assert assign_splits(tasks) == splits


def test_demonstrations_are_held_out_by_letters_or_by_number() -> None:
    keys = [f"lift/demo_{number}" for number in range(12)]
    assert [keys[i] for i, split in enumerate(assign_splits(["lift"] * 12, keys)) if split == "val_ind"] == [
        "lift/demo_9"
    ]
    assert assign_splits(["lift"] * 12)[11] == "val_ind"
    two = [*keys, *(key.replace("lift", "push") for key in keys)]
    assert assign_splits(["lift"] * 12 + ["push"] * 12, two)[:12] == assign_splits(["lift"] * 12, keys)


@pytest.mark.parametrize(("chosen", "held_out"), [(None, 9), ("letters", 9), ("number", 11)])
def test_order_of_the_splits_is_that_of_the_published_lists_for_libero(
    chosen: SplitOrder | None, held_out: int, tmp_path: Path
) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(steps=4, seed=i) for i in range(12)])
    index = prepare(settings(tmp_path, split_order=chosen), MeanTokenizer())
    assert [entry.key for entry in index.split("val_ind")] == [f"lift/demo_{held_out}"]
    assert DatasetIndex.load(index.url).split_order == (chosen or "letters")
    assert [entry.key for entry in index.episodes] == [f"lift/demo_{i}" for i in range(12)]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_actions_reach_the_tokens_in_float64(compression: Compression, tmp_path: Path) -> None:
    """-0.225 in dimension 4 is on the edge of a bin: rounded to float32 anywhere, it is id 10057."""
    demo = demonstration()
    demo["actions"][:, 4] = -0.225
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demo])
    index = prepare(settings(tmp_path, compression=compression, ranges="extremes"), MeanTokenizer())
    assert index.action_ranges.minimum == tuple(demo["actions"].min(axis=0)), "measured without rounding"
    for cache in (None, EpisodeCache(tmp_path / "cache", 10**9)):
        read = DatasetIndex.load(index.url, cache=cache)
        for _ in range(2):
            actions = read_episode(read, read.episodes[0]).actions
            assert np.array_equal(actions, demo["actions"])
            assert set(encode(actions)[:, 4]) == {10_056}


def test_a_replay_of_displaced_demonstrations_is_refused_before_the_first(tmp_path: Path) -> None:
    path = tmp_path / "demos" / "lift_demo.hdf5"
    write_file(path, [demonstration(), demonstration()])
    with h5py.File(path, "r+") as file:
        file["data/demo_1"].attrs["displaced"] = True

    def replay(reference: DemonstrationReference, pixels: int) -> None:
        raise AssertionError(f"{reference.item} is replayed at {pixels} pixels")

    with pytest.raises(InputError, match=r"demo_1 begins displaced, .* prepare with replay=false"):
        Preparer(settings(tmp_path, replay=True), MeanTokenizer(), replay).plan()
    assert prepare(settings(tmp_path), MeanTokenizer()).episodes


def test_turned_states_of_earlier_collections_are_refused_unless_they_are_recorded_anew(
    tmp_path: Path,
) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration()], tag="worldvla-expert")
    with pytest.raises(InputError, match=r"turned by 90 degrees; collect again, or prepare with replay=true"):
        prepare(settings(tmp_path), MeanTokenizer())
    assert not (tmp_path / "out").exists()
    replayed = Preparer(settings(tmp_path, replay=True), MeanTokenizer(), lambda *_: None)
    assert len(replayed.plan()) == 1


def test_episodes_are_filtered_encoded_and_indexed(tmp_path: Path) -> None:
    demos = [demonstration(steps=9, seed=i) for i in range(3)]
    demos[1]["actions"][[0, 3, 4], :6] = 0
    write_file(tmp_path / "demos" / "lift_demo.hdf5", demos, suite="robosuite_lift")
    seen: list[tuple[int, int]] = []
    index = prepare(settings(tmp_path), MeanTokenizer(), lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert index == DatasetIndex.load(str(tmp_path / "out"))
    assert [(e.key, e.length, e.split) for e in index.episodes] == [
        ("lift/demo_0", 9, "train"),
        ("lift/demo_1", 6, "train"),
        ("lift/demo_2", 9, "train"),
    ]
    assert index.cameras == ("agent", "wrist")
    assert index.image.tokenizer_sha256 == "a" * 64
    episode = read_episode(index, index.episodes[1])
    keep = [1, 2, 5, 6, 7, 8]
    upright = demos[1]["obs/eye_in_hand_rgb"][keep][:, ::-1, ::-1]
    expected = upright[..., 0].reshape(6, 8, 8, 8, 8).mean(axis=(2, 4)).astype(np.uint16)
    assert np.array_equal(episode.codes["wrist"], expected)
    assert np.array_equal(episode.actions, demos[1]["actions"][keep])
    assert index.statistics["actions"].count == 24


def test_statistics_are_of_the_training_split(tmp_path: Path) -> None:
    demos = [demonstration(steps=4, seed=i) for i in range(12)]
    write_file(tmp_path / "demos" / "lift_demo.hdf5", demos)
    index = prepare(settings(tmp_path), MeanTokenizer())
    held_out = 9  # the last by letters
    training = np.concatenate([demo["actions"] for i, demo in enumerate(demos) if i != held_out])
    statistics = index.statistics["actions"]
    assert statistics.count == len(training) == 44
    assert statistics.minimum == pytest.approx(training.min(axis=0))
    assert statistics.q99 == pytest.approx(np.quantile(training.astype(np.float64), 0.99, axis=0))
    assert statistics.std == pytest.approx(training.std(axis=0, dtype=np.float64))


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        summarise([np.zeros((0, 7), np.float32)])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_data_gives_the_same_bytes_again(tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(seed=i) for i in range(3)])
    prepare(settings(tmp_path), MeanTokenizer())
    first = snapshot(tmp_path / "out")
    prepare(settings(tmp_path), MeanTokenizer())
    prepare(settings(tmp_path, out=str(tmp_path / "other")), MeanTokenizer())
    assert snapshot(tmp_path / "out") == first == snapshot(tmp_path / "other")


def test_another_data_set_at_the_same_url_is_refused_and_unchanged(tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(seed=i) for i in range(3)])
    index = prepare(settings(tmp_path), MeanTokenizer())
    write_file(tmp_path / "demos" / "push_demo.hdf5", [demonstration(seed=9)])
    with pytest.raises(InputError, match="holds another data set"):
        prepare(settings(tmp_path), MeanTokenizer())
    assert DatasetIndex.load(index.url) == index
    assert all(read_episode(index, entry).length == 6 for entry in index.episodes)


def test_shards_are_not_written_among_the_tar_files_that_they_are_made_of(tmp_path: Path) -> None:
    folder = write_steps(tmp_path / "demos" / "a-000000.tar", [("ep", recorded(6, 1))]).parent
    first = snapshot(folder)
    with pytest.raises(InputError, match=r"out=.*: is the folder of the source's own tar files, .*her out="):
        prepare(settings(tmp_path, out=f"{folder.parent}/x/../demos/"), MeanTokenizer())
    assert snapshot(folder) == first
    for _ in range(2):  # a pattern tells demonstrations from shards
        pattern = f"{folder}/a-{{000000..000000}}.tar"
        assert (
            len(prepare(settings(tmp_path, source=pattern, out=str(folder)), MeanTokenizer()).episodes) == 1
        )


def test_a_place_with_another_version_is_refused_before_the_demonstrations_are_looked_at(
    tmp_path: Path,
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.json").write_text('{"schema": 2}')
    with pytest.raises(InputError, match=r"another version \(schema 2, now 5\)"):
        prepare(settings(tmp_path), MeanTokenizer())  # there are no demonstrations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": 1}, r"\(variants 0, now 1\); choose another out= or delete index\.json"),
        ({"compression": "zstd"}, r"\(compression none, now zstd\)"),
        ({"cameras": CameraNames(agent="agentview_rgb")}, r"\(cameras agent, wrist, now agent\)"),
        ({"resize": "lanczos"}, r"\(resize box_bicubic, now lanczos\)"),
        ({"split_order": "number"}, r"\(split_order letters, now number\)"),
        ({"weight": 2.0}, r"\(weight none, now 2\.0\)"),
        ({"recipe": "a/mine.yaml", "recipe_sha256": "12"}, r"\(recipe none, now mine 12\)"),
    ],
)
def test_another_data_set_is_refused_before_anything_is_encoded(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(seed=i) for i in range(3)])
    prepare(settings(tmp_path), MeanTokenizer())
    first = snapshot(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        prepare(settings(tmp_path, **changes), MeanTokenizer())
    with pytest.raises(InputError, match=r"\(image\.tokenizer_sha256 a+, now b+\)"):
        prepare(settings(tmp_path), MeanTokenizer(sha256="b" * 64))
    assert snapshot(tmp_path / "out") == first, "no shard beside those of the data set"


def test_a_broken_demonstration_leaves_no_index(tmp_path: Path) -> None:
    broken = demonstration(seed=1)
    broken["actions"][2, 2] = np.inf
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(), broken])
    with pytest.raises(InputError, match="demo_1"):
        prepare(settings(tmp_path), MeanTokenizer())
    with pytest.raises(InputError, match=r"no index\.json there"):
        DatasetIndex.load(str(tmp_path / "out"))


def test_invalid_demonstrations_and_settings_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "demos"
    write_file(folder / "lift_demo.hdf5", [demonstration()])
    with pytest.raises(InputError, match="set resolution=64"):
        prepare(settings(tmp_path, resolution=128), MeanTokenizer())
    with pytest.raises(InputError, match="image side 48 is not a positive multiple of 32 pixels"):
        prepare(settings(tmp_path, resolution=48), MeanTokenizer(pixels=48))
    with pytest.raises(InputError, match="8193 codes, expected at most 8192"):
        prepare(settings(tmp_path), MeanTokenizer(codebook_size=8193))
    with pytest.raises(InputError, match="batch_size is 0"):
        prepare(settings(tmp_path, batch_size=0), MeanTokenizer())
    write_file(folder / "lift.hdf5", [demonstration()])
    with pytest.raises(InputError, match="same episode key lift/demo_0"):
        prepare(settings(tmp_path), MeanTokenizer())
    write_file(folder / "lift.hdf5", [demonstration() | {"obs/eye_in_hand_rgb": None}]).rename(
        folder / "z.h5"
    )
    with pytest.raises(InputError, match="two data sets"):
        prepare(settings(tmp_path), MeanTokenizer())
    still = demonstration()
    still["actions"][:, :6] = 0
    write_file(folder / "z.h5", [still])
    with pytest.raises(InputError, match="none of its 6 steps moves the robot"):
        prepare(settings(tmp_path), MeanTokenizer())
    write_file(folder / "z.h5", [demonstration()]).rename(folder / "odd name.h5")
    with pytest.raises(InputError, match="rename the file"):
        prepare(settings(tmp_path), MeanTokenizer())
    assert not (tmp_path / "out" / "index.json").exists()


def test_frames_are_resized_only_when_needed() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    assert resize_frames(frames, 128) is frames
    small = resize_frames(np.full_like(frames, 77), 64)
    assert small.shape == (2, 64, 64, 3)
    assert np.all(small == 77)
    with pytest.raises(InputError, match="square"):
        resize_frames(frames[:, :100], 64)


def published_crop(frame: NDArray[np.uint8], pixels: int) -> NDArray[np.uint8]:
    """The published code's resizing, for a square: box filter, bicubic, centre crop."""
    image = Image.fromarray(frame)
    while image.size[0] >= 2 * pixels and image.size[1] >= 2 * pixels:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    scale = max(pixels / image.size[0], pixels / image.size[1])
    size = (round(image.size[0] * scale), round(image.size[1] * scale))
    image = image.resize(size, resample=Image.Resampling.BICUBIC)
    left, top = (size[0] - pixels) // 2, (size[1] - pixels) // 2
    return np.asarray(image.crop((left, top, left + pixels, top + pixels)))


@pytest.mark.parametrize(
    ("height", "width"), [(128, 128), (300, 300), (64, 64), (48, 48), (480, 640), (90, 64), (257, 400)]
)
def test_frames_are_resized_as_the_published_code_does(height: int, width: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    found = fit_frames(frames, 64, "crop", "box_bicubic")
    assert np.array_equal(found, np.stack([published_crop(frame, 64) for frame in frames]))
    if height == width:
        assert np.array_equal(resize_frames(frames, 64), found)
    if min(height, width) > 64:
        lanczos = fit_frames(frames, 64, "crop", "lanczos")
        assert lanczos.shape == found.shape
        assert not np.array_equal(lanczos, found)


def test_resizing_is_the_published_one_unless_another_is_chosen(tmp_path: Path) -> None:
    demo = demonstration(pixels=160)
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demo])
    indexes = {
        name: prepare(settings(tmp_path, out=str(tmp_path / name), **changes), MeanTokenizer())
        for name, changes in {"default": {}, "lanczos": {"resize": "lanczos"}}.items()
    }
    assert [DatasetIndex.load(index.url).resize for index in indexes.values()] == ["box_bicubic", "lanczos"]
    upright = demo["obs/agentview_rgb"][:, ::-1, ::-1]
    expected = np.stack([published_crop(frame, 64) for frame in upright])
    codes = [read_episode(index, index.episodes[0]).codes["agent"] for index in indexes.values()]
    expected_codes = np.concatenate([MeanTokenizer().encode(part) for part in (expected[:4], expected[4:])])
    assert np.array_equal(codes[0], expected_codes)
    assert not np.array_equal(codes[1], expected_codes)


def test_frames_become_square_as_configured() -> None:
    frames = np.random.default_rng(0).integers(1, 256, (2, 4, 8, 3), dtype=np.uint8)
    assert np.array_equal(square_frames(frames, "crop"), frames[:, :, 2:6])
    assert np.array_equal(square_frames(frames.swapaxes(1, 2), "crop"), frames[:, :, 2:6].swapaxes(1, 2))
    padded = square_frames(frames, "pad")
    assert padded.shape == (2, 8, 8, 3)
    assert np.array_equal(padded[:, 2:6], frames)
    assert not padded[:, [0, 1, 6, 7]].any()
    assert square_frames(np.full_like(frames, 9), "stretch").shape == (2, 4, 4, 3)
    square = frames[:, :, :4]
    assert square_frames(square, "refuse") is square
    with pytest.raises(InputError, match=r"4 x 8, expected square ones; say what to do with fit=crop"):
        square_frames(frames, "refuse")
    with pytest.raises(InputError, match="fit=zoom: expected one of refuse, crop, pad, stretch"):
        square_frames(frames, "zoom")  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(20)])
    (tmp_path / "file").write_text("precious")

    class NeverEncodes(MeanTokenizer):
        def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
            raise AssertionError("a frame was encoded")

    with pytest.raises(InputError, match=r"out=.*/file/x: cannot write into this folder \(Not a directory\)"):
        prepare(settings(tmp_path, out=str(tmp_path / "file" / "x")), NeverEncodes())
