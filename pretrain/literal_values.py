"""Values of the command line as they were typed, for Hydra, which reads few characters outside quotes.

In `source=données`, `out=a(1)` and `run.name=2025.10` the value is text: it is quoted before Hydra reads it.
Lists, mappings, quoted values and `null` are Hydra's; the texts within a list or mapping are taken as typed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pretrain.setting_types import field_of, text_or_section

_READABLE = re.compile(r"[A-Za-z0-9_/\\+.$%*@?|:, \t{}=()\[\]-]*")  # characters that Hydra's grammar has
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_BRACKETS = {"[": "]", "{": "}"}


def as_typed(override: str, schema: type) -> str:
    """A `key=value` word in which Hydra reads the value of a text as it was typed.

    A text `~` or `~/...` is the home folder, which most shells leave alone after `=`. A setting that is a
    list of texts (or of texts and sections) takes one text for a list of one.

    Args:
        override: The word.
        schema: Dataclass of the settings.
    """
    key, separator, value = override.partition("=")
    setting = field_of(schema, key)
    return f"{key}{separator}{_readable(value, setting[1] if setting else None)}"


def _readable(value: str, hint: Any) -> str:
    """A value, or one element of a list or mapping, of a setting of type `hint` (None: unknown)."""
    if not value or _is_quoted(value) or value.lower() == "null":
        return value
    kind = _without_none(hint)
    if (inner := text_or_section(kind)) is not None:
        kind = inner if value[0] == "{" else str
    if _BRACKETS.get(value[0]) == value[-1]:
        members = _MEMBERS[value[0]]
        inner = ",".join(members(part, kind) for part in _split(value[1:-1]))
        return f"{value[0]}{inner}{value[-1]}"
    if get_origin(kind) is list and _may_be_text(get_args(kind)[0]):
        return f"[{_quoted(value)}]"
    if kind is str or not _READABLE.fullmatch(value):
        return _quoted(value)
    return value


def _list_member(text: str, kind: Any) -> str:
    return _readable(text.strip(), get_args(kind)[0] if get_origin(kind) is list else None)


def _mapping_member(text: str, kind: Any) -> str:
    name, colon, value = text.partition(":")
    found = field_of(kind, name.strip()) if is_dataclass(kind) and isinstance(kind, type) else None
    return f"{name}{colon}{_readable(value.strip(), found[1] if found else None)}"


_MEMBERS = {"[": _list_member, "{": _mapping_member}


def _may_be_text(hint: Any) -> bool:
    return hint is str or text_or_section(hint) is not None


def _without_none(hint: Any) -> Any:
    """The type without None: `str` of `str | None`."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    members = [member for member in get_args(hint) if member is not NoneType]
    return members[0] if len(members) == 1 else hint


def _is_quoted(value: str) -> bool:
    return _QUOTED.fullmatch(value) is not None


def _quoted(text: str) -> str:
    """A text in Hydra's quotes; backslashes count double where a quote follows."""
    if text == "~" or text.startswith("~/"):
        text = os.path.expanduser(text)
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", escaped) + "'"


def _split(text: str) -> Iterator[str]:
    """The parts between commas that are outside of brackets and quotes."""
    begin, depth, quote, before = 0, 0, "", ","
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[position - 1] != "\\" else quote
        elif character in "'\"" and before in ",:[{":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and not depth:
            yield text[begin:position]
            begin = position + 1
        before = before if character.isspace() else character
    if text[begin:].strip() or begin:
        yield text[begin:]
