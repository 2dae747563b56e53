"""The table of goals, from JSON as the parts of `benchmarks.gpu` write it."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.gpu_goals import NOT_MEASURED, Goal, goals
from benchmarks.gpu_parts import ON_GPU

Row = dict[str, Any]
GPU = {"device": "NVIDIA H200", "cuda": "13.0"}


def attention(layout: str, name: str, causal: float | None, dense: float | None, tokens: int = 8192) -> Row:
    return {"layout": layout, "tokens": tokens, "attention": name, "causal": causal, "dense": dense}


def step(model: str, layers: int, mfu: float | None, full: float | None, recompute: str = "none") -> Row:
    variant = f"{model} {layers} layers, {recompute}"
    return {"model": model, "layers": layers, "mfu": mfu, "mfu_full": full, "variant": variant}


def decode(way: str, milliseconds: float, prompt: int = 600, answer: str = "K=5", batch: int = 1) -> Row:
    about = {"model": "7b", "prompt": prompt, "batch": batch, "answer": answer}
    return about | {"way": way, "milliseconds": milliseconds}


def start(part: str, seconds: float, model: str = "7b") -> Row:
    return {"model": model, "layers": 32, "all_layers": 32, "part": part, "seconds": seconds}


RECORDED = {
    "attention_flex": [
        attention("packed", "causal, torch flash", 1.0, 9.0),
        attention("packed", "flex", 1.4, 4.2),
        attention("packed", "flex", 3.0, 9.0, tokens=1024),
        attention("packed", "sdpa, dense mask", 0.3, 1.0),
        attention("one", "flex", 0.71, 3.0),
    ],
    "attention_flash": [attention("packed", "flash", 1.9, 6.5), attention("one", "flash", 0.81, 4.0)],
    "step_7b": [
        step("7b", 4, 58.0, 59.0),
        step("7b", 12, 56.0, 57.0),
        step("7b", 32, 54.5, 55.5),
        step("7b", 32, 40.0, 41.0, "full"),
    ],
    "step_1b": [step("1b", 19, None, None), step("1b", 19, 47.7, 48.5)],
    "decode": [
        decode("parallel", 20.0),
        decode("token, eager", 430.0),
        decode("token", 110.0),
        decode("continuous", 5.0),
        decode("parallel", 10.0, prompt=100),
        decode("token, eager", 900.0, prompt=100),
        decode("parallel", 1.0, batch=8),
        decode("token, eager", 9.0, batch=8),
        decode("image", 1.0, answer="16x16"),
    ],
    "start_up": [start("imports", 12.0), start("imports to weights", 75.0), start("weights", 60.0)],
}


def recorded(environment: dict[str, Any], **parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {"environment": environment, "rows": rows} for name, rows in parts.items()}


def test_goals_are_met_or_missed_by_how_much() -> None:
    found = {goal.text: goal for goal in goals(recorded(GPU, **RECORDED))}
    assert [(goal.value, goal.verdict, goal.how) for goal in found.values()] == [
        (1.9, "met", "flash"),
        (0.81, "missed by 0.09 x (10 %)", "flash"),
        (6.5, "met", "flash"),
        (54.5, "met", "7b 32 layers, none"),
        (55.5, "missed by 4.50 % (8 %)", "7b 32 layers, none"),
        (47.7, "missed by 5.30 % (10 %)", "1b 19 layers, none"),
        (48.5, "missed by 11.50 % (19 %)", "1b 19 layers, none"),
        (21.5, "met", "prompt of 600; 5.5 x token by token as CUDA graphs"),
        (75.0, "missed by 15.00 s (25 %)", "32/32 layers"),
    ]


@pytest.mark.parametrize(
    ("missing", "goals_lost"), [("attention", 3), ("step_7b", 2), ("step", 4), ("decode", 1)]
)
def test_what_a_part_has_not_written_is_not_measured(missing: str, goals_lost: int) -> None:
    rest = {name: rows for name, rows in RECORDED.items() if not name.startswith(missing)}
    whole, found = goals(recorded(GPU, **RECORDED)), goals(recorded(GPU, **rest))
    assert [goal.text for goal in found] == [goal.text for goal in whole]
    changed = [after for after, before in zip(found, whole, strict=True) if after != before]
    assert {goal.verdict for goal in changed} == {NOT_MEASURED}
    assert len(changed) == goals_lost


def test_a_cpu_and_unfinished_parts_meet_and_miss_nothing() -> None:
    cut_off = {"step_7b": {"environment": GPU}, "tests": {"environment": GPU, "counts": {"passed": 3}}}
    for results in (recorded({"device": "a CPU", "cuda": None}, **RECORDED), cut_off, {}):
        found = goals(results)
        assert len(found) == 9
        assert {(goal.value, goal.met, goal.verdict) for goal in found} == {(None, None, NOT_MEASURED)}


def test_a_bound_is_met_when_it_is_reached() -> None:
    assert Goal("a", 0.9, "x", 0.9).met
    assert not Goal("a", 60.0, "s", 60.0, lower=True).met
    assert Goal("a", 60.0, "s", 59.9, lower=True).met


def test_the_parts_are_those_whose_rows_the_goals_read() -> None:
    names = [part.name for part in ON_GPU]
    assert len(set(names)) == len(names)
    assert RECORDED.keys() <= set(names)
