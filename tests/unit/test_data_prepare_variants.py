"""`prepare variants=`: the views of an episode under changed cameras, and what the index says of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.augmentation_config import AugmentationConfig
from data.config import PrepareConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.prepare.encoding import changed_frames, encode_demonstration
from data.prepare.preparer import Preparer, prepare
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from tests.support.libero_layout import demonstration, write_file
from tests.unit.test_data_prepare_parts import Tokenizer


def recorded(steps: int = 7, height: int = 96, width: int = 96) -> Demonstration:
    """A demonstration whose third step does not move the robot."""
    random = np.random.default_rng(3)
    actions = random.uniform(-0.5, 0.5, (steps, 7))
    actions[:, 6] = -1
    actions[2, :6] = 0
    frames = {
        camera: random.integers(0, 256, (steps, height, width, 3), dtype=np.uint8)
        for camera in ("agent", "wrist")
    }
    return Demonstration(
        "lift/demo_0", "s", "t", "lift it", frames, actions, np.zeros((steps, 8), np.float32)
    )


def settings(**changes: Any) -> PrepareConfig:
    return dataclasses.replace(PrepareConfig(fit="crop", variants=2), **changes)


def test_variants_are_the_codes_of_the_changed_frames_without_no_ops() -> None:
    made, tokenizer = recorded(), Tokenizer()
    episode = encode_demonstration(made, tokenizer, settings())
    plain = encode_demonstration(made, tokenizer, settings(variants=0))
    assert plain.variants == ()
    assert episode.length == 6
    kept = np.array([True, True, False, True, True, True, True])
    views = [episode.codes, *episode.variants]
    assert len(views) == 3
    for camera, frames in made.frames.items():
        assert np.array_equal(views[0][camera], plain.codes[camera])
        for variant in (1, 2):
            expected = changed_frames(frames[kept], made.key, camera, variant, 64, settings())
            assert np.array_equal(views[variant][camera], tokenizer.encode(np.concatenate(list(expected))))
        assert not np.array_equal(views[1][camera], views[0][camera])
        assert not np.array_equal(views[1][camera], views[2][camera])


def test_variants_do_not_depend_on_the_batches_nor_on_how_many_there_are() -> None:
    whole = encode_demonstration(recorded(), Tokenizer(), settings())
    small = encode_demonstration(recorded(), Tokenizer(), settings(batch_size=2, variants=3))
    for one, other in zip(whole.variants, small.variants, strict=False):
        assert all(np.array_equal(one[camera], other[camera]) for camera in one)


def test_a_cropped_square_shows_what_lies_beside_it() -> None:
    frames = np.zeros((1, 64, 128, 3), np.uint8)
    frames[:, :, :32] = 200  # left of the square in the middle
    only_shifts = AugmentationConfig(**{**dict.fromkeys(AugmentationConfig().numbers(), 0), "shift": 0.25})
    seen: list[float] = []
    for number in range(8):
        made = settings(augmentation=only_shifts)
        seen += [float(batch.mean()) for batch in changed_frames(frames, f"e_{number}", "agent", 1, 64, made)]
    assert min(seen) == 0
    assert max(seen) > 10


def test_the_index_says_how_variants_were_drawn(tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(seed=i) for i in range(2)])
    made = settings(
        source=str(tmp_path / "demos"), out=str(tmp_path / "out"), augmentation=AugmentationConfig(seed=5)
    )
    index = prepare(Preparer(made, Tokenizer()))
    loaded = DatasetIndex.load(str(tmp_path / "out"))
    assert loaded == index
    assert loaded.variants == 2
    assert loaded.augmentation == {**AugmentationConfig().numbers(), "seed": 5}
    assert json.loads((tmp_path / "out" / "index.json").read_bytes())["schema"] == 5
    assert len(read_episode(loaded, loaded.episodes[0]).variants) == 2
    other = dataclasses.replace(index, augmentation={**AugmentationConfig().numbers(), "seed": 6})
    assert other.fingerprint != index.fingerprint
    plain = dataclasses.replace(made, variants=0, out=str(tmp_path / "plain"))
    assert prepare(Preparer(plain, Tokenizer())).augmentation is None
    assert json.loads((tmp_path / "plain" / "index.json").read_bytes())["schema"] == 4


def test_a_plan_counts_the_bytes_of_variants(tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(80, seed, 8) for seed in range(4)])

    def parts(variants: int) -> int:
        made = settings(source=str(tmp_path / "demos"), out=str(tmp_path), variants=variants)
        return len(Preparer(dataclasses.replace(made, shard_megabytes=0.1), Tokenizer()).plan())

    assert (parts(0), parts(3)) == (2, 4), (
        "two cameras of 64 codes take 20 kB an episode, and as much a variant"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": -1}, "variants is -1, expected 0 to 64"),
        ({"variants": 65}, "variants is 65, expected 0 to 64"),
        ({"augmentation": AugmentationConfig(zoom=2)}, "augmentation.zoom is 2, expected 0 to 1"),
    ],
)
def test_impossible_variants_are_refused_before_anything_is_read(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Preparer(settings(source="/nowhere", **changes), Tokenizer()).plan()
