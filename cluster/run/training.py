"""The training of a run from its first start to its end, through failures, lost nodes and returning ones."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from cluster.config import RootConfig
from cluster.failures import TrainingFailedError
from cluster.resources.elastic import Fit, largest_fit
from cluster.resources.ray_session import Session
from cluster.run.restarts import RestartPolicy
from cluster.run.stop_request import WishToEnd
from cluster.run.train_group import run_train_group
from data.errors import InputError
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.manifest import DamagedCheckpointError
from pretrain.checks import check_training
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import PreemptedError
from pretrain.run_folder import RunFolder
from pretrain.run_start import RunStart, open_run
from pretrain.telemetry.sinks import read_metrics

_SECONDS_BETWEEN_LOOKS = 5.0


class Train(Protocol):
    """Trains as one rank, in a process of its own: importable under its name."""

    def __call__(self, config: TrainingConfig, start: RunStart) -> None:
        """Train with these settings from this start."""
        ...


class Training:
    """Starts the ranks, and starts them again while that helps.

    Args:
        config: The run's settings; its layout is the largest.
        session: The open Ray session.
        folder: Of the run.
        start: Where the first start of the ranks begins; for each later one it is chosen anew.
        train: What each rank does.
        wish: Whether the command was asked to end.
        place: Where the run's checkpoints lie.
    """

    def __init__(
        self,
        config: RootConfig,
        session: Session,
        folder: RunFolder,
        start: RunStart,
        train: Train,
        wish: WishToEnd,
        place: CheckpointLocation,
    ) -> None:
        self._config, self._session, self._folder, self._train = config, session, folder, train
        self._wish, self._place = wish, place
        self._first: RunStart | None = start
        self._policy = RestartPolicy(config.cluster)
        self._events: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._fit: Fit | None = None
        self._next_look = 0.0
        self._growing = False

    def events(self) -> list[dict[str, Any]]:
        """What has happened since the last call; another thread may ask."""
        found = []
        while True:
            try:
                found.append(self._events.get_nowait())
            except Empty:
                return found

    def run(self) -> None:
        """Train to the end.

        Raises:
            InputError: Raised in a rank, or the run does not fit the machines.
            PreemptedError: It was asked to end, or lost nodes that did not come back, and has a checkpoint.
            CommandFailedError: It failed, and another start would not help.
        """
        before: Fit | None = None
        while True:
            self._fit = self._find_room(before)
            if before is not None and before.data != self._fit.data:
                name = "shrunk" if self._fit.data < before.data else "grown"
                self._tell(name, data_before=before.data, data=self._fit.data)
            before = self._fit
            self._growing = False
            try:
                self._start(self._fit)
                return
            except DamagedCheckpointError as error:
                self._set_aside(error)
            except PreemptedError:
                if self._wish.asked:
                    raise
                self._wish.take_back()  # it was this class that asked, to grow
            except TrainingFailedError as failure:
                self._recover(failure)

    def grow(self) -> None:
        """Where nodes have come back, ask the ranks for a checkpoint, to go on with more of them."""
        fit = self._fit
        if fit is None or self._growing or fit.data == self._config.parallel.data or not self._due():
            return
        try:
            larger = largest_fit(self._config, self._session.placement, self._session.nodes())
        except InputError:
            return  # nodes are gone: the ranks will fail of it
        if larger.data > fit.data:
            self._growing = True
            self._wish.ask()

    def _start(self, fit: Fit) -> None:
        start, self._first = self._first, None
        if fit.config is not self._config:
            check_training(fit.config)
        if start is None or fit.config is not self._config:
            start = open_run(fit.config, self._folder)
        nodes = fit.rank_nodes if self._session.several_nodes else None
        train = partial(self._train, start=start)
        run_train_group(fit.config, self._session, self.logs, train, fit.placement, nodes)

    @property
    def logs(self) -> Path:
        """Folder of the ranks' output."""
        return self._folder.logs

    def _recover(self, failure: TrainingFailedError) -> None:
        step, newest = last_reported(self._folder), self._newest()
        self._tell("failed", step=step, error=str(failure))
        if self._wish.asked:
            raise PreemptedError(
                f"ended as asked; the training had failed, its newest checkpoint is of step {newest}"
            ) from failure
        delay = self._policy.after(failure, step, newest)
        self._tell("restarting", step=newest, restart=self._policy.total, delay=delay)
        if self._wish.wait(delay):
            raise PreemptedError(f"ended as asked; the newest checkpoint is of step {newest}")

    def _set_aside(self, error: DamagedCheckpointError) -> None:
        """Go on from the checkpoint before the damaged one, where that is this run's newest."""
        *older, newest = self._place.steps() or [0]
        own = self._config.checkpointing.resume == "auto" and self._place.checkpoint_url(newest) in str(error)
        if not (own and older):
            raise error
        self._place.set_aside(newest)
        self._tell("checkpoint_set_aside", step=newest, error=str(error))

    def _find_room(self, before: Fit | None) -> Fit:
        """The layout to start with; where nodes were lost, they get some time to come back."""
        if before is None or not self._session.several_nodes:
            return largest_fit(self._config, self._session.placement, self._session.nodes())
        deadline = time.monotonic() + self._config.cluster.node_timeout
        while True:
            late = time.monotonic() >= deadline
            try:
                fit = largest_fit(self._config, self._session.placement, self._session.nodes())
                if late or fit.data >= before.data:
                    return fit
            except InputError as error:
                if late:
                    raise PreemptedError(
                        f"nodes were lost and did not come back within cluster.node_timeout: {error}; the "
                        f"same command goes on from step {self._newest()}"
                    ) from error
            if self._wish.wait(_SECONDS_BETWEEN_LOOKS):
                raise PreemptedError(f"ended as asked; the newest checkpoint is of step {self._newest()}")

    def _newest(self) -> int:
        """Step of the newest checkpoint; 0: none."""
        return self._place.latest() or 0

    def _due(self) -> bool:
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        return True

    def _tell(self, event: str, step: int | None = None, **details: Any) -> None:
        self._events.put({"event": event, "step": self._newest() if step is None else step, **details})


def last_reported(folder: RunFolder) -> int:
    """Last step in `metrics.jsonl`; 0: none."""
    return max((record["step"] for record in read_metrics(folder.metrics) if "loss" in record), default=0)
