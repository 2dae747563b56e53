"""Typed settings from YAML and the command line, strictly checked; the only module that imports Hydra.

`configs/train.yaml` names the groups; a group file holds differences from the defaults in the dataclasses.
An unknown key is refused, and the nearest known one is named.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.errors import InputError, first_line
from data.unicode_text import is_encodable
from pretrain.installation import project_file
from pretrain.literal_values import as_typed
from pretrain.model.config import ModelConfig
from pretrain.setting_types import build, choices, field_of, field_types, plain, section, structured

CONFIG_FOLDER = project_file("configs")
_SCHEMA = "schema"  # the name by which configs/train.yaml refers to the dataclass
_ABBREVIATIONS = {"profile": "telemetry.profile"}  # of keys, on the command line
_FULL_KEY = re.compile(r"^\s*full_key: (.+)$", re.MULTILINE)
_NOT_A_CHOICE = re.compile(
    r"(?:Invalid value|Value) '?(.*?)'?(?:, expected one of \[| \(.*is not a valid input for <enum)"
)

# Without the groups of its own (logging, launcher, help), which Hydra else reads at each composition.
ConfigStore.instance().store("config", HydraConf(defaults=[]), group="hydra", provider="hydra")

T = TypeVar("T")


def compose(schema_name: str, schema: type[T], config_name: str | None, overrides: Sequence[str]) -> T:
    """Compose the settings of one command.

    Args:
        schema_name: Name of these settings in errors, for example the command's name.
        schema: Dataclass with every key, its type and its default.
        config_name: Primary file in `configs/` (`"train"`); None: the dataclass alone.
        overrides: `key=value` of the command line, in Hydra's syntax (`optim.lr=1e-4`, `model=tiny`); texts
            as they were typed (`pretrain.literal_values`).

    Raises:
        InputError: Unknown key or group file, wrong type, a value that is none of the allowed ones, malformed
            override, or a required value is missing.
    """
    overrides = [_in_full(override, schema) for override in overrides]
    for override in overrides:
        if override.startswith(("+", "~")):
            raise InputError(
                f"{schema_name}: {override!r}: settings are changed, not added or removed; write key=value"
            )
        if not is_encodable(override):
            raise InputError(
                f"{schema_name}: {override!r} is no UTF-8 text (a name in another encoding); rename the file "
                "or folder"
            )
    _check_null_sections(schema_name, schema, overrides)
    overrides = [as_typed(override, schema) for override in overrides]
    ConfigStore.instance().store(_SCHEMA, _with_sections(_defaults(schema), schema, overrides))
    try:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            composed = hydra_compose(config_name or _SCHEMA, overrides)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise _explain(schema_name, schema, error) from error
    return _typed(schema_name, schema, composed)


def from_mapping(schema_name: str, schema: type[T], values: Mapping[str, Any]) -> T:
    """Make typed settings of a plain mapping, as strictly as `compose`; missing keys get their defaults."""
    try:
        merged = OmegaConf.merge(_defaults(schema), OmegaConf.create(dict(values)))
    except OmegaConfBaseException as error:
        raise _explain(schema_name, schema, error) from error
    return _typed(schema_name, schema, merged)


def to_mapping(settings: object) -> dict[str, Any]:
    """Typed settings as plain nested dictionaries and lists (JSON and YAML can hold them)."""
    return plain(settings)


def to_yaml(settings: object) -> str:
    """Typed settings as YAML, every value written out."""
    return OmegaConf.to_yaml(OmegaConf.create(to_mapping(settings)))


def named_models() -> dict[str, ModelConfig]:
    """The networks of `configs/model` by name, sorted."""
    files = sorted((CONFIG_FOLDER / "model").glob("*.yaml"))
    return {path.stem: from_mapping(f"model {path.stem}", ModelConfig, read_yaml(path)) for path in files}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping from a file.

    Raises:
        InputError: The file is missing or unreadable, or holds no mapping.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"{path}: cannot read settings ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a mapping of settings")
    return cast(dict[str, Any], content)


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


@functools.cache
def _defaults(schema: type) -> DictConfig:
    """A schema as OmegaConf reads it, every default filled in; Hydra and `merge` change copies of it."""
    return OmegaConf.structured(structured(schema))


def _check_null_sections(schema_name: str, schema: type, overrides: Sequence[str]) -> None:
    for null in overrides:
        key, _, value = null.partition("=")
        found = field_of(schema, key)
        if value.strip().lower() != "null" or found is None or section(found[1]) is None:
            continue
        if part := next((each for each in overrides if each.startswith(f"{key}.")), None):
            raise InputError(f"{schema_name}: {null}, and {part} sets a part of it; leave one out")


def _with_sections(defaults: DictConfig, schema: type, overrides: Sequence[str]) -> DictConfig:
    """The defaults, where a section that is null by default has its own once an override sets part of it.

    OmegaConf cannot merge a value of the command line into null.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        parts = key.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            found = field_of(schema, name)
            is_section = found is not None and section(found[1]) is not None
            if is_section and OmegaConf.select(defaults, name) is None and value.strip().lower() != "null":
                filled: Any = functools.reduce(lambda inner, part: {part: inner}, reversed(parts[:end]), {})
                defaults = cast(DictConfig, OmegaConf.merge(defaults, filled))
    return defaults


