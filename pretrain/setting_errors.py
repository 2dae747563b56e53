"""Errors of settings as one line: what is wrong with which key, and what may have been meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from data.errors import InputError
from pretrain.setting_types import choices, field_of, field_types, section

_FULL_KEY = re.compile(r"^\s*full_key: (.+)$", re.MULTILINE)
_NOT_A_CHOICE = re.compile(
    r"(?:Invalid value|Value) '?(.*?)'?(?:, expected one of \[| \(.*is not a valid input for <enum)"
)


def keys(schema: type) -> Iterator[str]:
    """Every key of a schema with dots, sections before their members: `optim`, `optim.lr`, ..."""
    hints = field_types(schema)
    for field in fields(schema):
        yield field.name
        inner = section(hints[field.name])
        if inner is not None:
            yield from (f"{field.name}.{key}" for key in keys(inner))


def nearest(word: str, candidates: Sequence[str]) -> str:
    """`"; did you mean 'x'?"` when a candidate is near, else an empty string (for error messages)."""
    matches = difflib.get_close_matches(word, candidates, n=1)
    if not matches:  # the right name in the wrong section
        leaves = {candidate.rsplit(".", 1)[-1]: candidate for candidate in candidates}
        matches = [
            leaves[leaf] for leaf in difflib.get_close_matches(word.rsplit(".", 1)[-1], list(leaves), n=1)
        ]
    return f"; did you mean {matches[0]!r}?" if matches else ""


def explain(schema_name: str, schema: type, error: Exception, folder: Path) -> InputError:
    """One line of cause and remedy for what Hydra or OmegaConf raised.

    Args:
        schema_name: Name of the settings.
        schema: Their dataclass.
        error: What was raised.
        folder: The groups of settings (`configs/`).
    """
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(link) for link in chain)
    source = re.match(r"In '([^']+)'", text)
    where = f"{schema_name} (configs/{source.group(1)}.yaml)" if source else schema_name
    named = _FULL_KEY.search(text)
    key = named.group(1) if named else ""
    if group := re.search(r"Could not override '([^']+)'\. No match in the defaults list", text):
        key = group.group(1)  # a folder of configs/ that this command has no settings of
    if key and (group or re.search(r"Key '.*' (is )?not in ", text)):
        if group and (setting := field_of(schema, key)):
            return InputError(f"{where}: {key} is a section of settings{_parts_of(key, setting[1])}")
        candidates = [name for name in (*keys(schema), *_groups(folder)) if name != key]
        return InputError(f"{where}: unknown setting {key!r}{nearest(key, candidates)}")
    if missing := re.search(r"Could not find '([^']+)'", text):
        return InputError(
            f"{schema_name}: no file configs/{missing.group(1)}.yaml{available(missing.group(1), folder)}"
        )
    if key and (invalid := _NOT_A_CHOICE.search(text)) and (setting := field_of(schema, key)):
        return InputError(f"{where}: {key}={invalid.group(1)}, {_expected(invalid.group(1), *setting)}")
    if key and "is not a subclass of" in text and (setting := field_of(schema, key)):
        return InputError(f"{where}: {key} is a section of settings{_parts_of(key, setting[1])}")
    if key and "is not a ListConfig, list or tuple" in text:
        return InputError(f"{where}: {key} is a list; write its members in brackets: [...]")
    if "Cannot merge DictConfig with ListConfig" in text:
        return InputError(f"{where}: a mapping in place of a list; write its members in brackets: [...]")
    if unreadable := re.match(r"LexerNoViableAltException: (.*)", text):
        return InputError(
            f"{schema_name}: {unreadable.group(1)!r} cannot be read; write text in quotes of its own: "
            "key=\"'text'\""
        )
    cause = next((line for line in str(chain[-1]).splitlines() if line and not line.startswith("In '")), "")
    return InputError(f"{where}: {f'{key}: ' if key else ''}{cause}")


def _expected(value: str, setting: Field[Any], hint: Any) -> str:
    """What a setting allows, and why not `value` where its field's metadata `refused` says so."""
    allowed = ", ".join("or null" if choice is None else str(choice) for choice in choices(hint))
    reason = setting.metadata.get("refused", {}).get(value)
    return f"expected one of {allowed}" + (f": {reason}" if reason else "; correct the setting")


def _parts_of(key: str, hint: Any) -> str:
    """What may be set in a section, for messages."""
    inner = section(hint)
    if inner is None:
        return ""
    or_null = " or null" if inner is not hint else ""
    return f"{or_null}; set its parts: {', '.join(f'{key}.{name}' for name in keys(inner))}"


def _groups(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def available(choice: str, folder: Path) -> str:
    """What there is in place of a file `GROUP/NAME` that is not in a folder, for messages."""
    group, _, name = choice.rpartition("/")
    files = sorted(path.stem for path in (folder / group).glob("*.yaml"))
    return f"{nearest(name, files)} (there are: {', '.join(files)})" if files else ""
