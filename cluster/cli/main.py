"""The `worldvla` command: reads the command line, composes typed settings, hands over, reports mistakes.

Nothing heavy is imported here: `worldvla --help` answers at once.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

from cluster.cli.commands import COMMANDS, Command, members
from data.errors import InputError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if _is_read():  # another pipe broke
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing fails at the exit either
        return 0
    except InputError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted; the same command goes on from what is already written", file=sys.stderr)
        return INTERRUPTED


def _is_read() -> bool:
    """Whether somebody reads what is printed; `head`, for example, goes when it has seen enough."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return not any(event & select.POLLERR for _, event in output.poll(0))


def _run(words: list[str]) -> int:
    flags = {word for word in words if word.startswith("-")}
    words = [word for word in words if not word.startswith("-")]
    wants_help = bool(flags & {"--help", "-h"})
    if not words:
        from cluster.cli.help import overview

        print(overview())
        return 0 if wants_help else WRONG_INPUT
    if wants_help and len(words) == 1 and members(words[0]):
        from cluster.cli.help import overview

        print(overview(words[0]))
        return 0
    command, rest = _find(words)
    if wants_help:
        from cluster.cli.help import describe

        print(describe(command))
        return 0
    unknown = flags - {"--debug", *command.options}
    if unknown:
        raise InputError(f"worldvla {command.name}: unknown option {sorted(unknown)[0]}; see --help")
    for word in rest:
        if "=" not in word:
            raise InputError(f"worldvla {command.name}: {word!r}: settings are written key=value; see --help")
    return _carry_out(command, rest, flags)


def _carry_out(command: Command, overrides: list[str], flags: set[str]) -> int:
    from cluster.console import make_console
    from cluster.failures import CommandFailedError
    from cluster.invocation import Invocation
    from pretrain.faults.exit_codes import EXIT_PREEMPTED, PreemptedError
    from pretrain.logs import set_up_logging
    from pretrain.settings import compose

    set_up_logging()
    settings = compose(
        f"worldvla {command.name}",
        command.load_schema(),
        command.config_name,
        [*command.preset, *overrides],
    )
    json = "--json" in flags
    invocation = Invocation(make_console(stderr=json), json, tuple(overrides), "--dry-run" in flags)
    try:
        command.load_function()(settings, invocation)
    except CommandFailedError as error:
        if "--debug" in flags:
            raise
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except PreemptedError as error:
        print(error, file=sys.stderr)
        return EXIT_PREEMPTED
    return 0


def _find(words: list[str]) -> tuple[Command, list[str]]:
    """The command that the first one or two words name, and the remaining words."""
    for command in COMMANDS:
        parts = command.name.split()
        if words[: len(parts)] == parts:
            return command, words[len(parts) :]
    import difflib

    if found := members(words[0]):
        raise InputError(f"worldvla {words[0]}: expected one of {', '.join(c.name for c in found)}")
    names = [command.name for command in COMMANDS]
    near = difflib.get_close_matches(words[0], names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown command {words[0]!r}{hint} (worldvla --help lists the commands)")


if __name__ == "__main__":
    sys.exit(main())
