"""A server that cannot be reached as it is configured: an error at once, with the variable to correct."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from data.errors import InputError
from data.storage import contact, retries
from data.storage.bulk_store import open_bulk
from data.storage.index import DatasetIndex
from data.storage.store import open_store
from tests.support.object_server import BUCKET, object_server

URL = f"s3://{BUCKET}/shards"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries, which are not waited for; no server has answered yet, and no variable is set."""
    made: list[float] = []
    monkeypatch.setattr(retries, "pause", lambda seconds, over: made.append(seconds))
    monkeypatch.setattr(contact, "_answered", set())
    monkeypatch.setattr("data.storage.object_store.RETRY_SECONDS", 0.2)
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")) or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "AZURE_STORAGE_ACCOUNT_NAME": "a",
        "AZURE_STORAGE_ACCOUNT_KEY": "aGVsbG8=",
        "GOOGLE_BEARER_TOKEN": "t",
    }.items():
        monkeypatch.setenv(name, value)
    return made


class TlsServer:
    """Answers 404, with TLS where it has a certificate, and counts connections."""

    def __init__(self, certificate: Path | None) -> None:
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                connection.recv(65536)
                connection.sendall(_NOT_FOUND)
            except OSError:
                pass  # the client ended the handshake
            connection.close()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody trusts, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def serve() -> Iterator[Callable[[Path | None], TlsServer]]:
    servers: list[TlsServer] = []

    def start(certificate: Path | None) -> TlsServer:
        servers.append(TlsServer(certificate))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def requests(url: str) -> dict[str, Callable[[], object]]:
    return {
        "lookup": lambda: open_store(url).exists("x"),
        "read": lambda: open_store(url).read("x"),
        "write": lambda: open_store(url).write("x", b"1"),
        "index": lambda: DatasetIndex.load(url),
        "patient": lambda: open_store(url, retry_seconds=0.3).exists("x"),
        "listing": lambda: open_bulk(url).folders(),
        "names": lambda: open_bulk(url).names("step_1"),
    }


KINDS = tuple(requests(""))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("url", "variable", "allow"),
    [(URL, "AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP"), ("az://c/x", "AZURE_STORAGE_ENDPOINT", "AZURE_ALLOW_HTTP")],
)
def test_an_endpoint_without_tls_names_the_variable(
    kind: str, url: str, variable: str, allow: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9000")
    message = (
        rf"http://127\.0\.0\.1:9000 has no TLS; set {allow}=true to allow that, or an https:// .*{variable}"
    )
    with pytest.raises(InputError, match=message) as caught:
        requests(url)[kind]()
    assert "\n" not in str(caught.value)
    assert pauses == []


def test_a_url_without_tls_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"http://host/x: has no TLS; expected https://, or s3:// with AWS_END"
    ):
        open_store("http://host/x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_that_is_not_trusted_is_named(
    kind: str,
    certificate: Path,
    serve: Callable[[Path | None], TlsServer],
    monkeypatch: pytest.MonkeyPatch,
    pauses: list[float],
) -> None:
    server = serve(certificate)
    endpoint = f"https://localhost:{server.port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    message = (
        rf"the certificate of {endpoint} is refused \(UnknownIssuer\); .*SSL_CERT_FILE.*AWS_ENDPOINT_URL"
    )
    with pytest.raises(InputError, match=message):
        requests(URL)[kind]()
    assert (pauses, server.connections) == ([], 1)


def test_a_certificate_in_ssl_cert_file_is_trusted(
    certificate: Path, serve: Callable[[Path | None], TlsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://localhost:{serve(certificate).port}")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert not open_store(URL).exists("x")


def test_a_server_that_speaks_no_tls_is_named(
    serve: Callable[[Path | None], TlsServer], monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    endpoint = f"https://localhost:{serve(None).port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(
        InputError, match=rf"{endpoint} does not speak TLS; .*AWS_ENDPOINT_URL and AWS_ALLOW_HTTP"
    ):
        open_store(URL).exists("x")
    assert pauses == []


@pytest.mark.parametrize("kind", ["lookup", "read", "write", "index"])
@pytest.mark.parametrize(
    ("url", "variable"),
    [(URL, "AWS_ENDPOINT_URL"), ("az://c/x", "AZURE_STORAGE_ENDPOINT"), ("gs://b/x", "GOOGLE_BASE_URL")],
)
def test_a_refused_first_connection_is_an_error_at_once(
    kind: str, url: str, variable: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv(variable, endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    message = f"connection refused, no server listens at {endpoint}; start it, or correct {variable}"
    with pytest.raises(InputError, match=message):
        requests(url)[kind]()
    assert pauses == []


@pytest.mark.parametrize(
    ("url", "variable", "value"),
    [
        (URL, "AWS_ENDPOINT_URL", "localhost:9000"),
        (URL, "AWS_ENDPOINT_URL", ""),
        (URL, "AWS_ENDPOINT_URL", "http://host:99999"),
        (URL, "AWS_ENDPOINT", "https://[::1"),
        (URL, "AWS_ENDPOINT_URL", "https://user:TOPSECRET@host"),
        (URL, "AWS_ENDPOINT_URL", "http://host\n"),
        ("gs://bucket/x", "GOOGLE_BASE_URL", "localhost:9"),
        ("az://bucket/x", "AZURE_STORAGE_ENDPOINT", "localhost:9"),
        (URL, "AWS_SESSION_TOKEN", "TOPSECRET\n"),
        (URL, "AWS_REGION", "eu\r"),
        ("az://bucket/x", "AZURE_STORAGE_ACCOUNT_NAME", "a\n"),
    ],
)
@pytest.mark.parametrize("opened", [open_store, open_bulk])
def test_a_variable_that_no_request_can_carry_is_named(
    opened: Callable[[str], object], url: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(
        InputError, match=rf"^{variable}(:| is) .*(expected http|control character)"
    ) as caught:
        opened(url)
    assert "\n" not in str(caught.value)
    assert "TOPSECRET" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://[::1]:9000", "HTTPS://host", "http://10.0.0.1:10000/account"])
def test_an_address_of_a_server_is_taken(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    assert open_store(URL).url == URL


def test_an_unknown_host_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://nowhere.invalid")
    with pytest.raises(
        InputError, match=r"https://nowhere\.invalid is no known host; correct AWS_ENDPOINT_URL"
    ):
        open_store(URL).exists("x")
    assert pauses == []


def test_a_training_waits_for_a_server_from_the_start_and_says_why(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(InputError, match=r"connection refused.*tried \d+ times"),
    ):
        DatasetIndex.load(URL, retry_seconds=0.2)
    assert len(pauses) > 0
    (line,) = [record.getMessage() for record in caplog.records if record.name == retries.__name__]
    assert f"connection refused, no server listens at {endpoint}" in line
    assert "trying again for up to 0.2 s" in line


def test_a_server_that_has_answered_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    with object_server(monkeypatch):
        assert not open_store(URL).exists("x")
    with pytest.raises(InputError, match=r"connection refused.*tried \d+ times"):
        open_store(URL).exists("x")
    assert len(pauses) > 0


def test_missing_credentials_are_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(InputError, match="cannot be looked up"):
        open_store(URL).exists("x")
    assert pauses == []
