"""The loop that feeds simulator workers and policy servers, and replaces those that die or hang.

One thread, which only waits: for messages, for the end of a process, for a deadline. The episode of a dead
worker starts again in a new one; the observations sent to a dead policy server go to the next. Neither
changes a result: an episode depends on its initial state and the policy alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from data.errors import InputError
from eval.policy.interface import Observation
from eval.pool.child import ChildProcess
from eval.pool.messages import EpisodeSpec, OpenSuite, PolicySource, PolicySpec, RemoteError, TimeLimits
from eval.pool.queue import Attempt, EpisodeQueue
from eval.pool.server import run_policy_server
from eval.pool.worker import run_simulator_worker
from eval.rollout.episode import EpisodeResult, check_chunk
from eval.simulator.registry import open_suite as open_registered

_MAX_SERVER_DEATHS = 3  # of policy servers in a row, without an answer between them
_REMEDY_OF_DEATH = "most likely for lack of memory; lower policy_servers or workers, or take a larger machine"
_REMEDY_OF_LIMIT = "too slow or hung; raise the limit, or lower batch"
_REMEDY_OF_REMOVAL = (
    "; another policy server had loaded it before: it was removed or changed meanwhile. Put it back, and the "
    "same command continues after the finished episodes"
)
_MAX_WAIT = 60.0  # seconds; then deadlines, which the processes themselves renew, are read again


class PolicyFailedError(RuntimeError):
    """The policy raised an exception; the message holds its traceback."""


class _Worker:
    """A simulator process and what it is doing."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child
        self.attempt: Attempt | None = None
        self.task: int | None = None  # whose simulator it has open
        self.removed = False
        self.observation: Observation | None = None  # waits for the policy


