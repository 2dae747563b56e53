"""The words of all prompts as token ids, each distinct instruction encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.storage.index import EpisodeTable
from data.stream.datasets import Source
from data.stream.samples import WORLD_TEXT, action_text
from data.tokens.text import TextTokenizer

WORLD = 0  # number of the world samples' text


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """Texts one after the other; text 0 is `WORLD_TEXT`, the others are those of instructions.

    Attributes:
        ids: int32 [all tokens].
        begins: int64 [texts], where each text begins in `ids`.
        lengths: int32 [texts], its tokens.
        of_episodes: uint16, or int32 where there are more texts, [episodes of each source], number of each
            episode's text.
        vocabulary_size: One more than the largest id that a sample can hold.
    """

    ids: NDArray[np.int32]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int32]
    of_episodes: tuple[NDArray[np.integer], ...]
    vocabulary_size: int

    @classmethod
    def encode(cls, tokenizer: TextTokenizer, sources: Sequence[Source]) -> Self:
        """Encode the prompts of all episodes.

        Raises:
            InputError: An instruction spells a special token.
        """
        distinct = sorted({text for source in sources for text in source.entries.instructions})
        numbers = {instruction: number for number, instruction in enumerate(distinct, start=1)}
        of_episodes = tuple(_text_numbers(source.entries, numbers) for source in sources)
        texts = [tokenizer.encode(text) for text in (WORLD_TEXT, *map(action_text, distinct))]
        lengths = np.array([len(ids) for ids in texts], np.int32)
        begins = np.cumsum(lengths, dtype=np.int64) - lengths
        ids = np.concatenate([np.array(ids, np.int32) for ids in texts])
        return cls(ids, begins, lengths, of_episodes, tokenizer.size)


def _text_numbers(entries: EpisodeTable, numbers: Mapping[str, int]) -> NDArray[np.integer]:
    """Number of each episode's text, [E]: a large data set has millions of episodes and few texts."""
    dtype = np.uint16 if len(numbers) < 1 << 16 else np.int32
    of_tasks = np.array([numbers.get(task.instruction, 0) for task in entries.tasks], dtype)
    return of_tasks[entries.task_numbers]
