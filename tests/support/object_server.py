"""An S3 server on a free port of this machine, that refuses requests when a test asks it to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


class ObjectServer:
    """moto's S3 in threads of this process.

    Attributes:
        address: Host and port.
        endpoint: The same as a URL: `http://127.0.0.1:PORT`.
        refuse: Asked about every request (method, path); a status refuses it, None lets it pass.
        requests: Method and path of every request so far.
    """

    def __init__(self) -> None:
        self._application = DomainDispatcherApplication(create_backend_app)
        self._listen(port=0)
        self.address = ("127.0.0.1", self._server.server_port)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []

    def _listen(self, port: int) -> None:
        self._server = make_server("127.0.0.1", port, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def start_again(self) -> None:
        """After `stop`: at the same address, with the objects that it had."""
        self._listen(self.address[1])
        self.start()

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        if status := self.refuse(method, path):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} Refused", [("Content-Type", "text/plain"), ("Content-Length", "7")])
            return [b"refused"]
        return self._application(environ, start_response)


@contextmanager
def object_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server with an empty bucket `bucket`, which the environment points to."""
    import boto3

    server = ObjectServer()
    server.start()
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        reset = Request(f"{server.endpoint}/moto-api/reset", method="POST")  # what earlier tests left behind
        with urlopen(reset) as answer:
            assert answer.status == 200
        server.requests.clear()
        boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.stop()
