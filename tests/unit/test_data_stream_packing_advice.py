"""The reported padding is that of the batches; the suggested length is the best near the configured one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stream_data import window_count, write_episodes
from cluster.cli.main import main
from data.config import DataConfig
from data.errors import InputError
from data.storage.index import DatasetIndex
from data.stream.loader import TokenStream
from data.stream.order.plan import DataPlan
from data.stream.packing_advice import packing_advice
from data.stream.setup import make_plan
from pretrain.config import TrainerConfig
from pretrain.start import advise_on_packing


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Episodes like WorldVLA's at 256 pixels."""
    return write_episodes(tmp_path_factory.mktemp("shards"), 12)


def plan_of(url: str, length: int, sequences: int = 16) -> DataPlan:
    return make_plan(DataConfig(url), TrainerConfig(global_batch=sequences, sequence_length=length), seed=0)


def test_at_most_3_percent_of_an_epoch_is_padding_at_8192_tokens(url: str) -> None:
    windows = window_count(DatasetIndex.load(url).episodes.lengths.tolist())
    trainer = TrainerConfig(global_batch=8, sequence_length=8192)
    with TokenStream(DataConfig(url), trainer, seed=0) as stream:
        steps = -(-windows // len(stream.plan.step(0)))
        empty = [(stream.micro_batches(step, 0, 1)[0].segments == 0).mean() for step in range(steps)]
        assert np.mean(empty) == pytest.approx(stream.plan.padding, abs=5e-4)
    assert max(empty) < 0.03


@pytest.mark.parametrize("length", [2048, 4096, 8192])
def test_the_suggested_length_pads_least_of_the_nearby_ones(url: str, length: int) -> None:
    advice = packing_advice(plan_of(url, length))
    assert advice.padding == pytest.approx(plan_of(url, length).padding)
    assert advice.best_padding == pytest.approx(plan_of(url, advice.best_length).padding)
    assert abs(advice.best_length - length) <= length // 8
    grain = min(128, length // 64)
    for other in range(length - length // 8, length + length // 8, grain):
        assert plan_of(url, other).padding >= advice.best_padding - 1e-12
    assert advice.notable == (advice.padding > 0.03)


def test_lengths_that_no_sample_fits_are_not_suggested(url: str) -> None:
    longest = plan_of(url, 8192).longest_sample
    advice = packing_advice(plan_of(url, longest))
    assert advice.best_length >= longest
    with pytest.raises(InputError, match="longest action sample"):
        plan_of(url, longest - 1)


def test_a_start_reports_only_notable_padding(url: str, caplog: pytest.LogCaptureFixture) -> None:
    advise_on_packing(plan_of(url, 8192))
    assert caplog.messages == []
    advise_on_packing(plan_of(url, 2048))
    (reported,) = caplog.messages
    best = packing_advice(plan_of(url, 2048))
    assert reported == str(best)
    assert f"trainer.sequence_length={best.best_length} would pad" in reported


def test_inspect_plan_shows_padding_and_suggestion(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "plan", f"url={url}", "step=50", "global_batch=16", "sequence_length=2048"]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert str(packing_advice(plan_of(url, 2048))) in shown
    for name, epochs in plan_of(url, 2048).epochs(50).items():
        assert f"{name} {epochs:.3f}" in shown
