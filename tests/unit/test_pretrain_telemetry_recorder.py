"""Work and peak speed of a training, and the file of metrics."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from data.contracts import PackedBatch
from data.errors import InputError
from data.tokens.vocabulary import IGNORED_LABEL
from pretrain.model.config import ModelConfig
from pretrain.planner.flops import Workload
from pretrain.telemetry.meters import peak_flops
from pretrain.telemetry.sinks import (
    JsonlSink,
    MetricsTail,
    drop_after,
    read_metrics,
)
from tests.support.full_disk import MESSAGE, fill


def test_work_counts_real_tokens_labels_and_pairs_of_each_sample() -> None:
    batch = PackedBatch(
        tokens=np.ones((1, 8), np.int32),
        labels=np.array([[IGNORED_LABEL, 5, IGNORED_LABEL, 5, 5, *[IGNORED_LABEL] * 3]], np.int32),
        positions=np.array([[0, 1, 2, 0, 1, 0, 0, 0]], np.int32),
        segments=np.array([[1, 1, 1, 2, 2, 0, 0, 0]], np.int32),
        blocks=np.zeros((1, 8), np.int32),
        action_starts=np.array([2, 4]),
    )
    work = Workload.of(batch)
    assert work == Workload(tokens=5, labelled=3, pairs=1 + 2 + 3 + 1 + 2, action_samples=2, prompts=2 + 1)
    assert work + work == Workload(10, 6, 18, 4, 6)


def test_flops_of_a_long_run_of_tokens_are_six_per_parameter() -> None:
    model = ModelConfig(vocabulary_size=100, hidden_size=8, ffn_size=16, layers=2, heads=2)
    layers = 2 * (4 * 64 + 3 * 128)
    assert Workload(tokens=1).flops(model) == 6 * layers
    assert Workload(labelled=1).flops(model) == 6 * 100 * 8
    assert Workload(pairs=1).flops(model) == 12 * 2 * 8
    model.key_value_heads = 1
    assert Workload(tokens=1).flops(model) == 6 * (layers - 2 * 2 * 8 * 4), (
        "keys and values of one head of two"
    )


def test_peak_of_a_cpu_is_measured() -> None:
    assert 1e8 < peak_flops(torch.device("cpu"), "fp32") < 1e15


def test_peak_of_a_known_gpu_comes_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda", 0), "bf16") == 989.4e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert peak_flops(torch.device("cuda", 0), "bf16") == 756e12


def write(path: Path, *records: Mapping[str, object]) -> None:
    sink = JsonlSink(path)
    for record in records:
        sink.write(record)
    sink.close()


def test_a_full_disk_is_named_by_metrics(tmp_path: Path) -> None:
    fill(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=MESSAGE) as raised:
        write(tmp_path / "metrics.jsonl", {"step": 1})
    assert raised.value.filename == str(tmp_path / "metrics.jsonl")
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=r"metrics\.jsonl"), closing(sink):  # the close fails as well
        sink.write({"step": 1})


def test_a_tail_returns_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.new() == []
    write(path, {"step": 1}, {"step": 2})
    assert tail.new() == [{"step": 1}, {"step": 2}]
    with path.open("a") as file:
        file.write('{"step"')
    assert tail.new() == [], "an incomplete line is left for the next call"
    with path.open("a") as file:
        file.write(": 3}\n")
    assert tail.new() == [{"step": 3}]
    assert MetricsTail(path, from_end=True).new() == []


def test_lines_after_the_resumed_step_are_dropped_and_a_tail_continues(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert drop_after(path, 5) == 0
    write(path, *({"step": step} for step in range(1, 8)))
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    tail = MetricsTail(path)
    tail.new()
    assert drop_after(path, 5) == 3
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4, 5]
    assert tail.new() == []
    write(path, {"event": "resumed", "step": 5}, {"step": 6})
    assert tail.new() == [{"event": "resumed", "step": 5}, {"step": 6}]


@pytest.mark.parametrize("damaged", [b'{"step": \xff}', b"\x00" * 7, b'{"step": 2'])
def test_a_line_damaged_by_a_crash_is_dropped(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, {"step": 1})
    with path.open("ab") as file:
        file.write(damaged + b"\n")
    assert drop_after(path, 5) == 1
    assert read_metrics(path) == [{"step": 1}]


def test_a_display_leaves_a_damaged_line_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b'{"st\xff\n[]\n{"step": "two"}\n')
    write(path, {"event": "resumed"}, {"step": 2})
    assert MetricsTail(path, skip_damaged=True).new() == [{"step": 1}, {"event": "resumed"}, {"step": 2}]
    for begin, message in zip((12, 18, 21), caplog.messages, strict=True):
        assert f"{path}: the line at byte {begin} is no record" in message
    with pytest.raises(
        InputError, match=r"metrics.jsonl: the line at byte 12 is no record .*; delete that line"
    ):
        read_metrics(path)


def test_every_line_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write({"step": 1})
    assert json.loads(path.read_text()) == {"step": 1}
    assert os.path.getsize(path) > 0
