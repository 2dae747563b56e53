"""Text to token ids: a byte-level BPE `tokenizer.json` whose ids are used unchanged.

Chameleon's own file can be used. The small one of the package (512 entries: 256 bytes and 256 merges,
ids from `TEXT_START`) is made by `train_text_tokenizer` from instructions in plain English and the
prompts of WorldVLA::

    python -m data.tokens.text
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data.errors import InputError
from data.files import write_whole
from data.tokens.prompt_text import WORLD_TEXT, action_text
from data.tokens.vocabulary import TEXT_START, VOCABULARY_SIZE

TEXT_TOKENIZER_FILE = "text_tokenizer.json"
SHIPPED_ENTRIES = 512
_ASSETS = resources.files("data.tokens") / "assets"


class TextTokenizer:
    """Encodes and decodes instructions; ids lie in [`TEXT_START`, `size`)."""

    def __init__(self, content: str, name: str) -> None:
        """Parse the JSON text of a `tokenizer.json`; `name` identifies it in errors."""
        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # tokenizers raises bare Exception and nothing narrower
            raise InputError(
                f"{name}: not a tokenizer.json of the `tokenizers` library ({error}); give Chameleon's file "
                "or leave the setting empty for the one that ships"
            ) from error
        self._content = content
        self._name = name
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self._size = max(ids, default=-1) + 1
        if not TEXT_START < self._size <= VOCABULARY_SIZE:
            raise InputError(
                f"{name}: largest text id is {self._size - 1}, expected {TEXT_START} to "
                f"{VOCABULARY_SIZE - 1}, the text range of Chameleon's vocabulary"
            )

    @classmethod
    def load(cls, path: str | Path | None = None) -> TextTokenizer:
        """Read a `tokenizer.json`; None: the small one of the package.

        Raises:
            InputError: The file is missing, unreadable, or its ids lie outside the text range.
        """
        if path is None:
            return cls((_ASSETS / TEXT_TOKENIZER_FILE).read_text(encoding="utf-8"), TEXT_TOKENIZER_FILE)
        try:
            return cls(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot read the text tokenizer ({error})") from error

    @property
    def size(self) -> int:
        """One more than the largest id: 16,896 for the tokenizer of the package, 65,536 for Chameleon's."""
        return self._size

    @property
    def sha256(self) -> str:
        """Checksum of the file that `save` writes: its text in UTF-8."""
        return hashlib.sha256(self._content.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Encode `text` without BOS or any other special token.

        Raises:
            InputError: The text spells a special token (``"<s>"``), which no instruction may contain.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        foreign = [i for i in ids if i < TEXT_START]
        if foreign:
            raise InputError(
                f"text {text[:80]!r} holds the special token {self._tokenizer.id_to_token(foreign[0])!r} "
                f"(id {foreign[0]}), expected plain text; rephrase the instruction"
            )
        return ids

    def decode(self, ids: list[int]) -> str:
        """Decode `ids`; the inverse of `encode` for byte-level tokenizers."""
        return self._tokenizer.decode(ids)

    def save(self, folder: str | Path) -> Path:
        """Write the file, byte for byte, into `folder` as `text_tokenizer.json` and return its path."""
        path = Path(folder) / TEXT_TOKENIZER_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self._content.encode())
        return path


def train_text_tokenizer(sentences: list[str], entries: int = SHIPPED_ENTRIES) -> str:
    """Train a byte-level BPE and return its `tokenizer.json`, ids counted from `TEXT_START`.

    The same sentences give the same file: BPE breaks ties by id, and the JSON is written sorted.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    content = cast("dict[str, Any]", json.loads(tokenizer.to_str()))
    vocabulary = cast("dict[str, int]", content["model"]["vocab"])
    content["model"]["vocab"] = {token: TEXT_START + i for token, i in vocabulary.items()}
    return json.dumps(content, ensure_ascii=True, indent=1) + "\n"


def training_sentences() -> list[str]:
    """Training text of the small tokenizer: prompts with instructions of table-top manipulation."""
    tasks = (_ASSETS / "instructions.txt").read_text(encoding="utf-8").splitlines()
    return [*map(action_text, tasks), *([WORLD_TEXT] * len(tasks))]


if __name__ == "__main__":
    target = Path(str(_ASSETS)) / TEXT_TOKENIZER_FILE
    target.parent.mkdir(exist_ok=True)
    target.write_text(train_text_tokenizer(training_sentences()), encoding="utf-8")
    print(f"{target}: {TextTokenizer.load().size - TEXT_START} entries")
