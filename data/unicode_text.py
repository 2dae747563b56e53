"""Texts that can be encoded and shown; halves of surrogate pairs, from damaged JSON and odd names, cannot."""

from __future__ import annotations

import re
import unicodedata

_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # not joiners, which some scripts and emoji need
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def is_encodable(text: str) -> bool:
    """Whether a text can be encoded in UTF-8: printed, written to a file, tokenised."""
    return _SURROGATE.search(text) is None


def encodable(text: str) -> str:
    """The text with U+FFFD in place of each character that cannot be encoded."""
    return _SURROGATE.sub(_REPLACEMENT, text)


def printable(text: str) -> str:
    """The encodable text with spaces in place of control characters, and without byte order marks."""
    return _CONTROL.sub(" ", encodable(text).replace(_BYTE_ORDER_MARK, ""))


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: it has only spaces, control and format characters."""
    return all(unicodedata.category(character)[0] in "CZ" for character in text)
