"""The experiment of many data sets on 64 GPUs: it composes, its layout fits, its mixture can be packed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.stream_data import CODES, PIXELS, SIDE
from cluster.cli.main import main
from cluster.slurm.config import SubmitConfig
from cluster.slurm.layout_choice import choose_layout
from data.contracts import AGENT_CAMERA, Statistics
from data.storage import index as indexes
from data.storage.episode_entry import Task
from data.storage.index import DatasetIndex, ImageFormat
from data.stream.order.plan import Kind
from data.stream.setup import make_plan
from data.tokens.action import ActionRanges
from pretrain.checks import check_training
from pretrain.settings import compose
from tests.support.simulated_episodes import simulated_episodes

NAME = "experiment=worldvla_pretrain_7b"


def experiment(*words: str) -> SubmitConfig:
    return compose("worldvla submit", SubmitConfig, "train", [NAME, "nodes=8", *words])


def test_layout_uses_64_gpus_and_fits_their_memory() -> None:
    config = experiment()
    check_training(config)
    assert config.parallel.tensor * config.parallel.data == 64
    assert choose_layout(config, [NAME, "nodes=8", "parallel.data=64"]) == []
    chosen = dict(word.split("=") for word in choose_layout(config, [NAME, "nodes=8"]))
    for key in ("tensor", "data"):  # what the planner finds the quickest is what the file says
        assert int(chosen[f"parallel.{key}"]) == getattr(config.parallel, key)
    assert int(chosen["trainer.micro_batch"]) == config.trainer.micro_batch


def test_submit_writes_its_job_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", NAME, "nodes=8", "--dry-run"]) == 0
    assert "#SBATCH --job-name=worldvla_pretrain_7b\n#SBATCH --nodes=8\n" in capsys.readouterr().out


def test_its_mixture_is_exact_and_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of simulated episodes in place of those in the object store; nothing else is replaced."""
    monkeypatch.delenv("WORLDVLA_SHARDS", raising=False)
    config = experiment("data.text_tokenizer=null", "data.image_tokenizer=null")
    urls = [source.url for source in config.data.sources]
    assert len(set(urls)) == 7
    assert all(url.startswith("s3://worldvla/shards/") for url in urls)
    monkeypatch.setattr(indexes.DatasetIndex, "load", classmethod(lambda cls, url, *_, **__: _simulated(url)))
    plan = make_plan(config.data, config.trainer, seed=0)
    windows = plan.step(12_345)
    share = np.bincount(windows.datasets) / len(windows)
    weights = np.array([source.weight for source in config.data.sources])
    assert np.abs(share - weights / weights.sum()).max() < 1 / len(windows)
    assert int((windows.kinds == Kind.WORLD).sum()) * 2 == len(windows)
    assert plan.padding < 0.03
    assert len(plan.step(12_345, *plan.share(63, 64))) > 0


def _simulated(url: str) -> DatasetIndex:
    tasks: Sequence[Task] = [Task("s", f"task_{n}", " ".join(["move"] * (4 + n % 10))) for n in range(40)]
    numbers = tuple(0.0 for _ in range(8))
    statistics = Statistics(1, numbers, numbers, numbers, numbers, numbers, numbers)
    return DatasetIndex(
        image=ImageFormat(PIXELS, SIDE, SIDE, CODES, tokenizer_sha256="0" * 64),
        cameras=(AGENT_CAMERA,),
        action_ranges=ActionRanges(),
        statistics={"actions": statistics, "states": statistics},
        episodes=simulated_episodes(500, tasks, seed=len(url)),
        url=url,
    )
