"""The command line: help, error messages, exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.cli.commands import COMMANDS, Command
from cluster.cli.help import describe, settings
from cluster.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

HEAVY = (
    "torch",
    "ray",
    "deepspeed",
    "megatron",
    "mujoco",
    "robosuite",
    "wandb",
    "matplotlib",
    "transformers",
)


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command.name} " in shown for command in COMMANDS)


def test_help_of_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "  convert import " in shown
    assert "  convert export " in shown
    assert "inspect" not in shown


def test_a_missing_command_is_invalid_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: worldvla" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from cluster.cli.main import main; main(['--help']); "
        "[main([name, '--help']) for name in ('train', 'vq', 'prepare', 'eval')]; "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_handler_and_describes_its_settings(command: Command) -> None:
    shown = describe(command)
    for setting in settings(command.load_schema()):
        assert f"  {setting.key}=" in shown
        assert setting.text or "." in setting.key, f"{setting.key} has no description"
    assert command.handler.startswith("cluster.cli.handlers.")
    assert callable(command.load_handler())


def test_help_shows_the_values_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--help"])
    assert "  run.name=demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "error: unknown command 'trian'; did you mean 'train'?"),
        (["inspect"], "error: worldvla inspect: expected one of inspect plan, inspect data"),
        (["train", "fast"], "error: worldvla train: 'fast': settings are written key=value"),
        (["train", "--fast"], "error: worldvla train: unknown option --fast"),
        (["collect", "--json"], "error: worldvla collect: unknown option --json"),
        (
            ["train", "optim.lrr=1"],
            "error: worldvla train: unknown setting 'optim.lrr'; did you",
        ),
        (["collect"], "error: worldvla collect: no value for out"),
        (["report", "run=/nowhere"], "error: run=/nowhere: no such folder"),
        (
            ["train", "run.name=r", "data.url=/nowhere", "run.dir=/nowhere"],
            "error: /nowhere",
        ),
        (["demo", "trainer.stop_after=3"], "error: trainer.stop_after: the demo sets it itself"),
    ],
)
def test_invalid_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(message)
    assert shown.count("\n") == 1


def test_an_evaluation_that_measured_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import eval.evaluation.evaluate
    from eval.evaluation.results import Results
    from eval.rollout.episode import EpisodeResult
    from tests.support.fake_simulator import TASK

    broken = EpisodeResult(0, 0, False, 0, "no picture", 0.1)
    solved = EpisodeResult(0, 1, True, 9, None, 0.1)
    for episodes, code in (((broken, broken), 1), ((broken, solved), 0)):
        results = Results("robosuite_lift", None, "expert", (TASK,), episodes, {}, False)
        monkeypatch.setattr(
            eval.evaluation.evaluate, "evaluate_command", lambda config, progress, results=results: results
        )
        assert main(["eval", "policy=expert", "out=x", "--json"]) == code
        shown = capsys.readouterr()
        assert f'"errors": {results.errors}' in shown.out, "the results are shown in both cases"
        assert ("all 2 episodes ended in an error, the first in no picture" in shown.err) == (code == 1)


def test_a_closed_pipe_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "cluster.cli.main", "train", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("number", "text"), [(28, "No space left on device"), (122, "Disk quota exceeded")])
def test_a_full_disk_is_one_line_and_exit_code_2(
    number: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object, invocation: object) -> None:
        raise OSError(number, text, "runs/r/summary.json")

    monkeypatch.setattr("cluster.cli.handlers.report.run_report", fail)
    assert main(["report", "run=r"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: runs/r/summary.json: cannot be written ({text}); free space on its disk")
    assert shown.count("\n") == 1
    with pytest.raises(OSError, match=text):
        main(["report", "run=r", "--debug"])


def test_other_errors_of_the_system_are_no_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: object, invocation: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("cluster.cli.handlers.report.run_report", fail)
    with pytest.raises(OSError, match="Input/output"):
        main(["report", "run=r"])


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="no such folder"):
        main(["report", "run=/nowhere", "--debug"])


def test_output_of_any_encoding_has_question_marks(tmp_path: Path) -> None:
    program = "import sys; from cluster.cli.main import main; main(['--help']); print('20 · 0,1 €')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert done.stdout.endswith(b"20 ? 0,1 ?\n")


def test_sigterm_while_a_command_starts_ends_it_with_a_line() -> None:
    program = (
        "import os, signal, sys; from cluster.cli.main import Command, main; "
        "Command.load_handler = lambda self: lambda *_: os.kill(os.getpid(), signal.SIGTERM); "
        "sys.exit(main(['report', 'run=x']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    line = "ended by SIGTERM; the same command resumes from what is already written\n"
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, line)


@pytest.mark.parametrize("kind", ["package", "module"])
def test_packages_of_the_same_names_in_pythonpath_do_not_hide_ours(kind: str, tmp_path: Path) -> None:
    for name in ("data", "eval", "pretrain"):
        if kind == "package":
            (tmp_path / name).mkdir()
        file = tmp_path / (f"{name}/__init__.py" if kind == "package" else f"{name}.py")
        file.write_text("raise SystemExit('not ours')")
    program = "import sys; from cluster.cli.main import main; sys.exit(main(['report', 'run=/nowhere']))"
    # As of the console script: the folder of `cluster` is further behind.
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stderr.startswith("error: run=/nowhere: no such folder")
    assert done.returncode == 2


def raise_in_library(config: object, invocation: object) -> None:
    import h5py

    h5py.File("/proc/version", "r")


def raise_os_error(config: object, invocation: object) -> None:
    Path("/proc/version/x").read_text()


def raise_import_error(config: object, invocation: object) -> None:
    import nowhere_to_be_found  # type: ignore[import-not-found] # noqa: F401


def raise_own_error(config: object, invocation: object) -> None:
    from data.sizes import parse_bytes

    parse_bytes("memory", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("handler", "line"),
    [
        (
            raise_in_library,
            r"error: h5py refuses: OSError: .*file.*; copy or download the HDF5 file again; --d",
        ),
        (raise_os_error, r"error: /proc/version/x: Not a directory; correct that"),
        (raise_import_error, r"error: ModuleNotFoundError: No module named 'nowhere.*worldvla doctor"),
    ],
)
def test_what_others_refuse_is_one_line_and_exit_code_1(
    handler: Callable[..., None],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Command, "load_handler", lambda self: handler)
    assert main(["report", "run=x"]) == 1
    shown = capsys.readouterr().err
    assert re.match(line, shown)
    assert shown.count("\n") == 1
    with pytest.raises((OSError, ImportError)):
        main(["report", "run=x", "--debug"])


def test_an_error_of_our_own_code_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Command, "load_handler", lambda self: raise_own_error)
    with pytest.raises((TypeError, AttributeError)):
        main(["report", "run=x"])


def test_a_reference_to_another_class_is_replaced_by_its_description() -> None:
    from eval.config import EvalCommandConfig

    assert {s.key: s.text for s in settings(EvalCommandConfig)}["episodes"] == "Episodes per task."
