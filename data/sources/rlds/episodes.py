"""What the settings make of a record of an RLDS data set: numbers, instruction, cameras, kept steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.errors import InputError
from data.sources.instructions import choose_text, clean_instruction
from data.sources.keep_ranges import StepRange, kept_ranges, read_keep_ranges
from data.sources.parts.array_checks import check_steps
from data.sources.parts.feature_names import EpisodeCameras, choose_name
from data.sources.parts.step_parts import NumbersFeature, StepParts, resolve_parts
from data.sources.rlds.features import STEPS, Feature
from data.sources.rlds.tfrecord import Example
from data.unicode_text import is_blank

_USUAL = {"action": ("action",), "state": ("observation/state",)}
_USUAL_INSTRUCTIONS = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
)


@dataclass(frozen=True)
class RldsEpisodes:
    """Reads the parts of records that the settings name.

    Attributes:
        config: The settings.
        features: Of the data set (`read_features`).
        where: Leads the messages.
        robot: Name of its embodiment where it is not the default one.
    """

    config: SourceConfig
    features: Mapping[str, Feature]
    where: str
    robot: str

    @cached_property
    def parts(self) -> StepParts:
        """Of actions and states."""

        def numbers(of_step: bool) -> dict[str, NumbersFeature]:
            names = [n for n in self._of_kind("numbers") if self.features[n].of_step or not of_step]
            return {name: NumbersFeature(self.features[name].width) for name in names}

        available = {"action": numbers(of_step=True), "state": numbers(of_step=False)}
        return resolve_parts(self.config, available, _USUAL, self.where, self.robot)

    def check(self) -> None:
        """Refuse settings that name what the data set does not have (InputError)."""
        names = [*self.parts.features, *self._instructions, *self.cameras.names]
        assert names  # each is looked up, and refused where it is not there
        if (feature := self.config.successful.feature) is not None:
            self._known(feature, "successful.feature")
        elif self.config.successful.contains is not None:
            raise InputError("successful.contains: needs successful.feature, the text that contains it")
        for name in self.config.keep_ranges.key:
            self._known(name, "keep_ranges.key")

    @cached_property
    def cameras(self) -> EpisodeCameras:
        """Of the images that each step has."""
        images = [name for name in self._of_kind("image") if self.features[name].of_step]
        return EpisodeCameras.choose(images, self.config, self.where)

    def numbers(self, example: Example, where: str) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Actions float64 [T, D] and states float32 [T, S] of a whole record (InputError as `StepParts`)."""
        steps: int | None = None

        def values(name: str) -> NDArray[Any]:
            nonlocal steps
            feature = self.features[name]
            table = feature.numbers(example, where)
            if steps is None:
                steps = len(table)
            return table if feature.of_step or len(table) != 1 else table.repeat(steps, axis=0)

        return self.parts.read(values, where)

    def instruction(self, example: Example, key: str, where: str) -> str:
        """The instruction; empty where it is to be left out without one (InputError: none, or several)."""
        texts: list[str] = []
        for name in self._instructions:
            texts += [text.decode("utf-8", "replace") for text in example.texts(self.features[name].path)]
        if len(self._instructions) > 1 or self.config.drop_unlabeled:
            texts = [text for text in texts if not is_blank(text)]
        if not texts and self.config.drop_unlabeled:
            return ""
        chosen = choose_text(texts, self.config.several_instructions, where, (self.config.draw_seed, key))
        return clean_instruction(chosen, where)

    def successful(self, example: Example, where: str) -> bool:
        """Whether the episode is kept for its success."""
        feature = self.config.successful.feature
        if feature is None:
            return True
        found, word = self.features[feature], self.config.successful.contains
        if found.kind == "text":
            if word is None:
                raise InputError(f"successful.feature={feature} is a text; add successful.contains=WORD")
            return any(word in text.decode("utf-8", "replace") for text in example.texts(found.path))
        values = found.numbers(example, where)
        return bool(len(values)) and bool(values[-1].any())

    def kept(self, example: Example, actions: NDArray[np.float64], key: str, where: str) -> list[StepRange]:
        """Ranges of the steps that are kept, none: the episode is left out (InputError as `kept_ranges`)."""
        names = self.config.keep_ranges.key
        texts = [example.texts(self.features[name].path) for name in names]
        if names and all(texts):
            key = "--".join(text[0].decode("utf-8", "replace") for text in texts)
        return kept_ranges(actions, self.config.drop_first, self._ranges, key, where)

    def check_frames(self, example: Example, key: str, steps: int, where: str) -> None:
        """Refuse an episode with more or fewer frames than steps (InputError)."""
        for name in self.cameras.of(key).values():
            check_steps(name, len(example.texts(STEPS + name)), steps, where)

    @cached_property
    def _ranges(self) -> Mapping[str, Sequence[StepRange]] | None:
        file = self.config.keep_ranges.file
        return None if file is None else read_keep_ranges(Path(file))

    @cached_property
    def _instructions(self) -> list[str]:
        texts, names = self._of_kind("text"), self.config.instruction
        if names is None:
            return [choose_name(texts, None, _USUAL_INSTRUCTIONS, "instruction=NAME", self.where)]
        if not names:
            raise InputError("instruction=[] names no instruction; leave the setting out, or name some")
        return [choose_name(texts, name, (), "instruction=NAME", self.where) for name in names]

    def _of_kind(self, kind: str) -> list[str]:
        return [name for name, feature in self.features.items() if feature.kind == kind]

    def _known(self, name: str, setting: str) -> None:
        choose_name(
            [*self._of_kind("text"), *self._of_kind("numbers")], name, (), f"{setting}=NAME", self.where
        )
