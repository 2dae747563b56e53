"""What a stream of several robots refuses, and the ranges of states that it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.config import DataConfig, MixtureSource, StateRangesConfig
from data.errors import InputError
from data.storage.index import DatasetIndex
from data.stream.loader import TokenStream
from tests.support.reference_batches import Source, reference_rows
from tests.support.reference_samples import pack
from tests.support.robots_case import TRAINER, check_equal, configured, write_sources
from tests.support.shards_case import write_dataset


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    return write_sources(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize(
    ("robots", "change", "message"),
    [
        ((0, 2), {"state": True}, "droid: data.state=true, but its demonstrations have no state; set"),
        (
            (0,),
            {"variants": 3},
            r"data.variants=3, but .* with 2; .*`worldvla prepare variants=3`, or set data",
        ),
        ((0,), {"variants": -1}, "data.variants is -1, expected at least 0"),
        ((1, 0), {"chunk": 0}, "data.chunk is 0"),
        ((0, 2), {"state_ranges": StateRangesConfig([1.0], [0.0])}, "each minimum below its maximum"),
        ((0, 2), {"state_ranges": StateRangesConfig([1.0], [])}, "1 minima and 0 maxima, expected 1 of each"),
    ],
)
def test_what_a_data_set_does_not_have_is_refused(
    sources: list[Source], robots: tuple[int, ...], change: dict[str, object], message: str
) -> None:
    config = replace(configured([sources[number] for number in robots]), **change)
    with pytest.raises(InputError, match=message) as caught:
        TokenStream(config, TRAINER, seed=0)
    assert "\n" not in str(caught.value)


def test_a_chunk_of_one_data_set_is_checked(sources: list[Source]) -> None:
    config = configured(sources)
    for chunk, message in (
        (0, "libero: chunk=0, expected at least 1"),
        (9, "no action window in 4 episodes"),
    ):
        config.sources[0].chunk = chunk
        with pytest.raises(InputError, match=message):
            TokenStream(config, TRAINER, seed=0)


def test_ranges_of_the_settings_serve_a_data_set_without_its_own(
    sources: list[Source], tmp_path: Path
) -> None:
    index, of = sources[1].index, sources[1].episodes
    replace(index, state_ranges=None, episodes=index.episodes).save(str(tmp_path))
    for path in Path(index.url).glob("*.tar"):
        (tmp_path / path.name).symlink_to(path)
    source = Source(DatasetIndex.load(str(tmp_path)), of, 2)
    ranges = StateRangesConfig([-1.0] * 14, [1.5] * 14)
    config = DataConfig(str(tmp_path), chunk=2, state=True, state_ranges=ranges)
    with TokenStream(config, TRAINER, seed=0) as stream:
        (found,) = stream.micro_batches(0, 0, 1)
        rows = reference_rows(stream, 0, config, [source])
        check_equal(found, pack(rows, TRAINER.sequence_length, None, stream.plan.largest_segment))
    with pytest.raises(InputError, match="8 minima and 8 maxima, expected 14 of each"):
        TokenStream(replace(config, state_ranges=StateRangesConfig()), TRAINER, seed=0)


def test_states_are_compared_within_one_embodiment_only(sources: list[Source], tmp_path: Path) -> None:
    """Schema 3: states of the hand that may be turned, which only matters for hands."""
    plain = replace(write_dataset(tmp_path / "plain"), schema=3)
    plain.save(str(tmp_path / "plain"))
    config = DataConfig(sources=[MixtureSource(sources[1].index.url), MixtureSource(str(tmp_path / "plain"))])
    with TokenStream(config, TRAINER, seed=0) as stream:
        assert len(stream.micro_batches(0, 0, 1)) == 1
    config.sources.append(MixtureSource(sources[0].index.url))
    with pytest.raises(InputError, match=r"plain: prepared by an earlier version, .* against those of"):
        TokenStream(config, TRAINER, seed=0)
