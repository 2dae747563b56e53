"""`worldvla serve`: check everything, load the policy, serve until a signal."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from data.errors import InputError
from eval.config import ServeConfig
from eval.policy.interface import PolicyRecord
from eval.policy.source import PolicyReference, checkpoint_policy
from eval.pool.messages import PolicySource, PolicySpec, TimeLimits
from eval.serve.access import address_error, bind, read_token
from eval.serve.batching import Batcher
from eval.serve.policy_process import PolicyProcess
from eval.serve.server import WebSocketServer
from pretrain.run_layout import RunLayout, parse_step_name
from pretrain.sources import embodiment_json

PROTOCOL = "worldvla-serve/2"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_Result = TypeVar("_Result")


def serve_command(config: ServeConfig, ready: Callable[[str], None]) -> None:
    """Serve a checkpoint's policy until ctrl-C or SIGTERM.

    Args:
        config: Settings.
        ready: Called with the address once clients are answered.

    Raises:
        InputError: Bad settings, an unusable checkpoint, a port that is taken; or, while serving, the policy
            has died and cannot be loaded again.
        PolicyLostError: The policy's process ended or hung while the policy was loaded.
    """
    _check(config)
    token = read_token(config)
    with bind(config, token is not None) as bound:
        policy, step = checkpoint_policy(
            config.checkpoint,
            config.batch,
            config.exported,
            config.precision,
            config.decoder,
            config.embodiment,
            in_simulator=False,
            weights=config.weights,
        )
        described = _metadata(policy, step, policy.record())
        asyncio.run(serve_policy(policy, described, config, bound, token, ready))


async def serve_policy(
    policy: PolicySource,
    described: dict[str, Any],
    config: ServeConfig,
    bound: socket.socket,
    token: str | None,
    ready: Callable[[str], None],
) -> None:
    """Load a policy and serve it on a bound socket until a signal; see `serve_command`.

    Args:
        policy: The policy.
        described: What clients are told of it.
        config: Settings.
        bound: The socket.
        token: Needed by clients; None: none is.
        ready: Called with the address once clients are answered.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    process = PolicyProcess(policy, TimeLimits(start=config.start_seconds, answer=config.answer_seconds))
    batcher = Batcher(process, config.batch)
    try:
        spec = await _unless(stop, batcher.in_thread(process.start))
        if spec is None:
            return
        metadata = {**described, **_shape(spec), "protocol": PROTOCOL}
        server = WebSocketServer(spec, metadata, process, batcher, config.clients, config.idle_seconds, token)
        try:
            listening = await server.listen(bound)
        except OSError as error:
            raise address_error(config, error) from error
        ready(_address(bound))
        reason = "the server was stopped"
        try:
            await _unless(stop, batcher.run())
        except InputError:  # it names paths of this machine
            reason = "the policy was lost and cannot be loaded again"
            raise
        finally:
            await server.close(listening, reason)
    finally:
        batcher.close()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, _Result]) -> _Result | None:
    """The result of a coroutine; None where a signal came first, which ends it."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stopped.cancel()


def _check(config: ServeConfig) -> None:
    for name in ("batch", "clients"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}={getattr(config, name)}: expected at least 1")
    for name in ("idle_seconds", "start_seconds", "answer_seconds"):
        if not getattr(config, name) > 0:  # nor NaN
            raise InputError(f"{name}={getattr(config, name)}: expected more than 0")


def _metadata(policy: PolicyReference, step: int | None, record: PolicyRecord) -> dict[str, Any]:
    """Name, step, decoder, weights, checksums and action ranges; paths of this machine stay here."""
    folder = Path(policy.name).resolve()
    is_of_run = parse_step_name(folder.name) is not None
    name = f"{RunLayout.of_checkpoint(folder).path.name}/{folder.name}" if is_of_run else folder.name
    return {
        "policy": name,
        "step": step,
        "identity": policy.identity(),
        "decoder": record.decoder,
        "weights": record.weights,
        "settings": dict(record.settings or {}),
    }


def _shape(spec: PolicySpec) -> dict[str, Any]:
    described = {"cameras": list(spec.cameras), "embodiment": embodiment_json(spec.embodiment)}
    return asdict(spec) | described


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"
