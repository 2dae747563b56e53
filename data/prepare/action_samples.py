"""What the action samples of a folder say of the time steps that they begin at.

An action sample shows the frames of a time step last, before its actions; so the frames lead to the
instruction, to the action and, where samples hold one, to the robot's state of that time step.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.sources.instructions import clean_instruction
from data.sources.token_pickles import TokenSample
from data.tokens.action import ActionRanges, encode, restore
from data.tokens.prompt_text import ACTION_TEXT
from data.tokens.text import TextTokenizer
from data.tokens.vocabulary import ACTION_BIN_END, ACTION_BIN_START

MAX_VIEWS = 2
_QUESTION = re.compile(re.escape(ACTION_TEXT).replace(re.escape("{task}"), "(.+?)"), re.DOTALL)

_Bins = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class KnownStep:
    """What an action sample says of the time step that it begins at.

    Attributes:
        instruction: Of its episode.
        actions: Bins uint16 [K, 7] of this time step's action and of the K - 1 following ones.
        state: Bins uint16 [8] of its state; None: the sample holds none.
    """

    instruction: str
    actions: NDArray[np.uint16]
    state: NDArray[np.uint16] | None


class ActionSamples:
    """The action samples of a folder.

    Args:
        text: The tokenizer that encoded their words.
        ranges, world_ranges: Ranges over which the actions of action samples and of world samples were
            quantised.

    Attributes:
        with_state, without_state: How many of them hold a state, and how many do not.
    """

    def __init__(self, text: TextTokenizer, ranges: ActionRanges, world_ranges: ActionRanges) -> None:
        self._text, self._ranges, self._world_ranges = text, ranges, world_ranges
        self._instructions: dict[tuple[int, ...], str | None] = {}
        self._steps = {views: defaultdict[bytes, list[KnownStep]](list) for views in range(1, MAX_VIEWS + 1)}
        self._found: Counter[tuple[bytes, bytes]] = Counter()
        self._odd = False  # whether one of them has an odd number of images
        self.with_state = self.without_state = 0

    @property
    def views(self) -> int:
        """Views of a time step, if the samples of episodes' starts are there, which show one time step."""
        return 1 if self._odd else 2

    def add(self, sample: TokenSample) -> None:
        """Remember a sample, if it is an action sample."""
        instruction = self._instruction(sample)
        if instruction is None:
            return
        state = None if sample.state is None else sample.state.astype(np.uint16)
        step = KnownStep(instruction, sample.actions.astype(np.uint16), state)
        for views, steps in self._steps.items():
            if len(sample.images) >= views:
                steps[_digest(np.stack(sample.images[-views:]))].append(step)
        self._odd |= len(sample.images) % 2 == 1
        self.with_state += state is not None
        self.without_state += state is None

    def find(self, frames: NDArray[np.int64], bins: _Bins) -> tuple[KnownStep | None, KnownStep | None]:
        """Find the sample that begins at a time step of a world sample.

        Several time steps may look alike, where nothing moves: they are found in the order of their samples.

        Args:
            frames: Its frames, codes [V, R, C].
            bins: Its action in the world sample, [7].

        Returns:
            The sample of the same frames and action, and the first one of the same frames; None where there
            is none.
        """
        digest = _digest(frames)
        alike = self._steps[len(frames)].get(digest, [])
        same = [step for step in alike if self._agree(step.actions[0], bins)]
        if not same:
            return None, alike[0] if alike else None
        key = (digest, bins.tobytes())
        self._found[key] += 1
        return same[(self._found[key] - 1) % len(same)], alike[0]

    def _agree(self, bins: _Bins, world: _Bins) -> bool:
        """Whether an action sample's and a world sample's bins [7] may be of the same action."""
        if self._ranges == self._world_ranges:
            return np.array_equal(bins, world)
        expected = encode(restore(bins[None], self._ranges), self._world_ranges)[0]
        # The centre of a bin is half a bin from the action at most; the outermost bins hold all beyond them.
        above = (world >= expected - 1) | (bins == ACTION_BIN_START)
        below = (world <= expected + 1) | (bins >= ACTION_BIN_END - 2)
        return bool((above & below).all())

    def _instruction(self, sample: TokenSample) -> str | None:
        ids = tuple(sample.text)
        if ids not in self._instructions:
            question = _QUESTION.search(self._text.decode(list(ids)))
            self._instructions[ids] = clean_instruction(question[1], "a sample") if question else None
        return self._instructions[ids]


def other_ranges(source: str, differing: int, steps: int, bins: _Bins, world: _Bins) -> InputError:
    """The error of action and world samples whose bins are not of the same ranges.

    Args:
        source: Folder of the samples.
        differing: Time steps of an episode whose bins differ.
        steps: Time steps of the episode.
        bins: Bins [7] of one of them in its action sample.
        world: The same in its world sample.
    """
    return InputError(
        f"{source}: {differing} of {steps} steps of an episode have other action bins in their world samples "
        f"({' '.join(map(str, world))}) than in their action samples ({' '.join(map(str, bins))}): quantised "
        "over other ranges; give both, for RynnVLA-002's published samples ranges=rynnvla "
        "world_ranges=worldvla"
    )


def _digest(frames: NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(frames.tobytes(), digest_size=16).digest()
