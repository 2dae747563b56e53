"""Instructions of demonstrations, and names made from them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from data.config import SeveralInstructions
from data.errors import InputError
from data.sources.drawing import draw
from data.unicode_text import encodable, is_blank, printable

_MAX_NAME = 100  # characters
_CHECKSUM = 12  # hexadecimal digits: a million texts have two equal ones in one of 500 data sets


def clean_instruction(text: str, where: str) -> str:
    """Convert to lower case without quotes and repeated spaces; InputError where nothing is left.

    Characters that cannot be encoded become U+FFFD, control characters spaces.
    """
    cleaned = " ".join(printable(text).strip().strip('"').lower().split())
    if is_blank(cleaned):
        raise InputError(f"{where}: the instruction is empty; give each demonstration a task text")
    return cleaned


def choose_text(
    texts: Sequence[str], choice: SeveralInstructions, where: str, drawn_by: tuple[int, str]
) -> str:
    """The one of an episode's texts that is its instruction, as it is.

    Args:
        texts: In the order of the steps, or of the settings.
        choice: Which one of several different ones.
        where: Leads the messages.
        drawn_by: Seed and key of the episode, on which a drawn one depends.

    Raises:
        InputError: There is none, or there are several different ones and `choice` is `refuse`.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct or (len(distinct) > 1 and choice == "refuse"):
        shown = ", ".join(repr(text[:40]) for text in distinct[:3])
        raise InputError(
            f"{where}: {len(distinct)} different instructions ({shown or 'no text'}), expected one an "
            "episode; choose one with several_instructions=first, last or draw"
        )
    if choice == "draw":
        seed, key = drawn_by
        return draw(distinct, seed, "instruction", key)
    return distinct[-1 if choice == "last" else 0]


def slug(text: str) -> str:
    """Convert a text to a part of a name: ASCII letters, digits and single underscores, at most 100 of them.

    Where letters are lost (those of other alphabets) or cut, a checksum of the text follows, so that other
    texts have other names. Punctuation and spaces are no letters.
    """
    text = unicodedata.normalize("NFC", " ".join(encodable(text).split()))
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")
    if len(name) <= _MAX_NAME and not any(map(_is_lost, text)):
        return name or "task"
    checksum = hashlib.sha256(text.encode()).hexdigest()[:_CHECKSUM]
    return f"{name[: _MAX_NAME - _CHECKSUM - 1].strip('_') or 'task'}_{checksum}"


def _is_lost(character: str) -> bool:
    """Whether a character that means something has no place in a name."""
    return not character.isascii() and unicodedata.category(character)[0] in "LMNS"
