"""A training across failures, damaged checkpoints and lost nodes; ranks, nodes and time are fakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.config import ClusterConfig, RootConfig
from cluster.failures import CommandFailedError, TrainingFailedError
from cluster.resources.placement import Node
from cluster.resources.run_resources import RunResources, required_resources
from cluster.run import training as training_module
from cluster.run.stop_request import StopRequest
from cluster.run.training import Training
from data.errors import InputError
from pretrain.checkpoint.location import CheckpointLocation, step_folder
from pretrain.checkpoint.origin import Origin
from pretrain.checkpoint.ready import DamagedCheckpointError
from pretrain.config import ParallelConfig, TrainerConfig, TrainingConfig
from pretrain.faults.exit_codes import PreemptedError
from pretrain.run_folder import RunFolder
from pretrain.run_start import RunStart

KILLED = TrainingFailedError("a training process ended without an error message")


@dataclass
class FakeSession:
    """An existing cluster whose nodes a test changes."""

    resources: RunResources
    available: list[Node]
    existing_cluster: bool = True

    def nodes(self) -> list[Node]:
        return self.available


class FakeReservation:
    """Counts what is reserved."""

    held: ClassVar[list[tuple[str, ...] | None]] = []  # nodes of each reservation that was made
    released = 0

    def __init__(self, session: Any, resources: RunResources, nodes: tuple[str, ...] | None) -> None:
        self.resources, self.nodes = resources, nodes
        type(self).held.append(nodes)

    def is_for(self, resources: RunResources, nodes: tuple[str, ...] | None) -> bool:
        return (self.resources, self.nodes) == (resources, nodes)

    def release(self) -> None:
        type(self).released += 1


class FakeStop(StopRequest):
    """Waiting moves the clock, and then changes the nodes as a test has planned."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.now = 0.0
        self.after_wait: Callable[[], None] = lambda: None

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.after_wait()
        return self.requested


@dataclass
class Case:
    """A training of two data-parallel ranks on two nodes of one CPU."""

    folder: RunFolder
    stop_file: Path
    stop: FakeStop
    session: FakeSession
    training: Training
    starts: list[tuple[int, tuple[str, ...] | None]] = field(default_factory=list)
    run_starts: list[str] = field(default_factory=list)
    endings: list[Exception | Callable[[], None] | None] = field(default_factory=list)

    def run_ranks(self, config: TrainingConfig, reservation: FakeReservation, logs: Path, train: Any) -> None:
        """End as the next entry of `endings` says."""
        assert reservation.resources.ranks == config.parallel.data * config.parallel.tensor
        self.starts.append((config.parallel.data, reservation.nodes))
        self.run_starts.append(train.keywords["start"].wandb_run)
        ending = self.endings.pop(0)
        if callable(ending):
            ending()
        elif ending is not None:
            raise ending

    def commit(self, *steps: int) -> None:
        for step in steps:
            path = step_folder(self.folder.checkpoints, step)
            path.mkdir(parents=True)
            (path / "READY").touch()

    def events(self) -> list[tuple[str, int]]:
        return [(event["event"], event["step"]) for event in self.training.take_events()]


A, B = Node("a", 1, 0), Node("b", 1, 0)


def never_called(config: TrainingConfig, start: RunStart) -> None:
    raise AssertionError


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    config = RootConfig(
        parallel=ParallelConfig(data=2),
        trainer=TrainerConfig(global_batch=4),
        cluster=ClusterConfig(least_data=1, node_timeout=60.0, restarts=3, restart_delay=2.0),
    )
    config.run.name, config.run.dir = "r", str(tmp_path)
    config.eval.every = 0
    folder = RunFolder.of(config.run)
    folder.path.mkdir()
    stop_file = tmp_path / ".stop"
    stop = FakeStop(stop_file)
    session = FakeSession(required_resources(config, 0), [A, B])
    checkpoints = CheckpointLocation(folder.checkpoints)
    fake: Any = session
    first = RunStart(None, "first")
    training = Training(config, fake, folder, first, never_called, stop, checkpoints, clock=lambda: stop.now)
    case = Case(folder, stop_file, stop, session, training)
    monkeypatch.setattr(training_module, "run_train_group", case.run_ranks)
    monkeypatch.setattr(training_module, "Reservation", FakeReservation)
    monkeypatch.setattr(FakeReservation, "held", [])
    monkeypatch.setattr(FakeReservation, "released", 0)
    monkeypatch.setattr(
        training_module, "open_run", lambda config, folder: RunStart(None, f"at {config.parallel.data}")
    )
    return case


def test_a_failed_training_is_restarted_after_a_delay(case: Case) -> None:
    case.commit(4)
    case.endings = [KILLED, KILLED, None]
    case.training.run()
    assert case.starts == [(2, ("a", "b"))] * 3
    assert case.run_starts == ["first", "at 2", "at 2"], "chosen anew for each restart"
    assert case.stop.now == 2.0 + 4.0
    assert case.events() == [("failed", 0), ("restarting", 4)] * 2
    assert case.events() == [], "each event is taken once"
    assert FakeReservation.held == [("a", "b")], "nobody else takes the place of ranks that start again"
    assert FakeReservation.released == 1


def test_a_training_that_keeps_failing_ends_the_run(case: Case) -> None:
    case.endings = [KILLED] * 4
    with pytest.raises(CommandFailedError, match="3 restarts without a checkpoint beyond step 0"):
        case.training.run()
    assert len(case.starts) == 4


def test_on_a_private_ray_the_ranks_are_not_bound_to_nodes(case: Case) -> None:
    case.session.existing_cluster = False
    case.endings = [None]
    case.training.run()
    assert case.starts == [(2, None)]


