"""`--help`: the commands, and the settings of each with the texts of its dataclasses' docstrings."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from inspect import cleandoc
from typing import Any, get_type_hints

from cluster.cli.commands import COMMANDS, Command, group_members
from cluster.overrides import format_value
from data.config import SourceConfig
from pretrain.installation import project_file
from pretrain.setting_types import choices

_WIDTH = 100
_CONFIGS = project_file("configs")
_ENTRY = re.compile(r"^([a-z_][a-z_0-9]*(?:, [a-z_][a-z_0-9]*)*): (.*)$")


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a command.

    Attributes:
        key: With dots (`optim.lr`).
        default: In the syntax of the command line; `(required)` without one.
        text: Its description; empty if the docstring has none.
        choices: The allowed values; empty: any of its type.
    """

    key: str
    default: str
    text: str
    choices: tuple[str, ...] = ()


def overview(group: str | None = None) -> str:
    """Text of `worldvla --help`, or of `worldvla GROUP --help`."""
    width = max(len(command.name) for command in COMMANDS)
    if group is not None:
        named = [f"  {command.name:<{width}}  {command.summary}" for command in group_members(group)]
        return "\n".join([f"usage: worldvla {group} COMMAND [key=value ...] [--help]", "", *named])
    lines = [
        "usage: worldvla COMMAND [key=value ...] [--help] [--debug] [--json]",
        "",
        "Pretraining of WorldVLA, one transformer that acts and imagines: demonstrations, token shards,",
        "distributed training, evaluation in the simulator, report.",
        "",
        "commands:",
        *(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS),
        "",
        "  worldvla demo                runs all of it on this machine, in about 10 minutes",
        "  worldvla COMMAND --help      lists the command's settings with their defaults",
        "",
        "options:",
        "  --debug   tracebacks instead of one-line errors",
        "  --json    machine-readable output (doctor, eval, imagine, inspect, submit)",
        "  --dry-run show what would be done, and do nothing (submit)",
        "",
        "exit codes: 0 done, 1 failed, 2 invalid input or settings, 85 stopped on request with a checkpoint,",
        "  130 interrupted, 143 ended by SIGTERM",
    ]
    return "\n".join(lines)


def describe(command: Command) -> str:
    """Text of `worldvla COMMAND --help`."""
    option = "".join(f" [{name}]" for name in command.options)
    lines = [
        f"usage: worldvla {command.name} [key=value ...]{option} [--debug]",
        "",
        *textwrap.wrap(command.summary[0].upper() + command.summary[1:] + ".", _WIDTH),
    ]
    if command.examples:
        lines += ["", "examples:", *(f"  {example}" for example in command.examples)]
    if command.config_name:
        lines += ["", "groups of settings (files in configs/):"]
        lines += [f"  {group}={'|'.join(names)}" for group, names in _groups(command.config_name)]
    if issubclass(command.load_schema(), SourceConfig):
        recipes = sorted(path.stem for path in (_CONFIGS / "recipe").glob("*.yaml"))
        lines += ["", "recipes (files in configs/recipe/, or a path):", f"  recipe={'|'.join(recipes)}"]
    lines += ["", "settings:"]
    for setting in settings(_defaults(command)):
        listed = f"  ({' | '.join(setting.choices)})" if setting.choices else ""
        lines.append(f"  {setting.key}={setting.default}{listed}")
        lines += textwrap.wrap(setting.text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    if notes := command.load_notes():
        lines += ["", notes]
    return "\n".join(lines)


def settings(defaults: Any, prefix: str = "") -> Iterator[Setting]:
    """All settings of a dataclass, or of an instance with its values; nested ones with dots."""
    schema = defaults if isinstance(defaults, type) else type(defaults)
    types, texts = get_type_hints(schema), _descriptions(schema)
    for field in fields(schema):
        kind = types[field.name]
        value = _class_default(field) if defaults is schema else getattr(defaults, field.name)
        if isinstance(kind, type) and is_dataclass(kind):
            yield from settings(kind if defaults is schema else value, f"{prefix}{field.name}.")
        else:
            allowed = tuple(map(format_value, choices(kind)))
            yield Setting(f"{prefix}{field.name}", _format_default(value), texts.get(field.name, ""), allowed)


def _defaults(command: Command) -> Any:
    """The class of a command's settings; with a preset an instance with the values of the preset."""
    if not command.preset:
        return command.load_schema()
    from pretrain.settings import compose

    return compose(command.name, command.load_schema(), command.config_name, list(command.preset))


def _class_default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else "???"


def _format_default(value: Any) -> str:
    return "(required)" if value == "???" else format_value(value)


def _descriptions(schema: type) -> dict[str, str]:
    """Description of each setting in the `Attributes` section of its class, or of a base class."""
    texts: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        for names, text in _entries(base):
            other = getattr(sys.modules[base.__module__], _referenced_class(text), None)
            texts.update({name: (_descriptions(other).get(name, text) if other else text) for name in names})
    return texts


def _entries(schema: type) -> Iterator[tuple[list[str], str]]:
    """Names and text of each entry of the class's own `Attributes` section."""
    _, _, section = cleandoc(schema.__doc__ or "").partition("Attributes:\n")
    for entry in re.split(r"\n    (?=\w)", "\n" + section.split("\n\n")[0]):
        match = _ENTRY.match(" ".join(entry.split()))
        if match:
            yield match.group(1).split(", "), match.group(2)


def _referenced_class(text: str) -> str:
    """The class that an entry `As in `Class`` refers to; an empty string for other entries."""
    match = re.match(r"As in `(\w+)`", text)
    return match.group(1) if match else ""


def _groups(config_name: str) -> Iterator[tuple[str, list[str]]]:
    """The groups that a primary file names, and their choices."""
    primary = (_CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8")
    for folder in sorted(path for path in _CONFIGS.iterdir() if path.is_dir()):
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        if names and f"- {folder.name}:" in primary:
            yield folder.name, names
