"""What an evaluation's policy needs: the planner's estimate, and the lines of commands about it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from cluster.cli.main import main
from cluster.config import RootConfig
from cluster.resources.evaluation_needs import evaluation_line, slow_evaluation_warning
from cluster.run.preflight import check_run
from pretrain.model.cache import DecodingCache
from pretrain.model.config import ModelConfig
from pretrain.planner.evaluation import cpu_chunk_seconds, evaluation_memory
from pretrain.settings import compose, named_models

MODELS = named_models()
GOAL = "experiment=worldvla_libero_goal_256"


def settings(*words: str) -> RootConfig:
    return compose("worldvla train", RootConfig, "train", [GOAL, *words])


def test_memory_of_a_7b() -> None:
    need = evaluation_memory(ModelConfig(), batch=8)
    assert need.weights == pytest.approx(14.0e9, rel=0.01)
    assert need.cache == 8 * 4096 * 32 * 2 * 4096 * 2
    assert need.total == need.weights + need.cache + need.working + need.tokenizer
    assert 30e9 < need.total < 40e9, (
        "a GPU of 80 GB has room; beside a rank, which takes 60 GB, there is none"
    )
    assert evaluation_memory(ModelConfig(), batch=8, processes=2).total == 2 * need.total
    assert evaluation_memory(ModelConfig(), batch=1).cache == need.cache / 8


def test_the_cache_is_the_one_of_decoding() -> None:
    model = replace(MODELS["tiny"], key_value_heads=2)
    cache = DecodingCache(model, 3, model.max_positions, torch.device("cpu"), torch.bfloat16)
    cache.extend(torch.zeros(1, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64))
    key = torch.zeros(3, model.shared_heads, 1, model.head_size, dtype=torch.bfloat16)
    stored = [each.untyped_storage() for layer in cache.layers for each in layer.append(key, key)]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in stored}
    assert evaluation_memory(model, batch=3).cache == sum(sizes.values())


def test_seconds_on_cpus_grow_with_the_network() -> None:
    seconds = {name: cpu_chunk_seconds(model) for name, model in MODELS.items()}
    assert 100 < seconds["7b"] < 400, "2 x 7 B x 600 tokens at 50 GFLOP/s, and 7 reads of 28 GB at 10 GB/s"
    assert seconds["tiny"] < 1
    assert seconds["34b"] > 4 * seconds["7b"]


def test_shipped_experiments_of_7b_evaluate_on_a_gpu_or_not_at_all() -> None:
    config = settings()
    assert (config.eval.every, config.eval.gpus) == (0, 1)
    assert evaluation_line(config).startswith(
        "evaluations: none beside the training (eval.every=0); a policy would take at most 37 GB of a GPU "
    )
    line = evaluation_line(settings("eval.every=5000"))
    assert line.startswith("evaluations: every 5000 steps, eval.gpus=1; at most 37 GB")
    assert line.endswith("; eval.gpus=0.55 is enough")


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["eval.gpus=0.5"], "more than that share's 36 GB; set eval.gpus=0.55 or more"),
        (["eval.gpus=0.55"], "; eval.gpus=0.55 is enough"),
        (
            ["cluster.gpu_memory=40GB"],
            ", more than the 36 GB of one; lower eval.batch or eval.policy_servers",
        ),
        (["cluster.gpu_memory=null"], "estimate, not measured)"),
        (["model=300m"], "; eval.gpus=0.1 is enough"),
    ],
)
def test_the_share_of_a_gpu_is_judged(words: list[str], end: str) -> None:
    assert evaluation_line(settings("eval.every=5000", *words)).endswith(end)


def test_a_large_network_on_cpus_is_a_warning_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    words = ["run.name=a", "data.url=s", "eval.every=10", "checkpointing.every=10"]
    messages = []
    for model in ("7b", "300m"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            check_run(compose("worldvla train", RootConfig, "train", [*words, f"model={model}"]))
        messages.append([record.message for record in caplog.records])
    (message,) = messages[0]
    assert message.startswith(
        "evaluations would run a network of 7.0 billion parameters on CPUs (eval.gpus=0), "
    )
    assert "about 188 s for each chunk of actions of each robot by estimate" in message
    assert messages[1] == []
    assert slow_evaluation_warning(settings("eval.gpus=0")) is None, "none are made"


def test_commands_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "cluster", GOAL, "nodes=2", "eval.every=5000"]) == 0
    assert "evaluations: every 5000 steps, eval.gpus=1" in capsys.readouterr().out
    assert main(["submit", GOAL, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "evaluations: none beside the training" in shown.err
    assert shown.out.startswith("#!/bin/bash"), "the script alone"
    assert main(["inspect", "memory", "model=7b", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["evaluation_bytes"] == round(evaluation_memory(ModelConfig(), batch=8).total)
