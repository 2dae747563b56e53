"""The training of a run from its first start to its end, across failures, lost nodes and returning ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from cluster.config import RootConfig
from cluster.failures import TrainingFailedError, is_out_of_space
from cluster.resources.elastic import ElasticLayout, largest_layout
from cluster.resources.ray_session import Session
from cluster.resources.reservation import Reservation
from cluster.run.restarts import RestartPolicy
from cluster.run.stop_request import StopRequest
from cluster.run.train_group import run_train_group
from data.errors import InputError
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.origin import Origin, set_aside_newest
from pretrain.checkpoint.ready import DamagedCheckpointError
from pretrain.checks import check_training
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import PreemptedError
from pretrain.run_folder import RunFolder
from pretrain.run_start import RunStart, open_run
from pretrain.telemetry.sinks import read_metrics

_POLL_SECONDS = 5.0


class Train(Protocol):
    """Trains as one rank, in a process of its own: importable under its name."""

    def __call__(self, config: TrainingConfig, start: RunStart) -> None:
        """Train with these settings from this start."""
        ...


class Training:
    """Starts the ranks, and restarts them where that helps.

    Args:
        config: The run's settings; its layout is the largest.
        session: The open Ray session.
        folder: Of the run.
        start: Where the first start of the ranks begins; it is chosen anew for each later one.
        train: Runs in every rank.
        stop: Stop request of the command, also used to stop the ranks for a larger layout.
        checkpoints: Location of the run's checkpoints.
        clock: Seconds; monotonic.
    """

    def __init__(
        self,
        config: RootConfig,
        session: Session,
        folder: RunFolder,
        start: RunStart,
        train: Train,
        stop: StopRequest,
        checkpoints: CheckpointLocation,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._session, self._folder, self._train = config, session, folder, train
        self._stop, self._checkpoints, self._clock = stop, checkpoints, clock
        self._first_start: RunStart | None = start
        self._origin: Origin | None = start.origin  # of the newest start
        self._policy = RestartPolicy(config.cluster)
        self._events: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._layout: ElasticLayout | None = None
        self._reservation: Reservation | None = None
        self._next_growth_check = float("-inf")
        self._growth_requested = False

    def take_events(self) -> list[dict[str, Any]]:
        """Events since the last call; may be called from another thread."""
        events = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except Empty:
                return events

    def run(self) -> None:
        """Train to the end.

        Raises:
            InputError: Raised in a rank, or the run does not fit the machines.
            PreemptedError: It was stopped on request, or lost nodes that did not return.
            CommandFailedError: It failed, and another start would not help.
        """
        try:
            self._run_to_end()
        finally:
            self._release()

    def _run_to_end(self) -> None:
        previous: ElasticLayout | None = None
        while True:
            layout = self._layout = self._choose_layout(previous)
            is_first = previous is None
            if previous is not None and previous.data != layout.data:
                name = "shrunk" if layout.data < previous.data else "grown"
                self._report(name, data_before=previous.data, data=layout.data)
            previous = layout
            self._growth_requested = False
            try:
                self._run_ranks(layout)
                return
            except DamagedCheckpointError as error:
                self._set_aside(error)
            except InputError as error:
                if is_first or not is_out_of_space(str(error)):
                    raise
                self._wait_for_restart(TrainingFailedError(str(error)))
            except PreemptedError:
                if self._stop.requested:
                    raise
                self._stop.cancel()  # it was `request_growth`
            except TrainingFailedError as failure:
                self._wait_for_restart(failure)

    def request_growth(self) -> None:
        """Stop the ranks with a checkpoint where nodes have returned, to restart with more of them."""
        layout = self._layout
        if layout is None or self._growth_requested or layout.data == self._config.parallel.data:
            return
        if self._clock() < self._next_growth_check:
            return
        self._next_growth_check = self._clock() + _POLL_SECONDS
        try:
            larger = self._largest_layout()
        except InputError:
            return  # nodes were lost: the ranks will fail
        if larger.data > layout.data:
            self._growth_requested = True
            self._stop.request()

    @property
    def logs(self) -> Path:
        """Folder of the ranks' output."""
        return self._folder.logs

    def _run_ranks(self, layout: ElasticLayout) -> None:
        """Train at this layout until the ranks end."""
        start, self._first_start = self._first_start, None
        if layout.config is not self._config:
            check_training(layout.config)
        if start is None or layout.config is not self._config:
            start = open_run(layout.config, self._folder)
        self._origin = start.origin
        run_train_group(layout.config, self._reserve(layout), self.logs, partial(self._train, start=start))

    def _reserve(self, layout: ElasticLayout) -> Reservation:
        """The reservation of a layout's ranks: that of the start before, where it is the same."""
        nodes = layout.rank_nodes if self._session.existing_cluster else None
        if self._reservation is not None and not self._reservation.is_for(layout.resources, nodes):
            self._release()
        if self._reservation is None:
            self._reservation = Reservation(self._session, layout.resources, nodes)
        return self._reservation

    def _release(self) -> None:
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            reservation.release()

    def _wait_for_restart(self, failure: TrainingFailedError) -> None:
        """Report a failure, and wait as long as the restart policy says."""
        step, newest = last_reported_step(self._folder), self._newest_checkpoint()
        self._report("failed", step=step, error=str(failure))
        if self._stop.requested:
            raise PreemptedError(
                f"stopped on request; the training had failed, its newest checkpoint is of step {newest}"
            ) from failure
        self._stop.cancel()  # of `request_growth`, if the ranks failed on their way to the end
        delay = self._policy.delay_after(failure, step, newest)
        self._report("restarting", step=newest, restart=self._policy.total, delay=delay)
        self._wait(delay)

    def _set_aside(self, error: DamagedCheckpointError) -> None:
        """Make the checkpoint before the damaged one the newest; raise where that does not help."""
        step = set_aside_newest(self._checkpoints, self._origin, error)
        self._report("checkpoint_set_aside", step=step, error=str(error))

    def _choose_layout(self, previous: ElasticLayout | None) -> ElasticLayout:
        """The layout to start with; after a failure it waits for lost nodes, up to `cluster.node_timeout`."""
        if previous is None or not self._session.existing_cluster:
            return self._largest_layout()
        deadline = self._clock() + self._config.cluster.node_timeout
        while True:
            timed_out = self._clock() >= deadline
            try:
                layout = self._largest_layout()
                if timed_out or layout.data >= previous.data:
                    return layout
            except InputError as error:
                if timed_out:
                    raise PreemptedError(
                        f"nodes were lost and did not come back within cluster.node_timeout: {error}; the "
                        f"same command resumes from step {self._newest_checkpoint()}"
                    ) from error
            self._wait(_POLL_SECONDS)

    def _largest_layout(self) -> ElasticLayout:
        return largest_layout(self._config, self._session.resources, self._session.nodes())

    def _wait(self, seconds: float) -> None:
        """Wait before a restart; a stop request ends the run."""
        if self._stop.wait(seconds):
            raise PreemptedError(
                f"stopped on request; the newest checkpoint is of step {self._newest_checkpoint()}"
            )

    def _newest_checkpoint(self) -> int:
        """Step of the newest checkpoint; 0: none."""
        return self._checkpoints.latest() or 0

    def _report(self, event: str, step: int | None = None, **details: Any) -> None:
        step = self._newest_checkpoint() if step is None else step
        self._events.put({"event": event, "step": step, **details})


def last_reported_step(folder: RunFolder) -> int:
    """Last step in `metrics.jsonl`; 0: none."""
    records = read_metrics(folder.metrics, skip_damaged=True)
    return max((record["step"] for record in records if "loss" in record), default=0)
