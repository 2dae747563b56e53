"""The WebSocket server: connections, their limits, and `/healthz`."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from eval.pool.messages import PolicySpec
from eval.serve.access import is_allowed
from eval.serve.batching import Batcher
from eval.serve.harness_session import HarnessSession
from eval.serve.policy_process import PolicyProcess
from eval.serve.sessions import OpenpiSession, Session

HEALTH = "/healthz"
SESSIONS = {"/": OpenpiSession, "/vla-eval": HarnessSession}
_LEAST_LIMIT = 16 * 2**20  # bytes of a message
_ROOM = 8  # times an observation: two cameras, and floats where bytes are expected, get an answer in words
_MOST_UNREAD = 2**20  # bytes that wait for a client while it sends more
_REASON = 120  # bytes of a close frame's reason
_CLOSING = 3.0  # seconds that a client has to close its end
_LOG = logging.getLogger(__name__)
_LIBRARY_LOG = logging.getLogger("eval.serve.websockets")
_LIBRARY_LOG.setLevel(logging.CRITICAL)  # it writes tracebacks of clients that send no HTTP


class _Connection(ServerConnection):
    """Ends when its client sends on and on without reading: every ping makes an answer wait."""

    def data_received(self, data: bytes) -> None:
        """Handle what has arrived."""
        super().data_received(data)
        if self.transport.get_write_buffer_size() > _MOST_UNREAD:
            self.transport.abort()


class WebSocketServer:
    """Answers clients until it is closed.

    Args:
        spec: What the policy observes, and its chunk.
        metadata: What clients are told of the policy.
        process: The policy, for `/healthz`.
        batcher: Decides.
        clients: Maximum number of clients at once.
        idle_seconds: A client that sends nothing for so long, or does not read its answer, is disconnected.
        token: Needed by clients; None: none is.
    """

    def __init__(
        self,
        spec: PolicySpec,
        metadata: Mapping[str, Any],
        process: PolicyProcess,
        batcher: Batcher,
        clients: int,
        idle_seconds: float,
        token: str | None,
    ) -> None:
        self._spec, self._metadata, self._process, self._batcher = spec, metadata, process, batcher
        self._clients, self._idle_seconds, self._token = clients, idle_seconds, token
        self._connected: set[ServerConnection] = set()

    async def listen(self, bound: socket.socket) -> Server:
        """Listen on a socket.

        Raises:
            OSError: Another process has begun to listen there.
        """
        num_frames = max(1, self._spec.history) * max(1, len(self._spec.cameras))
        frame_bytes = num_frames * self._spec.pixels**2 * 3
        return await serve(
            self._converse,
            sock=bound,
            process_request=self._admit,
            origins=[None],  # browsers name one: pages cannot reach a server on the loopback address
            create_connection=_Connection,
            compression=None,
            max_queue=1,
            max_size=max(_LEAST_LIMIT, _ROOM * frame_bytes),
            ping_interval=None,  # a client's simulator may hold its thread for minutes
            close_timeout=_CLOSING,
            server_header=None,
            logger=_LIBRARY_LOG,
        )

    async def close(self, listening: Server, reason: str) -> None:
        """Stop listening and end all conversations, those of clients that do not read as well."""
        listening.close(reason=reason.encode()[:_REASON].decode(errors="ignore"))
        try:
            async with asyncio.timeout(_CLOSING):
                await listening.wait_closed()
        except TimeoutError:
            for connection in self._connected:
                connection.transport.abort()
            await listening.wait_closed()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request that opens no conversation; None: go on."""
        path = urlsplit(request.path).path
        if path == HEALTH:
            if self._process.is_ready:
                return connection.respond(HTTPStatus.OK, "ok\n")
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "the policy is being loaded\n")
        if path not in SESSIONS:
            expected = f"/ (openpi-client), /vla-eval and {HEALTH}"
            return connection.respond(HTTPStatus.NOT_FOUND, f"nothing there; expected {expected}\n")
        if not is_allowed(request.headers.get("Authorization"), self._token):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong\n")
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        """One client, from its connection to its end, which disturbs no other client."""
        if len(self._connected) >= self._clients:
            reason = f"{len(self._connected)} clients are connected, clients={self._clients} allows no more"
            await connection.close(CloseCode.TRY_AGAIN_LATER, reason)
            return
        self._connected.add(connection)
        assert connection.request is not None
        kind = SESSIONS[urlsplit(connection.request.path).path]
        session = kind(self._spec, self._metadata, self._batcher.act)
        address = connection.remote_address[:2] if connection.remote_address else "client"
        _LOG.info("client %s connected, %d in all", address, len(self._connected))
        try:
            await self._answer_all(connection, session)
        except ConnectionClosed:
            pass
        except TimeoutError:
            await connection.close(CloseCode.GOING_AWAY, f"idle for idle_seconds={self._idle_seconds:g}")
        except Exception:
            _LOG.exception("client %s: an error of the server", address)
            raise
        finally:
            self._connected.remove(connection)
            _LOG.info("client %s left, %d in all", address, len(self._connected))

    async def _answer_all(self, connection: ServerConnection, session: Session) -> None:
        """Answer message after message; a client that goes while it waits takes its observation with it."""
        if session.greeting is not None:
            await self._send(connection, session.greeting)
        closed = asyncio.ensure_future(connection.wait_closed())
        try:
            while True:
                async with asyncio.timeout(self._idle_seconds):
                    message = await connection.recv()
                answer = asyncio.ensure_future(session.answer(message))
                try:
                    await asyncio.wait((answer, closed), return_when=asyncio.FIRST_COMPLETED)
                    if not answer.done():
                        return
                    reply = answer.result()
                finally:
                    answer.cancel()
                if reply is not None:
                    await self._send(connection, reply)
        finally:
            closed.cancel()

    async def _send(self, connection: ServerConnection, message: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._idle_seconds):
                await connection.send(message)
        except TimeoutError:
            connection.transport.abort()  # it would not read why, either
            raise
