"""What a variant of an episode costs: CPU time of changing and encoding its frames, and bytes in the shard.

    recorded    frames resized and encoded, as without variants
    variant     the same frames under drawn changes of the camera, resized and encoded; the mean of several

Frames are those of `--source` (what `worldvla collect` writes, or any source of `worldvla prepare`); without
one a block that moves over a gradient, at `--pixels`, whose codes compress better than those of real frames.
Bytes are of the codes of all cameras. The PSNR is that of frames that were encoded and decoded again: an
image tokenizer has to know such frames.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from benchmarks.report import Column, Report, arguments
from data.config import PrepareConfig
from data.contracts import AGENT_CAMERA, Demonstration
from data.prepare.encoding import changed_frames
from data.prepare.frames import fit_frames
from data.sources.no_ops import DEFAULT_RULE, NoOpRule, moving_steps
from data.sources.registry import open_source
from data.tokens.image import ImageTokenizer

_MOST = 0.5  # of the time of encoding a frame
_ZSTD_LEVEL = 3  # of shards
_DECODED = 4  # frames of each episode, camera and variant
_COLUMNS = (
    Column("way", "frames"),
    Column("count", "frames"),
    Column("change", "changing and resizing a frame", "ms CPU"),
    Column("encode", "encoding it", "ms CPU"),
    Column("plain", "codes of a step, none", "bytes", digits=0),
    Column("zstd", "codes of a step, zstd", "bytes", digits=0),
    Column("psnr", "decoded again", "dB", digits=1),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit status."""
    options = _parse(argv)
    tokenizer = ImageTokenizer.load(options.image_tokenizer, device=options.device)
    config = PrepareConfig(source=options.source or "", fit="crop", variants=options.variants)
    report = Report("variants", "A variant of an episode", _COLUMNS, options.device)
    pixels = options.pixels or tokenizer.pixels
    demonstrations = list(_demonstrations(options, config, pixels))
    rule = DEFAULT_RULE if options.source is None else open_source(config).no_ops()
    recorded = _measured("recorded", demonstrations, tokenizer, config, rule, [0])
    numbers = list(range(1, 1 + options.variants))
    variant = _measured("variant", demonstrations, tokenizer, config, rule, numbers)
    report.add(**recorded)
    report.add(**variant)
    share = variant["change"] / variant["encode"]
    text = f"changing a frame takes at most {_MOST:g} of the time of encoding it, on this device"
    report.target(text, share <= _MOST, share)
    sides = sorted({frames.shape[1] for made in demonstrations for frames in made.frames.values()})
    recorded_at = ", ".join(map(str, sides))
    report.note(
        f"{len(demonstrations)} episodes, {options.variants} variants, recorded at {recorded_at} pixels, "
        f"encoded at {tokenizer.pixels}"
    )
    report.finish(options.out)
    return 0


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = arguments("variants", __doc__)
    parser.add_argument("--source", help="demonstrations; default: made ones")
    parser.add_argument("--image-tokenizer", help="default: the one of the package")
    parser.add_argument("--pixels", type=int, help="of made frames; default: the image tokenizer's")
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--variants", type=int, default=4)
    options = parser.parse_args(argv)
    if options.smoke:
        options.episodes, options.variants = 1, 1
    return options


def _demonstrations(options: Namespace, config: PrepareConfig, pixels: int) -> Iterable[Demonstration]:
    if options.source is None:
        steps = 4 if options.smoke else 60
        return (_made(number, steps, pixels) for number in range(options.episodes))
    source = open_source(config)
    return (source.read(reference) for reference in source.references()[: options.episodes])


def _made(number: int, steps: int, pixels: int) -> Demonstration:
    """A bright block that wanders over a gradient."""
    random = np.random.default_rng(number)
    ramp = np.linspace(0, 127, pixels)
    shades = np.add.outer(ramp, ramp).astype(np.uint8)
    frames = np.repeat(np.repeat(shades[np.newaxis, ..., np.newaxis], steps, axis=0), 3, axis=-1)
    side, reach = pixels // 6, pixels // 32
    places = random.integers(0, pixels, 2) + random.integers(-reach, reach + 1, (steps, 2)).cumsum(axis=0)
    block = random.integers(150, 256, 3)
    for frame, (down, right) in zip(frames, places.clip(0, pixels - side).tolist(), strict=True):
        frame[down : down + side, right : right + side] = block
    actions, states = random.normal(size=(steps, 7)), np.zeros((steps, 8), np.float32)
    return Demonstration(
        f"made/demo_{number}", "made", "made", "move", {AGENT_CAMERA: frames}, actions, states
    )


def _measured(
    way: str,
    demonstrations: Sequence[Demonstration],
    tokenizer: ImageTokenizer,
    config: PrepareConfig,
    rule: NoOpRule,
    variants: Sequence[int],
) -> dict[str, Any]:
    """One row: a variant of 0 is the recorded frames."""
    changing = encoding = 0.0
    frames = steps = plain = packed = 0
    errors: list[float] = []
    for made in demonstrations:
        moving = moving_steps(made.actions, rule)
        for camera, recorded in made.frames.items():
            for variant in variants:
                begin = time.process_time()
                shown = _shown(recorded[moving], made.key, camera, variant, tokenizer.pixels, config)
                middle = time.process_time()
                codes = tokenizer.encode(shown)
                changing, encoding = changing + middle - begin, encoding + time.process_time() - middle
                content = codes.astype("<u2").tobytes()
                frames, plain = frames + len(shown), plain + len(content)
                packed += len(zstandard.ZstdCompressor(_ZSTD_LEVEL).compress(content))
                chosen = np.linspace(0, len(shown) - 1, min(_DECODED, len(shown))).astype(np.int64)
                error = tokenizer.decode(codes[chosen]).astype(np.float64) - shown[chosen]
                errors.append(float(np.square(error).mean()))
        steps += int(moving.sum()) * len(variants)
    return {
        "way": way,
        "count": frames,
        "change": 1e3 * changing / frames,
        "encode": 1e3 * encoding / frames,
        "plain": plain / steps,
        "zstd": packed / steps,
        "psnr": 10 * math.log10(255**2 / max(sum(errors) / len(errors), 1e-9)),
    }


def _shown(
    frames: NDArray[np.uint8], key: str, camera: str, variant: int, pixels: int, config: PrepareConfig
) -> NDArray[np.uint8]:
    if not variant:
        return fit_frames(frames, pixels, config.fit, config.resize)
    return np.concatenate(list(changed_frames(frames, key, camera, variant, pixels, config)))


if __name__ == "__main__":
    sys.exit(main())