def test_a_damaged_checkpoint_is_set_aside(case: Case) -> None:
    case.commit(4, 8)
    damaged = step_folder(case.folder.checkpoints, 8)
    case.endings = [DamagedCheckpointError(f"{damaged}: checksum differs"), None]
    case.training.run()
    assert case.events() == [("checkpoint_set_aside", 8)]
    assert not (damaged / "READY").exists()


def test_a_damaged_checkpoint_without_an_older_one_ends_the_run(case: Case) -> None:
    case.commit(8)
    damaged = step_folder(case.folder.checkpoints, 8)
    case.endings = [DamagedCheckpointError(f"{damaged}: checksum differs")]
    with pytest.raises(DamagedCheckpointError):
        case.training.run()
    assert (damaged / "READY").exists()


def test_a_lost_node_shrinks_the_training_after_the_timeout(case: Case) -> None:
    def lose_a_node() -> None:
        case.session.available = [A]
        raise KILLED

    case.endings = [lose_a_node, None]
    case.training.run()
    assert case.starts == [(2, ("a", "b")), (1, ("a",))]
    assert case.run_starts == ["first", "at 1"]
    assert case.stop.now == 2.0 + 60.0
    assert [name for name, _ in case.events()] == ["failed", "restarting", "shrunk"]
    assert FakeReservation.held == [("a", "b"), ("a",)]
    assert FakeReservation.released == 2


def test_a_node_that_returns_in_time_keeps_the_size(case: Case) -> None:
    def return_a_node() -> None:
        if case.stop.now > 30:
            case.session.available = [A, B]

    def lose_a_node() -> None:
        case.session.available = [A]
        case.stop.after_wait = return_a_node
        raise KILLED

    case.endings = [lose_a_node, None]
    case.training.run()
    assert [data for data, _ in case.starts] == [2, 2]
    assert 30 < case.stop.now < 60


def test_too_few_nodes_end_the_run_after_the_timeout(case: Case) -> None:
    def lose_all_nodes() -> None:
        case.session.available = []
        raise KILLED

    case.commit(6)
    case.endings = [lose_all_nodes]
    with pytest.raises(PreemptedError, match=r"within cluster\.node_timeout: .*resumes from step 6"):
        case.training.run()
    assert case.stop.now == 2.0 + 60.0


def test_a_returned_node_stops_the_ranks_and_grows_the_training(case: Case) -> None:
    case.session.available = [A]

    def stop_for_growth() -> None:
        case.training.request_growth()
        assert not case.stop_file.exists(), "no node has returned"
        case.session.available = [A, B]
        case.training.request_growth()
        assert not case.stop_file.exists(), "checked again after five seconds only"
        case.stop.now += 5
        case.training.request_growth()
        assert case.stop_file.exists()
        raise PreemptedError("with a checkpoint")

    case.endings = [stop_for_growth, None]
    case.training.run()
    assert [data for data, _ in case.starts] == [1, 2]
    assert not case.stop_file.exists(), "the next ranks are not stopped"
    assert [name for name, _ in case.events()] == ["grown"]


def test_a_stop_request_ends_the_run(case: Case) -> None:
    def stop_by_signal() -> None:
        case.stop.on_signal(10, None)
        raise PreemptedError("with a checkpoint of step 4")

    case.endings = [stop_by_signal]
    with pytest.raises(PreemptedError, match="with a checkpoint of step 4"):
        case.training.run()


def test_a_stop_request_ends_the_wait_for_a_restart(case: Case) -> None:
    case.stop.after_wait = lambda: case.stop.on_signal(10, None)
    case.endings = [KILLED]
    with pytest.raises(PreemptedError, match="stopped on request; the newest checkpoint is of step 0"):
        case.training.run()
    assert len(case.starts) == 1


def test_a_run_that_does_not_fit_is_refused_at_the_first_start(case: Case) -> None:
    case.session.available = []
    with pytest.raises(InputError, match="only 0 fit"):
        case.training.run()
    assert case.starts == []


def test_a_damaged_checkpoint_that_the_user_named_ends_the_run(case: Case) -> None:
    case.commit(4, 8)
    damaged = step_folder(case.folder.checkpoints, 8)
    named = Origin(str(damaged), resumes=True, named=True)
    case.training._first_start = RunStart(named, "first")
    case.endings = [DamagedCheckpointError(f"{damaged}: checksum differs")]
    with pytest.raises(DamagedCheckpointError):
        case.training.run()
    assert (damaged / "READY").exists()


def test_a_damaged_checkpoint_is_set_aside_whatever_the_first_start_named(case: Case) -> None:
    case.commit(4, 8)
    case.training._config.checkpointing.resume = "elsewhere/step_00000002"
    damaged = step_folder(case.folder.checkpoints, 8)
    case.endings = [KILLED, DamagedCheckpointError(f"{damaged}: checksum differs"), None]
    case.training.run()
    assert case.events() == [("failed", 0), ("restarting", 8), ("checkpoint_set_aside", 8)]


FULL = InputError("runs/r: cannot write the run folder (No space left on device); set run.dir")


def test_a_disk_that_is_full_at_a_restart_is_waited_for(case: Case) -> None:
    case.endings = [KILLED, FULL, FULL, None]
    case.training.run()
    assert case.events() == [("failed", 0), ("restarting", 0)] * 3
    assert case.stop.now == 2.0 + 4.0 + 8.0


def test_a_disk_that_is_full_at_the_first_start_ends_the_run(case: Case) -> None:
    case.endings = [FULL]
    with pytest.raises(InputError, match="No space left"):
        case.training.run()
    case.endings = [KILLED, InputError("no such shard")]
    with pytest.raises(InputError, match="no such shard"):
        case.training.run()
