"""The data sets of a training in the files of its run, and what its policy may act as."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.config import RootConfig
from cluster.run.preflight import check_data
from data.config import DataConfig, MixtureSource
from data.contracts import DEFAULT_EMBODIMENT, Embodiment
from data.errors import InputError
from data.json_record import JsonRecord
from data.storage.index import StateRanges
from data.stream.source_format import SourceFormat
from data.tokens.action import ActionRanges
from eval.policy.embodiment import robot_source, suite_source
from pretrain.model.config import ActionHeadConfig
from pretrain.policy_settings import PolicySettings
from pretrain.sources import (
    libero_source,
    longest_chunk,
    ranges_json,
    read_action_ranges,
    training_sources,
    with_action_ranges,
)
from tests.support.training_case import write_dataset

ARM = Embodiment("arm", ("one", "two"), ("q",), ("two",), control_hz=5.0)
LIBERO = SourceFormat("libero", state_ranges=StateRanges((-1.0,) * 8, (1.0,) * 8))
OF_ARM = SourceFormat("own", ARM, 9, ActionRanges((-2.0, 0.0), (2.0, 1.0)), StateRanges((0.0,), (3.0,)))
OTHER = replace(LIBERO, name="bridge", action_ranges=ActionRanges((-0.5,) * 7, (0.5,) * 7))
RENAMED = replace(OTHER, name="renamed", embodiment=replace(DEFAULT_EMBODIMENT, state=tuple("abcdefgh")))


def settings_of(*sources: SourceFormat) -> PolicySettings:
    return PolicySettings.of(DataConfig(), 64, sources, "1" * 64, "2" * 64)


@pytest.mark.parametrize(
    "sources", [(LIBERO, OF_ARM), (OF_ARM,), (OTHER, replace(LIBERO, state_ranges=None))]
)
def test_sources_are_read_as_they_were_written(sources: tuple[SourceFormat, ...]) -> None:
    settings = settings_of(*sources)
    content = settings.to_json()
    assert json.loads(json.dumps(content)) == content
    assert PolicySettings.of_record(JsonRecord(content, "")) == settings
    acting = settings.acting_json(sources[0])
    assert (acting["embodiment"], acting["chunk"]) == (sources[0].name, sources[0].chunk)


def test_one_source_of_liberos_numbers_is_written_as_before_there_were_several() -> None:
    data = DataConfig(cameras=["wrist"], chunk=7, state=True)
    settings = PolicySettings.of(data, 64, (replace(libero_source(data), name="a"),), "1" * 64, "2" * 64)
    low, high = data.state_ranges.minimum, data.state_ranges.maximum
    assert json.dumps(settings.to_json()) == json.dumps(
        {
            "cameras": ["wrist"],
            "history": 2,
            "chunk": 7,
            "predicted_frames": 1,
            "state_ranges": {"minimum": list(low), "maximum": list(high)},
            "pixels": 64,
            "action_ranges": asdict(ActionRanges()),
            "image_tokenizer_sha256": "1" * 64,
            "text_tokenizer_sha256": "2" * 64,
            "decoders": ["discrete"],
        }
    )
    assert settings.acting_json(settings.source) == settings.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 0}, "chunk is 0, expected an integer from 1"),
        ({"action_ranges": asdict(ActionRanges())}, "action ranges of 7 numbers, actions of arm have 2"),
        ({"embodiment": {**asdict(ARM), "action": []}}, "embodiment arm: action of 0 numbers"),
        ({"name": "libero"}, r"sources are libero \(.*libero \(.*, expected some, each name once"),
    ],
)
def test_damaged_sources_are_refused(change: dict[str, object], message: str) -> None:
    content = json.loads(json.dumps(settings_of(LIBERO, OF_ARM).to_json()))
    content["sources"][1] |= json.loads(json.dumps(change))
    with pytest.raises(InputError, match=message):
        PolicySettings.of_record(JsonRecord(content, ""))


def test_the_file_of_action_ranges_has_one_or_names_several(tmp_path: Path) -> None:
    path = tmp_path / "action_ranges.json"

    def read(*sources: SourceFormat) -> dict[str, ActionRanges]:
        path.write_text(json.dumps(ranges_json(sources)))
        return read_action_ranges(path, "copy it")

    one = read(OF_ARM)
    assert json.loads(path.read_text()) == {"minimum": [-2.0, 0.0], "maximum": [2.0, 1.0]}
    assert with_action_ranges((replace(OF_ARM, action_ranges=one[""]),), one, path) == (OF_ARM,)
    with pytest.raises(InputError, match=r"action ranges of one data set, expected some of libero too"):
        with_action_ranges((LIBERO, OF_ARM), one, path)
    with pytest.raises(InputError, match=r"ranges of 2 numbers, actions of libero have 7; take the file"):
        with_action_ranges((LIBERO,), one, path)
    named = replace(OTHER, name="minimum")  # like a key of the other form
    several = read(LIBERO, named)
    swapped = (replace(named, action_ranges=LIBERO.action_ranges), LIBERO)
    assert with_action_ranges(swapped, several, path) == (named, LIBERO)
    nameless = replace(OTHER, name="")
    assert with_action_ranges((nameless,), several, path) == (
        replace(nameless, action_ranges=LIBERO.action_ranges),
    ), "earlier versions took the first data set's"
    path.write_text("{}")
    with pytest.raises(InputError, match="minimum is nothing, expected a list"):
        read_action_ranges(path, "copy it")


@pytest.mark.parametrize(
    ("sources", "name", "expected"),
    [
        ((LIBERO, OF_ARM), None, LIBERO),
        ((LIBERO, OTHER), "bridge", OTHER),
        ((RENAMED, LIBERO), None, LIBERO),
        ((replace(LIBERO, name=""),), "libero", replace(LIBERO, name="")),
        ((replace(RENAMED, state_ranges=None),), None, replace(RENAMED, state_ranges=None)),
        (
            (LIBERO, OTHER),
            None,
            r"^runs: several data sets fit the suite: libero \(.*; choose one by eval\.e=",
        ),
        (
            (OF_ARM,),
            None,
            r"^runs: was trained on own \(action of 2: one, two; state of 1: q\); the simulators",
        ),
        (
            (LIBERO, OF_ARM),
            "own",
            r"^eval\.e=own: runs has action of 2: one, two; .*; the simulators take act",
        ),
        (
            (LIBERO, RENAMED),
            "renamed",
            r"state of 8: a, b, c.*, and show a state of 8: x, y, z, axis_angle_x",
        ),
        (
            (LIBERO, OF_ARM),
            "aloha",
            r"^eval\.e=aloha: runs was trained on libero \(.*; own \(.*; give one of",
        ),
    ],
)
def test_a_simulator_takes_the_only_embodiment_that_fits(
    sources: tuple[SourceFormat, ...], name: str | None, expected: SourceFormat | str
) -> None:
    if isinstance(expected, SourceFormat):
        assert suite_source("runs", sources, name, "eval.e") == expected
        return
    with pytest.raises(InputError, match=expected):
        suite_source("runs", sources, name, "eval.e")


def test_a_robot_is_served_its_own() -> None:
    assert robot_source("runs", (OF_ARM,), None) == OF_ARM
    assert robot_source("runs", (LIBERO, OF_ARM), "own") == OF_ARM
    with pytest.raises(
        InputError, match=r"several data sets: libero \(.*own \(.*; choose one by embodiment="
    ):
        robot_source("runs", (LIBERO, OF_ARM), None)


def test_data_sets_have_names_of_their_own(tmp_path: Path) -> None:
    urls = [write_dataset(tmp_path / name) for name in ("a/x", "b/x", "c/x_0")]
    config = DataConfig(sources=[MixtureSource(url) for url in urls])
    assert [source.name for source in training_sources(config)] == ["x_0", "x_1", "x_0_2"]
    del config.sources[0]
    assert [source.name for source in training_sources(config)] == ["x", "x_0"]


def test_data_that_do_not_fit_the_settings_are_refused_before_a_training(tmp_path: Path) -> None:
    config = RootConfig()
    config.data.sources = [
        MixtureSource(write_dataset(tmp_path / "libero")),
        MixtureSource(write_dataset(tmp_path / "own", 1, ARM), chunk=9),
        MixtureSource(write_dataset(tmp_path / "more", 2)),
    ]
    assert longest_chunk(config.data) == 9
    config.eval.every = 10
    with pytest.raises(
        InputError,
        match=r"^the training: several data sets fit .*; choose one by eval\.embod.*, or set eval\.every=0",
    ):
        check_data(config)
    config.eval.embodiment = "more"
    check_data(config)
    config.data.sources = [config.data.sources[1]]
    config.eval.embodiment = None
    with pytest.raises(InputError, match=r"^the training: .*`worldvla serve`, or set eval\.every=0 to train"):
        check_data(config)
    config.eval.embodiment = "more"
    with pytest.raises(InputError, match=r"^eval\.embodiment=more: the training was trained on own \("):
        check_data(config)
    config.eval.every = 0
    config.model.action_head = ActionHeadConfig(time_horizon=9)
    with pytest.raises(
        InputError, match=r"action_dim=7, but the data has 2 numbers in the widest action; set"
    ):
        check_data(config)
    config.model.action_head.action_dim = 2
    check_data(config)
