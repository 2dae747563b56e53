"""The data sets of a training as sources of actions: what a network predicts, and what its policy acts as.

Embodiment, chunk and ranges belong to the data set (`data.stream.source_format.SourceFormat`). They travel
with the run: in the metadata of its checkpoints, beside exported weights, and the action ranges in a file of
their own too, `action_ranges.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.contracts import DEFAULT_EMBODIMENT, Embodiment
from data.errors import InputError
from data.json_record import JsonRecord
from data.storage.index import StateRanges, read_embodiment, read_state_ranges
from data.stream.datasets import open_datasets
from data.stream.source_format import SourceFormat
from data.tokens.action import DEFAULT_RANGES, ActionRanges

_ONE = ""  # name of the only data set in `action_ranges.json`, where it is not named


def training_sources(config: DataConfig) -> tuple[SourceFormat, ...]:
    """The sources of a training with these settings, from the indexes of its data sets.

    Raises:
        InputError: A data set is missing, or they do not fit together.
    """
    return open_datasets(config)[0].sources


def told_apart(config: DataConfig) -> int:
    """Number of data sets whose action losses are told apart: all of several, none of one."""
    return len(config.sources) if len(config.sources) > 1 else 0


def longest_chunk(config: DataConfig) -> int:
    """K of an action head on these data sets: actions of the longest chunk."""
    chunks = [config.chunk if source.chunk is None else source.chunk for source in config.sources]
    return max(chunks, default=config.chunk)


def libero_source(config: DataConfig, ranges: ActionRanges = DEFAULT_RANGES) -> SourceFormat:
    """The source of runs and weights that do not name theirs: LIBERO's numbers, `data.chunk`."""
    states = StateRanges(tuple(config.state_ranges.minimum), tuple(config.state_ranges.maximum))
    return SourceFormat(
        chunk=config.chunk, action_ranges=ranges, state_ranges=states if config.state else None
    )


def is_plain(sources: Sequence[SourceFormat]) -> bool:
    """Whether there is one source alone, of LIBERO's numbers: files do not name it."""
    return len(sources) == 1 and sources[0].embodiment == DEFAULT_EMBODIMENT


def name_of(source: SourceFormat) -> str:
    """The name that users call a source by; one without a name is called as its embodiment."""
    return source.name or source.embodiment.name


def listed(sources: Sequence[SourceFormat]) -> str:
    """All sources with the numbers of their actions, and of states that are used, for messages."""
    return "; ".join(f"{name_of(source)} ({numbers_of(source)})" for source in sources)


def numbers_of(source: SourceFormat) -> str:
    """The numbers of a source in words: `action of 2: x, y; state of 1: q`."""
    robot = source.embodiment
    states = f"; state of {robot.state_dim}: {', '.join(robot.state)}" if source.state_ranges else ""
    return f"action of {robot.action_dim}: {', '.join(robot.action)}{states}"


def source_json(source: SourceFormat) -> dict[str, Any]:
    """As a JSON object; without `state_ranges` where there is no state."""
    states = {} if source.state_ranges is None else {"state_ranges": _json(source.state_ranges)}
    return {
        "name": source.name,
        "embodiment": embodiment_json(source.embodiment),
        "chunk": source.chunk,
        "action_ranges": _json(source.action_ranges),
        **states,
    }


def embodiment_json(embodiment: Embodiment) -> dict[str, Any]:
    """An embodiment as a JSON object."""
    return _json(embodiment)


def _json(record: Embodiment | ActionRanges | StateRanges) -> dict[str, Any]:
    """Its fields, tuples as lists."""
    fields = asdict(record).items()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields}


def read_source(record: JsonRecord, where: str) -> SourceFormat:
    """The source in a JSON object, as `source_json` makes it.

    Args:
        record: The object.
        where: What holds it, for errors.

    Raises:
        InputError: A value is missing or malformed, or ranges are not of the embodiment's numbers.
    """
    embodiment = read_embodiment(record.record("embodiment"))
    return SourceFormat(
        name=record.text("name"),
        embodiment=embodiment,
        chunk=record.integer("chunk", 1),
        action_ranges=of_width(read_ranges(record), embodiment, where),
        state_ranges=given_state_ranges(record),
    )


def read_ranges(record: JsonRecord) -> ActionRanges:
    """The field `action_ranges` of a JSON object.

    Raises:
        InputError: It is missing or malformed.
    """
    ranges = record.record("action_ranges")
    return ActionRanges(ranges.numbers("minimum"), ranges.numbers("maximum"))


def given_state_ranges(record: JsonRecord) -> StateRanges | None:
    """The field `state_ranges` of a JSON object; None where it has none.

    Raises:
        InputError: It is malformed.
    """
    return read_state_ranges(record.record("state_ranges")) if "state_ranges" in record else None


def ranges_json(sources: Sequence[SourceFormat]) -> dict[str, Any]:
    """Content of `action_ranges.json`: the ranges of the only source, of several an object by name."""
    if len(sources) == 1:
        return _json(sources[0].action_ranges)
    return {source.name: _json(source.action_ranges) for source in sources}


def read_action_ranges(path: Path, remedy: str) -> dict[str, ActionRanges]:
    """Read `action_ranges.json`; with any others the same tokens would mean other motions.

    Returns:
        Ranges by the source's name; of one source alone by an empty name.

    Raises:
        InputError: It is missing or broken; the message ends with the remedy.
    """
    try:
        record = JsonRecord.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: the action ranges cannot be read ({error.strerror}); {remedy}") from error
    members = record.members() if record.holds_objects else {_ONE: record}
    found = {name: (each.numbers("minimum"), each.numbers("maximum")) for name, each in members.items()}
    try:
        return {name: ActionRanges(*ranges) for name, ranges in found.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}; {remedy}") from error


def with_action_ranges(
    sources: Sequence[SourceFormat], ranges: Mapping[str, ActionRanges], path: Path
) -> tuple[SourceFormat, ...]:
    """Sources with the ranges of a file.

    A source without a name takes the first: earlier versions quantised all data sets by the first one's.

    Args:
        sources: The sources.
        ranges: As `read_action_ranges` gives them.
        path: The file, for errors.

    Raises:
        InputError: It has no ranges for one of them, or ranges of another number of dimensions.
    """
    if len(sources) == 1 and (not sources[0].name or _ONE in ranges):
        return (_with_ranges(sources[0], next(iter(ranges.values())), path),)
    missing = [source.name for source in sources if source.name not in ranges]
    if missing:
        found = "one data set" if _ONE in ranges else ", ".join(ranges)
        raise InputError(
            f"{path}: action ranges of {found}, expected some of {missing[0]} too; take the file of the "
            "training run (runs/<name>/)"
        )
    return tuple(_with_ranges(source, ranges[source.name], path) for source in sources)


def _with_ranges(source: SourceFormat, ranges: ActionRanges, path: Path) -> SourceFormat:
    return replace(source, action_ranges=of_width(ranges, source.embodiment, str(path)))


def of_width(ranges: ActionRanges, embodiment: Embodiment, where: str) -> ActionRanges:
    """Action ranges, if they are of an embodiment's D numbers.

    Raises:
        InputError: They are not; `where` leads the message.
    """
    if ranges.width != embodiment.action_dim:
        raise InputError(
            f"{where}: action ranges of {ranges.width} numbers, actions of {embodiment.name} have "
            f"{embodiment.action_dim}; take the file of the training run (runs/<name>/)"
        )
    return ranges
