"""Entry point of `worldvla`: parse the command line, compose typed settings, call the handler, report errors.

Heavy libraries are not imported here, so that `worldvla --help` is quick.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

from cluster.cli import import_path  # noqa: F401  first: for its effect on the imports that follow
from cluster.cli.commands import COMMANDS, Command, group_members
from cluster.resources.ray_use import end_process
from cluster.signals import exit_on_signals
from data.errors import InputError
from data.files import user_mistake
from pretrain.logs import replace_unencodable_output

FAILED, INVALID_INPUT, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    try:
        code = _run_and_report(arguments)
    except SystemExit as ended:  # by a signal
        end_process(ended.code if isinstance(ended.code, int) else FAILED)
        raise
    end_process(code)
    return code


def _run_and_report(arguments: Sequence[str] | None) -> int:
    """Run a command and print what ended it; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    replace_unencodable_output()
    try:
        with exit_on_signals():
            code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if _stdout_has_reader():  # another pipe broke
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit fails as well
        return 0
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted; the same command resumes from what is already written", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        if mistake := user_mistake(error):
            print(f"error: {mistake}", file=sys.stderr)
            return INVALID_INPUT
        from cluster.cli.foreign_errors import describe_foreign_error

        line = describe_foreign_error(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return FAILED


def _stdout_has_reader() -> bool:
    """Whether the reader of standard output still exists; `head`, for example, ends after some lines."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def _run(words: list[str]) -> int:
    """Run the command that the words name; return the exit code."""
    flags = {word for word in words if word.startswith("-")}
    words = [word for word in words if not word.startswith("-")]
    help_requested = bool(flags & {"--help", "-h"})
    if not words:
        from cluster.cli.help import overview

        print(overview())
        return 0 if help_requested else INVALID_INPUT
    if help_requested and len(words) == 1 and group_members(words[0]):
        from cluster.cli.help import overview

        print(overview(words[0]))
        return 0
    command, overrides = _find(words)
    if help_requested:
        from cluster.cli.help import describe

        print(describe(command))
        return 0
    unknown = flags - {"--debug", *command.options}
    if unknown:
        raise InputError(f"worldvla {command.name}: unknown option {sorted(unknown)[0]}; see --help")
    for word in overrides:
        if "=" not in word:
            raise InputError(f"worldvla {command.name}: {word!r}: settings are written key=value; see --help")
    return _call_handler(command, overrides, flags)


def _call_handler(command: Command, overrides: list[str], flags: set[str]) -> int:
    """Compose the settings and call the handler; return the exit code."""
    from cluster.cli.invocation import Invocation, make_console
    from cluster.failures import CommandFailedError
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
        command.load_handler()(settings, invocation)
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

    if group := group_members(words[0]):
        raise InputError(f"worldvla {words[0]}: expected one of {', '.join(c.name for c in group)}")
    names = [command.name for command in COMMANDS]
    similar = difflib.get_close_matches(words[0], names, n=1)
    suggestion = f"; did you mean {similar[0]!r}?" if similar else ""
    raise InputError(f"unknown command {words[0]!r}{suggestion} (worldvla --help lists the commands)")


if __name__ == "__main__":
    sys.exit(main())
