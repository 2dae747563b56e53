"""What every reader of demonstrations offers: a cheap list of them, and each one on demand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.contracts import Demonstration


@dataclass(frozen=True, slots=True)
class DemonstrationReference:
    """Where one demonstration lies, known without reading its frames.

    Attributes:
        path: The file or folder that it is read from.
        item: What the reader calls it in there (``demo_3``, an episode's number, a byte offset).
        key, suite, task, instruction: As in `data.contracts.Demonstration`.
        length: Time steps T.
        cameras: Names of its cameras, sorted.
        videos: Other files that it is read from.
    """

    path: Path
    item: str
    key: str
    suite: str
    task: str
    instruction: str
    length: int
    cameras: tuple[str, ...]
    videos: tuple[Path, ...] = ()


class Source(Protocol):
    """Demonstrations in one format. `data.sources.registry.open_source` finds the right one."""

    def references(self) -> list[DemonstrationReference]:
        """Every demonstration, always in the same order.

        Raises:
            InputError: Nothing there, or the format's metadata are broken.
        """
        ...

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read and check one demonstration; frames come out upright.

        Raises:
            InputError: A part is missing, of the wrong shape or length, or not finite.
        """
        ...
