"""JSON objects of files, read field by field with the expected types."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from data.errors import InputError
from data.unicode_text import is_encodable

_MAX = sys.float_info.max


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.
        remedy: What to do where it holds something else, the end of the message.

    Raises:
        InputError: It is missing, cannot be read, is no text, or no JSON object.
    """
    try:
        value: object = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: found {_shorten(value)}, expected a JSON object; {remedy}")
    return cast("dict[str, Any]", value)


def parse_json(content: bytes, where: str) -> object:
    """Parse a JSON document; `where` leads the message.

    Raises:
        InputError: It is none.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}); make the file again") from error


class JsonRecord:
    """One JSON object, and where it was read from.

    Every method raises InputError, with `where` and the field, when the field is missing or of another type.
    """

    def __init__(self, fields: dict[str, object], where: str) -> None:
        """Wrap parsed JSON; `where` leads every message."""
        self._fields = fields
        self._where = where

    @property
    def where(self) -> str:
        """The file, and the field of it, that the object was read from."""
        return self._where

    @classmethod
    def parse(cls, content: bytes, where: str) -> JsonRecord:
        """Parse a JSON document whose top level is an object."""
        return cls._of(parse_json(content, where), where)

    def text(self, name: str, choices: Sequence[str] | None = None) -> str:
        """A string that can be encoded, one of `choices` if given."""
        value = self._fields.get(name)
        if isinstance(value, str) and not is_encodable(value):
            raise self._wrong(name, "a text that can be encoded in UTF-8")
        if not isinstance(value, str) or (choices is not None and value not in choices):
            raise self._wrong(name, "a text" if choices is None else f"one of {', '.join(choices)}")
        return value

    def integer(self, name: str, low: int = 0, high: int = 1 << 62) -> int:
        """An integer in [low, high]."""
        value = self._fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, f"an integer from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._fields.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def number(self, name: str, above: float = -_MAX) -> float:
        """A finite number larger than `above`."""
        value = self._fields.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not above < value <= _MAX:
            raise self._wrong(name, "a finite number" if above == -_MAX else f"a number above {above:g}")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        values = self._list(name)
        if not all(isinstance(v, int | float) and -_MAX <= v <= _MAX for v in values):
            raise self._wrong(name, "finite numbers")
        return tuple(float(cast("float", v)) for v in values)

    def named_numbers(self, name: str) -> dict[str, float]:
        """A nested object of finite numbers, by name."""
        record = self.record(name)
        return {key: record.number(key) for key in record._fields}

    def texts(self, name: str, choices: Sequence[str] | None = None) -> list[str]:
        """A list of strings, all among `choices` if given."""
        values = self._list(name)
        if not all(isinstance(v, str) and (choices is None or v in choices) for v in values):
            raise self._wrong(name, "texts" if choices is None else f"texts out of {', '.join(choices)}")
        return cast("list[str]", values)

    def has_text(self, name: str) -> bool:
        """Whether a field is there and a text that is not empty."""
        return bool(self._fields.get(name)) and isinstance(self._fields[name], str)

    def listed_texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, alone or as the only member of an object; empty for anything else."""
        value = self._fields.get(name)
        if isinstance(value, dict) and len(cast("dict[str, object]", value)) == 1:
            value = next(iter(cast("dict[str, object]", value).values()))
        texts = cast("list[object]", value) if isinstance(value, list) else []
        return tuple(str(text) for text in texts) if all(isinstance(text, str) for text in texts) else ()

    def record(self, name: str) -> JsonRecord:
        """A nested object."""
        return self._of(self._fields.get(name), f"{self._where}: {name}")

    def records(self, name: str) -> list[JsonRecord]:
        """A list of nested objects."""
        return [self._of(value, f"{self._where}: {name}[{i}]") for i, value in enumerate(self._list(name))]

    def members(self, name: str | None = None) -> dict[str, JsonRecord]:
        """A nested object of objects, by name; None: this object itself."""
        outer = self if name is None else self.record(name)
        return {key: self._of(value, f"{outer._where}: {key[:80]}") for key, value in outer._fields.items()}

    @property
    def holds_objects(self) -> bool:
        """Whether every field is an object, and there is one."""
        return bool(self._fields) and all(isinstance(value, dict) for value in self._fields.values())

    def is_null(self, name: str) -> bool:
        """Whether a field is there and null (InputError: it is missing)."""
        if name not in self._fields:
            raise self._wrong(name, "a value or null")
        return self._fields[name] is None

    @property
    def names(self) -> list[str]:
        """Names of its fields."""
        return list(self._fields)

    def __contains__(self, name: str) -> bool:
        """Whether the object has a field of this name."""
        return name in self._fields

    @classmethod
    def _of(cls, value: object, where: str) -> JsonRecord:
        if not isinstance(value, dict):
            raise InputError(f"{where}: found {_shorten(value)}, expected a JSON object")
        return cls(cast("dict[str, object]", value), where)

    def _list(self, name: str) -> list[object]:
        value = self._fields.get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return cast("list[object]", value)

    def _wrong(self, name: str, expected: str) -> InputError:
        found = _shorten(self._fields.get(name)) if name in self._fields else "nothing"
        return InputError(f"{self._where}: {name} is {found}, expected {expected}; make the file again")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
