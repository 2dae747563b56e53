"""A stop request while a rank waits for data of an unreachable store: the run ends without the data."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.stream.loader import TokenStream
from pretrain import batch_feed
from pretrain.checkpoint.load import load_metadata
from pretrain.config import TrainingConfig
from pretrain.telemetry.sinks import read_metrics
from tests.support import training_case as case
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.object_server import BUCKET, object_server
from tests.support.ranks import run_ranks
from tests.support.training_case import measured

URL = f"s3://{BUCKET}/shards"
MAX_WAIT_SECONDS = 0.5
UNLIMITED = 60.0  # seconds: ranks whose batch is there get all the time that they need


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(case.write_dataset(tmp_path_factory.mktemp("data") / "shards"))


@pytest.fixture(scope="module")
def undisturbed(
    shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[int, int, int]], case.RunFolder]:
    """A run of the same settings by layout, from files."""

    @cache
    def train(layout: tuple[int, int, int]) -> case.RunFolder:
        return case.train(case.settings(tmp_path_factory.mktemp("plain"), str(shards), layout))

    return train


@pytest.fixture
def proxy(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Before an S3 server with the data set; what the environment points to."""
    import boto3

    with object_server(monkeypatch) as server:
        client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
        for path in shards.iterdir():
            client.put_object(Bucket=BUCKET, Key=f"shards/{path.name}", Body=path.read_bytes())
        proxy = FaultProxy(server.endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        try:
            yield proxy
        finally:
            proxy.stop()


def _stop_in_an_outage(
    config: TrainingConfig, overrides: list[str], waiting: set[int], batch: int, gone: Path, by_file: bool
) -> int:
    """Train where some ranks have to fetch `batch` during an outage, and get a stop request while they wait.

    Returns:
        The exit code.
    """
    batch_feed.MAX_WAIT_SECONDS = MAX_WAIT_SECONDS
    waits = int(os.environ["RANK"]) in waiting
    assemble_batch, wait_for_batch = TokenStream._assemble, TokenStream.is_ready

    def assemble(self: TokenStream, step: int, *rest: Any) -> Any:
        if len(rest) == 2:  # not a placeholder
            everything = np.arange(len(case.LENGTHS))
            if step >= batch and waits:
                gone.touch()
                self._memory._begins[:] = -1  # every episode has to be read again
            elif step == 0:
                self._memory._read(everything.tolist())
                assert (self._memory._begins >= 0).all()
        return assemble_batch(self, step, *rest)

    def is_ready(self: TokenStream, step: int, data_rank: int, data_size: int, timeout: float) -> bool:
        ready = wait_for_batch(self, step, data_rank, data_size, timeout if waits else UNLIMITED)
        if not ready and step == batch and waits:
            if by_file:
                case.RunFolder.of(config.run).stop_request.touch()
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        return ready

    TokenStream._assemble = assemble  # type: ignore[method-assign]
    TokenStream.is_ready = is_ready  # type: ignore[method-assign]
    return case.run_main(overrides)


@pytest.mark.parametrize(
    ("layout", "waiting", "every", "by_file"),
    [
        pytest.param((1, 2, 3), {1}, 2, False, id="one of two data-parallel ranks"),
        pytest.param((2, 1, 1), {1}, 2, False, id="one of two tensor-parallel ranks"),
        pytest.param((1, 2, 1), {0, 1}, 2, False, id="all ranks"),
        pytest.param((1, 2, 1), {1}, 3, True, id="by a file, with the checkpoint already written"),
    ],
)
def test_the_checkpoint_is_of_the_step_before_the_missing_batch(
    proxy: FaultProxy,
    undisturbed: Callable[[tuple[int, int, int]], case.RunFolder],
    tmp_path: Path,
    layout: tuple[int, int, int],
    waiting: set[int],
    every: int,
    by_file: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    gone = tmp_path / "gone"
    proxy.fault = lambda method, path: Fault("refuse") if ".tar" in path and gone.exists() else None
    config = case.settings(tmp_path, URL, layout)
    config.checkpointing.every, config.telemetry.wandb = every, "disabled"
    # Without a cache in the memory of the node, whose episodes would do during the outage.
    overrides = [*case.overrides(config), "data.cache.shared_memory=false"]
    assert run_ranks(_stop_in_an_outage, 2, config, overrides, waiting, 3, gone, by_file) == [85, 85]
    output = capfd.readouterr().err
    warning = "batch 3 has not come within 0.5 s and the training is to end"
    assert output.count(warning) == len(waiting)
    assert "stopped on request, with a checkpoint of step 3" in output
    folder = case.RunFolder.of(config.run)
    for rank in range(2):  # under torchrun each rank logs to a file in the run folder, too
        log = (folder.path / "logs" / f"rank_{rank:05d}.log").read_text()
        assert (f" rank {rank} WARNING pretrain.batch_feed: {warning}" in log) == (rank in waiting)
    assert sorted(path.name for path in folder.checkpoints.iterdir())[-1] == "step_00000003"
    records = read_metrics(folder.metrics)
    assert [record["step"] for record in records if "event" not in record] == [1, 2, 3]
    assert records[-1] == {"event": "preempted", "step": 3}
    stored = load_metadata(folder.checkpoints / "step_00000003")
    assert (stored["guard"]["skipped"], stored["guard"]["in_a_row"], stored["guard"]["good"]) == (0, 0, 3)
    assert stored["tokens"] == measured(folder)[-1]["tokens"]
    gone.unlink()
    assert run_ranks(case.run_main, 2, overrides) == [0, 0]
    plain = undisturbed(layout)
    for name in ("loss", "tokens", "gradient_norm"):
        assert [line[name] for line in measured(folder)] == [line[name] for line in measured(plain)], name


def test_a_stop_before_the_first_step_leaves_no_checkpoint(
    proxy: FaultProxy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy.fault = lambda method, path: Fault("refuse") if ".tar" in path else None
    config = case.settings(tmp_path, URL, (1, 1, 1))
    gone = tmp_path / "gone"
    assert run_ranks(_stop_in_an_outage, 1, config, case.overrides(config), {0}, 0, gone, False) == [85]
    assert "stopped on request, before the first step" in capfd.readouterr().err
    folder = case.RunFolder.of(config.run)
    assert list(folder.checkpoints.glob("step_*")) == []
    assert measured(folder) == []
