"""Published samples of WorldVLA and RynnVLA-002: pickles of token lists, none of which is executed.

A file holds one sample, ``{"token": [ids], "label": [ids, -100 for the prompt], "id": number}``. A pickle is
a program; here only the instructions that build lists, dictionaries, whole numbers and texts are allowed, and
none that looks up a name, so nothing can be called. No other module of `data` reads pickles, and only
`worldvla convert samples` uses this one.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.tokens.image_block import image_codes
from data.tokens.vocabulary import (
    ACTION_BIN_COUNT,
    ACTION_BIN_END,
    ACTION_BIN_START,
    ACTION_BLOCK_LENGTH,
    ACTION_END,
    ACTION_START,
    END_OF_TURN,
    IGNORED_LABEL,
    IMAGE_END,
    IMAGE_START,
    STATE_BIN_START,
    STATE_BLOCK_LENGTH,
    STATE_DIM,
    STATE_END,
    STATE_START,
    TEXT_START,
    VOCABULARY_SIZE,
)

_MAX_FILE = 16_000_000  # bytes; a sample has at most 4,096 tokens
_ALLOWED = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK"),
        *("EMPTY_LIST", "EMPTY_DICT", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
        *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "NONE", "NEWTRUE", "NEWFALSE"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    )
)
_MEMO_WRITES = ("PUT", "BINPUT", "LONG_BINPUT")


@dataclass(frozen=True, slots=True)
class TokenSample:
    """The parts of one sample.

    Attributes:
        text: Ids of the prompt's words.
        images: Codes int64 [R, C] of each image, in order.
        actions: Bins int64 [N, 7], in order.
        state: Bins int64 [8] of the robot's state; None: it holds none.
        images_before: Number of images before the first action. A world sample has others after it.
    """

    text: list[int]
    images: list[NDArray[np.int64]]
    actions: NDArray[np.int64]
    state: NDArray[np.int64] | None
    images_before: int


def list_samples(folder: Path) -> list[Path]:
    """The `*.pkl` files below a folder, in natural order (numbers in their names by value).

    Raises:
        InputError: There are none.
    """
    paths = [path for path in folder.rglob("*.pkl") if path.is_file()] if folder.is_dir() else []
    if not paths:
        raise InputError(f"{folder}: no *.pkl file below this folder; expected WorldVLA's tokenised samples")
    return sorted(paths, key=lambda path: _natural_order(str(path.relative_to(folder))))


def read_sample(path: Path) -> TokenSample:
    """Read and check one sample and split it into its parts.

    Raises:
        InputError: Not a pickle of plain lists and numbers, or no sample of WorldVLA's layout.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= _MAX_FILE else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if size > _MAX_FILE:
        raise InputError(f"{path}: {size} bytes, expected at most {_MAX_FILE} for one sample")
    return split_sample(_tokens(load_plain(content, str(path)), str(path)), str(path))


def load_plain(content: bytes, where: str) -> object:
    """Load the lists, dictionaries, numbers and texts of a pickle.

    Raises:
        InputError: It contains any other instruction.
    """
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in _ALLOWED:
                raise InputError(
                    f"{where}: the pickle uses {opcode.name}, only lists, dictionaries, whole numbers and "
                    "texts are read; nothing of it was carried out"
                )
            if opcode.name in _MEMO_WRITES and int(cast(Any, argument)) > len(content):
                raise InputError(f"{where}: the pickle needs too much memory; nothing of it was carried out")
        return _Plain(io.BytesIO(content)).load()
    except (
        pickle.UnpicklingError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        TypeError,
    ) as error:
        raise InputError(f"{where}: no readable pickle ({error}); copy it again") from error


class _Plain(pickle.Unpickler):
    """Refuses every look-up: a second barrier behind the list of allowed instructions."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"names {module_name}.{global_name}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise pickle.UnpicklingError("refers to an external object")


def split_sample(tokens: list[int], where: str) -> TokenSample:
    """Split a sample's tokens into text, state, images and actions.

    Raises:
        InputError: A block is not well formed, or images are of several sizes.
    """
    text: list[int] = []
    images: list[NDArray[np.int64]] = []
    actions: list[list[int]] = []
    state: NDArray[np.int64] | None = None
    images_before = position = 0
    while position < len(tokens):
        token = tokens[position]
        if token == IMAGE_START:
            end = _find(tokens, IMAGE_END, position, where)
            codes = image_codes(tokens[position : end + 1])
            images.append(codes)
            position = end + 1
        elif token == ACTION_START:
            block = tokens[position : position + ACTION_BLOCK_LENGTH]
            bins = block[1:-1]
            complete = len(block) == ACTION_BLOCK_LENGTH and block[-1] == ACTION_END
            if not complete or not all(ACTION_BIN_START <= i < ACTION_BIN_END for i in bins):
                raise InputError(f"{where}: token {position} begins no block of 7 action bins")
            images_before = images_before if actions else len(images)
            actions.append(bins)
            position += ACTION_BLOCK_LENGTH
        elif token == STATE_START and not images:
            if state is not None:
                raise InputError(f"{where}: token {position} begins a second state, expected one at most")
            state = _state_bins(
                tokens[position : position + STATE_BLOCK_LENGTH], f"{where}: token {position}"
            )
            position += STATE_BLOCK_LENGTH
        else:
            if token >= TEXT_START and not images:
                text.append(token)
            elif images and token != END_OF_TURN:
                raise InputError(f"{where}: token {position} is {token}, expected images, actions and turns")
            position += 1
    sizes = {codes.shape for codes in images}
    if len(sizes) != 1 or not actions:
        raise InputError(
            f"{where}: holds {len(images)} images of {len(sizes)} sizes and {len(actions)} actions, "
            "expected a sample of WorldVLA or RynnVLA-002"
        )
    return TokenSample(text, images, np.array(actions, np.int64), state, images_before)


def _state_bins(block: list[int], where: str) -> NDArray[np.int64]:
    """The bins int64 [8] of a state block."""
    bins = np.array(block[1:-1], np.int64)
    end = STATE_BIN_START + ACTION_BIN_COUNT
    complete = len(block) == STATE_BLOCK_LENGTH and block[-1] == STATE_END
    if not complete or not ((bins >= STATE_BIN_START) & (bins < end)).all():
        raise InputError(f"{where} begins no block of {STATE_DIM} state bins")
    return bins


def _tokens(value: object, where: str) -> list[int]:
    sample = cast("dict[object, object]", value) if isinstance(value, dict) else {}
    checked: dict[str, list[int]] = {}
    for name, low in (("token", 0), ("label", IGNORED_LABEL)):
        numbers = sample.get(name)
        plain = isinstance(numbers, list) and all(
            type(i) is int and low <= i < VOCABULARY_SIZE for i in cast("list[object]", numbers)
        )
        if not plain:
            raise InputError(f"{where}: no list {name} of ids below {VOCABULARY_SIZE}; not a WorldVLA sample")
        checked[name] = cast("list[int]", numbers)
    if len(checked["token"]) != len(checked["label"]):
        raise InputError(
            f"{where}: {len(checked['token'])} tokens but {len(checked['label'])} labels, expected as many"
        )
    return checked["token"]


def _find(tokens: list[int], token: int, start: int, where: str) -> int:
    try:
        return tokens.index(token, start)
    except ValueError as error:
        raise InputError(f"{where}: the image at token {start} has no end") from error


def _natural_order(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
