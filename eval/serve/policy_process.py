"""The process that runs the served policy: loaded again when it dies, with the same answers as evaluation's.

It computes as a policy server of an evaluation does (`eval.pool`): with as many threads, with the same
settings of CUDA, in batches whose rows do not depend on the batch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from eval.policy.interface import Observation, Policy
from eval.pool.child import ChildProcess, Deadline, Heartbeat, end_with_parent
from eval.pool.messages import PolicySource, PolicySpec, RemoteError, TimeLimits, remote_error

_LOG = logging.getLogger(__name__)
_POLL = 0.2  # seconds in which a request to stop is noticed
_MAX_DEATHS = 4  # without an answer between them

Answer = NDArray[np.float64] | str
"""A chunk of actions [K, D], or why the policy refuses the observation."""


class PolicyLostError(Exception):
    """The policy's process ended, failed or hung before it answered."""


def served_observation(
    instruction: str, frames: NDArray[np.uint8], state: NDArray[np.float64] | None = None
) -> Observation:
    """The policy's input for frames uint8 [m, V, pixels, pixels, 3], oldest first, and a state [S]."""
    return Observation(environment=0, instruction=instruction, frames=frames, state=state)


class PolicyProcess:
    """A policy in a process of its own. Its methods block; all but `stop` are called by one thread at a time.

    Args:
        source: The policy.
        limits: Time limits for loading and answering.
    """

    def __init__(self, source: PolicySource, limits: TimeLimits) -> None:
        self._source, self._limits = source, limits
        self._child: ChildProcess | None = None
        self._stopping = False
        self._deaths = 0
        self.is_ready = False  # the policy is loaded

    def start(self) -> PolicySpec:
        """Start the process and load the policy in it.

        Raises:
            InputError: The policy cannot be used, or its process has died too often.
            PolicyLostError: The process ended or hung.
        """
        self._end()
        self._child = ChildProcess(
            run_served_policy, (self._source, self._limits), "policy", self._limits.start
        )
        message = self._receive(self._child, f"start_seconds={self._limits.start:g}")
        if not isinstance(message, PolicySpec):
            raise ValueError(f"the policy's process sent {type(message).__name__} at its start")
        self.is_ready = True
        return message

    def ask(self, observations: Sequence[Observation]) -> list[Answer]:
        """An answer to each observation; a process that has died since the last call is started again.

        Raises:
            InputError: As for `start`.
            PolicyLostError: The process ended or hung.
        """
        if self._child is None or self._child.has_ended:
            self.start()
        assert self._child is not None
        self._child.extend(self._limits.answer)
        with contextlib.suppress(OSError):  # it has died: found out below, with how
            self._child.connection.send(list(observations))
        answers = self._receive(self._child, f"answer_seconds={self._limits.answer:g}")
        if not isinstance(answers, list):
            raise ValueError(f"the policy's process sent {type(answers).__name__} as an answer")
        self._deaths = 0
        return answers

    def stop(self) -> None:
        """Let a call in progress in another thread fail soon."""
        self._stopping = True

    def close(self) -> None:
        """End the process; no other call may be in progress."""
        self._stopping = True
        self._end()

    def _receive(self, child: ChildProcess, limit: str) -> PolicySpec | list[Answer]:
        """The next message of the process."""
        while True:
            ready = wait([child.connection, child.sentinel], timeout=_POLL)
            if self._stopping:
                raise PolicyLostError("the server is stopping")
            if child.connection in ready:
                try:
                    message = child.connection.recv()
                except (EOFError, OSError):
                    raise self._lost(f"its process ended ({self._end()})") from None
                if not isinstance(message, RemoteError):
                    return message
                self._end()
                if message.is_input_error:
                    raise InputError(message.message)
                _LOG.error("the policy raised an exception:\n%s", message.traceback)
                raise self._lost(message.traceback.strip().splitlines()[-1])
            if ready:
                raise self._lost(f"its process ended ({self._end()})")
            if child.seconds_left < 0:
                self._end()
                raise self._lost(f"nothing came within {limit}")

    def _lost(self, reason: str) -> PolicyLostError | InputError:
        self._deaths += 1
        if self._deaths >= _MAX_DEATHS:
            return InputError(
                f"the policy failed {self._deaths} times without an answer ({reason}); `worldvla eval` with "
                "the same checkpoint shows whether it runs here (memory, device)"
            )
        _LOG.warning("the policy was lost: %s", reason)
        return PolicyLostError(reason)

    def _end(self) -> str:
        """Kill the process; how it ended."""
        self.is_ready = False
        child, self._child = self._child, None
        return "" if child is None else child.kill()


def run_served_policy(
    connection: Connection, deadline: Deadline, source: PolicySource, limits: TimeLimits
) -> None:
    """Body of the process: send the policy's spec, then a list of `Answer`s for each list of observations.

    An exception that is no mistake of a client is sent as a `RemoteError`, after which the process ends.

    Args:
        connection: To the server.
        deadline: Renewed before every operation that may hang.
        source: The policy.
        limits: Time limits.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C reaches all processes; the server ends this one
    heartbeat = Heartbeat(deadline, limits.answer)
    # Without it cuBLAS may choose another order of summation from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        policy = source.load()
        _answer_once(policy)
        connection.send(PolicySpec.of(policy))
        while True:
            heartbeat.pause()
            observations = connection.recv()
            heartbeat.beat()
            connection.send(answers(policy, observations))
    except EOFError:
        return
    except Exception as error:  # any exception is sent to the server; the process ends here
        connection.send(remote_error(error))


def answers(policy: Policy, observations: Sequence[Observation]) -> list[Answer]:
    """An answer to each observation; one that the policy refuses (a prompt that is too long) costs no other.

    Raises:
        ValueError: The policy's chunks have another shape than [K, D].
    """
    try:
        chunks = policy.act(observations)
    except InputError as error:
        if len(observations) == 1:
            return [str(error)]
        return [answer for observation in observations for answer in answers(policy, [observation])]
    expected = (len(observations), policy.chunk, policy.embodiment.action_dim)
    if chunks.shape != expected:
        raise ValueError(f"policy gave {chunks.shape}, expected {expected}")
    return list(np.asarray(chunks, np.float64))


def _answer_once(policy: Policy) -> None:
    """Let the policy measure its batches before a client waits: on noise, which hides no difference."""
    noise = np.random.default_rng(0)
    state = np.zeros(policy.embodiment.state_dim) if policy.uses_state else None
    for count in sorted({1, policy.history}):
        shape = (count, len(policy.cameras), policy.pixels, policy.pixels, 3)
        frames = noise.integers(0, 256, shape, dtype=np.uint8)
        answers(
            policy, [served_observation("pick up the black bowl and place it on the plate", frames, state)]
        )
