"""A data set as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from cluster.inspect.dataset import SHEET_COLUMNS, SHEET_VARIANTS

if TYPE_CHECKING:
    from data.storage.dataset_scan import DatasetScan, RangeCounts
    from data.storage.index import DatasetIndex

_BARS = " ▁▂▃▄▅▆▇█"
_MEGABYTE = 1_000_000
_MAX_LEFT_OUT = 20  # demonstrations that were left out, named in the text


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
    yield from _preparation_lines(index)
    yield from _left_out_lines(content["left_out"])
    if scan is not None:
        yield "  actions over their ranges:"
        yield from _histogram_lines(index.embodiment.action, scan.actions)
        if index.embodiment.state_dim:
            over = "their ranges" if index.state_ranges else "the extremes of the training split"
            yield f"  states over {over}:"
            yield from _histogram_lines(index.embodiment.state, scan.states)
    if content["sheet"] is not None:
        variants = min(index.variants, SHEET_VARIANTS)
        below = f", below it {variants} of its variants" if variants else ""
        yield (
            f"  {content['sheet']}: {SHEET_COLUMNS} frames of each of some episodes, a row for each "
            f"camera{below}"
        )
    elif not sheet_requested:
        yield "  sheet=true (or out=FILE.png) draws frames of some episodes"
    elif complete:
        yield (
            f"  no contact sheet: the frames were encoded by image tokenizer {image.tokenizer_sha256[:12]}; "
            "give it with image_tokenizer="
        )
    yield f"  fingerprint {index.fingerprint}"
    if scan is not None and complete:
        yield f"  every checksum matches: {scan.episodes} episodes, {scan.bytes:,} bytes"


def _preparation_lines(index: DatasetIndex) -> Iterator[str]:
    """Embodiment, recipe and variants."""
    robot = index.embodiment
    rate = "" if robot.control_hz is None else f" at {robot.control_hz:g} Hz"
    yield f"  embodiment {robot.name}{rate}: action {', '.join(robot.action)}"
    if robot.missing:
        yield f"  missing in this robot, without label and loss: {', '.join(robot.missing)}"
    yield f"  state {', '.join(robot.state)}" if robot.state else "  no state"
    if robot.state:
        given = "of this data set" if index.state_ranges else "data.state_ranges of the training"
        yield f"  ranges of states: {given}"
    if index.recipe or index.weight is not None:
        weight = "" if index.weight is None else f", weight {index.weight:g} in a mixture"
        yield f"  recipe {index.recipe or 'none'}{weight}"
    if index.variants:
        strengths = index.augmentation or {}
        changes = ", ".join(f"{name} {value:g}" for name, value in strengths.items())
        yield f"  variants of each episode: {index.variants}, drawn by {changes}"


def _left_out_lines(left_out: dict[str, Any] | None) -> Iterator[str]:
    """How many demonstrations were left out, and why the first ones were."""
    if left_out is None or not left_out["count"]:
        return
    yield f"  {left_out['count']} demonstrations were left out:"
    reasons = list(left_out["reasons"].items())
    for key, reason in reasons[:_MAX_LEFT_OUT]:
        yield f"    {key}: {reason}"
    if left_out["count"] > _MAX_LEFT_OUT:
        yield f"    and {left_out['count'] - _MAX_LEFT_OUT} more (--json lists {len(reasons)})"


def _histogram_lines(names: tuple[str, ...], found: RangeCounts) -> Iterator[str]:
    """One line per number: its range and a histogram."""
    width = max(7, *map(len, names))
    ranges = zip(found.minimum, found.maximum, strict=True)
    for name, (low, high), counts, outside in zip(
        names, ranges, found.counts, found.outside.tolist(), strict=True
    ):
        steps = max(1, int(counts.sum() + outside))
        # Square roots keep the tails beside a high peak visible.
        heights = np.sqrt(counts / max(1, int(counts.max())))
        bars = "".join(_BARS[int(np.ceil(height * (len(_BARS) - 1)))] for height in heights.tolist())
        yield f"  {name:>{width}} {low:+.3f} |{bars}| {high:+.3f}  {100 * outside / steps:.1f} % outside"
