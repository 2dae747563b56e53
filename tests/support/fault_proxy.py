"""A proxy on a free port of this machine that breaks connections to a server as a test asks."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

_BLOCK = 1 << 16
_REFUSAL = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"


@dataclass(frozen=True)
class Fault:
    """What happens to one answer.

    Attributes:
        kind: `reset` (the connection breaks), `end` (it ends early as if all were said), `flip` (one bit of
            one byte) or `refuse` (503 without asking the server).
        after: Bytes of the answer's body before it happens; below zero: in its head.
    """

    kind: str
    after: int = 0


class FaultProxy:
    """Forwards connections; each carries one request, after which the server is asked to close it.

    Attributes:
        endpoint: `http://127.0.0.1:PORT`.
        fault: Asked about each request (method, path); None lets it pass.
        requests: Method, path and Range header of each that came.
    """

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        assert address.hostname
        assert address.port
        self._target = (address.hostname, address.port)
        self.fault: Callable[[str, str], Fault | None] = lambda method, path: None
        self.requests: list[tuple[str, str, str]] = []
        self._port = 0
        self._threads: list[threading.Thread] = []
        self.back()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def back(self) -> None:
        """Listen (again)."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        self._start(self._accept, self._listener)

    def away(self) -> None:
        """Be gone: new connections are refused until `back`."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def stop(self) -> None:
        """End for good, with all threads."""
        if self._listener.fileno() >= 0:
            self.away()
        for thread in self._threads:
            thread.join()

    def _start(self, function: Callable[[socket.socket], None], connection: socket.socket) -> None:
        thread = threading.Thread(target=function, args=(connection,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # `away`
                return
            self._start(self._serve, connection)

    def _serve(self, client: socket.socket) -> None:
        with client:
            head = _read_head(client)
            lines = head.decode("latin-1").split("\r\n")
            if len(lines) < 2:
                return
            method, path, _ = lines[0].split(" ")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            self.requests.append((method, path, fields.get("range", "")))
            fault = self.fault(method, path)
            if fault is not None and fault.kind == "refuse":
                client.sendall(_REFUSAL)
                return
            with socket.create_connection(self._target) as server:
                server.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                rest = int(fields.get("content-length", 0)) - len(head.partition(b"\r\n\r\n")[2])
                while rest > 0:
                    block = client.recv(min(rest, _BLOCK))
                    server.sendall(block)
                    rest -= len(block)
                _answer(server, client, fault)


def _read_head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        block = connection.recv(_BLOCK)
        if not block:
            return b""
        head += block
    return head


def _answer(server: socket.socket, client: socket.socket, fault: Fault | None) -> None:
    content = _read_head(server)
    position = -len(content.partition(b"\r\n\r\n")[0]) - 4  # of the block's first byte, in the body
    while content:
        if fault is not None and position <= fault.after < position + len(content):
            at = fault.after - position
            if fault.kind == "flip":
                content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
            else:
                client.sendall(content[:at])
                if fault.kind == "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
        try:
            client.sendall(content)
        except OSError:  # the client has gone
            return
        position += len(content)
        content = server.recv(_BLOCK)
