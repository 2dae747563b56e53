"""The loop that feeds simulator workers and policy servers, and replaces those that die or hang.

One thread, which only waits: for messages, for the end of a process, for a deadline. An episode whose worker
dies begins again in a new one; observations that a dying policy server had are given to the next. Neither
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
from eval.pool.child import Child
from eval.pool.messages import EpisodeSpec, OpenSuite, PolicyShape, PolicySource, Raised, TimeLimits
from eval.pool.queue import Attempt, EpisodeQueue
from eval.pool.server import serve
from eval.pool.worker import simulate
from eval.rollout.episode import EpisodeResult
from eval.simulator.registry import open_suite as open_registered

_MOST_DEATHS = 3  # of policy servers, one after the other without an answer between them
_LONGEST_WAIT = 60.0  # seconds; deadlines that a process moves are looked at again then


class PolicyFailedError(RuntimeError):
    """The policy raised an exception; the message holds its traceback."""


class _Worker:
    """A simulator process and what it is doing."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.attempt: Attempt | None = None
        self.task: int | None = None  # whose simulator it has open
        self.gone = False
        self.asking: Observation | None = None  # waits for the policy with it


class _Server:
    """A policy process and the workers whose observations it has."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.ready = False
        self.answering: list[_Worker] = []


class Pool:
    """Runs episodes in processes of its own; use it as a context manager, which ends them.

    Args:
        policy: What acts.
        workers: Simulator processes.
        servers: Policy processes, where the policy is served.
        batch: Most observations that a server is given at once.
        retries: Further tries of an episode that a simulator broke off.
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
        self._policy, self._most_workers, self._most_servers = policy, workers, servers
        self._batch, self._retries = batch, retries
        self._limits = limits or TimeLimits()
        self._open_suite = open_suite
        self._workers: list[_Worker] = []
        self._servers: list[_Server] = []
        self._shape: PolicyShape | None = None
        self._waiting: deque[_Worker] = deque()  # for a policy server, first come first served
        self._deaths = 0
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

    @property
    def worker_pids(self) -> list[int]:
        """Process numbers of the simulator workers."""
        return [worker.child.pid for worker in self._workers]

    @property
    def server_pids(self) -> list[int]:
        """Process numbers of the policy servers."""
        return [server.child.pid for server in self._servers]

    def run(self, specs: Sequence[EpisodeSpec]) -> Iterator[EpisodeResult]:
        """Results, in the order in which the episodes end.

        Raises:
            InputError: The policy cannot be used, or its servers keep dying.
            PolicyFailedError: The policy raised an exception.
        """
        queue = EpisodeQueue(specs, self._retries)
        self._horizon = min((spec.horizon for spec in specs), default=0)
        while not queue.done:
            self._staff(queue)
            self._assign(queue)
            self._dispatch()
            for ready in self._wait():
                owner = self._owner_of(ready)
                if isinstance(owner, _Server):
                    self._hear_server(owner)
                elif owner is not None:
                    yield from self._hear_worker(owner, queue)
            yield from self._replace_hung(queue)

    # --- processes

    def _staff(self, queue: EpisodeQueue) -> None:
        """Start the processes that are missing: no more than there is work for."""
        if self._policy.served:
            while len(self._servers) < self._most_servers:
                child = Child(serve, (self._policy, self._limits), "policy-server", self._limits.start)
                self._servers.append(_Server(child))
        acting = self._shape if self._policy.served else self._policy
        while len(self._workers) < min(self._most_workers, queue.open):
            arguments = (self._open_suite, acting, self._limits)
            self._workers.append(_Worker(Child(simulate, arguments, "simulator", self._limits.start)))

    def _assign(self, queue: EpisodeQueue) -> None:
        """Give every idle worker an episode."""
        for worker in self._workers:
            if worker.attempt is None and (attempt := queue.take(worker.task)) is not None:
                worker.attempt, worker.task = attempt, attempt.spec.task
                worker.child.allow(self._limits.start)
                _send(worker.child, attempt.spec)

    def _dispatch(self) -> None:
        """Give every idle server the observations that wait."""
        for server in self._servers:
            if server.ready and not server.answering and self._waiting:
                count = min(self._batch, len(self._waiting))
                server.answering = [self._waiting.popleft() for _ in range(count)]
                server.child.allow(self._limits.answer)
                _send(server.child, [worker.asking for worker in server.answering])

    def _wait(self) -> list[Any]:
        """Connections with a message, and sentinels of processes that have ended."""
        children = [owner.child for owner in (*self._workers, *self._servers)]
        seconds = min((child.seconds_left for child in children), default=0.0)
        ready = wait(
            [part for child in children for part in (child.connection, child.sentinel)],
            timeout=min(max(seconds, 0.0), _LONGEST_WAIT),
        )
        # What a process sent before it ended is heard first.
        return sorted(ready, key=lambda part: isinstance(part, int))

    def _owner_of(self, ready: Any) -> _Worker | _Server | None:
        """Whose connection or sentinel this is; None where its process was replaced a moment ago."""
        for owner in (*self._workers, *self._servers):
            if ready is owner.child.connection or ready == owner.child.sentinel:
                return owner
        return None

    # --- messages

    def _hear_worker(self, worker: _Worker, queue: EpisodeQueue) -> Iterator[EpisodeResult]:
        message = _receive(worker.child)
        if isinstance(message, Observation):
            worker.asking = message
            self._waiting.append(worker)
        elif isinstance(message, EpisodeResult):
            attempt, worker.attempt = worker.attempt, None
            assert attempt is not None
            if message.error is not None:  # nobody knows what such a simulator would do next
                self._dismiss(worker)
            yield from queue.ended(attempt, message)
        elif isinstance(message, Raised):
            mistake = message.user_mistake
            error = message.message if mistake else message.trace.strip().splitlines()[-1]
            yield from self._broken(worker, queue, error, mistake)
        elif worker.child.ended:
            yield from self._broken(worker, queue, f"the simulator's process died ({worker.child.kill()})")

    def _hear_server(self, server: _Server) -> None:
        message = _receive(server.child)
        if isinstance(message, PolicyShape):
            _check_chunk(message, self._horizon)
            if self._shape is None:
                for worker in self._workers:  # those that were started before it was known
                    _send(worker.child, message)
            server.ready, self._shape = True, message
        elif isinstance(message, Raised):
            if message.user_mistake:
                raise InputError(message.message)
            raise PolicyFailedError(f"the policy server raised an exception:\n{message.trace}")
        elif message is not None:
            self._deaths = 0
            for worker, chunk in zip(server.answering, message, strict=True):
                if not worker.gone:
                    worker.asking = None
                    worker.child.allow(self._limits.step)
                    _send(worker.child, chunk)
            server.answering = []
        elif server.child.ended:
            self._replace_server(server, server.child.kill())

    # --- replacement

    def _replace_hung(self, queue: EpisodeQueue) -> Iterator[EpisodeResult]:
        for worker in [worker for worker in self._workers if worker.child.seconds_left < 0]:
            yield from self._broken(worker, queue, "the simulator hung; its time limit ended it")
        for server in [server for server in self._servers if server.child.seconds_left < 0]:
            self._replace_server(server, "no answer within its time limit")

    def _broken(
        self, worker: _Worker, queue: EpisodeQueue, error: str, mistake: bool = False
    ) -> Iterator[EpisodeResult]:
        attempt = worker.attempt
        self._dismiss(worker)
        if attempt is not None:
            yield from queue.broke(attempt, error, mistake)

    def _dismiss(self, worker: _Worker) -> None:
        """End a worker; `_staff` starts another."""
        worker.child.kill()
        worker.gone = True
        self._workers.remove(worker)
        if worker in self._waiting:
            self._waiting.remove(worker)

    def _replace_server(self, server: _Server, how: str) -> None:
        server.child.kill()
        self._servers.remove(server)
        self._waiting.extendleft(worker for worker in reversed(server.answering) if not worker.gone)
        self._deaths += 1
        if self._deaths >= _MOST_DEATHS:
            raise InputError(
                f"the policy server died {self._deaths} times without an answer ({how}), most likely for "
                "lack of memory; lower policy_servers or workers, or take a larger machine"
            )


def _check_chunk(shape: PolicyShape, horizon: int) -> None:
    if shape.chunk > horizon:
        raise InputError(
            f"the policy acts in chunks of {shape.chunk} steps, longer than the horizon of {horizon}; "
            "raise horizon"
        )


def _receive(child: Child) -> Any:
    """What a process has sent; None when there is nothing, or it died while it sent."""
    try:
        return child.connection.recv() if child.connection.poll() else None
    except (EOFError, OSError):
        return None


def _send(child: Child, message: Any) -> None:
    """Send to a process; one that has died is found by its sentinel."""
    try:
        child.connection.send(message)
    except OSError:
        return
