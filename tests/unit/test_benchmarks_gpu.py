"""The command line of `benchmarks.gpu`, and those of its parts."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_tests
from benchmarks.gpu_parts import ON_CPU, ON_GPU, Part
from data.errors import InputError

SUITE = """
import pytest

def test_right():
    assert True

@pytest.mark.parametrize("number", [1, 2])
def test_wrong(number):
    assert number == 1, "not the first"

def test_without():
    pytest.skip("needs a CUDA device")

@pytest.fixture
def broken():
    raise ValueError("no such thing")

def test_set_up(broken):
    pass
"""


def test_words_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = gpu.parse(["out=results", "device=cuda", "parts=decode,step_7b", "minutes=4.5"])
    assert options.out == tmp_path / "results"
    assert options.seconds == 270
    assert [part.name for part in options.parts] == ["decode", "step_7b"], "in the order that was asked for"
    assert gpu.parse(["out=a", "device=cuda"]) == gpu.Options(tmp_path / "a", 540.0, ON_GPU, "cuda")
    assert gpu.parse(["out=a", "device=cpu"]).parts == ON_CPU


def test_parts_measure_the_device_that_was_asked_for() -> None:
    for parts, device in ((ON_GPU, "cuda"), (ON_CPU, "cpu")):
        for part in parts:
            assert part.words[part.words.index("--device") + 1] == device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_run_at_full_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([f"out={tmp_path}", "device=cuda"]) == 2
    said = capsys.readouterr().err
    assert "device=cuda: torch finds no GPU (AssertionError: 2." in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_parts_without_time_are_told_and_nothing_measured_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert gpu.main([f"out={tmp_path}", "device=cpu", "minutes=0.1"]) == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    said = capsys.readouterr().out
    for part in ON_CPU:
        assert f"{part.name}: skipped after 0 s: 0 s were left" in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["minutes=9"], "out= is missing"),
        (["out=a", "mintes=9"], "mintes=9: expected out="),
        (["out=a", "9"], "9: expected out="),
        (["out="], "out=: expected out="),
        (["out=a", "minutes=nine"], "minutes=nine: expected a number"),
        (["out=a", "minutes=nan"], "minutes=nan: expected a number"),
        (["out=a", "minutes=0"], "minutes=0: expected a number"),
        (["out=a", "minutes=9", "minutes=8"], "minutes=8: minutes= is given twice"),
        (["out=a", "device=tpu"], "device=tpu: expected cpu or cuda"),
        (["out=a", "device=cuda", "parts=decode,steps"], "parts=steps: expected some of ceilings"),
    ],
)
def test_a_wrong_word_is_named(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=named):
        gpu.parse(words)
    assert gpu.main(words) == 2
    assert named in capsys.readouterr().err


class ParsedError(Exception):
    """Ends a program after its command line was read."""


@pytest.mark.parametrize("part", [*ON_GPU, *ON_CPU], ids=lambda part: part.name)
def test_every_part_understands_its_words(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        raise ParsedError(parse(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    program = importlib.import_module(part.words[0])
    with pytest.raises(ParsedError) as found:
        program.main([*part.words[1:], "--out", str(tmp_path / "out.json")])
    assert found.value.args[0].out == tmp_path / "out.json"


def test_tests_are_counted_as_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "")  # restored afterwards
    (tmp_path / "test_some.py").write_text(SUITE)
    (tmp_path / "test_old.py").write_text("from pretrain.model.config import NoSuchSetting\n")
    (tmp_path / "test_lacking.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    out = tmp_path / "tests.json"
    written: list[dict[str, int]] = []
    write = gpu_tests.Recorder.write

    def counting(recorder: gpu_tests.Recorder) -> None:
        write(recorder)
        written.append(json.loads(out.read_text())["counts"])

    monkeypatch.setattr(gpu_tests.Recorder, "write", counting)
    assert gpu_tests.main(["--device", "cpu", "--tests", str(tmp_path), "--out", str(out)]) == 1
    content = json.loads(out.read_text())
    assert content["finished"] is True
    assert content["counts"] == written[-1] == {"passed": 2, "failed": 3, "skipped": 2}
    assert len(written) == 8, "after each of seven, and at the end"
    lines = {name.split("/")[-1]: line for name, line in content["failed"].items()}
    assert lines["test_some.py::test_wrong[2]"] == "AssertionError: not the first"
    assert lines["test_some.py::test_set_up"] == "ValueError: no such thing"
    assert "cannot import name 'NoSuchSetting'" in lines["test_old.py"]
    reasons = {name.split("/")[-1]: line for name, line in content["skipped"].items()}
    assert reasons["test_some.py::test_without"] == "Skipped: needs a CUDA device"
    assert "no_such_package" in reasons["test_lacking.py"]
