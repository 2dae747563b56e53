"""`worldvla inspect data`: its counts match the data, and damage is named and has an exit code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.cli.main import main
from cluster.inspect.dataset import draw_contact_sheet
from data.contracts import Embodiment
from data.errors import InputError
from data.prepare.index_builder import commit_index
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, StateRanges
from data.storage.store import open_store
from tests.support.object_server import BUCKET, object_server
from tests.support.shards_case import episode, write_dataset
from tests.support.tokenizers import shipped_image_tokenizer

COUNT = 5


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetIndex:
    """Five episodes of the included image tokenizer."""
    monkeypatch.chdir(tmp_path)
    made = write_dataset(Path("shards"), count=COUNT, limit=15_000)
    image = dataclasses.replace(made.image, tokenizer_sha256=shipped_image_tokenizer().sha256)
    dataclasses.replace(made, image=image).save("shards")
    return DatasetIndex.load("shards")


def inspect(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert main(["inspect", "data", *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_counts_lengths_and_actions(index: DatasetIndex, capsys: pytest.CaptureFixture[str]) -> None:
    content = inspect(capsys, "url=shards")
    actions = np.concatenate([episode(i, steps=4 + i).actions for i in range(COUNT)])
    assert (content["episodes"], content["steps"], content["compression"]) == (5, 4 + 5 + 6 + 7 + 8, "none")
    assert content["shards"] == len(index.episodes.shards) > 1
    assert content["lengths"] == {"mean": 6, "minimum": 4, "q25": 5, "median": 6, "q75": 7, "maximum": 8}
    assert [(group["split"], group["episodes"], group["steps"]) for group in content["groups"]] == [
        ("train", 4, 26),
        ("val_ind", 1, 4),
    ]
    assert content["verified"] == {"episodes": 5, "bytes": content["bytes"], "damaged": []}
    states = np.concatenate([episode(i, steps=4 + i).states for i in range(COUNT)])
    for found, table in ((content["actions"], actions), (content["states"], states)):
        assert len(found["names"]) == table.shape[1]
        for number, values in enumerate(table.T.astype(np.float64)):
            low, high, counts = found["minimum"][number], found["maximum"][number], found["counts"][number]
            inside = values[(low <= values) & (values <= high)]
            assert sum(counts) == len(inside)
            assert found["outside"][number] == len(values) - len(inside)
            assert counts[-1] == (inside >= high - (high - low) / 32).sum()
    assert (content["embodiment"]["name"], content["variants"], content["left_out"]) == ("libero", 0, None)
    assert content["sheet"] is None
    assert sorted(path.name for path in Path().iterdir()) == ["shards"], (
        "nothing is left in the caller's folder"
    )


def test_the_contact_sheet_shows_decoded_frames(
    index: DatasetIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(capsys, "url=shards", "out=pictures/a.png", "episodes=2")["sheet"] == "pictures/a.png"
    picture = np.asarray(Image.open("pictures/a.png"))
    side, gap, rows = 128, 2, 4  # two episodes with two cameras each
    assert picture.shape == (rows * (side + gap) - gap, 8 * (side + gap) - gap, 3)
    last = episode(COUNT - 1, steps=8)
    for row, codes in ((2, last.codes["agent"]), (3, last.codes["wrist"])):
        expected = shipped_image_tokenizer().decode(codes)[3].repeat(2, axis=0).repeat(2, axis=1)
        y, x = row * (side + gap), 3 * (side + gap)
        assert np.array_equal(picture[y : y + side, x : x + side], expected)


def test_the_contact_sheet_is_beside_the_index_or_where_it_is_told(
    index: DatasetIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in Path().iterdir())
    words = ("url=shards", "verify=false", "episodes=1")
    assert inspect(capsys, *words, "sheet=true")["sheet"] == "shards/contact_sheet.png"
    assert sorted(path.name for path in Path().iterdir()) == before, "nothing in the caller's folder"
    assert inspect(capsys, *words, "sheet=true", "out=")["sheet"] == "shards/contact_sheet.png"
    Path("pictures").mkdir()
    assert inspect(capsys, *words, "out=pictures")["sheet"] == "pictures/contact_sheet.png"
    assert Image.open("pictures/contact_sheet.png").size == Image.open("shards/contact_sheet.png").size


def test_the_sheet_of_a_read_only_data_set_is_in_the_temporary_folder(
    index: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def refuse(path: Path, setting: str = "out") -> Path:
        raise InputError(f"{setting}={path}: cannot write into this folder (Read-only file system)")

    monkeypatch.setattr("cluster.inspect.dataset.writable_folder", refuse)
    monkeypatch.setattr("data.files.writable_folder", refuse)
    sheet = inspect(capsys, "url=shards", "verify=false", "sheet=true")["sheet"]
    assert sheet == str(tmp_path / f"temporary/{index.fingerprint[:12]}_contact_sheet.png")
    assert Image.open(sheet).format == "PNG"
    assert not Path("shards/contact_sheet.png").exists()
    assert main(["inspect", "data", "url=shards", "out=a.png"]) == 2
    assert "out=.: cannot write into this folder" in capsys.readouterr().err


def test_the_contact_sheet_shows_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = write_dataset(Path("shards"), count=2, variants=5)
    episodes = [episode(number, 4 + number, variants=5) for number in range(2)]
    tokenizer = shipped_image_tokenizer()
    draw_contact_sheet(made, tokenizer, Path("a.png"), 2)
    picture = np.asarray(Image.open("a.png"))
    side, gap, rows = 128, 2, 5  # of a camera: recorded and four variants
    assert picture.shape[0] == 2 * 2 * rows * (side + gap) - gap
    for row, codes in ((rows, episodes[0].codes), (2 * rows + 3, episodes[1].variants[2])):
        camera = "wrist" if row < 2 * rows else "agent"
        expected = tokenizer.decode(codes[camera])[-1].repeat(2, axis=0).repeat(2, axis=1)
        y, x = row * (side + gap), 7 * (side + gap)
        assert np.array_equal(picture[y : y + side, x : x + side], expected)


def test_text_names_embodiment_ranges_recipe_variants_and_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arm = Embodiment("arm", ("x", "y", "closing"), ("elbow", "wrist_roll"), ("y",), 15.0)
    made = write_dataset(Path("shards"), robot=arm, variants=1)
    made = dataclasses.replace(
        made,
        augmentation={"crop": 0.25, "seed": 3.0},
        state_ranges=StateRanges((-1.0, -2.0), (1.0, 2.0)),
        recipe="arm:1234",
        weight=0.5,
    )
    made.save("shards")
    commit_index(made, {f"lift/demo_{number}": f"broken part {number}" for number in range(30)})
    assert main(["inspect", "data", "url=shards"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "embodiment arm at 15 Hz: action x, y, closing",
        "missing in this robot, without label and loss: y",
        "state elbow, wrist_roll",
        "ranges of states: of this data set",
        "recipe arm:1234, weight 0.5 in a mixture",
        "variants of each episode: 1, drawn by crop 0.25, seed 3",
        "30 demonstrations were left out: lift/demo_0: broken part 0",
        "lift/demo_19: broken part 19 and 10 more (--json lists 30)",
        "closing -2.000 |",
        "states over their ranges: elbow -1.000 |",
    ):
        assert text in shown, text
    content = inspect(capsys, "url=shards", "verify=false")
    assert content["left_out"]["count"] == 30
    assert content["left_out"]["reasons"]["lift/demo_29"] == "broken part 29"
    assert content["state_ranges"] == {"minimum": [-1.0, -2.0], "maximum": [1.0, 2.0]}
    assert content["embodiment"]["missing"] == ["y"]


def test_text_output_shows_the_same_content(index: DatasetIndex, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "data", "url=shards", "sheet=true"]) == 0
    shown = capsys.readouterr().out
    assert "every checksum matches: 5 episodes" in shown
    assert "steps of an episode: mean 6, minimum 4" in shown
    assert "gripper -1.000 |" in shown
    assert "shards/contact_sheet.png: 8 frames" in shown
    assert Image.open("shards/contact_sheet.png").format == "PNG"
    assert main(["inspect", "data", "url=shards", "verify=false", "sheet=false"]) == 0
    shown = capsys.readouterr().out
    assert "checksum" not in shown
    assert "contact" not in shown
    assert "sheet=true (or out=FILE.png) draws frames" in shown


def test_every_damaged_episode_is_named(index: DatasetIndex, capsys: pytest.CaptureFixture[str]) -> None:
    flipped, missing = index.episodes[1], index.episodes[4]
    assert flipped.shard != missing.shard
    content = bytearray((Path("shards") / flipped.shard).read_bytes())
    content[flipped.offset + 700] ^= 1
    (Path("shards") / flipped.shard).write_bytes(content)
    (Path("shards") / missing.shard).unlink()
    gone = [entry for entry in index.episodes if entry.shard == missing.shard]
    assert main(["inspect", "data", "url=shards", "sheet=true"]) == 1
    shown = capsys.readouterr()
    assert f"{1 + len(gone)} of 5 episodes are damaged or missing" in shown.err
    for entry in (flipped, *gone):
        named = f"damaged: shards: shard {entry.shard}, episode {entry.key}, offset {entry.offset}: "
        assert named in shown.out
    assert not Path("shards/contact_sheet.png").exists()
    content = inspect(capsys, "url=shards", code=1)
    assert len(content["verified"]["damaged"]) == 1 + len(gone)
    assert sum(content["actions"]["counts"][0]) + content["actions"]["outside"][0] == sum(
        entry.length for entry in index.episodes if entry not in (flipped, *gone)
    )


def test_frames_of_another_image_tokenizer_give_no_contact_sheet(
    index: DatasetIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    image = dataclasses.replace(index.image, tokenizer_sha256="a" * 64)
    dataclasses.replace(index, image=image).save("shards")
    words = ["inspect", "data", "url=shards", "sheet=true"]
    assert main(words) == 0
    assert "no contact sheet: the frames were encoded by image tokenizer aaaaaaaaaaaa" in (
        capsys.readouterr().out
    )
    shipped_image_tokenizer().save("mine.safetensors")
    assert main([*words, "image_tokenizer=mine.safetensors"]) == 2
    assert "were encoded by aaaaaaaaaaaa" in capsys.readouterr().err
    assert not Path("shards/contact_sheet.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["url=nothing"], "nothing: no index.json there"),
        (["url=empty"], "empty: its index names 0 episodes, expected at least 1; prepare it again"),
        (["url=shards", "sheet=true", "episodes=0"], "episodes is 0, expected at least 1"),
        (["url=shards", "out=a_file/a.png"], "out=a_file: cannot write into this folder (File exists)"),
        (["url=shards", "out=shards/index.json"], "out=shards/index.json: expected the name of a file that"),
        (["url=shards", "out=a_file"], "out=a_file: expected the name of a file that ends in .png"),
        (["url=shards", "out=nofolder/"], "out=nofolder/: expected the name of a file that ends in .png"),
    ],
)
def test_invalid_input_is_exit_code_2(
    index: DatasetIndex, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataclasses.replace(index, episodes=EpisodeTable.of([])).save("empty")
    Path("a_file").touch()
    before = {path: path.read_bytes() for path in Path("shards").rglob("*") if path.is_file()}
    assert main(["inspect", "data", *words]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("shards").rglob("*") if path.is_file()} == before


def test_a_data_set_in_an_object_store_is_inspected(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with object_server(monkeypatch):
        url = f"s3://{BUCKET}/shards"
        for path in Path("shards").iterdir():
            open_store(url).write(path.name, path.read_bytes())
        content = inspect(capsys, f"url={url}", "sheet=false")
    assert content["verified"]["episodes"] == COUNT
    assert content["fingerprint"] == index.fingerprint
