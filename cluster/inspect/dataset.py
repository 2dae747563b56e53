"""What a data set holds: counts, lengths, actions, and a picture of its frames."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.inspect.config import InspectDataConfig
from data.errors import InputError
from data.files import output_file, writable_folder
from data.prepare.left_out import LeftOut
from data.storage.episode_entry import SPLITS
from data.storage.store import is_object_store

if TYPE_CHECKING:
    from data.storage.dataset_scan import DatasetScan, RangeCounts
    from data.storage.index import DatasetIndex
    from data.tokens.image import ImageTokenizer

SHEET_FILE = "contact_sheet.png"
SHEET_COLUMNS = 8  # frames of each episode in the contact sheet
SHEET_VARIANTS = 4  # of each episode in it, at most
_QUANTILES = {"minimum": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "maximum": 1.0}


def open_dataset(url: str) -> DatasetIndex:
    """Open a data set that holds episodes.

    Raises:
        InputError: No data set there, or one without episodes.
    """
    from data.storage.index import DatasetIndex

    index = DatasetIndex.load(url)
    if not len(index.episodes):
        raise InputError(f"{url}: its index names 0 episodes, expected at least 1; prepare it again")
    return index


def dataset_content(
    index: DatasetIndex, url: str, scan: DatasetScan | None, left_out: LeftOut | None = None
) -> dict[str, Any]:
    """A data set as `--json` prints it.

    Args:
        index: Of the data set.
        url: Where it is.
        scan: Of all its episodes; None: not read.
        left_out: The demonstrations that are not in it; None: none are listed.
    """
    episodes, lengths = index.episodes, index.episodes.lengths
    content: dict[str, Any] = {
        "url": url,
        "fingerprint": index.fingerprint,
        "episodes": len(episodes),
        "steps": int(lengths.sum()),
        "shards": len(episodes.shards),
        "bytes": int(episodes.sizes.sum()),
        "compression": index.compression,
        "split_order": index.split_order,
        "resize": index.resize,
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
        "embodiment": asdict(index.embodiment),
        "state_ranges": None if index.state_ranges is None else asdict(index.state_ranges),
        "recipe": index.recipe,
        "weight": index.weight,
        "variants": index.variants,
        "augmentation": None if index.augmentation is None else dict(index.augmentation),
        "left_out": None if left_out is None else asdict(left_out),
        "groups": _groups(index),
        "sheet": None,
    }
    if scan is not None:
        content["verified"] = {
            "episodes": scan.episodes,
            "bytes": scan.bytes,
            "damaged": scan.damaged,
        }
        content["actions"] = _counts(index.embodiment.action, scan.actions)
        content["states"] = _counts(index.embodiment.state, scan.states)
    return content


def _counts(names: tuple[str, ...], found: RangeCounts) -> dict[str, Any]:
    return {
        "names": list(names),
        "minimum": list(found.minimum),
        "maximum": list(found.maximum),
        "counts": found.counts.tolist(),
        "outside": found.outside.tolist(),
    }


def _groups(index: DatasetIndex) -> list[dict[str, Any]]:
    """Episodes and steps by task and split."""
    episodes = index.episodes
    counts: Counter[tuple[int, int]] = Counter()
    steps: Counter[tuple[int, int]] = Counter()
    for task, split, length in zip(
        episodes.task_numbers.tolist(),
        episodes.split_numbers.tolist(),
        episodes.lengths.tolist(),
        strict=True,
    ):
        counts[task, split] += 1
        steps[task, split] += length
    groups = (
        {
            "suite": episodes.tasks[task].suite,
            "task": episodes.tasks[task].task,
            "split": SPLITS[split],
            "episodes": counts[task, split],
            "steps": steps[task, split],
        }
        for task, split in counts
    )
    return sorted(groups, key=lambda group: (group["suite"], group["task"], group["split"]))


def sheet_tokenizer(index: DatasetIndex, config: InspectDataConfig) -> ImageTokenizer | None:
    """The image tokenizer that decodes the frames of the contact sheet; None: it cannot be drawn.

    Raises:
        InputError: The given tokenizer is not the one that the frames were encoded with, or `episodes` is not
            positive.
    """
    if config.episodes < 1:
        raise InputError(f"episodes is {config.episodes}, expected at least 1")
    from data.tokens.image import ImageTokenizer

    expected = index.image.tokenizer_sha256
    tokenizer = ImageTokenizer.load(config.image_tokenizer, pixels=index.image.pixels)
    if tokenizer.sha256 == expected:
        return tokenizer
    if config.image_tokenizer is None:
        return None
    raise InputError(
        f"image_tokenizer={config.image_tokenizer}: sha256 {tokenizer.sha256[:12]}, but the frames of "
        f"{config.url} were encoded by {expected[:12]}; give that one, or sheet=false"
    )


def sheet_file(index: DatasetIndex, config: InspectDataConfig) -> Path | None:
    """Where the contact sheet is written; None: none is asked for.

    Raises:
        InputError: `out` is neither a folder that exists nor a file that ends in .png, or cannot be written.
    """
    if config.out:
        folder = Path(config.out)
        return writable_folder(folder) / SHEET_FILE if folder.is_dir() else output_file(config.out, ".png")
    if not config.sheet:
        return None
    if not is_object_store(config.url):
        try:
            return writable_folder(Path(config.url), "url") / SHEET_FILE
        except InputError:
            pass  # a data set may well be read-only: the output names the place that was taken instead
    return Path(tempfile.gettempdir()) / f"{index.fingerprint[:12]}_{SHEET_FILE}"


def draw_contact_sheet(index: DatasetIndex, tokenizer: ImageTokenizer, path: Path, episodes: int) -> str:
    """Write frames of evenly spread episodes as a PNG: for each camera a row, then rows of its variants.

    Args:
        index: Of the data set.
        tokenizer: Decodes the frames.
        path: Of the PNG; its folder exists.
        episodes: Number of episodes.

    Returns:
        `path` as text.

    Raises:
        InputError: The file cannot be written.
    """
    from PIL import Image

    from data.storage.episode_reader import read_episode
    from eval.contact_sheet import enlarge, evenly_spaced, tile

    pictures: list[np.ndarray] = []
    for number in evenly_spaced(len(index.episodes), episodes).tolist():
        episode = read_episode(index, index.episodes[number])
        times = np.linspace(0, episode.length - 1, SHEET_COLUMNS).round().astype(np.int64)
        for camera in index.cameras:
            for codes in (episode.codes, *episode.variants[:SHEET_VARIANTS]):
                pictures.append(enlarge(tokenizer.decode(codes[camera][times])))
    try:
        Image.fromarray(tile(np.stack(pictures))).save(path, format="PNG")
    except OSError as error:
        raise InputError(
            f"{path}: the contact sheet cannot be written ({error.strerror}); choose another file with out="
        ) from error
    return str(path)
