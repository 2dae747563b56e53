"""`worldvla vq`: train a small VQ-GAN on demonstrations.

Three phases of one schedule, so that the few minutes of a CPU suffice:

1. an ordinary autoencoder, without codebook;
2. the codebook starts at the k-means centres of the latents and tracks them (`MovingCodebook`), with
   straight-through gradients;
3. codes are fixed, only the decoder is trained further.

The loss is L1 + L2, without the perceptual and adversarial terms of Esser et al. (2021): those need
pretrained networks and much longer training. A pixel is weighted by how unusual it is for its position in
the image (squared deviation over variance, among the frames of the same task and camera): a small object on
an empty table is a handful of pixels, and all that a policy acts on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import InputError
from data.files import output_file
from data.prepare.frames import fit_frames
from data.sources.registry import read_demonstrations
from data.tokens.image import ImageTokenizer, frames_to_tensor
from data.tokens.image_model import ImageModel, ImageModelConfig
from data.tokens.vocabulary import IMAGE_CODE_COUNT
from pretrain.config import VqConfig
from pretrain.vq.codebook import MovingCodebook

_AUTOENCODER_SHARE = 0.2  # of the steps: phase 1
_DECODER_SHARE = 0.2  # of the steps: phase 3
_WARMUP_STEPS = 50
_COMMITMENT = 0.25
_GRADIENT_CLIPPING = 1.0
_MIN_VARIANCE = 0.01  # of a pixel in [-1, 1]: render noise is not unusual
_LATENTS_PER_ENTRY = 64  # for k-means


@dataclass(frozen=True)
class VqReport:
    """Result of `worldvla vq`.

    Attributes:
        path: Of the tokenizer file.
        sha256: Its checksum.
        train_frames, held_out_frames: Frames used.
        psnr: `"<suite>/<camera>"` -> PSNR in dB over its held-out frames (0 to 255, one mean squared
            error over all frames).
        codes_used: Codebook entries that the held-out frames use.
    """

    path: Path
    sha256: str
    train_frames: int
    held_out_frames: int
    psnr: dict[str, float]
    codes_used: int


@dataclass(frozen=True)
class FrameSet:
    """Frames of one camera in one task: uint8 [N, H, W, 3]."""

    group: str
    train: NDArray[np.uint8]
    held_out: NDArray[np.uint8]


Progress = Callable[[int, int], None]
"""Called with (finished steps, total steps)."""


def train_image_tokenizer(config: VqConfig, progress: Progress | None = None) -> VqReport:
    """Train on the demonstrations of `config.source`, write `config.out`, measure on held-out ones.

    Raises:
        InputError: No usable demonstrations, an invalid setting, or `out` is not writable.
    """
    _check(config)
    out = output_file(config.out, ".safetensors")
    model = _build(config)
    sets = read_frames(config)
    _fit(model, sets, config, progress)
    tokenizer = ImageTokenizer(model)
    try:
        tokenizer.save(out)
    except OSError as error:
        raise InputError(f"out={out}: cannot write ({error.strerror}); name a writable file") from error
    return _measure(tokenizer, sets, out)


def read_frames(config: VqConfig) -> list[FrameSet]:
    """Frames of every task and camera below `config.source`, some demonstrations of each held out."""
    episodes_of: dict[tuple[str, str, str], list[NDArray[np.uint8]]] = {}
    for demonstration in read_demonstrations(config):
        for camera, frames in demonstration.frames.items():
            chosen = np.unique(np.linspace(0, len(frames) - 1, config.frames).round().astype(int))
            key = (demonstration.suite, demonstration.task, camera)
            fitted = fit_frames(frames[chosen], config.pixels, config.fit, config.resize)
            episodes_of.setdefault(key, []).append(fitted)
    sets: list[FrameSet] = []
    for (suite, task, camera), episodes in sorted(episodes_of.items()):
        if len(episodes) < 2:
            raise InputError(
                f"source={config.source}: task {task} has {len(episodes)} demonstration, expected at least 2 "
                "(one is held out to measure with); collect more"
            )
        num_held_out = min(len(episodes) - 1, max(1, round(config.held_out * len(episodes))))
        order = np.random.default_rng(config.seed).permutation(len(episodes))  # the same for each camera
        held_out, train = (
            [episodes[i] for i in part] for part in (order[:num_held_out], order[num_held_out:])
        )
        sets.append(FrameSet(f"{suite}/{camera}", np.concatenate(train), np.concatenate(held_out)))
    return sets


def _check(config: VqConfig) -> None:
    for name in ("steps", "batch_size", "frames"):
        if (value := getattr(config, name)) < 1:
            raise InputError(f"{name}={value}: expected at least 1")
    if not 0 <= config.held_out < 1:
        raise InputError(f"held_out={config.held_out}: expected at least 0 and below 1")
    if config.codebook_size > IMAGE_CODE_COUNT:
        raise InputError(
            f"codebook_size={config.codebook_size}: expected at most {IMAGE_CODE_COUNT}, the image codes of "
            "the vocabulary"
        )


def _build(config: VqConfig) -> ImageModel:
    torch.manual_seed(config.seed)
    try:
        sizes = ImageModelConfig(
            pixels=config.pixels,
            codebook_size=config.codebook_size,
            embedding_size=config.embedding_size,
            latent_channels=config.latent_channels,
            base_channels=config.base_channels,
            channel_multiplier=tuple(config.channel_multiplier),
            residual_blocks=config.residual_blocks,
            norm_groups=config.norm_groups,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    return ImageModel(sizes)


def _fit(model: ImageModel, sets: list[FrameSet], config: VqConfig, progress: Progress | None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    batches = _batches(sets, config, device)
    codebook = MovingCodebook(model.quantize, config.seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.01)
    half = partial(torch.autocast, device.type, torch.bfloat16, enabled=config.precision == "bf16")
    first_coded = round(_AUTOENCODER_SHARE * config.steps)
    first_fixed = round((1 - _DECODER_SHARE) * config.steps)
    for step in range(config.steps):
        if step == first_coded:
            codebook.start(_some_latents(model, batches, config))
        frames, weight = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(config, step)
        with half(), torch.set_grad_enabled(step < first_fixed):
            latents = model.latents(frames)
        latents, commitment = latents.float(), torch.zeros((), device=device)
        if step >= first_coded:  # in fp32: the nearest entry must not depend on rounding
            latents, commitment = codebook.quantise(latents, update=step < first_fixed)
        with half():
            difference = model.reconstruct(latents).float() - frames
        loss = (weight * (difference.abs() + difference.square())).mean() + _COMMITMENT * commitment
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, _GRADIENT_CLIPPING)
        optimiser.step()
        if progress is not None:
            progress(step + 1, config.steps)


def _batches(sets: list[FrameSet], config: VqConfig, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: frames [N, 3, H, W] in [-1, 1], and the weight of each pixel [N, 1, H, W], mean 1."""
    rng = np.random.default_rng(config.seed)
    frames = np.concatenate([s.train for s in sets])
    owner = np.repeat(np.arange(len(sets)), [len(s.train) for s in sets])
    means = torch.stack([frames_to_tensor(s.train).mean(0) for s in sets])
    variances = torch.stack([frames_to_tensor(s.train).var(0, correction=0) for s in sets])
    while True:
        chosen = rng.integers(0, len(frames), config.batch_size)
        x, of = frames_to_tensor(frames[chosen]), torch.as_tensor(owner[chosen])
        unusual = (x - means[of]).square() / (variances[of] + _MIN_VARIANCE)
        weight = 1.0 + unusual.amax(1, keepdim=True).clamp(max=config.foreground)
        yield x.to(device), (weight / weight.mean()).to(device)


