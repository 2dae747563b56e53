"""Ways and goals of the decoding benchmark on a GPU, which are not run here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import decode
from benchmarks.report import Report

CHUNK = {"model": "7b", "prompt": 600, "batch": 1, "answer": "K=5"}


def targets(device: str, slower: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[str]]:
    """Goals and notes after ways that were so many times slower than the first."""
    report = Report("decode", "", decode._COLUMNS, device)
    for way, times in slower.items():
        rest = {"milliseconds": 1.0, "tokens_per_second": 1.0, "answers_per_second": 1.0}
        report.add(**CHUNK, **rest, way=way, times_the_first=times)
    decode.add_targets(report, device)
    return report.targets, report.notes


@pytest.mark.parametrize(("eager", "met"), [(20.0, True), (19.9, False)])
def test_the_goal_is_of_token_by_token_without_graphs(eager: float, met: bool) -> None:
    found, notes = targets("cuda", {"parallel": 1, "token": 5.5, "parallel, eager": 3, "token, eager": eager})
    (goal,) = [each for each in found if "GPU, 7B, K = 5" in str(each)]
    assert (goal["met"], goal["value"]) == (met, eager)
    assert len([note for note in notes if "as CUDA graphs too: 5.5 x" in note]) == 1


def test_on_a_cpu_the_goal_is_not_measured() -> None:
    found, notes = targets("cpu", {"parallel": 1, "token": 5.5})
    (goal,) = [each for each in found if "GPU, 7B, K = 5" in str(each)]
    assert goal["met"] is None
    assert notes == []


@pytest.mark.parametrize("on_gpu", [True, False])
def test_ways_without_graphs_are_timed_on_a_gpu(monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    timed: list[dict[str, Any]] = []
    monkeypatch.setattr(decode, "_add", lambda report, about, ways, *rest: timed.append(ways))
    monkeypatch.setattr(decode, "with_head", lambda model, chunk: model)
    model: Any = SimpleNamespace(lm_head=SimpleNamespace(weight=SimpleNamespace(is_cuda=on_gpu)))
    report = Report("decode", "", decode._COLUMNS, "cpu")
    decode.time_chunks(report, "tiny", model, 64, 1, 5, 1)
    decode.time_images(report, "tiny", model, 64, 1, 1)
    eager = {name: way for ways in timed for name, way in ways.items() if name.endswith("eager")}
    assert sorted(eager) == (["image, eager", "parallel, eager", "token, eager"] if on_gpu else [])
    for name, way in eager.items():
        assert isinstance(way, partial)
        assert way.keywords["graphs"] == "off"
        assert way.keywords.get("order", "image") == name.split(",")[0]
    assert all(
        "graphs" not in way.keywords for ways in timed for name, way in ways.items() if name not in eager
    )
