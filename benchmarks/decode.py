"""Decoding: action chunks as numbers and as tokens, images with and without guidance.

Every way of decoding includes the forward pass over the prompt; that is timed too:

    continuous  the action head of RynnVLA-002: nothing but that pass
    parallel    all K action blocks advance together: 7 forward passes of K tokens after the prompt
    block       one block after the other, without structure tokens that no other block sees:
                7 K forward passes of one token
    token       every token of the answer on its own, as in plain autoregressive generation with a
                cache: 9 K - 2 forward passes of one token
    image       one image code in each forward pass
    guided      the same with classifier-free guidance: prompts with and without the action in one batch

On a GPU the steps of all of them are CUDA graphs, replayed; `parallel, eager`, `token, eager` and `image,
eager` are the same without. The goal of 20 x is of `parallel` against `token, eager`: plain autoregressive
generation with a cache, a kernel launched at a time. Against `token` the number of passes bounds the ratio:
with K = 5 there are 43 to 7, and both read the prompt.

The bins are the same in all three orders of tokens. The ways are timed in turn, round after round, and the
median of each is reported, so that a busy machine slows all of them; a fast way is repeated within a round.
Weights are random; the time does not depend on them.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import Column, Report, arguments
from data.stream.samples import action_prompt, world_prompt
from data.tokens.image_block import image_block
from data.tokens.vocabulary import (
    ACTION_BIN_END,
    ACTION_BIN_START,
    ACTION_BLOCK_LENGTH,
    IMAGE_CODE_COUNT,
    TEXT_START,
)
from pretrain.model.action_head import PREFIX, ActionHead
from pretrain.model.config import ActionHeadConfig
from pretrain.model.generate import Order, decode_action_chunk
from pretrain.model.generate_continuous import predict_actions
from pretrain.model.generate_images import Guidance, decode_images
from pretrain.model.parameters import Shard, initial_values
from pretrain.model.transformer import Transformer
from pretrain.settings import named_models

_TARGET = 8.0  # times that decoding tokens in parallel is faster than one after the other
_GPU_TARGET = 20.0  # the same on a GPU, 7B, K = 5, one after the other without CUDA graphs
_HEAD_TARGET = 4.0  # times that the action head is faster than tokens in parallel
_MIN_SECONDS = 0.2  # of one way in one round
_COLUMNS = (
    Column("model", "model"),
    Column("prompt", "prompt"),
    Column("batch", "B"),
    Column("answer", "answer"),
    Column("way", "way"),
    Column("milliseconds", "time", "ms", digits=1),
    Column("tokens_per_second", "tokens", "1/s", digits=0),
    Column("answers_per_second", "answers", "1/s", digits=1),
    Column("times_the_first", "slower", "x"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = arguments("decode", __doc__)
    parser.add_argument(
        "--models", nargs="+", choices=named_models(), help="default: tiny, on a GPU 300m 1b 7b"
    )
    parser.add_argument("--chunks", nargs="+", type=int, help="K, actions in a chunk; default: 5 10 25")
    parser.add_argument("--batches", nargs="+", type=int, help="environments; default: 1 8")
    parser.add_argument("--rounds", type=int, help="timed runs of each way; default: 7")
    options = parser.parse_args(argv)
    smoke, device = options.smoke, options.device
    models = options.models or (["tiny"] if smoke or device == "cpu" else ["300m", "1b", "7b"])
    chunks = options.chunks or ([5] if smoke else [5, 10, 25])
    batches = options.batches or ([1] if smoke else [1, 8])
    rounds = options.rounds or (1 if smoke else 7)

    kind = "bf16" if device == "cuda" else "fp32"
    report = Report("decode", f"Decoding with a cache, {kind}", _COLUMNS, device, out=options.out)
    for name in models:
        model = random_model(name, device)
        for pixels in (64,) if smoke else (64, 256):
            for batch in batches:
                for chunk in chunks:
                    time_chunks(report, name, model, pixels, batch, chunk, rounds)
                time_images(report, name, model, pixels, batch, min(rounds, 3))
        del model
    add_targets(report, device)
    report.note("prompts: of 100 tokens one frame of 64 pixels, of 600 two frames of 256 pixels, as LIBERO's")
    report.note("tokens: of the written answer, nine an action, or image codes; answers: chunks or images")
    report.note("slower: than the first way of the same answer")
    report.note(
        "on a GPU steps are CUDA graphs, but for the ways that are named eager; on a CPU there are none"
    )
    report.finish(options.out)
    return 0


def random_model(name: str, device: str) -> Transformer:
    """A model of `configs/model` with random weights: fp32, on a GPU bf16.

    Its positions are enough for the longest case here, which only lengthens the rotary table.
    """
    config = named_models()[name]
    config = replace(config, max_positions=max(config.max_positions, 2048))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
        with torch.device(device):
            model = Transformer(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" not in parameter_name:
                parameter.normal_(0.0, 0.02)
    return model.eval().requires_grad_(False)


def with_head(model: Transformer, chunk: int) -> Transformer:
    """The same model with a random action head for `chunk` actions, in its dtype, on its device."""
    config = replace(model.config, action_head=ActionHeadConfig(time_horizon=chunk))
    weight = model.lm_head.weight
    head = ActionHead(config).to(weight.device, weight.dtype)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            values = initial_values(f"{PREFIX}{name}", Shard(tuple(parameter.shape)), config, chunk)
            parameter.copy_(values.view(parameter.shape))
    model.action_head = head.eval().requires_grad_(False)
    return model


def time_chunks(
    report: Report, name: str, model: Transformer, pixels: int, batch: int, chunk: int, rounds: int
) -> None:
    """Rows of one chunk length: every order of decoding tokens, and the action head."""
    prompts = [action_prompt_of(pixels, seed) for seed in range(batch)]
    ways: dict[str, Callable[[], object]] = {
        order: partial(decode_action_chunk, model, prompts, chunk, order=order) for order in get_args(Order)
    }
    if model.lm_head.weight.is_cuda:
        for order in ("parallel", "token"):
            decode = partial(decode_action_chunk, model, prompts, chunk, order=order, graphs="off")
            ways[f"{order}, eager"] = decode
    ways["continuous"] = partial(predict_actions, with_head(model, chunk), prompts)
    about = {"model": name, "prompt": len(prompts[0]), "batch": batch, "answer": f"K={chunk}"}
    _add(report, about, ways, batch, chunk * ACTION_BLOCK_LENGTH, rounds)


def time_images(report: Report, name: str, model: Transformer, pixels: int, batch: int, rounds: int) -> None:
    """Rows of one image size: without and with guidance."""
    side = _side(pixels)
    prompts, without = zip(*(world_prompts_of(pixels, seed) for seed in range(batch)), strict=True)
    decode = partial(decode_images, model, prompts, side, side, pixels)
    ways = {"image": decode, "guided": partial(decode, guidance=Guidance(3.0, without))}
    if model.lm_head.weight.is_cuda:
        ways["image, eager"] = partial(decode, graphs="off")
    about = {"model": name, "prompt": len(prompts[0]), "batch": batch, "answer": f"{side}x{side}"}
    _add(report, about, ways, batch, side * side, rounds)


def action_prompt_of(pixels: int, seed: int) -> NDArray[np.int32]:
    """A prompt of 100 tokens with one frame of 64 pixels, or of 600 with two of 256."""
    frames, words = {64: (1, 22), 256: (2, 46)}[pixels]
    random = np.random.default_rng(seed)
    return action_prompt(_words(random, words), list(_frames(random, frames, pixels)))


def world_prompts_of(pixels: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A world prompt of one frame and an action, and the same without the action."""
    random = np.random.default_rng(seed)
    words, frames = _words(random, 22), _frames(random, 1, pixels)
    bins = random.integers(ACTION_BIN_START, ACTION_BIN_END, 7)
    return world_prompt(words, frames[0], bins), action_prompt(words, list(frames))


