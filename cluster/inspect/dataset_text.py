"""A data set as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from cluster.inspect.dataset import SHEET_COLUMNS

if TYPE_CHECKING:
    from data.storage.dataset_scan import DatasetScan
    from data.storage.index import DatasetIndex

_BARS = " ▁▂▃▄▅▆▇█"
_MEGABYTE = 1_000_000


def groups_table(content: dict[str, Any]) -> Table:
    """Episodes and steps by task and split.

    Args:
        content: Of `dataset_content`.
    """
    table = Table(title=f"{content['url']}: {content['episodes']} episodes, {content['steps']} steps")
    for name in ("suite", "task", "split", "episodes", "steps"):
        table.add_column(name, justify="right" if name in ("episodes", "steps") else "left")
    for group in content["groups"]:
        table.add_row(*(str(value) for value in group.values()))
    return table


def dataset_lines(
    index: DatasetIndex, content: dict[str, Any], scan: DatasetScan | None, sheet_requested: bool
) -> Iterator[str]:
    """Everything but the table of `groups_table`.

    Args:
        index: Of the data set.
        content: Of `dataset_content`, with the path of the contact sheet.
        scan: Of all its episodes; None: not read.
        sheet_requested: Whether a contact sheet was requested.
    """
    image, lengths = index.image, content["lengths"]
    complete = scan is None or not scan.damaged
    yield (
        f"  {content['bytes'] / _MEGABYTE:,.1f} MB in {content['shards']} shards, compression "
        f"{content['compression']}, cameras {', '.join(content['cameras'])}"
    )
    yield f"  frames {image.pixels} px (resize={index.resize}) as {image.rows} x {image.columns} codes"
    yield f"  held-out demonstrations by {index.split_order}"
    yield f"  steps of an episode: {', '.join(f'{name} {value:g}' for name, value in lengths.items())}"
    if scan is not None:
        yield from _action_lines(index, scan)
    if content["sheet"] is not None:
        yield f"  {content['sheet']}: {SHEET_COLUMNS} frames of each of some episodes, a row for each camera"
    elif not sheet_requested:
        yield "  sheet=FILE.png draws frames of some episodes"
    elif complete:
        yield (
            f"  no contact sheet: the frames were encoded by image tokenizer {image.tokenizer_sha256[:12]}; "
            "give it with image_tokenizer="
        )
    yield f"  fingerprint {index.fingerprint}"
    if scan is not None and complete:
        yield f"  every checksum matches: {scan.episodes} episodes, {scan.bytes:,} bytes"


def _action_lines(index: DatasetIndex, scan: DatasetScan) -> Iterator[str]:
    """One line per action dimension: its range and a histogram."""
    steps = max(1, int(scan.actions[0].sum() + scan.outside[0]))
    ranges = zip(index.action_ranges.minimum, index.action_ranges.maximum, strict=True)
    width = max(7, *map(len, index.embodiment.action))
    for name, (low, high), counts, outside in zip(
        index.embodiment.action, ranges, scan.actions, scan.outside.tolist(), strict=True
    ):
        # Square roots keep the tails beside a high peak visible.
        heights = np.sqrt(counts / max(1, int(counts.max())))
        bars = "".join(_BARS[int(np.ceil(height * (len(_BARS) - 1)))] for height in heights.tolist())
        yield f"  {name:>{width}} {low:+.3f} |{bars}| {high:+.3f}  {100 * outside / steps:.1f} % outside"
