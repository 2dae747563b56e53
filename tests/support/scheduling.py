"""How `pytest -n` deals the tests out to its workers.

A worker runs one file after the other, so that what a module sets up is set up once. Each worker prefers one
tier: beside a test that waits for a cluster another one computes.
"""

from __future__ import annotations

from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import WorkerController

# Where a worker looks for its next file, by its number.
PREFERENCES = (
    ("integration", "dist", "unit"),
    ("dist", "unit", "integration"),
    ("integration", "unit", "dist"),
)
# The files that take longest, the longest first: begun last, one of them would be waited for at the end.
LONGEST = tuple(
    f"tests/integration/test_{name}.py"
    for name in (
        "cluster_slurm",
        "cluster_restarts",
        "cluster_supervisor",
        "cluster_pipeline",
        "simulator_libero",
        "cluster_lost_node",
        "cluster_torchrun",
        "cluster_slurm_storage",
        "cluster_train_group",
    )
)


class FileScheduling(LoadScopeScheduling):
    """Deals out files: to each worker those of the tier that it prefers, those with most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]

    def _assign_work_unit(self, node: WorkerController) -> None:
        number = int(node.gateway.id.removeprefix("gw"))
        tiers = PREFERENCES[number % len(PREFERENCES)]
        following = min(self.workqueue, key=lambda file: _order(file, tiers))
        self.workqueue.move_to_end(following, last=False)
        super()._assign_work_unit(node)


def _order(file: str, tiers: tuple[str, ...]) -> tuple[int, int]:
    """Smaller: earlier."""
    tier = next((rank for rank, name in enumerate(tiers) if file.startswith(f"tests/{name}")), len(tiers))
    return tier, LONGEST.index(file) if file in LONGEST else len(LONGEST)
