"""A wish to end while a rank waits for data of a store that is away: the end comes without the data."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.stream.loader import TokenStream
from pretrain import batch_feed as feed
from pretrain.checkpoint.load import load_metadata
from pretrain.config import TrainingConfig
from pretrain.telemetry.sinks import read_metrics
from tests.support import training_case as case
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.object_server import BUCKET, object_server
from tests.support.ranks import run_ranks
from tests.support.training_case import measured

URL = f"s3://{BUCKET}/shards"
PATIENCE = 0.5  # seconds


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(case.write_dataset(tmp_path_factory.mktemp("data") / "shards"))


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


def _asked_in_an_outage(
    config: TrainingConfig, overrides: list[str], waiting: set[int], batch: int, gone: Path, by_file: bool
) -> int:
    """On some ranks batch `batch` has to be fetched when the store is away; they are asked once they wait."""
    feed.PATIENCE = PATIENCE
    mine = int(os.environ["RANK"]) in waiting
    real_assemble, real_is_ready = TokenStream._assemble, TokenStream.is_ready

    def assemble(self: TokenStream, step: int, *rest: Any) -> Any:
        if len(rest) == 2:  # no stand-in
            everything = np.arange(len(case.LENGTHS))
            if step >= batch and mine:
                gone.touch()
                self._memory._begins[:] = -1  # every episode has to be read again
            elif step == 0:
                self._memory._read(everything.tolist())
                assert (self._memory._begins >= 0).all()
        return real_assemble(self, step, *rest)

    def is_ready(self: TokenStream, step: int, *rest: Any) -> bool:
        here = real_is_ready(self, step, *rest)
        if not here and step == batch and mine:
            if by_file:
                case.RunFolder.of(config.run).stop_request.touch()
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        return here

    TokenStream._assemble = assemble  # type: ignore[method-assign]
    TokenStream.is_ready = is_ready  # type: ignore[method-assign]
    return case.run_main(overrides)


@pytest.mark.parametrize(
    ("layout", "waiting", "every", "by_file"),
    [
        pytest.param((1, 2, 3), {1}, 2, False, id="one of two data-parallel ranks"),
        pytest.param((2, 1, 1), {1}, 2, False, id="one of two tensor-parallel ranks"),
        pytest.param((1, 2, 1), {0, 1}, 2, False, id="all ranks"),
        pytest.param((1, 2, 1), {1}, 3, True, id="by a file, the checkpoint is there already"),
    ],
)
def test_the_checkpoint_is_of_the_step_before_the_missing_batch(
    proxy: FaultProxy,
    shards: Path,
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
    config.checkpointing.every = every
    overrides = case.overrides(config)
    assert run_ranks(_asked_in_an_outage, 2, config, overrides, waiting, 3, gone, by_file) == [85, 85]
    said = capfd.readouterr().err
    assert said.count("batch 3 has not come within 0.5 s and the training is to end") == len(waiting)
    assert "ended as asked, with a checkpoint of step 3" in said
    folder = case.RunFolder.of(config.run)
    assert sorted(path.name for path in folder.checkpoints.iterdir())[-1] == "step_00000003"
    records = read_metrics(folder.metrics)
    assert [record["step"] for record in records if "event" not in record] == [1, 2, 3]
    assert records[-1] == {"event": "preempted", "step": 3}
    stored = load_metadata(folder.checkpoints / "step_00000003")
    assert (stored["guard"]["skipped"], stored["guard"]["in_a_row"], stored["guard"]["good"]) == (0, 0, 3)
    assert stored["tokens"] == measured(folder)[-1]["tokens"]
    gone.unlink()
    assert run_ranks(case.run_main, 2, overrides) == [0, 0]
    plain = case.train(case.settings(tmp_path / "plain", str(shards), layout))
    for name in ("loss", "tokens", "gradient_norm"):
        assert [line[name] for line in measured(folder)] == [line[name] for line in measured(plain)], name


def test_before_the_first_step_there_is_nothing_to_keep(
    proxy: FaultProxy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy.fault = lambda method, path: Fault("refuse") if ".tar" in path else None
    config = case.settings(tmp_path, URL, (1, 1, 1))
    gone = tmp_path / "gone"
    assert run_ranks(_asked_in_an_outage, 1, config, case.overrides(config), {0}, 0, gone, False) == [85]
    assert "ended as asked, before the first step" in capfd.readouterr().err
    folder = case.RunFolder.of(config.run)
    assert list(folder.checkpoints.glob("step_*")) == []
    assert measured(folder) == []
