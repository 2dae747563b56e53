"""The interface of all readers of demonstrations: a cheap list, and each demonstration on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.contracts import Demonstration, Embodiment
from data.sources.files.source_files import SourceFiles
from data.sources.no_ops import NoOpRule


@dataclass(frozen=True, slots=True)
class DemonstrationReference:
    """One demonstration of a source, known without reading its frames.

    Attributes:
        path: The file or folder that it is read from; of an object store its address.
        item: Its name within that file or folder (``demo_3``, an episode's number, a byte offset).
        key, suite, task, instruction: As in `data.contracts.Demonstration`.
        length: Time steps T; 0 where they could not be counted.
        cameras: Names of its cameras, sorted.
        videos: Other files that it is read from.
        turned_states: Whether its recorded states have the grip site's orientation, as earlier versions of
            `worldvla collect` wrote it, instead of the hand's.
        displaced: Whether the hand was moved before its first step (`worldvla collect displaced=`).
        fault: Why it cannot be used, with its place; empty: nothing was found.
        idle: Whether no step moves the robot (`data.sources.no_ops`), as far as its actions were read.
    """

    path: PurePath
    item: str
    key: str
    suite: str
    task: str
    instruction: str
    length: int
    cameras: tuple[str, ...]
    videos: tuple[PurePath, ...] = ()
    turned_states: bool = False
    displaced: bool = False
    fault: str = ""
    idle: bool = False

    def demonstration(
        self,
        frames: Mapping[str, NDArray[np.uint8]],
        actions: NDArray[np.float64],
        states: NDArray[np.float32],
    ) -> Demonstration:
        """The demonstration with what was read of it."""
        return Demonstration(self.key, self.suite, self.task, self.instruction, frames, actions, states)


class DemonstrationSource(Protocol):
    """Demonstrations in one format; `data.sources.registry.open_source` selects the reader."""

    @property
    def files(self) -> SourceFiles:
        """The files that it reads."""
        ...

    def embodiment(self) -> Embodiment:
        """What the numbers of its actions and states are, known from metadata and settings alone.

        Raises:
            InputError: They are not what the settings say, or the metadata are damaged.
        """
        ...

    def no_ops(self) -> NoOpRule:
        """Which of its steps are no-ops (InputError as `embodiment`)."""
        ...

    def references(self) -> list[DemonstrationReference]:
        """Every demonstration, always in the same order; those that cannot be used have a fault.

        Raises:
            InputError: There are none, or the metadata are damaged.
        """
        ...

    def checked(self, references: Iterable[DemonstrationReference]) -> Iterator[DemonstrationReference]:
        """The same references, with the faults of their files, actions and states; no frame is decoded."""
        ...

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read and check one demonstration; frames are upright.

        Raises:
            InputError: A part is missing, of the wrong shape or length, or not finite.
        """
        ...
