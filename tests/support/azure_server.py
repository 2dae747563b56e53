"""Azurite, a local server of Azure's blob storage, for the length of a test; `make azurite` installs it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.support.object_server import BUCKET
from tests.support.waiting import wait_until

PROGRAM = Path(__file__).parents[2] / ".build/azurite/node_modules/.bin/azurite-blob"
ACCOUNT = "testaccount"
KEY = base64.b64encode(b"the key of the tests").decode()
_VERSION = "2021-08-06"  # of the protocol
_OPTIONS = [
    "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck",
    "--disableTelemetry", "--silent",
]  # fmt: skip
_LISTENS = re.compile(r"successfully listens on (http://127\.0\.0\.1:\d+)")


def missing() -> str | None:
    """Why no server can be started here; None: one can."""
    if shutil.which("node") is None:
        return "node is not installed (apt-get install nodejs npm)"
    return None if PROGRAM.exists() else f"{PROGRAM} is not there (`make azurite` installs it; it needs npm)"


@contextmanager
def azure_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with an empty container `bucket`, which the environment points to; its endpoint.

    Args:
        folder: For its output; objects are kept in its memory.
        monkeypatch: Of the test.
    """
    said = folder / "azurite.log"
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with said.open("wb") as log:
        process = subprocess.Popen(
            [str(PROGRAM), *_OPTIONS], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until(lambda: bool(_LISTENS.search(said.read_text())), said.read_text)
            endpoint = _LISTENS.findall(said.read_text())[0]
            _make_container(endpoint)
            point_to(endpoint, monkeypatch)
            yield endpoint
        finally:
            process.terminate()
            process.wait()


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what a client needs to find the server there."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{endpoint}/{ACCOUNT}")
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")


def _make_container(endpoint: str) -> None:
    """Clients cannot: a request of its own, signed as Azure's "Authorize with Shared Key" has it."""
    date = formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:{_VERSION}"
    signed = "PUT" + "\n" * 12 + f"{headers}\n/{ACCOUNT}/{ACCOUNT}/{BUCKET}\nrestype:container"
    digest = hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)
    request = Request(f"{endpoint}/{ACCOUNT}/{BUCKET}?restype=container", method="PUT")
    request.add_header("x-ms-date", date)
    request.add_header("x-ms-version", _VERSION)
    request.add_header("Authorization", f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}")
    with urlopen(request) as answer:
        assert answer.status == 201
