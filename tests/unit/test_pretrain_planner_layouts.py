"""Which layouts fit, and `worldvla inspect memory`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from cluster.cli.main import main
from data.errors import InputError
from data.sizes import parse_bytes
from pretrain.checks import check_training
from pretrain.config import ParallelConfig, RunConfig, TrainerConfig, TrainingConfig
from pretrain.model.config import ModelConfig
from pretrain.planner.gpus import Machine
from pretrain.planner.layouts import (
    MICRO_BATCHES,
    LayoutEstimate,
    LayoutRequest,
    estimate_layouts,
    feasible_layouts,
    fewest_gpus,
    recommended,
)
from pretrain.planner.parallel_layout import OFFLOADS

H100 = Machine.of_gpu("H100", efficiency=0.45, node_gpus=8)


def request(gpus: int, memory: float = 80e9, **changes: Any) -> LayoutRequest:
    """A request for the 7B at stage 3, without hpZ or offloading."""
    default = LayoutRequest(ModelConfig(), gpus, memory, 0.1, 4096, (1, 2, 4), None, H100, ("none",))
    return replace(default, **{"stages": (3,), "hpz": False, **changes})


def least_memory(layout_request: LayoutRequest) -> float:
    return min(estimate.memory.total for estimate in estimate_layouts(layout_request))


def test_7b_fits_eight_gpus_of_80_gb() -> None:
    plans = feasible_layouts(request(8))
    assert all(plan.memory.total <= 72e9 and plan.layout.tensor * plan.layout.data == 8 for plan in plans)
    assert [plan.step.seconds for plan in plans[1:]] == sorted(plan.step.seconds for plan in plans[1:])
    assert plans[0].step.seconds <= 1.02 * min(plan.step.seconds for plan in plans)
    assert {plan.layout.recompute for plan in plans} == {"none", "selective", "full"}


def test_7b_does_not_fit_one_gpu_of_80_gb() -> None:
    message = r"least need is 12\d\.\d GB a GPU .*recompute full, ZeRO-3, offload none.*take gpus=2,"
    with pytest.raises(InputError, match=message):
        feasible_layouts(request(1))
    assert fewest_gpus(request(1)) == 2
    assert feasible_layouts(request(2))


def test_7b_fits_one_gpu_of_80_gb_with_its_state_in_host_memory() -> None:
    plans = feasible_layouts(request(1, offloads=OFFLOADS))
    assert {plan.layout.offload for plan in plans} == {"optimizer", "all"}
    for plan in plans:
        # Weights, gradients twice and three fp32 numbers of each parameter, on GPU or host.
        everywhere = plan.memory.state + plan.memory.host
        assert everywhere == pytest.approx((22 if plan.layout.accumulates else 20) * 7.01e9, rel=0.01)
    least_host = min(plan.memory.host for plan in plans)
    with pytest.raises(InputError, match=r"nothing fits a host memory of 100 GB a GPU: the least need is 1"):
        feasible_layouts(request(1, offloads=OFFLOADS, host_memory=100e9))
    assert feasible_layouts(request(1, offloads=OFFLOADS, host_memory=least_host))


def test_offloading_saves_gpu_memory_and_costs_time() -> None:
    plans = [p for p in estimate_layouts(request(8, offloads=OFFLOADS)) if p.layout.tensor == 1]
    by_layout: dict[tuple[int, str], list[LayoutEstimate]] = {}
    for plan in plans:
        by_layout.setdefault((plan.layout.micro_batch, plan.layout.recompute), []).append(plan)
    for none, optimizer, everything in by_layout.values():
        assert none.memory.total > optimizer.memory.total > everything.memory.total
        assert none.step.seconds < optimizer.step.seconds < everything.step.seconds
        assert 0 == none.memory.host < optimizer.memory.host < everything.memory.host


def test_bytes_between_gpu_and_host() -> None:
    """bf16 gradients down and weights up once a step; also up twice a micro-batch if they are on the host."""
    share = 7.01e9 / 8
    actual = {
        p.layout.offload: p.step.host_bytes
        for p in estimate_layouts(request(8, offloads=OFFLOADS))
        if p.layout.tensor == 1 and p.layout.micro_batch == 2
    }
    assert actual["none"] == 0
    assert actual["optimizer"] == pytest.approx(4 * share, rel=0.01)
    assert actual["all"] == pytest.approx((4 + 2 * 4) * share, rel=0.01)


def test_model_that_fits_no_number_of_gpus_is_refused_with_advice() -> None:
    with pytest.raises(InputError, match="a shorter sequence_length or a smaller model"):
        feasible_layouts(request(64, memory=1e9))


def test_the_recommended_layout_is_not_at_the_edge_for_a_hundredth_of_the_time() -> None:
    assert recommended([(1.0, 70e9), (1.01, 65e9), (1.015, 50e9), (1.1, 30e9)], usable=72e9) == 2
    assert recommended([(1.0, 64e9), (1.01, 50e9)], usable=72e9) == 0
    assert recommended([(1.0, 70e9), (1.03, 50e9)], usable=72e9) == 0, "that much is worth it"
    assert recommended([(1.0, 70e9), (1.01, 71e9)], usable=72e9) == 0


def test_more_gpus_never_need_more_a_gpu() -> None:
    needs = [least_memory(request(2**power)) for power in range(8)]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > 2 * needs[3]


def test_more_memory_never_fits_fewer_layouts() -> None:
    counts = [len(feasible_layouts(request(8, memory=size * 1e9))) for size in (40, 80, 141)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_every_layout_is_one_that_training_accepts() -> None:
    layout_request = request(64, offloads=OFFLOADS)
    for plan in estimate_layouts(layout_request):
        layout = plan.layout
        model = replace(layout_request.model, recompute=layout.recompute)
        trainer = TrainerConfig(global_batch=layout_request.step_sequences, micro_batch=layout.micro_batch)
        parallel = ParallelConfig(
            layout.tensor, layout.data, offload=layout.offload, sequence_parallel=layout.tensor > 1
        )
        check_training(TrainingConfig(RunConfig("r"), trainer, parallel, model=model))
        assert layout_request.step_sequences // layout.data % layout.micro_batch == 0


def test_tensor_parallel_stays_in_a_node_and_divides_the_heads() -> None:
    assert {plan.layout.tensor for plan in estimate_layouts(request(64))} == {1, 2, 4, 8}
    two = replace(H100, node_gpus=2)
    assert {plan.layout.tensor for plan in estimate_layouts(request(64, machine=two))} == {1, 2}
    shared = ModelConfig(key_value_heads=2)
    assert {plan.layout.tensor for plan in estimate_layouts(request(64, model=shared))} == {1, 2}


def test_a_slow_network_makes_larger_micro_batches_better() -> None:
    slow = replace(H100, network_bandwidth=1e9)
    assert feasible_layouts(request(64, machine=slow))[0].layout.micro_batch == 4


def test_the_latency_of_long_rings_makes_them_shorter() -> None:
    """Each layer of each micro-batch: two gathers and a scatter, with one hop for every other rank."""
    latency = replace(H100, contention=0.0)  # which would favour fewer gathers too
    no_latency = replace(latency, hop=0.0)
    two = {
        name: next(p for p in estimate_layouts(request(4096, machine=m)) if p.layout.tensor == 2)
        for name, m in (("with", latency), ("without", no_latency))
    }
    added = two["with"].step.partition - two["without"].step.partition
    share = 8 // two["with"].layout.micro_batch
    assert added == pytest.approx(3 * 32 * share * 2047 * 3e-6)
    best = {
        m.hop: feasible_layouts(request(4096, machine=m))[0].layout.micro_batch for m in (latency, no_latency)
    }
    assert best == {3e-6: 4, 0.0: 2}, "fewer gathers"
    assert all(
        p.step == q.step
        for p, q in zip(
            estimate_layouts(request(8, machine=latency)),
            estimate_layouts(request(8, machine=no_latency)),
            strict=True,
        )
    )


def test_one_gpu_sends_nothing_and_utilisation_stays_below_the_efficiency() -> None:
    for plan in estimate_layouts(request(1)):
        assert plan.step.partition_bytes == plan.step.tensor_bytes == 0
    assert all(0 < plan.step.utilisation < 0.45 for plan in estimate_layouts(request(64)))


def test_bytes_that_zero_sends() -> None:
    """Each micro-batch gathers bf16 weights twice and scatters bf16 gradients once.

    0.5 billion weights stay between the passes: DeepSpeed keeps what is needed again within 1 billion.
    """
    plan = next(p for p in estimate_layouts(request(8)) if p.layout.tensor == 1 and p.layout.micro_batch == 2)
    assert plan.step.partition_bytes == pytest.approx(2 * 2 * (3 * 7.01e9 - 0.5e9) * 7 / 8, rel=0.001)


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80e9), ("80", 80e9), ("79.5 GiB", 79.5 * 2**30), ("0.1tb", 1e11)]
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert parse_bytes("gpu_memory", text) == size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpus=0"], "gpus=0, expected 1 or more"),
        (["gpu_memory=abc"], "gpu_memory=abc: expected a size such as 80GB"),
        (["gpu_memory=0GB"], "gpu_memory=0GB: expected a size such as 80GB"),
        (["gpu_memory=-3"], "gpu_memory=-3: expected a size such as 80GB"),
        (["model=7c"], "worldvla inspect memory: no file configs/model/7c.yaml"),
        (["gpu=Z80"], "gpu=Z80: not in the table of data sheets; expected one of B200, H200"),
        (["micro_batches=[]"], "micro_batches=0, expected 1 or more"),
        (["show=0"], "show=0, expected 1 or more"),
        (["reserve=1"], "reserve=1.0, expected at least 0 and below 1"),
        (["efficiency=0"], "efficiency=0.0, expected above 0"),
        (["gpus=7", "global_batch=5"], "no layout shares 5 sequences a step (global_batch) out over gpus=7"),
        (
            ["gpus=1", "model=7b", "offloads=[none]"],
            "nothing fits gpus=1 of 80 GB (72 GB without the reserve)",
        ),
        (["gpus=1", "host_memory=50GB"], "nothing fits a host memory of 50 GB a GPU: the least need is 1"),
        (
            ["offloads=[disk]"],
            "worldvla inspect memory: offloads[0]=disk, expected one of none",
        ),
        (["offloads=[]"], "offloads=[], expected some of none, optimizer, all"),
        (["model.heads=3"], "model.hidden_size=4096 over model.heads=3"),
    ],
)
def test_invalid_settings_give_a_one_line_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "memory", *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert shown.err.count("\n") == 1
    assert not shown.out


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["inspect", "memory", "model=7b", "gpus=64", "gpu_memory=80GB", "show=5"]) == 0
    shown = capsys.readouterr().out
    assert "7.01 B parameters on 64 GPUs of 80 GB: 5 of " in shown
    assert "estimate, not measured" in shown
    assert "take the first: parallel.tensor=1 parallel.data=64" in shown
    assert "trainer.global_batch=256 trainer.micro_batch=" in shown
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert len(rows) == 5
    assert all(len(row) == 18 and "…" not in "".join(row) for row in rows), "no column is lost"


def test_json_has_every_layout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "memory", "model=7b", "gpus=64", "gpu_memory=80GB", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["basis"] == "estimate, not measured"
    every = {"offloads": OFFLOADS, "stages": (0, 1, 2, 3), "micro_batches": MICRO_BATCHES, "hpz": True}
    expected = feasible_layouts(request(64, **every))
    assert len(content["layouts"]) == len(expected)
    assert [row["bound_by"] for row in content["layouts"]] == [plan.step.bound for plan in expected]
    for row in content["layouts"]:
        need = row["memory_bytes"]
        passes = need["activations"] + max(need["loss"], need["layer"])
        parts = need["weights"] + need["gradients"] + need["optimiser"] + need["buffers"]
        assert need["total"] == pytest.approx(parts + max(passes, need["update"]), abs=10)
        assert need["total"] <= content["usable_bytes"]
        assert row["tensor"] * row["data"] == 64
        assert row["zero_stage"] == 3 or (row["offload"] == "none" and row["hpz"] == 1)
        assert row["offload"] in OFFLOADS


def test_planning_needs_no_deepspeed() -> None:
    program = (
        "import sys, pretrain.planner.layouts; print('deepspeed' in sys.modules, 'megatron' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
