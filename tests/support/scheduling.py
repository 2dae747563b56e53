"""How `pytest -n` deals the tests out to its workers.

A worker runs one file after the other, so that what a module sets up is set up once. Files that share the
virtual Slurm, which is started once a run, are one group and stay with one worker. Each worker prefers one
tier: beside a test that waits for a cluster another one computes.
"""

from __future__ import annotations

from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import WorkerController

# Where a worker looks for its next group, by its number.
PREFERENCES = (("integration", "dist", "unit"), ("dist", "unit", "integration"))
SLURM = "tests/integration with the virtual Slurm"
ON_SLURM = ("cancel", "doctor", "pipeline", "slurm", "slurm_storage", "torchrun")


def group_of(nodeid: str) -> str:
    """The group of a test: its file, or what its file shares with others."""
    path = nodeid.partition("::")[0]
    return SLURM if path in {f"tests/integration/test_cluster_{name}.py" for name in ON_SLURM} else path


class GroupScheduling(LoadScopeScheduling):
    """Deals out groups: to each worker those of the tier that it prefers, those with most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        number = int(node.gateway.id.removeprefix("gw"))
        tiers = PREFERENCES[number % len(PREFERENCES)]
        following = min(self.workqueue, key=lambda group: _order(group, tiers))
        self.workqueue.move_to_end(following, last=False)
        super()._assign_work_unit(node)


def _order(group: str, tiers: tuple[str, ...]) -> tuple[int, bool]:
    """Smaller: earlier. The Slurm comes first of its tier, being the longest."""
    tier = next((rank for rank, name in enumerate(tiers) if group.startswith(f"tests/{name}")), len(tiers))
    return tier, group != SLURM