class _Server:
    """A policy process and the workers whose observations it has."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child
        self.is_ready = False
        self.clients: list[_Worker] = []


class Pool:
    """Runs episodes in processes of its own; a context manager, which ends them on exit.

    Args:
        policy: The policy.
        workers: Number of simulator processes.
        servers: Number of policy processes, for a policy that uses servers.
        batch: Maximum number of observations sent to a server at once.
        retries: Further attempts at an episode that ended in a simulator error.
        limits: Time limits.
        open_suite: Opens the suite in a worker.
    """

    def __init__(
        self,
        policy: PolicySource,
        workers: int,
        servers: int = 1,
        batch: int = 8,
        retries: int = 2,
        limits: TimeLimits | None = None,
        open_suite: OpenSuite = open_registered,
    ) -> None:
        self._policy, self._max_workers, self._max_servers = policy, workers, servers
        self._batch, self._retries = batch, retries
        self._limits = limits or TimeLimits()
        self._open_suite = open_suite
        self._workers: list[_Worker] = []
        self._servers: list[_Server] = []
        self._spec: PolicySpec | None = None
        self._waiting: deque[_Worker] = deque()  # for a policy server, first in first out
        self._server_deaths = 0
        self._horizon = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner in (*self._workers, *self._servers):
            owner.child.kill()
        self._workers.clear()
        self._servers.clear()
        self._waiting.clear()

    def run(self, specs: Sequence[EpisodeSpec]) -> Iterator[EpisodeResult]:
        """Yield results in the order in which the episodes end.

        Raises:
            InputError: The policy cannot be used, or its servers die repeatedly.
            PolicyFailedError: The policy raised an exception.
        """
        queue = EpisodeQueue(specs, self._retries)
        self._horizon = min((spec.horizon for spec in specs), default=0)
        while not queue.is_done:
            self._start_processes(queue)
            self._assign_episodes(queue)
            self._dispatch_observations()
            for ready in self._wait():
                owner = self._owner_of(ready)
                if isinstance(owner, _Server):
                    self._handle_server(owner)
                elif owner is not None:
                    yield from self._handle_worker(owner, queue)
            yield from self._replace_hung(queue)

    # --- processes

    def _start_processes(self, queue: EpisodeQueue) -> None:
        """Start the missing processes: no more workers than unfinished episodes."""
        if self._policy.uses_server:
            while len(self._servers) < self._max_servers:
                arguments = (self._policy, self._limits)
                child = ChildProcess(run_policy_server, arguments, "policy-server", self._limits.start)
                self._servers.append(_Server(child))
        acting = self._spec if self._policy.uses_server else self._policy
        while len(self._workers) < min(self._max_workers, queue.num_unfinished):
            arguments = (self._open_suite, acting, self._limits)
            child = ChildProcess(run_simulator_worker, arguments, "simulator", self._limits.start)
            self._workers.append(_Worker(child))

    def _assign_episodes(self, queue: EpisodeQueue) -> None:
        """Give every idle worker an episode."""
        for worker in self._workers:
            if worker.attempt is None and (attempt := queue.next_attempt(worker.task)) is not None:
                worker.attempt, worker.task = attempt, attempt.spec.task
                worker.child.extend(self._limits.start)
                _send(worker.child, attempt.spec)

    def _dispatch_observations(self) -> None:
        """Give every idle server a batch of the observations that wait."""
        for server in self._servers:
            if server.is_ready and not server.clients and self._waiting:
                count = min(self._batch, len(self._waiting))
                server.clients = [self._waiting.popleft() for _ in range(count)]
                server.child.extend(self._limits.answer)
                _send(server.child, [worker.observation for worker in server.clients])

    def _wait(self) -> list[Any]:
        """Connections with a message, and sentinels of processes that have ended."""
        children = [owner.child for owner in (*self._workers, *self._servers)]
        seconds = min((child.seconds_left for child in children), default=0.0)
        ready = wait(
            [part for child in children for part in (child.connection, child.sentinel)],
            timeout=min(max(seconds, 0.0), _MAX_WAIT),
        )
        # What a process sent before it ended is handled first.
        return sorted(ready, key=lambda part: isinstance(part, int))

    def _owner_of(self, ready: Any) -> _Worker | _Server | None:
        """Whose connection or sentinel this is; None where the process was replaced meanwhile."""
        for owner in (*self._workers, *self._servers):
            if ready is owner.child.connection or ready == owner.child.sentinel:
                return owner
        return None

    # --- messages

    def _handle_worker(self, worker: _Worker, queue: EpisodeQueue) -> Iterator[EpisodeResult]:
        message = _receive(worker.child)
        if isinstance(message, Observation):
            worker.observation = message
            self._waiting.append(worker)
        elif isinstance(message, EpisodeResult):
            attempt, worker.attempt = worker.attempt, None
            assert attempt is not None
            if message.error is not None:  # a simulator that broke down may be in any state
                self._remove_worker(worker)
            yield from queue.finish(attempt, message)
        elif isinstance(message, RemoteError):
            is_input_error = message.is_input_error
            error = message.message if is_input_error else message.traceback.strip().splitlines()[-1]
            yield from self._fail_worker(worker, queue, error, is_input_error)
        elif worker.child.has_ended:
            error = f"the simulator's process died ({worker.child.kill()})"
            yield from self._fail_worker(worker, queue, error)

    def _handle_server(self, server: _Server) -> None:
        message = _receive(server.child)
        if isinstance(message, PolicySpec):
            check_chunk(message.chunk, self._horizon)
            if self._spec is None:
                for worker in self._workers:  # started before the spec was known
                    _send(worker.child, message)
            server.is_ready, self._spec = True, message
        elif isinstance(message, RemoteError):
            if message.is_input_error:
                was_loaded = self._spec is not None and not server.is_ready
                raise InputError(message.message + _REMEDY_OF_REMOVAL * was_loaded)
            raise PolicyFailedError(f"the policy server raised an exception:\n{message.traceback}")
        elif message is not None:
            self._server_deaths = 0
            for worker, chunk in zip(server.clients, message, strict=True):
                if not worker.removed:
                    worker.observation = None
                    worker.child.extend(self._limits.step)
                    _send(worker.child, chunk)
            server.clients = []
        elif server.child.has_ended:
            self._replace_server(server, server.child.kill(), _REMEDY_OF_DEATH)

    # --- replacement

    def _replace_hung(self, queue: EpisodeQueue) -> Iterator[EpisodeResult]:
        for worker in [worker for worker in self._workers if worker.child.seconds_left < 0]:
            yield from self._fail_worker(worker, queue, "the simulator hung; its time limit ended it")
        for server in [server for server in self._servers if server.child.seconds_left < 0]:
            self._replace_server(server, self._exceeded_limit(server), _REMEDY_OF_LIMIT)

    def _fail_worker(
        self, worker: _Worker, queue: EpisodeQueue, error: str, is_input_error: bool = False
    ) -> Iterator[EpisodeResult]:
        attempt = worker.attempt
        self._remove_worker(worker)
        if attempt is not None:
            yield from queue.fail(attempt, error, is_input_error)

    def _remove_worker(self, worker: _Worker) -> None:
        """End a worker; `_start_processes` starts another."""
        worker.child.kill()
        worker.removed = True
        self._workers.remove(worker)
        if worker in self._waiting:
            self._waiting.remove(worker)

    def _exceeded_limit(self, server: _Server) -> str:
        """The time limit that a server has exceeded, by the name of its setting."""
        if server.is_ready:
            return f"no answer within answer_seconds={self._limits.answer:g}"
        return f"the policy was not loaded within start_seconds={self._limits.start:g}"

    def _replace_server(self, server: _Server, reason: str, remedy: str) -> None:
        server.child.kill()
        self._servers.remove(server)
        self._waiting.extendleft(worker for worker in reversed(server.clients) if not worker.removed)
        self._server_deaths += 1
        if self._server_deaths >= _MAX_SERVER_DEATHS:
            raise InputError(
                f"the policy server died {self._server_deaths} times without an answer ({reason}), {remedy}"
            )


def _receive(child: ChildProcess) -> Any:
    """The next message of a process; None when there is none, or it died while sending."""
    try:
        return child.connection.recv() if child.connection.poll() else None
    except (EOFError, OSError):
        return None


def _send(child: ChildProcess, message: Any) -> None:
    """Send to a process; one that has died is detected by its sentinel."""
    try:
        child.connection.send(message)
    except OSError:
        return
