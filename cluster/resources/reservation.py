"""CPUs and GPUs of a training's ranks, which stay reserved while the ranks are restarted.

Without it an evaluation that waits for its turn would take the place of ranks that have failed, and they
could not start again before it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from cluster.failures import TrainingFailedError
from cluster.resources.ray_session import Session
from cluster.resources.ray_use import SessionClosedError
from cluster.resources.run_resources import RunResources

_NODE_LABEL = "ray.io/node-id"


class Reservation:
    """A placement group of Ray with a bundle for each rank, all of them at once.

    Args:
        session: The open Ray session.
        resources: Resources of the ranks; None: those that the session was opened for.
        nodes: Ray's node id of each rank, those of one node together; None: Ray chooses.

    Attributes:
        resources: Resources of the ranks.
        start_timeout: Seconds within which the ranks must have started.
        use: Calls of Ray in this thread.

    Raises:
        TrainingFailedError: They are not free within `start_timeout`.
        SessionClosedError: The session is being closed.
    """

    def __init__(
        self, session: Session, resources: RunResources | None = None, nodes: Sequence[str] | None = None
    ) -> None:
        from ray.util import placement_group

        self.resources, self.start_timeout = resources or session.resources, session.start_timeout
        self.use, self._nodes = session.use, nodes
        ranks, per_rank = self.resources.ranks, self.resources.per_rank
        with self.use.call():
            self._group: Any = placement_group(
                [per_rank] * ranks,
                strategy="PACK",
                bundle_label_selector=[{_NODE_LABEL: node} for node in nodes or ()] or [{}] * ranks,
            )
        if not self.use.wait_for(self._group.wait, self.start_timeout):
            self.release()
            raise TrainingFailedError(
                f"{ranks} training processes of {per_rank} each found no room within "
                f"cluster.start_timeout={self.start_timeout:g} s; see `ray status` for what uses it"
            )

    def is_for(self, resources: RunResources, nodes: Sequence[str] | None) -> bool:
        """Whether it was made for the same ranks on the same nodes."""
        return self.resources == resources and self._nodes == nodes

    def actor_options(self, rank: int) -> dict[str, Any]:
        """Ray's options of the actor of a rank."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return {
            "num_cpus": self.resources.cpus_per_rank,
            "num_gpus": self.resources.gpus_per_rank,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=rank
            ),
        }

    def release(self) -> None:
        """Give everything back; what still runs there is killed."""
        from ray.exceptions import RayError
        from ray.util import remove_placement_group

        # The session has ended or is about to, or Ray does not answer.
        with suppress(RayError, SessionClosedError), self.use.call():
            remove_placement_group(self._group)


@contextmanager
def reserved(
    session: Session, resources: RunResources | None = None, nodes: Sequence[str] | None = None
) -> Iterator[Reservation]:
    """A `Reservation` for the length of a `with` block."""
    reservation = Reservation(session, resources, nodes)
    try:
        yield reservation
    finally:
        reservation.release()