def _words(random: np.random.Generator, count: int) -> NDArray[np.int64]:
    return random.integers(TEXT_START, TEXT_START + 512, count)  # ids that the smallest vocabulary has


def _frames(random: np.random.Generator, count: int, pixels: int) -> NDArray[np.int64]:
    side = _side(pixels)
    return image_block(random.integers(0, IMAGE_CODE_COUNT, (count, side, side)), pixels)


def _side(pixels: int) -> int:
    """Codes along a side, as in the two image tokenizers: 8 of 64 pixels, 16 of 256."""
    return 8 if pixels == 64 else 16


def _add(
    report: Report,
    about: dict[str, object],
    ways: Mapping[str, Callable[[], object]],
    batch: int,
    tokens: int,
    rounds: int,
) -> None:
    """Time the ways in turn and add a row of each; `tokens` are those of one answer."""
    for decode in ways.values():
        decode()  # warms up
    repeats = {way: math.ceil(_MIN_SECONDS / _seconds(decode, 1)) for way, decode in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, decode in ways.items():
            times[way].append(_seconds(decode, repeats[way]))
    seconds = {way: statistics.median(rounds_of_way) for way, rounds_of_way in times.items()}
    for way, median in seconds.items():
        report.add(
            **about,
            way=way,
            milliseconds=1000 * median,
            tokens_per_second=batch * tokens / median,
            answers_per_second=batch / median,
            times_the_first=median / next(iter(seconds.values())),
        )


def _seconds(decode: Callable[[], object], repeats: int) -> float:
    """Mean seconds of a call; each ends with its result on the host, so the device is done."""
    start = time.perf_counter()
    for _ in range(repeats):
        decode()
    return (time.perf_counter() - start) / repeats


def add_targets(report: Report, device: str) -> None:
    """The action head against parallel decoding, and that against both sequential ones (CPU, tiny model)."""
    for chunk in (5, 10, 25):
        about = {"model": "tiny", "batch": 1, "answer": f"K={chunk}", "prompt": 100}
        rows = [row for row in report.rows if row["way"] == "continuous" and about.items() <= row.items()]
        ratio = 1 / rows[0]["times_the_first"] if rows and device == "cpu" else None
        met = None if ratio is None else ratio >= _HEAD_TARGET
        text = (
            f"CPU, tiny, K = {chunk}, batch 1, prompt of 100: continuous at least 4 x as fast as in parallel"
        )
        report.target(text, met, ratio)
    reference = {"model": "tiny", "batch": 1, "answer": "K=25", "prompt": 100}
    for way, meaning in (("token", "token by token"), ("block", "block by block")):
        ratio = _slower(report, way, reference) if device == "cpu" else None
        met = None if ratio is None else ratio >= _TARGET
        text = f"CPU, tiny, K = 25, batch 1, prompt of 100: at least 8 x as fast in parallel as {meaning}"
        report.target(text, met, ratio)
    _add_gpu_targets(report, device)


def _add_gpu_targets(report: Report, device: str) -> None:
    """Parallel decoding at 7B against token by token, without and with CUDA graphs.

    The second has no bound to meet: it shows how much of the first is the launching of kernels.
    """
    chunk = {"model": "7b", "batch": 1, "answer": "K=5", "prompt": 600}
    text = "GPU, 7B, K = 5, batch 1, prompt of 600: in parallel, against token by token with a cache"
    eager, graphs = (
        _slower(report, way, chunk) if device == "cuda" else None for way in ("token, eager", "token")
    )
    met = None if eager is None else eager >= _GPU_TARGET
    report.target(f"{text}, eager: at least 20 x as fast", met, eager)
    if graphs is not None:
        report.note(f"{text}, as CUDA graphs too: {graphs:.1f} x")


def _slower(report: Report, way: str, about: dict[str, object]) -> float | None:
    """How many times slower than the first way of the same answer a way was; None: not measured."""
    rows = [row for row in report.rows if row["way"] == way and about.items() <= row.items()]
    return rows[0]["times_the_first"] if rows else None


if __name__ == "__main__":
    sys.exit(main())
