"""The server over real sockets: what one client does costs no other anything."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from eval.policy.interface import Observation
from eval.serve.batching import Batcher
from eval.serve.policy_process import Answer
from tests.support.served_policy import HeldPolicy, chunk_of, frame, observation, packed, served

TOKEN = "0123456789abcdef"


def run(client: Callable[[int], Awaitable[Any]], process: HeldPolicy | None = None, **settings: Any) -> Any:
    """What a client gets of a server; it is called with the port."""

    async def both() -> Any:
        async with served(process or HeldPolicy(), **settings) as (port, _):
            return await client(port)

    return asyncio.run(both())


async def infer(connection: ClientConnection, value: int = 1) -> Any:
    """An observation's answer, unpacked."""
    answer = await ask(connection, packed(observation(value, reset=True)))
    return answer if isinstance(answer, str) else msgpack_numpy.unpackb(answer)["actions"]


async def greeted(port: int, **settings: Any) -> ClientConnection:
    connection = await connect(f"ws://127.0.0.1:{port}", max_size=None, compression=None, **settings)
    assert msgpack_numpy.unpackb(await connection.recv())["policy"] == "held"
    return connection


async def is_served(port: int, value: int = 3) -> None:
    """A well-behaved client gets its answer."""
    async with await greeted(port) as connection:
        np.testing.assert_array_equal(await infer(connection, value), chunk_of(value))


def test_openpi_client_gets_metadata_actions_and_errors_and_stays_connected() -> None:
    def client(port: int) -> None:
        policy = WebsocketClientPolicy("127.0.0.1", port)
        assert policy.get_server_metadata() == {"policy": "held"}
        for value in (1, 2):
            actions = policy.infer(observation(value, reset=True))["actions"]
            np.testing.assert_array_equal(actions, chunk_of(value))
            with pytest.raises(RuntimeError, match="prompt: missing; found observation/image"):
                policy.infer({"observation/image": frame(1)})
        policy._ws.close()

    run(lambda port: asyncio.to_thread(client, port))


async def ask(connection: ClientConnection, message: Any) -> bytes | str:
    """The answer to any message; a generator is sent in fragments."""
    await connection.send(message)
    return await connection.recv()


def test_garbage_and_far_too_much_cost_nobody_else_anything() -> None:
    async def client(port: int) -> None:
        async with await greeted(port) as other:
            sender = await greeted(port)
            for garbage in (b"\xc1", b"\x80\x04\x95.", "text", b"", bytes(100_000)):
                assert isinstance(await ask(sender, garbage), str)
            np.testing.assert_array_equal(await infer(sender), chunk_of(1))
            with pytest.raises(ConnectionClosed, match="1009"):
                await ask(sender, bytes(100_000_000))
            with pytest.raises(ConnectionClosed, match="1009"):
                await ask(await greeted(port), (bytes(1_000_000) for _ in range(100)))
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\x00\xff no HTTP\r\n\r\n" * 1000)
            np.testing.assert_array_equal(await infer(other), chunk_of(1))
            writer.close()
        await is_served(port)

    run(client)


