"""What `auto` stands for in `model.recompute` and `parallel.zero_stage`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from data.config import DataConfig
from data.errors import InputError
from pretrain.auto_settings import AutoChoice, GpuFacts, apply_choice, choose, needed_bytes
from pretrain.checks import check_training
from pretrain.config import ParallelConfig, RunConfig, TrainerConfig, TrainingConfig
from pretrain.main import TorchrunConfig
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.settings import compose, from_mapping, named_models, to_mapping, to_yaml

MODELS = named_models()
H100 = GpuFacts("NVIDIA H100 80GB HBM3", 80e9, 8)


def training(model: str = "7b", stage: Any = 3, ranks: int = 8, **changes: Any) -> TrainingConfig:
    """One sequence of 8,192 tokens a rank in micro-batches of one, four of them."""
    return TrainingConfig(
        run=RunConfig("r"),
        trainer=TrainerConfig(global_batch=4 * ranks, micro_batch=1, sequence_length=8192),
        parallel=ParallelConfig(1, ranks, stage),
        model=replace(MODELS[model], **changes),
    )


@pytest.mark.parametrize("memory", [40e9, 50e9, 60e9, 80e9])
def test_the_least_recomputation_that_fits_is_chosen(memory: float) -> None:
    expected = {40e9: "full", 50e9: "full", 60e9: "selective", 80e9: "none"}[memory]
    choice = choose(training(), replace(H100, memory=memory))
    assert (choice.recompute, choice.zero_stage, choice.fits) == (expected, 3, True)
    assert choice.usable == 0.9 * memory


def test_the_stage_is_the_quickest_that_fits() -> None:
    stages = {name: choose(training(name, "auto"), H100).zero_stage for name in ("300m", "1b", "34b")}
    assert stages == {"300m": 2, "1b": 2, "34b": 3}
    one_rank = training("1b", "auto", ranks=1)
    assert choose(one_rank, H100) == choose(one_rank, H100)
    assert choose(one_rank, H100).zero_stage == 0, "nothing to share out"
    assert choose(training("7b", "auto"), H100).zero_stage == 3


def test_what_is_given_is_kept() -> None:
    assert choose(training(recompute="full", stage="auto"), H100).recompute == "full"
    assert choose(training(stage=3), replace(H100, memory=141e9)).zero_stage == 3
    chosen = apply_choice(training(stage="auto"), choose(training(stage="auto"), H100))
    assert chosen.model.recompute == "none"
    assert chosen.parallel.zero_stage == 3
    assert replace(chosen, model=MODELS["7b"], parallel=ParallelConfig(1, 8, "auto")) == training(
        stage="auto"
    )


def test_where_nothing_fits_the_least_need_is_taken_and_told() -> None:
    choice = choose(training("34b", "auto"), H100)
    assert (choice.recompute, choice.zero_stage, choice.fits) == ("full", 3, False)
    assert choice.needed > choice.usable == 72e9
    assert "model.recompute=full parallel.zero_stage=3 chosen: " in str(choice)
    assert "GB of a GPU's 72.0 GB (without the reserve), an estimate" in str(choice)


def test_on_cpus_nothing_is_recomputed() -> None:
    choice = choose(training("tiny", "auto", recompute="auto"), None)
    assert choice == AutoChoice("none", 0)
    assert str(choice) == "model.recompute=none parallel.zero_stage=0 chosen for CPUs"
    assert choose(training("tiny", 1, recompute="auto"), None).zero_stage == 1


@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig(1, 8, "auto", offload="optimizer"), ParallelConfig(1, 8, "auto", hpz_partition_size=8)],
)
def test_offloading_and_hpz_are_of_stage_3(parallel: ParallelConfig) -> None:
    config = replace(training("1b"), parallel=parallel)
    check_training(config)
    assert choose(config, H100).zero_stage == choose(config, None).zero_stage == 3


def test_hpz_with_tensor_parallel_stays_refused() -> None:
    config = replace(training("1b"), parallel=ParallelConfig(2, 4, "auto", hpz_partition_size=4))
    with pytest.raises(InputError, match="it needs stage 3 and tensor 1"):
        check_training(config)


def test_the_estimate_knows_what_the_planner_takes_for_granted() -> None:
    layout = ParallelLayout(2, 4, 1, "selective", accumulates=True)
    config = training("1b", ranks=4)
    config.parallel = ParallelConfig(2, 4, sequence_parallel=True)
    least = needed_bytes(config, layout, 8)
    for section, name, value in (
        ("trainer", "precision", "fp32"),
        ("model", "compile", "off"),
        ("model", "recompute_layers", 10),
        ("parallel", "sequence_parallel", False),
    ):
        other = replace(config, **{section: replace(getattr(config, section), **{name: value})})
        if name == "compile":  # what selective recompute saves is the same either way
            assert needed_bytes(other, replace(layout, recompute="none"), 8) > needed_bytes(
                config, replace(layout, recompute="none"), 8
            )
        else:
            assert needed_bytes(other, layout, 8) > least, name
    every = replace(config, model=replace(config.model, recompute_layers=config.model.layers))
    assert needed_bytes(every, layout, 8) == least


def test_the_network_trains_with_a_choice_alone() -> None:
    small = ModelConfig(
        vocabulary_size=64, hidden_size=16, ffn_size=32, layers=1, heads=2, max_positions=8, recompute="auto"
    )
    network = Transformer(small)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    from pretrain.model.attention.causal import CausalMask

    places = torch.arange(4)[None]
    assert network.eval()(tokens, places, CausalMask()).shape == (1, 4, 64), "policies read such settings"
    with pytest.raises(RuntimeError, match="auto reached the network"):
        network.train()(tokens, places, CausalMask())


def test_settings_hold_numbers_and_auto() -> None:
    def stage(*words: str) -> Any:
        return compose("t", TorchrunConfig, "train", ["run.name=r", "data.url=d", *words]).parallel.zero_stage

    assert stage() == 3
    assert [stage(f"parallel.zero_stage={value}") for value in (0, 2, "auto")] == [0, 2, "auto"]
    assert stage("parallel=single") == 1
    with pytest.raises(InputError, match=r"parallel.zero_stage=4, expected one of 0, 1, 2, 3, auto"):
        stage("parallel.zero_stage=4")
    config = replace(training(stage="auto"), data=DataConfig(url="d"))
    assert from_mapping("t", TrainingConfig, to_mapping(config)) == config
    assert "zero_stage: auto" in to_yaml(config)


def test_shipped_networks_leave_recomputation_to_the_planner() -> None:
    assert {name: model.recompute for name, model in MODELS.items()} == {
        "1b": "auto",
        "300m": "auto",
        "34b": "auto",
        "7b": "auto",
        "micro": "none",
        "tiny": "none",
    }
