"""`worldvla inspect data`: what a data set holds, whether it is whole, and what its frames look like."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from cluster.console import Board, Pace
from cluster.failures import CommandFailedError
from cluster.inspect.config import InspectDataConfig
from cluster.invocation import Invocation
from data.errors import InputError
from data.storage.episode_table import SPLITS

if TYPE_CHECKING:
    from data.storage.index import DatasetIndex
    from data.storage.survey import Survey
    from data.tokens.image import ImageTokenizer

_ACTIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_QUANTILES = {"minimum": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "maximum": 1.0}
_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 8  # frames of each episode in the contact sheet
_MEGABYTE = 1_000_000


def inspect_data(config: InspectDataConfig, call: Invocation) -> None:
    """`worldvla inspect data`: counts, lengths, actions, a contact sheet, every checksum.

    Raises:
        InputError: No data set there, or the contact sheet cannot be made as asked.
        CommandFailedError: Episodes are damaged or missing; each is named.
    """
    from data.storage.index import DatasetIndex

    index = DatasetIndex.load(config.url)
    tokenizer = _tokenizer(index, config)
    found = _verified(index, call) if config.verify else None
    content = _content(index, config, found)
    if tokenizer is not None and config.sheet is not None and not (found and found.damaged):
        content["sheet"] = _draw(index, tokenizer, config.sheet, config.episodes)
    if call.json:
        print(json.dumps(content, indent=2))
    else:
        _show(index, config, content, call, found)
    if found is not None and found.damaged:
        for line in found.damaged:
            call.console.print(f"  damaged: {line}", markup=False)
        raise CommandFailedError(
            f"{len(found.damaged)} of {found.episodes} episodes are damaged or missing, the first: "
            f"{found.damaged[0]}"
        )


def _verified(index: DatasetIndex, call: Invocation) -> Survey:
    from data.storage.survey import survey

    total, pace = len(index.episodes), Pace("episodes")
    with Board(call.console) as board:
        bar = board.bar("verify", total)
        return survey(index, lambda done: bar.update(done, note=pace.note(done, total)))


def _content(index: DatasetIndex, config: InspectDataConfig, found: Survey | None) -> dict[str, Any]:
    """What `--json` prints."""
    episodes, lengths = index.episodes, index.episodes.lengths
    counts: Counter[tuple[int, int]] = Counter()
    steps: Counter[tuple[int, int]] = Counter()
    for task, split, length in zip(
        episodes.task_numbers.tolist(), episodes.split_numbers.tolist(), lengths.tolist(), strict=True
    ):
        counts[task, split] += 1
        steps[task, split] += length
    content: dict[str, Any] = {
        "url": config.url,
        "fingerprint": index.fingerprint,
        "episodes": len(episodes),
        "steps": int(lengths.sum()),
        "shards": len(episodes.shards),
        "bytes": int(episodes.sizes.sum()),
        "compression": index.compression,
        "cameras": list(index.cameras),
        "image": {
            "pixels": index.image.pixels,
            "rows": index.image.rows,
            "columns": index.image.columns,
            "tokenizer_sha256": index.image.tokenizer_sha256,
        },
        "lengths": {
            "mean": float(lengths.mean()),
            **{name: float(np.quantile(lengths, share)) for name, share in _QUANTILES.items()},
        },
        "groups": sorted(
            (
                {
                    "suite": episodes.tasks[task].suite,
                    "task": episodes.tasks[task].task,
                    "split": SPLITS[split],
                    "episodes": counts[task, split],
                    "steps": steps[task, split],
                }
                for task, split in counts
            ),
            key=lambda group: (group["suite"], group["task"], group["split"]),
        ),
        "sheet": None,
    }
    if found is not None:
        content["verified"] = {
            "episodes": found.episodes,
            "bytes": found.bytes,
            "damaged": found.damaged,
        }
        content["actions"] = {
            "names": list(_ACTIONS),
            "minimum": list(index.action_ranges.minimum),
            "maximum": list(index.action_ranges.maximum),
            "counts": found.actions.tolist(),
            "outside": found.outside.tolist(),
        }
    return content


def _tokenizer(index: DatasetIndex, config: InspectDataConfig) -> ImageTokenizer | None:
    """The image tokenizer that the frames were encoded with; None where no sheet is wanted or possible."""
    if config.sheet is None:
        return None
    if config.episodes < 1:
        raise InputError(f"episodes is {config.episodes}, expected at least 1")
    from data.tokens.image import ImageTokenizer

    wanted = index.image.tokenizer_sha256
    tokenizer = ImageTokenizer.load(config.image_tokenizer, pixels=index.image.pixels)
    if tokenizer.sha256 == wanted:
        return tokenizer
    if config.image_tokenizer is None:
        return None
    raise InputError(
        f"image_tokenizer={config.image_tokenizer}: sha256 {tokenizer.sha256[:12]}, but the frames of "
        f"{config.url} were encoded by {wanted[:12]}; give that one, or sheet=null"
    )


def _draw(index: DatasetIndex, tokenizer: ImageTokenizer, path: str, rows: int) -> str:
    """Frames of evenly spread episodes, each camera in a row of its own, as a PNG; the path."""
    from PIL import Image

    from data.storage.index import read_episode
    from eval.contact_sheet import enlarge, evenly_spaced, tile

    pictures: list[np.ndarray] = []
    for number in evenly_spaced(len(index.episodes), rows).tolist():
        episode = read_episode(index, index.episodes[number])
        times = np.linspace(0, episode.length - 1, _COLUMNS).round().astype(np.int64)
        for camera in index.cameras:
            pictures.append(enlarge(tokenizer.decode(episode.codes[camera][times])))
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile(np.stack(pictures))).save(path, format="PNG")
    except OSError as error:
        raise InputError(
            f"sheet={path}: cannot be written ({error.strerror}); choose another file"
        ) from error
    return path


def _show(
    index: DatasetIndex,
    config: InspectDataConfig,
    content: dict[str, Any],
    call: Invocation,
    found: Survey | None,
) -> None:
    table = Table(title=f"{content['url']}: {content['episodes']} episodes, {content['steps']} steps")
    for name in ("suite", "task", "split", "episodes", "steps"):
        table.add_column(name, justify="right" if name in ("episodes", "steps") else "left")
    for group in content["groups"]:
        table.add_row(*(str(value) for value in group.values()))
    show, image, lengths = call.console.print, index.image, content["lengths"]
    show(table)
    show(
        f"  {content['bytes'] / _MEGABYTE:,.1f} MB in {content['shards']} shards, compression "
        f"{content['compression']}, cameras {', '.join(content['cameras'])}"
    )
    show(f"  frames {image.pixels} px as {image.rows} x {image.columns} codes")
    show(f"  steps of an episode: {', '.join(f'{name} {value:g}' for name, value in lengths.items())}")
    if found is not None:
        _show_actions(index, found, call)
    if content["sheet"] is not None:
        show(f"  {content['sheet']}: {_COLUMNS} frames of each of some episodes, a row for each camera")
    elif config.sheet is not None and (found is None or not found.damaged):
        show(
            f"  no contact sheet: the frames were encoded by image tokenizer {image.tokenizer_sha256[:12]}; "
            "give it with image_tokenizer="
        )
    show(f"  fingerprint {index.fingerprint}")
    if found is not None and not found.damaged:
        show(f"  every checksum is right: {found.episodes} episodes, {found.bytes:,} bytes")


def _show_actions(index: DatasetIndex, found: Survey, call: Invocation) -> None:
    """One line for each action number: its range and a bar for each part of it."""
    steps = max(1, int(found.actions[0].sum() + found.outside[0]))
    ranges = zip(index.action_ranges.minimum, index.action_ranges.maximum, strict=True)
    for name, (low, high), counts, outside in zip(
        _ACTIONS, ranges, found.actions, found.outside.tolist(), strict=True
    ):
        # Roots, so that the tails beside a high peak are seen.
        heights = np.sqrt(counts / max(1, int(counts.max())))
        bars = "".join(_BARS[int(np.ceil(height * (len(_BARS) - 1)))] for height in heights.tolist())
        call.console.print(
            f"  {name:>7} {low:+.3f} |{bars}| {high:+.3f}  {100 * outside / steps:.1f} % outside",
            markup=False,
        )