@torch.no_grad()
def _some_latents(model: ImageModel, batches: Iterator[tuple[Tensor, Tensor]], config: VqConfig) -> Tensor:
    """At least `_LATENTS_PER_ENTRY` latents for every entry of the codebook: [L, E]."""
    codes_a_batch = config.batch_size * (config.pixels // model.config.downsample) ** 2
    count = math.ceil(_LATENTS_PER_ENTRY * config.codebook_size / codes_a_batch)
    parts = [model.latents(next(batches)[0]) for _ in range(count)]
    return torch.cat(parts).reshape(-1, config.embedding_size)


def _learning_rate(config: VqConfig, step: int) -> float:
    """Linear warm-up, then cosine to zero."""
    warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
    return config.lr * warmup * 0.5 * (1.0 + math.cos(math.pi * step / config.steps))


def _measure(tokenizer: ImageTokenizer, sets: list[FrameSet], path: Path) -> VqReport:
    errors: dict[str, list[float]] = {}
    used: set[int] = set()
    for s in sets:
        codes = tokenizer.encode(s.held_out)
        used.update(np.unique(codes).tolist())
        squared = np.square(tokenizer.decode(codes).astype(np.float64) - s.held_out)
        errors.setdefault(s.group, []).extend(squared.mean(axis=(1, 2, 3)).tolist())
    return VqReport(
        path=path,
        sha256=tokenizer.sha256,
        train_frames=sum(len(s.train) for s in sets),
        held_out_frames=sum(len(s.held_out) for s in sets),
        psnr={group: 10 * math.log10(255**2 / max(np.mean(e), 1e-10)) for group, e in sorted(errors.items())},
        codes_used=len(used),
    )
