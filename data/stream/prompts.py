"""The words of all prompts as token ids; each distinct instruction is encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.storage.episode_table import EpisodeTable
from data.stream.datasets import StreamDataset
from data.tokens.prompt_text import WORLD_TEXT, action_text
from data.tokens.text import TextTokenizer

WORLD = 0  # number of the world samples' text


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """Texts one after the other; text 0 is `WORLD_TEXT`, the others belong to the instructions.

    Attributes:
        ids: int32 [all tokens].
        begins: int64 [texts], position of the first token of each text in `ids`.
        lengths: int32 [texts], number of its tokens.
        of_episodes: For each data set the number of each episode's text, uint16 [E] (int32 where there are
            65,535 instructions or more).
        vocabulary_size: One more than the largest id that a sample can hold.
        tokenizer_sha256: Checksum of the text tokenizer.
    """

    ids: NDArray[np.int32]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int32]
    of_episodes: tuple[NDArray[np.integer], ...]
    vocabulary_size: int
    tokenizer_sha256: str

    @classmethod
    def encode(cls, tokenizer: TextTokenizer, datasets: Sequence[StreamDataset]) -> Self:
        """Encode the prompts of all episodes.

        Raises:
            InputError: An instruction contains a special token.
        """
        distinct = sorted({text for dataset in datasets for text in dataset.entries.instructions})
        numbers = {instruction: number for number, instruction in enumerate(distinct, start=1)}
        of_episodes = tuple(_text_numbers(dataset.entries, numbers) for dataset in datasets)
        texts = [tokenizer.encode(text) for text in (WORLD_TEXT, *map(action_text, distinct))]
        lengths = np.array([len(ids) for ids in texts], np.int32)
        begins = np.cumsum(lengths, dtype=np.int64) - lengths
        ids = np.concatenate([np.array(ids, np.int32) for ids in texts])
        return cls(ids, begins, lengths, of_episodes, tokenizer.size, tokenizer.sha256)


def _text_numbers(entries: EpisodeTable, numbers: Mapping[str, int]) -> NDArray[np.integer]:
    """Number of each episode's text, [E]; a large data set has millions of episodes and few texts."""
    dtype = np.uint16 if len(numbers) < 1 << 16 else np.int32
    of_tasks = np.array([numbers.get(task.instruction, 0) for task in entries.tasks], dtype)
    return of_tasks[entries.task_numbers]
