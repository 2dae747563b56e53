"""Ranks of a private Ray in a hostile place: variables of nonsense, packages of our names, any locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.config import RootConfig
from cluster.resources.ray_session import open_session
from cluster.resources.reservation import reserved
from cluster.resources.run_resources import plan_resources
from cluster.run.train_group import run_train_group
from pretrain.config import ParallelConfig, TrainingConfig
from tests.support.waiting import HANG_SECONDS
from tests.unit.test_cluster_resources_environment import LAUNCHERS, PYTHON, RAY, SET

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from tests.integration.test_cluster_environment import body; body()"
NONSENSE = dict.fromkeys((*LAUNCHERS, *PYTHON, *RAY, *SET), "nonsense")
NAMES = ("PYTHONUTF8", "PYTHONSAFEPATH", "LC_ALL", "WANDB_MODE", "TMPDIR")


def report(config: TrainingConfig) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    print("20 \u00b7 0.1")
    found = {
        "total": total.item(),
        "packages": [import_module(name).__file__ for name in ("cluster", "data", "eval", "pretrain")],
        "path": sys.path,
        "nonsense": sorted(name for name, value in os.environ.items() if value == "nonsense"),
        **{name: os.environ.get(name) for name in NAMES},
    }
    path = Path(config.run.dir, f"rank_{dist.get_rank()}.json")
    path.write_text(
        json.dumps(found | {"dot": "\u00b7"}, ensure_ascii=False)
    )  # in the encoding of the locale


def body() -> None:
    """What the command does, after its own start: an interpreter would refuse some of these variables."""
    os.environ.update(NONSENSE)
    config = RootConfig(parallel=ParallelConfig(data=2))
    config.run.dir = os.getcwd()
    config.cluster.start_timeout = int(HANG_SECONDS)
    resources = plan_resources(config, gpus_available=0)
    with open_session(config.cluster, resources) as session, reserved(session) as reservation:
        run_train_group(config, reservation, Path("logs"), report)
    assert os.environ["RAY_ADDRESS"] == "nonsense", "the caller's own environment is as before"


def test_ranks_work_in_any_environment(tmp_path: Path) -> None:
    for name in ("data", "eval", "pretrain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "cluster.py").write_text("raise SystemExit('not ours')")
    long = tmp_path / ("temporary-" * 9)
    long.mkdir()
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    here = {"PYTHONPATH": f"{ROOT}::{tmp_path}", "TMPDIR": str(long), "WANDB_MODE": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, **locale, **here},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    ranks: list[dict[str, Any]] = [
        json.loads((tmp_path / f"rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(2)
    ]
    for rank in ranks:
        assert rank["total"] == 1
        assert rank["dot"] == "\u00b7"
        assert all(file.startswith(f"{ROOT}/") for file in rank["packages"])
        assert rank["path"].index(str(ROOT)) < rank["path"].index(str(tmp_path)), (
            "the caller's own comes later"
        )
        assert "" not in rank["path"]
        assert rank["nonsense"] == ["WANDB_MODE"]
        assert (rank["PYTHONUTF8"], rank["PYTHONSAFEPATH"]) == ("1", "1")
        assert (rank["LC_ALL"], rank["TMPDIR"]) == ("C", str(long))
    assert "20 \u00b7 0.1" in (tmp_path / "logs" / "rank_00000.log").read_text(encoding="utf-8")
    assert list(long.iterdir()) == []
