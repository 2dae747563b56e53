"""Who may connect."""

from __future__ import annotations

import base64
import socket
from pathlib import Path

import pytest

from data.errors import InputError
from eval.config import ServeConfig
from eval.serve.access import TOKEN_VARIABLE, bind, is_allowed, read_token

TOKEN = "0123456789abcdef"


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"any:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        (f"Api-Key {TOKEN}", True),
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (basic(TOKEN), True),
        (None, False),
        ("", False),
        (TOKEN, False),
        (f"Api-Key {TOKEN} ", False),
        (f"Api-Key {TOKEN[:-1]}", False),
        (f"Other {TOKEN}", False),
        ("Api-Key ", False),
        ("Bearer ü", False),
        (basic(TOKEN[1:]), False),
        ("Basic %%", False),
        ("Basic /w==", False),
        ("Basic ü", False),
        ("Api-Key \udcff", False),  # a byte that is no ASCII
    ],
)
def test_the_token_is_taken_from_each_kind_of_client(header: str | None, allowed: bool) -> None:
    assert is_allowed(header, TOKEN) is allowed
    assert is_allowed(header, None)


def test_the_token_comes_from_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    from_file = ServeConfig(token_file=str(path))
    assert read_token(ServeConfig()) is None
    assert read_token(from_file) == TOKEN
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(ServeConfig()) == TOKEN
    with pytest.raises(InputError, match="are both set; keep one"):
        read_token(from_file)
    for weak in ("", "short", "with a space in it", "ü" * 20):
        monkeypatch.setenv(TOKEN_VARIABLE, weak)
        with pytest.raises(InputError, match=f"^{TOKEN_VARIABLE}: a token of .*openssl") as raised:
            read_token(ServeConfig())
        assert not weak or weak not in str(raised.value)


def test_a_token_that_every_user_can_read_is_taken_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    assert read_token(ServeConfig(token_file=str(path))) == TOKEN
    assert not caplog.messages
    path.chmod(0o644)
    assert read_token(ServeConfig(token_file=str(path))) == TOKEN
    assert caplog.messages == [
        f"token_file={path}: every user of this machine can read it; run: chmod 600 {path}"
    ]


@pytest.mark.parametrize("content", [None, b"\xff" * 20])
def test_a_file_without_a_token_is_named(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^token_file={path}: cannot be read"):
        read_token(ServeConfig(token_file=str(path)))


def test_other_machines_need_a_token_or_a_word() -> None:
    with pytest.raises(
        InputError, match=r"host=0\.0\.0\.0: whoever .*set WORLDVLA_SERVE_TOKEN .*unprotected=true"
    ):
        bind(ServeConfig(host="0.0.0.0", port=0), has_token=False)
    bind(ServeConfig(host="0.0.0.0", port=0), has_token=True).close()
    bind(ServeConfig(host="0.0.0.0", port=0, unprotected=True), has_token=False).close()
    for host in ("localhost", "127.0.0.2"):
        bind(ServeConfig(host=host, port=0), has_token=False).close()


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port={port}: cannot be listened on .*another port="):
            bind(ServeConfig(port=port), has_token=False)
    with pytest.raises(InputError, match="port=70000: expected 0 to 65535"):
        bind(ServeConfig(port=70000), has_token=False)
    with pytest.raises(InputError, match=r"host=192\.0\.2\.1 port=0: cannot be listened on .*; give an addr"):
        bind(ServeConfig(host="192.0.2.1", port=0), has_token=True)
    for host in ("no such host", "", "a" * 300):
        with pytest.raises(InputError, match=r"^host="):
            bind(ServeConfig(host=host, port=0), has_token=False)
