"""RynnVLA-002's published samples to episodes: two views, states, and bins over two ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.cli.main import main
from data.config import StateRangesConfig
from data.contracts import Episode
from data.errors import InputError
from data.prepare.published_samples import ConvertedSamples, convert_samples
from data.storage.episode_reader import read_episode
from data.storage.index import StateRanges
from data.tokens.action import NAMED_RANGES, NamedRanges, encode
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT, action_text
from data.tokens.state import STATE_MAX, STATE_MIN, restore_states, state_blocks
from tests.support.reference_samples import action_sample, world_sample
from tests.support.tokenizers import shipped_text_tokenizer
from tests.unit.test_data_prepare_published_samples import Format, config, write_sample

CHUNK = 4
WORLDVLA, RYNNVLA = NAMED_RANGES["worldvla"], NAMED_RANGES["rynnvla"]


@dataclass
class Recorded:
    """T steps of V views."""

    instruction: str
    codes: NDArray[np.int64]  # [T, V, R, C]
    actions: NDArray[np.float64]
    states: NDArray[np.float32]


def recorded(steps: int, seed: int, instruction: str = "lift it", views: int = 2, side: int = 4) -> Recorded:
    random = np.random.default_rng(seed)
    low, high = np.array(STATE_MIN), np.array(STATE_MAX)
    return Recorded(
        instruction,
        random.integers(0, 512, (steps, views, side, side)),
        random.uniform(-0.4, 0.4, (steps, 7)),  # beyond the ranges of the rotation
        random.uniform(low - 0.05, high + 0.05, (steps, 8)).astype(np.float32),
    )


def write_samples(
    folder: Path,
    episodes: Sequence[Recorded],
    world_ranges: NamedRanges = "worldvla",
    with_state: bool = True,
    chunk: int = CHUNK,
) -> None:
    """Action samples of RynnVLA-002's ranges and two frames of history, and world samples."""
    text, number = shipped_text_tokenizer(), 0
    for episode in episodes:
        frames = image_block(episode.codes, 64)
        states = state_blocks(episode.states, STATE_MIN, STATE_MAX)
        ids = encode(episode.actions, RYNNVLA)
        world_ids = encode(episode.actions, NAMED_RANGES[world_ranges])
        for t in range(len(frames)):
            number += 1
            if t + chunk <= len(frames):
                words = text.encode(action_text(episode.instruction))
                state = states[t] if with_state else None
                seen = list(frames[max(0, t - 1) : t + 1])
                sample = action_sample(words, seen, ids[t : t + chunk], state)
                write_sample(folder / f"actions/{number}.pkl", sample)
            if t + 1 < len(frames):
                sample = world_sample(text.encode(WORLD_TEXT), frames[t], world_ids[t], frames[t + 1])
                write_sample(folder / f"world/{number}.pkl", sample)


def convert(tmp_path: Path, **changes: object) -> ConvertedSamples:
    settings = config(tmp_path, **{"ranges": "rynnvla", "world_ranges": "worldvla", **changes})
    return convert_samples(settings, shipped_text_tokenizer(), Format())


def read(converted: ConvertedSamples) -> list[Episode]:
    return [read_episode(converted.index, entry) for entry in converted.index.episodes]


def bins(states: NDArray[np.float32]) -> list[list[int]]:
    return state_blocks(states, STATE_MIN, STATE_MAX).tolist()


@pytest.mark.parametrize("world_ranges", ["worldvla", "rynnvla"])
@pytest.mark.parametrize("views", [1, 2])
def test_views_actions_and_states_are_restored_exactly(
    tmp_path: Path, world_ranges: NamedRanges, views: int
) -> None:
    episodes = [
        recorded(12, 0, views=views),
        recorded(9, 1, "open the drawer", views),
        recorded(4, 2, views=views),
    ]
    write_samples(tmp_path / "tokens", episodes, world_ranges)
    converted = convert(tmp_path, world_ranges=world_ranges)
    assert converted.index.cameras == ("agent", "wrist")[:views]
    assert converted.index.action_ranges == RYNNVLA
    for episode, written in zip(read(converted), episodes, strict=True):
        assert episode.instruction == written.instruction
        for view, camera in enumerate(converted.index.cameras):
            assert np.array_equal(episode.codes[camera], written.codes[:-1, view])
        assert np.array_equal(encode(episode.actions, RYNNVLA), encode(written.actions[:-1], RYNNVLA))
        known = len(written.states) - CHUNK + 1  # steps that an action sample begins at
        assert bins(episode.states[:known]) == bins(written.states[:known])
        assert (episode.states[known:] == episode.states[known - 1]).all()
        assert len(episode.states) - known == CHUNK - 2
    assert converted.has_states
    assert converted.repeated_states == 3 * (CHUNK - 2)
    assert converted.least_chunk == CHUNK - 1
    assert max(converted.index.statistics["states"].maximum) > 0


def test_other_ranges_of_states_are_those_of_the_data_set(tmp_path: Path) -> None:
    write_samples(tmp_path / "tokens", [recorded(8, 0)])
    assert convert(tmp_path).index.state_ranges is None, "RynnVLA-002's are a training's default"
    ranges = StateRangesConfig([-9.0] * 8, [9.0] * 8)
    converted = convert(tmp_path, out=str(tmp_path / "others"), state_ranges=ranges)
    assert converted.index.state_ranges == StateRanges((-9.0,) * 8, (9.0,) * 8)
    states = converted.index.statistics["states"]
    assert (min(states.minimum) < min(STATE_MIN), max(states.maximum) > max(STATE_MAX)) == (True, True)


