"""The command: what ends it, and what it refuses before anything is loaded."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.cli.main import main
from data.errors import InputError
from eval.config import ServeConfig
from eval.serve.access import TOKEN_VARIABLE, bind
from eval.serve.command import serve_policy
from eval.serve.policy_process import PolicyLostError
from tests.support.fake_suite import MARKS, FakePolicySource
from tests.support.waiting import wait_until


def serve(policy: str, ready: Callable[[str], None]) -> None:
    """Serve a policy on a free port until a signal."""
    config = ServeConfig(port=0)
    with bind(config, has_token=False) as bound:
        asyncio.run(serve_policy(FakePolicySource(policy), {}, config, bound, None, ready))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_leaves_the_signal_as_it_was(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    addresses: list[str] = []

    def ready(address: str) -> None:
        addresses.append(address)
        os.kill(os.getpid(), number)

    serve("reaching", ready)
    assert re.fullmatch(r"ws://127\.0\.0\.1:[1-9]\d*", addresses[0])
    assert signal.getsignal(number) == before


def test_a_signal_ends_the_server_while_it_loads_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARKS, str(tmp_path))

    def end() -> None:
        wait_until(lambda: any(tmp_path.iterdir()))
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    addresses: list[str] = []
    serve("hanging", addresses.append)
    ending.join()
    assert addresses == []


def test_a_policy_that_cannot_be_loaded_ends_the_command() -> None:
    with pytest.raises(InputError, match="no tokenizer there"):
        serve("unusable", print)
    with pytest.raises(PolicyLostError, match="exit code 9"):
        serve("dying", print)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that is refused."""
    assert main(["serve", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    return shown.err


def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    missing = f"checkpoint={tmp_path / 'none'}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(capsys, missing, f"port={port}")
    assert f"port={port}: cannot be listened on (Address already in use)" in line
    assert "no such folder" in refused(capsys, missing, "port=0")
    assert "no checkpoint of a run there" in refused(capsys, f"checkpoint={tmp_path}", "port=0")
    assert "checkpoint" in refused(capsys, "port=0")
    assert "whoever reaches this machine" in refused(capsys, missing, "host=0.0.0.0", "port=0")
    for word in ("batch=0", "clients=0", "idle_seconds=0", "answer_seconds=nan", "port=-1", "port=99999"):
        assert word in refused(capsys, missing, word)


def test_a_port_that_is_taken_while_the_policy_loads_is_the_same_line() -> None:
    config = ServeConfig(port=0)
    with bind(config, has_token=False) as bound, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(bound.getsockname())
        other.listen()
        serving = serve_policy(FakePolicySource("reaching"), {}, config, bound, None, print)
        with pytest.raises(InputError, match="cannot be listened on"):
            asyncio.run(serving)
