"""Padding is what batches hold, and the suggested length is the best near the wished one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stream_data import window_count, write_episodes
from cluster.cli.main import main
from data.config import DataConfig
from data.errors import InputError
from data.storage.index import DatasetIndex
from data.stream.advice import packing_advice
from data.stream.loader import TokenStream, make_plan
from data.stream.plan import Plan
from pretrain.config import TrainerConfig
from pretrain.start import advise_on_packing


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Episodes as WorldVLA's at 256 pixels."""
    return write_episodes(tmp_path_factory.mktemp("shards"), 12)


def plan_of(url: str, length: int, sequences: int = 16) -> Plan:
    return make_plan(DataConfig(url), TrainerConfig(global_batch=sequences, sequence_length=length), seed=0)


def test_at_most_3_percent_of_an_epoch_is_padding_at_8192_tokens(url: str) -> None:
    windows = window_count(DatasetIndex.load(url).episodes.lengths.tolist())
    trainer = TrainerConfig(global_batch=8, sequence_length=8192)
    with TokenStream(DataConfig(url), trainer, seed=0) as stream:
        steps = -(-windows // len(stream.plan.step(0)))
        empty = [(stream.micro_batches(step, 0, 1)[0].segments == 0).mean() for step in range(steps)]
        assert np.mean(empty) == pytest.approx(stream.plan.padding, abs=5e-4)
    assert max(empty) < 0.03


@pytest.mark.parametrize("wished", [2048, 4096, 8192])
def test_the_suggested_length_pads_least_of_those_near(url: str, wished: int) -> None:
    advice = packing_advice(plan_of(url, wished))
    assert advice.padding == pytest.approx(plan_of(url, wished).padding)
    assert advice.best_padding == pytest.approx(plan_of(url, advice.best_length).padding)
    assert abs(advice.best_length - wished) <= wished // 8
    grain = min(128, wished // 64)
    for other in range(wished - wished // 8, wished + wished // 8, grain):
        assert plan_of(url, other).padding >= advice.best_padding - 1e-12
    assert advice.notable == (advice.padding > 0.03)


def test_lengths_that_no_sample_fits_are_not_suggested(url: str) -> None:
    longest = plan_of(url, 8192).longest_sample
    advice = packing_advice(plan_of(url, longest))
    assert advice.best_length >= longest
    with pytest.raises(InputError, match="longest action sample"):
        plan_of(url, longest - 1)


def test_a_start_tells_of_much_padding_alone(url: str, caplog: pytest.LogCaptureFixture) -> None:
    advise_on_packing(plan_of(url, 8192))
    assert caplog.messages == []
    advise_on_packing(plan_of(url, 2048))
    (told,) = caplog.messages
    best = packing_advice(plan_of(url, 2048))
    assert told == str(best)
    assert f"trainer.sequence_length={best.best_length} would pad" in told


def test_inspect_plan_tells_padding_and_suggestion(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "plan", f"url={url}", "step=50", "global_batch=16", "sequence_length=2048"]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert str(packing_advice(plan_of(url, 2048))) in shown
    for name, epochs in plan_of(url, 2048).epochs(50).items():
        assert f"{name} {epochs:.3f}" in shown
