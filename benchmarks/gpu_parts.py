"""What `benchmarks.gpu` measures, best value first, and how much of the time each part may take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Part:
    """A program that measures and writes JSON to `--out`, again and again as it goes.

    Attributes:
        name: Of the part; also of its result.
        words: Of the command line after `python -m`, without `--out`.
        most: Seconds after which it is ended.
        least: With fewer seconds left it is not begun.
    """

    name: str
    words: tuple[str, ...]
    most: float
    least: float = 15.0


def allowance(part: Part, left: float) -> float | None:
    """Seconds that a part may take; None: it is not begun.

    Args:
        part: Next in the list.
        left: Seconds of the whole that are left.
    """
    seconds = min(part.most, left)
    return None if seconds < min(part.least, part.most) else seconds


def _step(model: str, *options: str) -> tuple[str, ...]:
    return ("benchmarks.step", "--models", model, "--steps", "6", *options)


def _attention(*backends: str) -> tuple[str, ...]:
    return ("benchmarks.attention", "--tokens", "8192", "--attention", *backends)


_DECODE = ("benchmarks.decode", "--models", "7b", "--chunks", "5", "--batches", "1", "--rounds", "2")

# Backends and depths apart, so that one which fails, or hangs in its compiler, takes no other with it.
_ON_GPU = (
    Part("ceilings", ("benchmarks.gpu_ceilings",), most=40),
    Part("step_7b", _step("7b", "--layers", "4", "12", "--recompute", "none"), most=100, least=40),
    Part("tests", ("benchmarks.gpu_tests",), most=170, least=40),
    Part("attention_flex", _attention("flex"), most=50),
    Part("attention_flash", _attention("flash"), most=70),
    Part("decode", _DECODE, most=80, least=30),
    Part("step_1b", _step("1b", "--recompute", "none"), most=50, least=25),
    Part("start_up", ("benchmarks.start_up",), most=100, least=30),
    Part("loss", ("benchmarks.loss",), most=30),
    Part("frames", ("benchmarks.frames",), most=40),
    Part("staging", ("benchmarks.staging",), most=60, least=30),
    Part(
        "step_7b_recompute", _step("7b", "--layers", "4", "12", "--recompute", "selective", "full"), most=120
    ),
    Part("step_7b_whole", _step("7b", "--layers", "32", "--recompute", "full"), most=100, least=40),
    Part("attention_flash2", _attention("flash2"), most=40),
)
ON_GPU = tuple(replace(part, words=(*part.words, "--device", "cuda")) for part in _ON_GPU)
_SMOKE = ("--smoke", "--device", "cpu")
ON_CPU = tuple(
    Part(name, (f"benchmarks.{module}", *options, *_SMOKE), most=math.inf)
    for name, module, options in (
        ("ceilings", "gpu_ceilings", ()),
        ("step_7b", "step", ("--recompute", "none", "--layers", "2", "3")),
        ("tests", "gpu_tests", ()),
        ("attention_flex", "attention", ("--attention", "flex", "--tokens", "640")),
        ("decode", "decode", ()),
        ("start_up", "start_up", ()),
        ("loss", "loss", ("--tokens", "256")),
        ("frames", "frames", ()),
        ("staging", "staging", ()),
    )
)
