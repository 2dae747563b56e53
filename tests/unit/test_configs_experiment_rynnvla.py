"""The experiments of RynnVLA-002: published numbers, sequences that hold the samples, a layout that fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.slurm.config import SubmitConfig
from cluster.slurm.layout_choice import choose_layout
from data.contracts import AGENT_CAMERA, WRIST_CAMERA, Statistics
from data.storage.episode_entry import Task
from data.storage.index import DatasetIndex, ImageFormat
from data.stream.order.plan import Kind
from data.stream.setup import make_plan
from data.tokens.action import NAMED_RANGES
from pretrain.checks import check_training
from pretrain.settings import CONFIG_FOLDER, compose
from tests.support.simulated_episodes import simulated_episodes

SAMPLES = 64  # of a published step: 8 on each of 8 GPUs
EPOCHS = 40
POLICIES = ("spatial", "object", "goal", "10")
WORLD_MODEL = "rynnvla_world_512"
# Of each suite: frames without no-ops, and its longest and shortest instructions.
FRAMES = {"spatial": 52_970, "object": 66_984, "goal": 52_042, "10": 101_469}
INSTRUCTIONS = {
    "spatial": (
        "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate",
        "pick up the black bowl on the stove and place it on the plate",
    ),
    "object": (
        "pick up the chocolate pudding and place it in the basket",
        "pick up the milk and place it in the basket",
    ),
    "goal": ("open the top drawer and put the bowl inside", "turn on the stove"),
    "10": (
        "put the white mug on the left plate and put the yellow and white mug on the right plate",
        "put both moka pots on the stove",
    ),
}


def experiment(name: str, *words: str) -> SubmitConfig:
    return compose("worldvla submit", SubmitConfig, "train", [f"experiment={name}", *words])


@pytest.mark.parametrize(
    ("suite", "chunk", "lr", "weight_decay", "dropout"),
    [
        ("spatial", 10, 5e-6, 0.1, 0.05),
        ("object", 5, 5e-6, 0.1, 0.05),
        ("goal", 5, 5e-6, 0.15, 0.08),
        ("10", 10, 8e-6, 0.18, 0.1),
    ],
)
def test_policies_have_the_published_numbers(
    suite: str, chunk: int, lr: float, weight_decay: float, dropout: float
) -> None:
    config = experiment(f"rynnvla_libero_{suite}_256")
    assert config.model.action_head is not None
    assert (config.data.chunk, config.model.action_head.time_horizon) == (chunk, chunk)
    assert (config.optim.lr, config.optim.weight_decay) == (lr, weight_decay)
    assert (config.model.dropout, config.model.action_head.dropout) == (dropout, 0.1)
    assert (config.optim.betas, config.optim.gradient_clipping) == ((0.9, 0.95), 4.0)
    assert (config.optim.schedule, config.optim.warmup_fraction) == ("constant", 0.01 / EPOCHS)
    assert (config.loss.image_weight, config.loss.z_loss, config.loss.action_l1) == (0.04, 1e-5, 10.0)
    assert config.loss.tokens_for_actions
    assert (config.data.cameras, config.data.state, config.data.history) == (["agent", "wrist"], True, 2)
    assert (config.data.split, config.eval.suite, config.eval.episodes) == ("all", f"libero_{suite}", 50)
    assert config.trainer.steps == round(2 * FRAMES[suite] * EPOCHS / SAMPLES, -2)


def test_the_world_model_has_the_published_numbers() -> None:
    config = experiment(WORLD_MODEL)
    assert config.model.action_head is None
    assert (config.data.mixture.action, config.data.mixture.world) == (0, 1)
    assert (config.data.cameras, config.data.history, config.data.split) == (["agent", "wrist"], 1, "train")
    assert (config.loss.image_weight, config.loss.z_loss) == (0.04, 1e-5)
    assert config.eval.every == 0, "a policy it is not"


@pytest.mark.parametrize("suite", POLICIES)
def test_a_step_of_a_policy_has_the_published_samples(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_step(
        f"rynnvla_libero_{suite}_256", 256, INSTRUCTIONS[suite], (SAMPLES // 2, SAMPLES // 2), monkeypatch
    )


def test_a_step_of_the_world_model_has_the_published_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    check_step(WORLD_MODEL, 512, INSTRUCTIONS["goal"], (0, SAMPLES), monkeypatch)


def check_step(
    name: str,
    pixels: int,
    instructions: Sequence[str],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plan over an index of simulated episodes has the samples, and hardly any padding."""
    config = experiment(name, "data.text_tokenizer=null", "data.image_tokenizer=null")
    monkeypatch.setattr(
        DatasetIndex, "load", classmethod(lambda cls, url, *_, **__: _simulated(url, pixels, instructions))
    )
    plan = make_plan(config.data, config.trainer, seed=0)
    kinds = plan.step(1_234).kinds
    assert ((kinds == Kind.ACTION).sum(), (kinds == Kind.WORLD).sum()) == expected
    assert plan.padding < 0.03
    assert plan.longest_sample <= config.model.max_positions
    assert f"{config.trainer.sequence_length:,}" in _comment(name)
    assert f"{config.trainer.steps:,} steps" in _comment(name)


@pytest.mark.parametrize("name", [*(f"rynnvla_libero_{suite}_256" for suite in POLICIES), WORLD_MODEL])
def test_it_fits_a_node_of_its_cluster(name: str) -> None:
    config = experiment(name)
    check_training(config)
    words = [f"experiment={name}"]
    chosen = choose_layout(config, words)
    layout = experiment(name, *chosen)
    assert layout.parallel.tensor * layout.parallel.data == 8
    assert choose_layout(layout, [*words, *chosen]) == []


def _comment(name: str) -> str:
    lines = Path(CONFIG_FOLDER, "experiment", f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def _simulated(url: str, pixels: int, instructions: Sequence[str]) -> DatasetIndex:
    tasks = [Task("s", f"task_{n}", instruction) for n, instruction in enumerate(instructions)]
    numbers = tuple(1.0 for _ in range(8))
    statistics = Statistics(1, numbers, numbers, numbers, numbers, numbers, numbers)
    return DatasetIndex(
        image=ImageFormat(pixels, pixels // 16, pixels // 16, 8192, tokenizer_sha256="0" * 64),
        cameras=(AGENT_CAMERA, WRIST_CAMERA),
        action_ranges=NAMED_RANGES["rynnvla"],
        statistics={"actions": statistics, "states": statistics},
        episodes=simulated_episodes(200, tasks, seed=0),
        url=url,
    )
