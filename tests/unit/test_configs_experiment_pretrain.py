"""The experiments of many data sets on 8, 64 and 512 GPUs: layouts, and a mixture that can be packed."""

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
from pretrain.auto_settings import GpuFacts, choose
from pretrain.checks import check_training
from pretrain.planner.gpus import Machine
from pretrain.planner.memory import estimate_memory
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.speed import estimate_step
from pretrain.settings import CONFIG_FOLDER, compose
from tests.support.simulated_episodes import simulated_episodes

NAME = "experiment=worldvla_pretrain_7b"


def experiment(*words: str) -> SubmitConfig:
    return compose("worldvla submit", SubmitConfig, "train", [NAME, "nodes=8", *words])


@pytest.mark.parametrize(("suffix", "nodes"), [("_8gpu", 1), ("", 8), ("_512gpu", 64)])
def test_its_layout_is_the_one_that_the_planner_recommends(suffix: str, nodes: int) -> None:
    words = [f"{NAME}{suffix}", f"nodes={nodes}"]
    config = compose("worldvla submit", SubmitConfig, "train", words)
    check_training(config)
    parallel, gpus = config.parallel, 8 * nodes
    assert parallel.tensor * parallel.data == gpus
    assert choose_layout(config, [*words, f"parallel.data={gpus}"]) == []
    chosen = dict(word.split("=") for word in choose_layout(config, words))
    for key in ("tensor", "data", "zero_stage", "hpz_partition_size"):
        assert int(chosen[f"parallel.{key}"]) == getattr(parallel, key), key
    assert int(chosen["trainer.micro_batch"]) == config.trainer.micro_batch
    choice = choose(config, GpuFacts("NVIDIA H100 80GB HBM3", 80e9, 8))
    assert choice.fits
    assert choice.recompute == chosen["model.recompute"] == "none"
    assert config.trainer.global_batch == 512, "the same training on each"


def test_its_comments_hold_the_estimates() -> None:
    for suffix, gigabytes, seconds in (("_8gpu", 61, 57.0), ("", 50, 7.4), ("_512gpu", 49, 0.95)):
        name = f"worldvla_pretrain_7b{suffix}"
        config = compose("worldvla submit", SubmitConfig, "train", [f"experiment={name}"])
        layout = ParallelLayout(
            1,
            config.parallel.data,
            1,
            "none",
            accumulates=config.parallel.data < 512,
            hpz=config.parallel.hpz_partition_size,
        )
        share, length = 512 // layout.data, config.trainer.sequence_length
        machine = Machine.of_gpu("H100", 0.45, 8)
        step = estimate_step(config.model, layout, length, share, machine)
        assert step.seconds == pytest.approx(seconds, rel=0.01)
        assert step.bound == "compute"
        assert estimate_memory(config.model, layout, length).total == pytest.approx(1e9 * gigabytes, rel=0.02)
        comment = (CONFIG_FOLDER / "experiment" / f"{name}.yaml").read_text().replace("\n# ", " ")
        assert f"Estimate, not measured: {gigabytes} GB of a GPU, {seconds:.2g} s a step" in comment


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (CONFIG_FOLDER / "experiment").glob("*vla_[lw]*.yaml"))
)
def test_an_experiment_of_eight_gpus_fits_without_recomputation(name: str) -> None:
    config = compose("worldvla submit", SubmitConfig, "train", [f"experiment={name}"])
    check_training(config)
    assert (config.parallel.tensor, config.parallel.data, config.parallel.zero_stage) == (1, 8, "auto")
    choice = choose(config, GpuFacts("NVIDIA H100 80GB HBM3", 80e9, 8))
    assert (choice.recompute, choice.zero_stage, choice.fits) == ("none", 3, True)
    comment = (CONFIG_FOLDER / "experiment" / f"{name}.yaml").read_text().replace("\n# ", " ")
    assert f"Estimate, not measured: {choice.needed / 1e9:.0f} GB of a GPU" in comment


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