def _in_full(override: str, schema: type) -> str:
    """An override with its key in full: `profile=true` is `telemetry.profile=true` where there is one."""
    key, separator, value = override.partition("=")
    if key not in _ABBREVIATIONS or _ABBREVIATIONS[key] not in keys(schema):
        return override
    return f"{_ABBREVIATIONS[key]}{separator}{value}"


def _typed(schema_name: str, schema: type[T], composed: Any) -> T:
    unknown = set(composed) - {field.name for field in fields(cast(Any, schema))}
    if unknown:
        key = sorted(map(str, unknown))[0]
        raise InputError(f"{schema_name}: unknown setting {key!r}{nearest(key, list(keys(schema)))}")
    try:
        OmegaConf.resolve(composed)
        _clear_alternatives(schema, composed)
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            listed = " ".join(f"{key}=..." for key in missing)
            raise InputError(f"{schema_name}: no value for {', '.join(missing)}; add {listed}")
        values = OmegaConf.to_container(composed)
    except OmegaConfBaseException as error:
        raise _explain(schema_name, schema, error) from error
    try:
        return build(schema, values)
    except InputError as error:
        raise InputError(f"{schema_name}: {error}") from None


def _clear_alternatives(schema: type, composed: Any) -> None:
    """Set a missing field with metadata `{"or": other}` to an empty string where `other` is given."""
    hints = field_types(schema)
    for field in fields(schema):
        inner, other = hints[field.name], field.metadata.get("or")
        if isinstance(inner, type) and is_dataclass(inner):
            _clear_alternatives(inner, composed[field.name])
        elif other is not None and OmegaConf.is_missing(composed, field.name) and composed[other]:
            composed[field.name] = ""


def _explain(schema_name: str, schema: type, error: Exception) -> InputError:
    """One line of cause and remedy for what Hydra or OmegaConf raised."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(link) for link in chain)
    source = re.match(r"In '([^']+)'", text)
    where = f"{schema_name} (configs/{source.group(1)}.yaml)" if source else schema_name
    named = _FULL_KEY.search(text)
    key = named.group(1) if named else ""
    if key and re.search(r"Key '.*' (is )?not in ", text):
        return InputError(f"{where}: unknown setting {key!r}{nearest(key, [*keys(schema), *_groups()])}")
    if missing := re.search(r"Could not find '([^']+)'", text):
        return InputError(
            f"{schema_name}: no file configs/{missing.group(1)}.yaml{_available(missing.group(1))}"
        )
    if key and (invalid := _NOT_A_CHOICE.search(text)) and (setting := field_of(schema, key)):
        return InputError(f"{where}: {key}={invalid.group(1)}, {_expected(invalid.group(1), *setting)}")
    if key and "is not a subclass of" in text and (setting := field_of(schema, key)):
        return InputError(f"{where}: {key} is a section of settings{_parts_of(key, setting[1])}")
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


def _groups() -> list[str]:
    return sorted(path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir())


def _available(choice: str) -> str:
    group, _, name = choice.rpartition("/")
    files = sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))
    return f"{nearest(name, files)} (there are: {', '.join(files)})" if files else ""