class Paused(HeldPolicy):
    """Waits for a sign before its first answer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = threading.Event(), threading.Event()

    def ask(self, observations: Sequence[Observation]) -> list[Answer]:
        self.asked.set()
        self.go.wait()
        return super().ask(observations)


def test_clients_that_die_while_they_wait_take_their_observations_with_them() -> None:
    process = Paused()

    async def die(port: int, batcher: Batcher) -> None:
        dying = [await greeted(port) for _ in range(3)]
        await dying[0].send(packed(observation(1, "first")))
        await asyncio.to_thread(process.asked.wait)
        for connection in dying[1:]:
            await connection.send(packed(observation(2, "gone")))
        while len(batcher._waiting) < 2:
            await asyncio.sleep(0.01)
        for connection in dying:
            connection.transport.abort()  # no closing handshake
        while not all(waiting.answer.cancelled() for waiting in batcher._waiting):
            await asyncio.sleep(0.01)
        answered = asyncio.create_task(is_served(port))
        while len(batcher._waiting) < 3:
            await asyncio.sleep(0.01)
        process.go.set()
        await answered

    async def both() -> None:
        async with served(process) as (port, batcher):
            await die(port, batcher)

    asyncio.run(both())
    assert process.batches == [["first"], ["lift"]]


class Verbose(HeldPolicy):
    """Answers some prompts with more than sockets hold."""

    def answer(self, observation: Observation) -> Answer:
        return np.zeros((600_000, 7)) if observation.instruction == "much" else super().answer(observation)


async def ask_without_reading(port: int, times: int) -> ClientConnection:
    connection = await greeted(port, ping_interval=None)
    connection.transport.pause_reading()
    for _ in range(times):
        await connection.send(packed(observation(1, "much")))
    return connection


def test_a_client_that_never_reads_holds_nobody_up() -> None:
    process = Verbose()

    async def client(port: int) -> None:
        slow = await ask_without_reading(port, times=2)
        for _ in range(20):
            await is_served(port)
        assert process.batches.count(["much"]) == 1  # the first answer is still being sent
        slow.transport.abort()

    run(client, process)


def test_a_client_that_never_reads_is_disconnected(caplog: pytest.LogCaptureFixture) -> None:
    async def client(port: int) -> None:
        slow = await ask_without_reading(port, times=1)
        while "left, 0 in all" not in caplog.text:
            await asyncio.sleep(0.05)
        slow.transport.resume_reading()
        await slow.wait_closed()

    with caplog.at_level("INFO"):
        run(client, Verbose(), idle_seconds=0.5)


def test_the_server_stops_beside_a_client_that_never_reads() -> None:
    process = Verbose()

    async def both() -> list[ClientConnection]:
        async with served(process) as (port, _):
            slow = await ask_without_reading(port, times=1)
            while not process.batches:
                await asyncio.sleep(0.01)
        return [slow]  # until here it is not closed

    assert asyncio.run(both())


def test_pings_of_a_client_that_never_reads_take_no_memory() -> None:
    ping = b"\x89\xfd\0\0\0\0" + b"x" * 125
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    request = f"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n\r\n"

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 101")
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        with contextlib.suppress(ConnectionError):
            while True:  # until the server ends it
                writer.write(ping * 1000)
                await writer.drain()
        await is_served(port)

    run(client)


def test_an_idle_client_is_disconnected_and_says_why() -> None:
    async def client(port: int) -> None:
        connection = await greeted(port)
        with pytest.raises(ConnectionClosed, match=r"1001 .*idle for idle_seconds=0\.2"):
            await connection.recv()

    run(client, idle_seconds=0.2)


def test_no_more_clients_than_allowed_are_taken() -> None:
    async def client(port: int) -> None:
        async with await greeted(port), await greeted(port):
            third = await connect(f"ws://127.0.0.1:{port}")
            with pytest.raises(
                ConnectionClosed, match=r"1013 .*2 clients are connected, clients=2 allows no more"
            ):
                await third.recv()
        while True:  # their places are free as soon as the server knows that they have gone
            with contextlib.suppress(ConnectionClosed):
                return await is_served(port)

    run(client, clients=2)


def test_a_token_is_needed_from_everyone_but_the_health_check() -> None:
    async def client(port: int) -> None:
        for address in (
            f"ws://127.0.0.1:{port}",
            f"ws://127.0.0.1:{port}/vla-eval",
            f"ws://any:no@127.0.0.1:{port}",
        ):
            with pytest.raises(InvalidStatus, match="HTTP 401"):
                await connect(address)
        policy = await asyncio.to_thread(WebsocketClientPolicy, "127.0.0.1", port, TOKEN)
        answer = await asyncio.to_thread(policy.infer, observation(2))
        np.testing.assert_array_equal(answer["actions"], chunk_of(2))
        await asyncio.to_thread(policy._ws.close)
        await (await connect(f"ws://any:{TOKEN}@127.0.0.1:{port}/vla-eval")).close()
        assert await asyncio.to_thread(health, port) == (200, "ok\n")

    run(client, token=TOKEN)


def health(port: int, path: str = "/healthz") -> tuple[int, str]:
    """Status and text of a path."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_health_says_whether_the_policy_is_loaded_and_other_paths_are_refused() -> None:
    process = HeldPolicy()

    async def client(port: int) -> None:
        assert await asyncio.to_thread(health, port) == (200, "ok\n")
        process.is_ready = False
        assert await asyncio.to_thread(health, port) == (503, "the policy is being loaded\n")
        status, text = await asyncio.to_thread(health, port, "/other")
        assert (status, "/vla-eval" in text) == (404, True)

    run(client, process)


def test_pages_in_a_browser_cannot_connect() -> None:
    async def client(port: int) -> None:
        with pytest.raises(InvalidStatus, match="HTTP 403"):
            await connect(f"ws://127.0.0.1:{port}", origin=Origin("http://a.page"))
        await is_served(port)

    run(client)


class Broken(HeldPolicy):
    def answer(self, observation: Observation) -> Answer:
        return object() if "odd" in observation.instruction else super().answer(observation)  # type: ignore[return-value]


def test_an_error_of_the_server_ends_one_conversation_only(caplog: pytest.LogCaptureFixture) -> None:
    async def client(port: int) -> None:
        async with await greeted(port) as other, await greeted(port) as connection:
            await connection.send(packed(observation(1, "odd")))
            with pytest.raises(ConnectionClosed, match="1011"):
                await connection.recv()
            np.testing.assert_array_equal(await infer(other), chunk_of(1))

    run(client, Broken())
    assert "an error of the server" in caplog.text
