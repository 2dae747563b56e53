"""Log messages: their form, where they go, and which loggers are set up."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.errors import InputError
from pretrain.logs import LEVEL_VARIABLE, log_to_file, set_up_logging
from pretrain.run_layout import rank_log_name

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the loggers as they were."""
    monkeypatch.delenv(LEVEL_VARIABLE, raising=False)
    loggers = [logging.getLogger(name) for name in ("data", "pretrain", "eval", "cluster")]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


def test_a_message_has_time_rank_level_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(rank=3)
    logging.getLogger("data.storage.retries").warning("%s does not answer", "s3://bucket")
    logging.getLogger("data.storage.retries").debug("not shown")
    assert re.fullmatch(
        f"{TIME} rank 3 WARNING data.storage.retries: s3://bucket does not answer\n", capsys.readouterr().err
    )


def test_a_second_set_up_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(rank=3)
    set_up_logging()
    logging.getLogger("cluster.run").info("started")
    assert re.fullmatch(f"{TIME} INFO cluster.run: started\n", capsys.readouterr().err)


def test_libraries_are_left_alone() -> None:
    root, ray = logging.getLogger(), logging.getLogger("ray")
    before = (list(root.handlers), root.level, list(ray.handlers), ray.level)
    set_up_logging(rank=0)
    assert (list(root.handlers), root.level, list(ray.handlers), ray.level) == before


def test_a_rank_logs_to_its_file_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(rank=12)
    path = tmp_path / "logs" / rank_log_name(12)
    log_to_file(path, rank=12)
    logging.getLogger("pretrain.validation").warning("no episode")
    assert path.name == "rank_00012.log"
    assert path.read_text() == capsys.readouterr().err != ""


def test_a_file_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(InputError, match=r"logs/x\.log: cannot write the log"):
        log_to_file(tmp_path / "logs" / "x.log", rank=0)


def test_the_level_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LEVEL_VARIABLE, "error")
    set_up_logging()
    logging.getLogger("eval").warning("quiet")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(LEVEL_VARIABLE, "LOUD")
    with pytest.raises(InputError, match="WORLDVLA_LOG_LEVEL=LOUD, expected one of DEBUG, INFO"):
        set_up_logging()
