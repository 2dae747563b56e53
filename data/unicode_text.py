"""Texts that can be encoded. Half of a surrogate pair, as damaged JSON and odd file names hold it, cannot."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def is_encodable(text: str) -> bool:
    """Whether a text can be encoded in UTF-8: printed, written to a file, tokenised."""
    return _SURROGATE.search(text) is None


def encodable(text: str) -> str:
    """The text with U+FFFD in place of each character that cannot be encoded."""
    return _SURROGATE.sub(_REPLACEMENT, text)
