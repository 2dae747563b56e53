"""Demonstrations that cannot be used: all named at once, or left out, counted and recorded on request."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.config import PrepareConfig, SourceConfig
from data.errors import InputError
from data.prepare.left_out import LEFT_OUT_FILE, LeftOut, read_left_out, write_left_out
from data.prepare.parts import Part, plan_parts
from data.prepare.preparer import Preparer, prepare
from data.prepare.reconstruction import reconstruction_psnr
from data.sources.bad_demonstrations import allowed_bad
from data.sources.interface import DemonstrationReference
from data.sources.registry import read_demonstrations
from data.storage.index import DatasetIndex
from data.storage.store import open_store
from tests.support.lerobot_layout import recorded, write_lerobot
from tests.support.libero_layout import demonstration, write_file
from tests.support.rlds_layout import NAME, write_rlds
from tests.unit.test_data_prepare_parts import Tokenizer, snapshot


def config(source: Path, out: Path, **changes: Any) -> PrepareConfig:
    made = PrepareConfig(source=str(source), out=str(out), shard_megabytes=0.05, fit="crop")
    return dataclasses.replace(made, **changes)


def run(source: Path, out: Path, **changes: Any) -> DatasetIndex:
    return prepare(Preparer(config(source, out, **changes), Tokenizer()))


def skipped(out: Path) -> dict[str, str]:
    records = [json.loads(path.read_text()) for path in sorted((out / "parts").glob("*.json"))]
    return {bad["key"]: bad["reason"] for record in records for bad in record["skipped"]}


def with_nan(array: np.ndarray) -> np.ndarray:
    broken = array.copy()
    broken[2, 3] = np.nan
    return broken


def still(actions: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(actions[:, :6]), actions[:, 6:]], axis=1)


def libero(folder: Path) -> Path:
    """Six of nine demonstrations are bad, each in its own way, and one file."""
    good = demonstration(seed=1)
    changes: list[dict[str, Any]] = [
        {},
        {"actions": with_nan(good["actions"])},
        {"actions": still(good["actions"])},
        {"actions": good["actions"][:0]},
        {"obs/ee_states": None},
        {"obs/agentview_rgb": good["obs/agentview_rgb"][:4]},
        {"obs/gripper_states": with_nan(np.zeros((6, 4)))[:, 2:]},
        {},
    ]
    write_file(folder / "lift_demo.hdf5", [good | change for change in changes])
    write_file(folder / "push_demo.hdf5", [good])
    (folder / "torn_demo.hdf5").write_bytes((folder / "push_demo.hdf5").read_bytes()[:3000])
    return folder


LIBERO_BAD = {
    "lift/demo_1": "is nan",
    "lift/demo_2": "none of its 6 steps moves the robot",
    "lift/demo_3": "no time steps",
    "lift/demo_4": "no dataset `ee_states`",
    "lift/demo_5": "agentview_rgb has 4 time steps, expected 6",
    "lift/demo_6": "gripper_states has shape|is nan",
    "torn": "not a readable HDF5 file",
}


def lerobot(folder: Path, version: str) -> Path:
    episodes = [recorded(6, seed) for seed in range(8)]
    episodes[1].action[3, 2] = np.inf
    episodes[2].action[:, :6] = 0
    episodes[3] = dataclasses.replace(episodes[3], task=" ")
    episodes[4].state[5, 1] = np.nan
    write_lerobot(folder, version, episodes, "image" if version == "v3.0" else "video")
    if version == "v2.1":
        (folder / "data/chunk-000/episode_000005.parquet").unlink()
        next(folder.rglob("*wrist*/episode_000006.mp4")).unlink()
    return folder


LEROBOT_BAD = {
    "episode_000001": "action[3, 2] is inf",
    "episode_000002": "none of its 6 steps moves the robot",
    "episode_000003": "the instruction is empty",
    "episode_000004": "is nan",
}
LEROBOT_FILES_BAD = {
    "episode_000005": "episode_000005.parquet: no such file",
    "episode_000006": "episode_000006.mp4: no such file",
}


def rlds_episode(seed: int, text: str = "lift the cube") -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8),
        "action": random.uniform(-0.5, 0.5, (5, 7)).astype(np.float32),
        "state": random.normal(size=(5, 8)).astype(np.float32),
        "text": text,
    }


def rlds(folder: Path) -> Path:
    """In the first file a damaged record, a still one, and one without words; the second is cut short."""
    episodes = [rlds_episode(seed) for seed in range(8)]
    episodes[3]["text"] = ""
    episodes[2]["action"][:, :6] = 0
    write_rlds(folder, episodes)
    first = folder / f"{NAME}-train.tfrecord-00000-of-00002"
    content = bytearray(first.read_bytes())
    content[int.from_bytes(content[:8], "little") + 16 + 50] ^= 1  # in the second record
    first.write_bytes(content)
    second = folder / f"{NAME}-train.tfrecord-00001-of-00002"
    length = int.from_bytes(second.read_bytes()[:8], "little")
    second.write_bytes(second.read_bytes()[: 2 * length])  # the second record of four is cut
    return folder


RLDS_BAD = {
    "train/episode_000001": "the content of the record at offset",
    "train/episode_000002": "none of its 5 steps moves the robot",
    "train/episode_000003": "the instruction is empty",
    "train/episode_000005": "cut short in the record",
    "train/episode_000006": "cut short in the record",
    "train/episode_000007": "cut short in the record",
}
SETS: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    "libero": (libero, LIBERO_BAD),
    "lerobot v2.1": (lambda folder: lerobot(folder, "v2.1"), LEROBOT_BAD | LEROBOT_FILES_BAD),
    "lerobot v3.0": (lambda folder: lerobot(folder, "v3.0"), LEROBOT_BAD),
    "rlds": (rlds, RLDS_BAD),
}


@pytest.mark.parametrize("name", SETS)
def test_every_bad_demonstration_is_named_before_anything_is_encoded(tmp_path: Path, name: str) -> None:
    make, bad = SETS[name]
    tokenizer = Tokenizer()
    with pytest.raises(InputError) as caught:
        prepare(Preparer(config(make(tmp_path / "set"), tmp_path / "out"), tokenizer))
    message = str(caught.value)
    assert f"demonstrations that cannot be used: {len(bad)}: " in message
    assert message.endswith(f"leave them out with skip_bad={len(bad)}")
    for reason in bad.values():
        assert any(part in message for part in reason.split("|")), reason
    assert "\n" not in message
    assert tokenizer.calls == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SETS)
def test_bad_demonstrations_are_left_out_on_request_and_recorded(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, bad = SETS[name]
    source = make(tmp_path / "set")
    with pytest.raises(InputError, match=rf"cannot be used: {len(bad)}, skip_bad allows {len(bad) - 1}: "):
        run(source, tmp_path / "out", skip_bad=float(len(bad) - 1))
    with caplog.at_level(logging.WARNING):
        index = run(source, tmp_path / "out", skip_bad=float(len(bad)))
    reasons = skipped(tmp_path / "out")
    assert list(reasons) == list(bad)
    shutil.rmtree(tmp_path / "out" / "parts")  # as the docs allow: the list stays
    listed = read_left_out(open_store(str(tmp_path / "out")), index.fingerprint)
    assert listed == LeftOut(len(bad), {key: reason[:500] for key, reason in reasons.items()})
    run(source, tmp_path / "out", skip_bad=float(len(bad)))
    total = len(bad) + len(index.episodes)
    assert f"left out {len(bad)} of {total} demonstrations (skip_bad)" in caplog.text
    assert not set(bad) & {entry.key for entry in index.episodes}
    assert len(index.episodes) >= 2
    again = run(source, tmp_path / "again", skip_bad=0.9)
    assert again == index
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "out"), (
        "the same bytes, however many are allowed"
    )
    with pytest.raises(InputError, match=f"cannot be used: {len(bad)}: "):
        run(source, tmp_path / "out")


def test_the_index_is_that_of_the_good_demonstrations_alone(tmp_path: Path) -> None:
    good = [demonstration(seed=seed) for seed in range(3)]
    bad = demonstration() | {"actions": with_nan(demonstration()["actions"])}
    for name, more in (("good", []), ("mixed", [bad])):
        write_file(tmp_path / name / "lift_demo.hdf5", [*good[:2], *more])
        write_file(tmp_path / name / "push_demo.hdf5", good[2:])
    index = run(tmp_path / "good", tmp_path / "a", shard_megabytes=0.034)
    assert len(index.episodes.shards) == 1, "three episodes just fit a shard"
    assert run(tmp_path / "mixed", tmp_path / "b", skip_bad=1.0, shard_megabytes=0.034) == index
    assert snapshot(tmp_path / "a").keys() - snapshot(tmp_path / "b").keys() <= {
        name for name in snapshot(tmp_path / "a") if name.startswith("parts/")
    }


def test_a_list_of_what_was_left_out_belongs_to_its_data_set(tmp_path: Path) -> None:
    bad = demonstration() | {"actions": with_nan(demonstration()["actions"])}
    file, out = tmp_path / "set" / "lift_demo.hdf5", tmp_path / "out"
    write_file(file, [demonstration(seed=0), demonstration(seed=1), bad])
    index = run(tmp_path / "set", out, skip_bad=1.0)
    store = open_store(str(out))
    listed = read_left_out(store, index.fingerprint)
    assert listed is not None
    assert list(listed.reasons) == ["lift/demo_2"]
    assert read_left_out(store, "of another data set") is None
    write_file(file, [demonstration(seed=0), demonstration(seed=1)])
    assert run(tmp_path / "set", out) == index, "the same data set, of a repaired source"
    assert read_left_out(store, index.fingerprint) == LeftOut(0, {})
    run(tmp_path / "set", tmp_path / "other")
    assert not (tmp_path / "other" / LEFT_OUT_FILE).exists(), "nothing was left out, nothing is written"


def test_a_long_list_of_what_was_left_out_is_cut(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_left_out(store, "f", {f"demo_{number}": "x" * 3000 for number in range(10_050)})
    listed = read_left_out(store, "f")
    assert listed is not None
    assert (listed.count, len(listed.reasons), set(listed.reasons.values())) == (10_050, 10_000, {"x" * 500})


def test_frames_that_cannot_be_decoded_are_counted_when_their_turn_comes(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "set", "v2.1", [recorded(6, seed) for seed in range(5)], "image")
    for number in (1, 3):
        path = source / f"data/chunk-000/episode_{number:06d}.parquet"
        table = pq.read_table(path)
        name = "observation.images.image"
        broken = [{"bytes": b"no picture", "path": None}] * len(table)
        at = table.column_names.index(name)
        pq.write_table(table.set_column(at, name, [broken]), path)
    with pytest.raises(InputError, match=r"cannot be used: 1: .*episode 1: .* no readable PNG"):
        run(source, tmp_path / "out")
    with pytest.raises(InputError, match=r"cannot be used: 2, skip_bad allows 1: .*episode 1.*episode 3"):
        run(source, tmp_path / "out", skip_bad=1.0)
    index = run(source, tmp_path / "out", skip_bad=0.4)
    assert list(skipped(tmp_path / "out")) == ["episode_000001", "episode_000003"]
    assert len(index.episodes) == 3
    # The parts are finished, and still nobody has allowed these two to be left out.
    with pytest.raises(InputError, match="cannot be used: 2: "):
        run(source, tmp_path / "out")


def test_parts_in_several_processes_count_together(tmp_path: Path) -> None:
    source = write_lerobot(tmp_path / "set", "v2.1", [recorded(6, seed) for seed in range(4)], "image")
    for path in source.rglob("episode_00000[13].parquet"):
        table = pq.read_table(path)
        at = table.column_names.index("observation.images.image")
        broken = [{"bytes": b"no picture", "path": None}] * len(table)
        pq.write_table(table.set_column(at, "observation.images.image", [broken]), path)
    made = config(source, tmp_path / "out", skip_bad=1.0, shard_megabytes=0.001)

    def elsewhere(parts: Sequence[Part], report: Callable[[int], None]) -> None:
        assert len(parts) == 4
        for part in parts:
            Preparer(made, Tokenizer()).finish(part, report)

    with pytest.raises(InputError, match=r"cannot be used: 2, skip_bad allows 1: .*episode 1.*episode 3"):
        prepare(Preparer(made, Tokenizer()), run_parts=elsewhere)
    assert not (tmp_path / "out" / "index.json").exists()


def test_settings_that_fit_no_demonstration_are_told_by_the_first(tmp_path: Path) -> None:
    source = tmp_path / "set"
    write_file(source / "lift_demo.hdf5", [demonstration() | {"obs/ee_states": None}] * 30)
    with pytest.raises(InputError, match=r"none of its first 20 demonstrations can be used; of the first: "):
        run(source, tmp_path / "out")
    with pytest.raises(InputError, match=r"skip_bad allows 29: .*; and lift/demo_20, lift/demo_21"):
        run(source, tmp_path / "out", skip_bad=0.99)
    with pytest.raises(
        InputError, match=r"none of its 30 demonstrations can be used, skip_bad cannot help; "
    ):
        run(source, tmp_path / "out", skip_bad=30.0)


@pytest.mark.parametrize(
    ("skip_bad", "total", "allowed"), [(0.0, 9, 0), (1.0, 9, 1), (5.0, 9, 5), (0.5, 9, 4), (0.99, 9, 8)]
)
def test_a_number_or_a_share_may_be_left_out(skip_bad: float, total: int, allowed: int) -> None:
    assert allowed_bad(skip_bad, total) == allowed


@pytest.mark.parametrize("wrong", [-1.0, 1.5, float("nan"), float("inf")])
def test_other_numbers_are_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="expected a number of demonstrations"):
        allowed_bad(wrong, 9)


def test_an_image_tokenizer_is_trained_and_measured_without_them(tmp_path: Path) -> None:
    class Exact:
        pixels = 32

        def encode(self, frames: np.ndarray) -> np.ndarray:
            return np.zeros((len(frames), 1, 1), np.uint16)

        def decode(self, codes: np.ndarray) -> np.ndarray:
            return np.zeros((len(codes), 32, 32, 3), np.uint8)

    source = lerobot(tmp_path / "set", "v2.1")
    with pytest.raises(InputError, match=r"cannot be used: 1: .*instruction is empty"):
        list(read_demonstrations(SourceConfig(str(source))))
    with pytest.raises(InputError, match="cannot be used: 3, skip_bad allows 2: "):
        list(read_demonstrations(SourceConfig(str(source), skip_bad=2.0)))
    found = list(read_demonstrations(SourceConfig(str(source), skip_bad=0.9)))
    assert [each.key for each in found] == ["episode_000000", "episode_000002", "episode_000007"]
    assert set(reconstruction_psnr(PrepareConfig(str(source), skip_bad=0.9, out="unused"), Exact())) == {
        "agent",
        "wrist",
    }


def test_a_replay_takes_its_own_frames_and_states(tmp_path: Path) -> None:
    source = tmp_path / "set"
    write_file(source / "lift_demo.hdf5", [demonstration() | {"obs/ee_states": None}])
    made = config(source, tmp_path / "out", replay=True)
    calls: list[str] = []

    def replay(reference: Any, pixels: int) -> None:
        calls.append(reference.key)

    with pytest.raises(InputError, match="none of its 1 demonstrations succeeded"):
        prepare(Preparer(made, Tokenizer(), replay))
    assert calls == ["lift/demo_0"]


def test_actions_outside_their_ranges_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "set"
    degrees = demonstration(steps=10)
    degrees["actions"][:, :6] *= 0.5
    degrees["actions"][:, 0] = 90
    degrees["actions"][:3, 3] = -90
    write_file(source / "lift_demo.hdf5", [degrees])
    run(source, tmp_path / "a")
    (line,) = [record.getMessage() for record in caplog.records if "outside" in record.getMessage()]
    assert "x 100.0 % outside -0.9375 .. 0.9375" in line
    assert "roll 30.0 % outside -0.325714 .. 0.375" in line
    assert "gripper" not in line
    assert "set ranges=quantiles, or convert the actions" in line
    caplog.clear()
    for name, changes in {
        "measured": {"ranges": "quantiles"},
        "extremes": {"ranges": "extremes"},
        "given": {"action_minimum": [-100.0] * 7, "action_maximum": [100.0] * 7},
    }.items():
        run(source, tmp_path / name, **changes)
    assert "outside" not in caplog.text


def test_the_plan_depends_on_faults_and_not_on_what_was_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    path.write_bytes(b"1")
    reference = DemonstrationReference(path, "demo_0", "a/demo_0", "s", "a", "do it", 9, ("agent",))

    def plan(reference: DemonstrationReference) -> str:
        return plan_parts([reference], step_bytes=1, limit=1, settings="")[0].plan

    assert plan(dataclasses.replace(reference, idle=True)) == plan(reference)
    damaged = dataclasses.replace(reference, fault="damaged")
    assert plan(damaged) != plan(reference)
    path.unlink()
    assert plan(damaged), "a file that is missing is not looked at"
