"""How `pytest -n` deals the tests out to its workers.

A worker runs one file after the other, so that what a module sets up is set up once. Files that share
something which is started once a run (a virtual Slurm, a Ray cluster) are one group and stay with one worker.
Each worker prefers one tier: beside a test that mostly waits another one computes.
"""

from __future__ import annotations

from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import WorkerController

# Where a worker looks for its next group, by its number.
PREFERENCES = (("integration", "dist", "unit"), ("dist", "unit", "integration"))

_SLURM = "tests/integration with the virtual Slurm"
_RAY = "tests/integration with the shared Ray"
GROUPS = {
    "test_cluster_cancel": _SLURM,
    "test_cluster_doctor": _SLURM,
    "test_cluster_pipeline": _SLURM,
    "test_cluster_slurm": _SLURM,
    "test_cluster_slurm_storage": _SLURM,
    "test_cluster_torchrun": _SLURM,
}


def group_of(nodeid: str) -> str:
    """The group of a test: its file, or what its file shares with others."""
    path = nodeid.partition("::")[0]
    return GROUPS.get(path.rpartition("/")[2].removesuffix(".py"), path)


class GroupScheduling(LoadScopeScheduling):
    """Deals out groups: to each worker those of the tier that it prefers, the biggest of its list first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        number = int(node.gateway.id.removeprefix("gw"))
        tiers = PREFERENCES[number % len(PREFERENCES)]
        first = min(self.workqueue, key=lambda group: _rank(group, tiers))
        self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)


def _rank(group: str, tiers: tuple[str, ...]) -> int:
    return next((rank for rank, tier in enumerate(tiers) if f"tests/{tier}" in group), len(tiers))
