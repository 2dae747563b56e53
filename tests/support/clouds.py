"""Object stores by scheme, each with a server on this machine that the environment points to.

`gs://`: obstore's client speaks the XML API of Google's storage, which no emulator knows whole. That API is
the one of S3 but for its credentials, so that the S3 server answers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import azure_server
from tests.support.object_server import BUCKET, object_server


@dataclass(frozen=True)
class Cloud:
    """A running server with an empty bucket.

    Attributes:
        url: Of the bucket.
        endpoint: Of the server.
    """

    url: str
    endpoint: str

    def point_to(self, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the environment name another endpoint (a proxy)."""
        if self.url.startswith("az"):
            azure_server.point_to(endpoint, monkeypatch)
        else:
            monkeypatch.setenv("GOOGLE_BASE_URL", endpoint)
            monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "test")


@contextmanager
def cloud(scheme: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """The server of `gs` or `az`; skips the test where it is not installed."""
    url = f"{scheme}://{BUCKET}"
    if scheme == "az":
        if reason := azure_server.missing():
            pytest.skip(reason)
        with azure_server.azure_server(folder, monkeypatch) as endpoint:
            yield Cloud(url, endpoint)
        return
    with object_server(monkeypatch) as server:
        for name in server.environment():
            monkeypatch.delenv(name)
        found = Cloud(url, server.endpoint)
        found.point_to(server.endpoint, monkeypatch)
        yield found
