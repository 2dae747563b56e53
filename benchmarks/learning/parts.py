"""Parts of the study: each a command with a folder of its own, and a marker in it that tells what made it."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from benchmarks.learning.resolved import differences, without_place
from data.errors import InputError
from data.files import write_text_whole
from data.json_record import read_json_object

Stage = Literal["collect", "vq", "prepare", "train", "eval", "imagine"]
State = Literal["to do", "begun", "done", "changed"]
STAGES: tuple[Stage, ...] = ("collect", "vq", "prepare", "train", "eval", "imagine")
MARKER = "part.json"
_SHOWN = 4  # differences in a message
_KINDS: dict[str, Any] = {  # of the marker's fields
    "digest": str,
    "id": str,
    "words": list,
    "settings": dict,
    "needs": dict,
    "done": bool,
    "seconds": int | float,
    "size": int | float,
}


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        stage: What it does.
        labels: What it is of: `task`, and of later stages `variant`, `chunk`, `seed`, `checkpoint`.
        work: The working folder.
        folder: Its own folder in it.
        needs: Parts that come before it.
        make_words: Arguments of Python; called only when the parts before it are done.
        make_settings: All settings that they mean, defaults included; as `make_words`.
        make_size: In units that its time is proportional to, among parts of its stage and task; as
            `make_words`.
        alone: Whether it runs alone, with a thread on every core that the study uses.
    """

    stage: Stage
    labels: dict[str, str]
    work: Path
    folder: Path
    needs: tuple[Part, ...]
    make_words: Callable[[], Sequence[str]]
    make_settings: Callable[[], Mapping[str, Any]]
    make_size: Callable[[], float]
    alone: bool = False

    @property
    def name(self) -> str:
        """As on the command line: `train task=lift variant=chunk chunk=5 seed=0`."""
        return " ".join([self.stage, *(f"{key}={value}" for key, value in self.labels.items())])

    @property
    def log(self) -> Path:
        """File of its output."""
        return self.work / "logs" / f"{'-'.join([self.stage, *self.labels.values()])}.log"

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Arguments of Python.

        Raises:
            InputError: Settings that the command would refuse, or data of an earlier part that are missing.
        """
        return tuple(self.make_words())

    @cached_property
    def made_by(self) -> list[str]:
        """The words without the working folder's place: what the marker holds."""
        return without_place(self.words, self.work)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All its settings without the working folder's place; raises as `words`."""
        return without_place(self.make_settings(), self.work)

    @cached_property
    def digest(self) -> str:
        """Checksum of its settings and of those of all parts before it."""
        content = json.dumps(
            [self.made_by, self.settings, [need.digest for need in self.needs]], sort_keys=True
        )
        return hashlib.sha256(content.encode()).hexdigest()

    def state(self) -> State:
        """What its folder holds; `to do` as long as a part before it is not done.

        Raises:
            InputError: As `words`, or the marker cannot be read.
        """
        if any(need.state() != "done" for need in self.needs):
            return "to do"
        marker = self.read_marker()
        if marker is None:
            return "to do"
        if marker["digest"] != self.digest or marker["needs"] != self._made_from:
            return "changed"
        return "done" if marker["done"] else "begun"

    def check_settings(self, repeated: Collection[str]) -> None:
        """Refuse settings that its command would, as far as they are known before the named parts are made.

        Those of a part whose data are made again are known only then.

        Raises:
            InputError: As `words`.
        """
        if all(need.name not in repeated and need.state() == "done" for need in self.needs):
            _ = self.digest

    def read_marker(self) -> dict[str, Any] | None:
        """What the marker holds; None where there is none."""
        path = self.folder / MARKER
        if not path.exists():
            return None
        marker = read_json_object(path, f"remove {self.folder}")
        if any(not isinstance(marker.get(key), kind) for key, kind in _KINDS.items()) or not (
            0 <= marker["seconds"] < math.inf and 0 < marker["size"] < math.inf
        ):
            raise InputError(f"{path}: not a marker of this program; remove {self.folder}")
        return marker

    def write_marker(self, done: bool, seconds: float) -> None:
        """Write what it is made by, whether it is done, and the seconds that it took by now."""
        content = {
            "part": self.name,
            "id": secrets.token_hex(8),
            "done": done,
            "seconds": round(seconds, 3),
            "size": self.make_size(),
            "words": self.made_by,
            "settings": self.settings,
            "needs": self._made_from,
            "digest": self.digest,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text_whole(self.folder / MARKER, json.dumps(content, indent=1) + "\n")

    def changed_error(self) -> InputError:
        """One line for a folder that other settings have made, or an earlier result of a part before it."""
        return InputError(
            f"{self.folder}: made {self._difference()}; remove it, or say --again for `{self.name}`"
        )

    @property
    def _made_from(self) -> dict[str, str]:
        """The parts before it, and which of their results it is made from: the marker's `id` of each."""
        return {need.name: marker["id"] for need in self.needs if (marker := need.read_marker())}

    def _difference(self) -> str:
        marker = self.read_marker() or {"words": [], "settings": {}, "needs": {}}
        if others := [name for name, made in self._made_from.items() if marker["needs"].get(name) != made]:
            return f"from another result of {', '.join(others)}"
        found = list(differences(marker["settings"], self.settings))
        shown = [f"{key}: found {then}, now {now}" for key, then, now in found[:_SHOWN]]
        more = [f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        if shown:
            return f"with other settings ({'; '.join(shown + more)})"
        now, then = set(self.made_by), set(marker["words"])
        words = (
            [word for word in marker["words"] if word not in now],
            [w for w in self.made_by if w not in then],
        )
        found_words, now_words = (" ".join(each) or "nothing" for each in words)
        return f"with other settings (found {found_words}, now {now_words})"
