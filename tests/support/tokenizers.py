"""The package's own tokenizers, read once: nothing changes them."""

from __future__ import annotations

from functools import cache

from data.tokens.image import ImageTokenizer
from data.tokens.text import TextTokenizer


@cache
def shipped_image_tokenizer() -> ImageTokenizer:
    return ImageTokenizer.load()


@cache
def shipped_text_tokenizer() -> TextTokenizer:
    return TextTokenizer.load()
