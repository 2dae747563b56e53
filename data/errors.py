"""The exception type for a user's mistake, as opposed to a defect of the program."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(Exception):
    """Something outside the program is wrong: a file, a setting, the machine.

    The command line prints the message as one line and exits with code 2. The message says what was found,
    what was expected and what to do, for example::

        raise InputError(
            f"{path}: actions are {width} wide, expected 7 (delta pose 6 + gripper); "
            "re-export the demonstration with end-effector actions"
        )
    """


class StorageError(InputError):
    """A storage did not answer, or refused: nothing is known of what it holds."""


def first_line(error: BaseException) -> str:
    """First line of an exception's text, which may be pages; without one the name of its class."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip() if text else type(error).__name__


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a setting that has none of its allowed values.

    Raises:
        InputError: `value` is none of `choices`.
    """
    if value not in choices:
        raise InputError(f"{name}={value}: expected one of {', '.join(choices)}")
