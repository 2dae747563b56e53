"""Frames a second: what is missing is named, in place of rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import frames
from data.errors import InputError


@pytest.mark.parametrize("missing", [InputError("robosuite is not installed"), ImportError("no EGL display")])
def test_without_a_simulator_or_a_renderer_the_reason_is_given(
    missing: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_suite(name: str) -> None:
        raise missing

    monkeypatch.setattr(frames, "open_suite", open_suite)
    out = tmp_path / "out.json"
    assert frames.main(["--device", "cpu", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["rows"] == []
    assert written["notes"][0] == f"not measured: {missing}"