def test_two_views_without_states(tmp_path: Path) -> None:
    episode = recorded(8, 0)
    write_samples(tmp_path / "tokens", [episode], with_state=False)
    converted = convert(tmp_path)
    assert (converted.has_states, converted.repeated_states) == (False, 0)
    (found,) = read(converted)
    assert np.array_equal(found.codes["wrist"], episode.codes[:-1, 1])
    assert not found.states.any()


def test_steps_that_look_alike_keep_their_states(tmp_path: Path) -> None:
    """Fingers close while the frame's codes and the action stay."""
    episode = recorded(14, 0)
    episode.codes[4:9], episode.actions[4:9] = episode.codes[4], episode.actions[4]
    write_samples(tmp_path / "tokens", [episode, recorded(6, 1)])
    found = read(convert(tmp_path))[0]
    known = 14 - CHUNK + 1
    assert bins(found.states[:known]) == bins(episode.states[:known])
    assert len({tuple(state) for state in bins(found.states[4:9])}) == 5


def test_ranges_that_are_not_those_of_the_samples_are_named(tmp_path: Path) -> None:
    write_samples(tmp_path / "tokens", [recorded(12, 0)])
    expected = (
        r"tokens: \d+ of 11 steps of an episode have other action bins in their world samples \(\d.*\) than "
        r"in their action samples \(\d.*\): .* ranges=rynnvla world_ranges=worldvla"
    )
    for ranges in ({"world_ranges": None}, {"ranges": "worldvla", "world_ranges": "rynnvla"}):
        with pytest.raises(InputError, match=expected) as caught:
            convert(tmp_path, **ranges)
        assert "\n" not in str(caught.value)


def test_samples_of_several_kinds_are_refused(tmp_path: Path) -> None:
    one, two = recorded(8, 0, views=1), recorded(8, 1)
    write_samples(tmp_path / "tokens/one", [one])
    write_samples(tmp_path / "tokens/two", [two])
    with pytest.raises(InputError, match=r"world samples of one view a frame \(.*one/world.*\) and of two"):
        convert(tmp_path)
    for path in (tmp_path / "tokens/one/world").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"of two views a frame .*, but action samples with an odd number"):
        convert(tmp_path)
    write_samples(tmp_path / "other/with", [two])
    write_samples(tmp_path / "other/without", [two], with_state=False)
    with pytest.raises(InputError, match="5 action samples with a state and 5 without"):
        convert(tmp_path, source=str(tmp_path / "other"))


@pytest.mark.parametrize(("missing", "steps"), [([3], 11), ([8, 9], 11), ([1], 11), ([8], 9)])
def test_a_state_that_no_sample_gives_is_not_made_up(tmp_path: Path, missing: list[int], steps: int) -> None:
    write_samples(tmp_path / "tokens", [recorded(12, 0)])
    for number in range(steps + 1, 12):
        (tmp_path / f"tokens/world/{number}.pkl").unlink()
    for number in missing:
        (tmp_path / f"tokens/actions/{number}.pkl").unlink()
    expected = f"gives the state of step {missing[0] - 1} of an episode of {steps} steps"
    with pytest.raises(InputError, match=expected):
        convert(tmp_path)


@pytest.mark.parametrize(("views", "with_state"), [(1, False), (2, True)])
def test_action_samples_of_one_action_are_no_world_samples(
    tmp_path: Path, views: int, with_state: bool
) -> None:
    """They too have one action, and as many images as two frames."""
    episode = recorded(9, 0, views=views)
    write_samples(tmp_path / "tokens", [episode], with_state=with_state, chunk=1)
    converted = convert(tmp_path)
    (found,) = read(converted)
    assert np.array_equal(found.codes["agent"], episode.codes[:-1, 0])
    assert not with_state or bins(found.states) == bins(episode.states[:-1])
    assert (converted.repeated_states, converted.least_chunk) == (0, 1)


def test_every_bin_of_a_state_is_restored() -> None:
    ids = np.tile(np.arange(15_506, 15_762)[:, None], 8)
    states = restore_states(ids, STATE_MIN, STATE_MAX)
    assert states.dtype == np.float32
    assert np.array_equal(state_blocks(states, STATE_MIN, STATE_MAX)[:, 1:-1], ids)
    assert np.allclose(states[-1], STATE_MAX, atol=1e-6)  # it stands for the maximum and all above


def test_the_command_says_which_states_are_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_samples(tmp_path / "tokens", [recorded(9, 0, side=8), recorded(7, 1, side=8)])
    words = [f"source={tmp_path}/tokens", f"out={tmp_path}/out", "suite=x", "ranges=rynnvla"]
    assert main(["convert", "samples", *words, "world_ranges=worldvla"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 episodes, 14 steps, camera agent, wrist; with states, except for the last steps" in out
    assert "(4 in all), which samples lack: they repeat the last known one;" in out
    assert "data.chunk=3 or more" in out
    write_samples(tmp_path / "wo", [recorded(9, 0, side=8)], with_state=False)
    words = [f"source={tmp_path}/wo", f"out={tmp_path}/out2", "suite=x", "ranges=rynnvla"]
    assert main(["convert", "samples", *words, "world_ranges=worldvla"]) == 0
    assert "without states, which samples lack" in " ".join(capsys.readouterr().out.split())
