"""Types of settings beyond what OmegaConf knows: `Literal` choices, and tuples of a fixed length.

OmegaConf checks every value against its field's type while files and overrides are merged, so that its
error names the file and the key. It has no `Literal`: it gets a copy of the schema in which each `Literal` is
an `Enum` of the same values, and `build` makes an object of the schema itself from the result. Nor has it
lists whose members are a text or a section (`list[str | Part]`): the copy takes any members, and
`pretrain.settings` checks the sections among them.
"""

from __future__ import annotations

import functools
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from enum import Enum, IntEnum, StrEnum
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from data.errors import InputError

T = TypeVar("T")


@functools.cache
def field_types(schema: type) -> dict[str, Any]:
    """Types of a dataclass's fields by name; read from their texts once, which takes long."""
    return get_type_hints(schema)


def choices(hint: Any) -> tuple[Any, ...]:
    """The values that a type allows, None (null) last; empty where it is no `Literal`, nor a list of one."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) is list:
        return choices(get_args(hint)[0])
    members = _members(hint)
    values = tuple(value for member in members for value in choices(member))
    return (*values, None) if values and NoneType in get_args(hint) else values


@functools.cache
def structured(schema: type) -> type:
    """A copy of a dataclass, nested ones too, that OmegaConf takes: each `Literal` is an `Enum`."""
    hints = field_types(schema)
    return make_dataclass(
        schema.__name__,
        [(each.name, _structured_type(hints[each.name]), _default(each)) for each in fields(schema)],
    )


def build(schema: type[T], values: Any, prefix: str = "") -> T:
    """The settings object that plain values describe.

    Args:
        schema: Dataclass of the settings.
        values: Mapping with a value of the right type for every field, from a composed `structured(schema)`.
        prefix: Key of the section, with a dot, for errors.

    Raises:
        InputError: A tuple has the wrong number of values.
    """
    hints = field_types(schema)
    return schema(
        **{
            each.name: _value(hints[each.name], values[each.name], f"{prefix}{each.name}")
            for each in fields(cast(Any, schema))
        }
    )


def plain(value: Any) -> Any:
    """A settings object as dictionaries, lists and plain values."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def field_of(schema: type, key: str) -> tuple[Field[Any], Any] | None:
    """Field and type of a key with dots (`optim.name`, `stages[0]`); None for a key that is not there."""
    name, _, rest = key.partition(".")
    name = name.partition("[")[0]
    found = next((each for each in fields(schema) if each.name == name), None)
    if found is None:
        return None
    hint = field_types(schema)[name]
    if not rest:
        return found, hint
    inner = section(hint)
    return field_of(inner, rest) if inner is not None else None


def section(hint: Any) -> type | None:
    """The dataclass of a setting that is a section, also of one that may be null; None for other settings."""
    members = _members(hint)
    hint = members[0] if len(members) == 1 else hint
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def text_or_section(hint: Any) -> type | None:
    """The dataclass of a type `str | Section`, a text of which stands for a short form; None for others."""
    members = _members(hint)
    sections = [each for each in members if isinstance(each, type) and is_dataclass(each)]
    return sections[0] if len(members) == 2 and str in members and sections else None


def listed_section(hint: Any) -> type | None:
    """The dataclass of a setting `list[str | Section]`, also of one that may be null; None for others."""
    return text_or_section(listed_type(hint))


def listed_type(hint: Any) -> Any:
    """The type of a list's members, also of one that may be null; None for other settings."""
    members = _members(hint)
    kind = members[0] if len(members) == 1 else hint
    return get_args(kind)[0] if get_origin(kind) is list else None


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union without None; empty for any other type."""
    if get_origin(hint) not in (Union, UnionType):
        return ()
    return tuple(member for member in get_args(hint) if member is not NoneType)


def _structured_type(hint: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return structured(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _enum(arguments)
    if text_or_section(hint) is not None:
        return Any
    if origin in (Union, UnionType):
        return functools.reduce(lambda left, right: left | right, map(_structured_type, arguments))
    if origin in (list, tuple, dict):
        return cast(Any, origin)[tuple(map(_structured_type, arguments))]
    return hint


@functools.cache
def _enum(values: tuple[Any, ...]) -> type[Enum]:
    kinds = {type(value) for value in values}
    base = StrEnum if kinds == {str} else IntEnum if kinds == {int} else _MixedEnum
    return cast(type[Enum], base("Choice", {str(value): value for value in values}))


class _MixedEnum(Enum):
    """Texts and numbers; its members can stand in an interpolation, as those of the other bases."""

    def __str__(self) -> str:
        return str(self.value)


def _default(original: Field[Any]) -> Any:
    if original.default is not MISSING:
        return field(default=original.default)
    factory = original.default_factory
    if factory is not MISSING:
        return field(default_factory=lambda: _structured_value(factory()))
    return field()


def _structured_value(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        values = {each.name: _structured_value(getattr(value, each.name)) for each in fields(value)}
        return structured(type(value))(**values)
    return [_structured_value(item) for item in value] if isinstance(value, list) else value


def _value(hint: Any, value: Any, key: str) -> Any:
    if value is None:
        return None
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, f"{key}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if (inner := text_or_section(hint)) is not None:
        return value if isinstance(value, str) else build(inner, value, f"{key}.")
    if origin in (Union, UnionType):
        return _value(_members(hint)[0], value, key)
    if origin is list:
        return [_value(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value)]
    if origin is tuple:
        if len(value) != len(arguments):
            raise InputError(f"{key}={list(value)} has {len(value)} values, expected {len(arguments)}")
        return tuple(_value(each, item, key) for each, item in zip(arguments, value, strict=True))
    return value.value if isinstance(value, Enum) else value
