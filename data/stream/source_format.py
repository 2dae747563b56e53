"""How the states and actions of each data set of a training become tokens and numbers again."""

from __future__ import annotations

from dataclasses import dataclass

from data.config import DataConfig
from data.contracts import DEFAULT_EMBODIMENT, Embodiment
from data.errors import InputError
from data.storage.index import DatasetIndex, StateRanges
from data.tokens.action import DEFAULT_RANGES, ActionRanges
from data.tokens.state import check_state_ranges


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """The actions and states of one data set as a training sees them; a policy acts as one of its sources.

    Attributes:
        name: Of the data set: the last part of its URL (`data.stream.datasets.StreamDataset.name`).
        embodiment: What the numbers are.
        chunk: K, actions that an action sample predicts.
        action_ranges: Ranges over which actions are quantised.
        state_ranges: Ranges over which states are quantised; None: samples hold no state.
    """

    name: str = ""
    embodiment: Embodiment = DEFAULT_EMBODIMENT
    chunk: int = 5
    action_ranges: ActionRanges = DEFAULT_RANGES
    state_ranges: StateRanges | None = None

    @property
    def state_dim(self) -> int:
        """Numbers of a state in a sample; 0: samples hold no state."""
        return 0 if self.state_ranges is None else self.embodiment.state_dim

    @classmethod
    def of(cls, name: str, index: DatasetIndex, chunk: int | None, config: DataConfig) -> SourceFormat:
        """The format of a data set under the settings; `chunk` None: `data.chunk`.

        Raises:
            InputError: The chunk is below 1, or samples shall hold states and it has none, or has other
                numbers than `data.state_ranges`.
        """
        chosen = config.chunk if chunk is None else chunk
        if chosen < 1:
            raise InputError(f"{index.url}: chunk={chosen}, expected at least 1")
        return cls(name, index.embodiment, chosen, index.action_ranges, _state_ranges(index, config))


def _state_ranges(index: DatasetIndex, config: DataConfig) -> StateRanges | None:
    if not config.state:
        return None
    if not index.embodiment.state_dim:
        raise InputError(
            f"{index.url}: data.state=true, but its demonstrations have no state; set data.state=false, or "
            "leave the data set out"
        )
    if index.state_ranges is not None:
        return index.state_ranges
    given = config.state_ranges
    check_state_ranges(given.minimum, given.maximum, index.embodiment.state_dim)
    return StateRanges(tuple(given.minimum), tuple(given.maximum))
