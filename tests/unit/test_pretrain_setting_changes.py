"""Changes of a run's settings: those that never matter, and those that a user asks for by name."""

from __future__ import annotations

from typing import Any

import pytest

from data.errors import InputError
from pretrain.setting_changes import data_moved, setting_changes


def settings(change: list[str] | None = None, **sections: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "run": {"name": "r", "change": change or []},
        "trainer": {"steps": 100, "seed": 0},
        "optim": {"lr": 0.1, "betas": [0.9, 0.95]},
        "data": {"url": "a", "sources": [], "chunk": 5},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return values


LONGER = {"trainer": {"steps": 200}, "optim": {"lr": 0.2}}


def test_a_change_is_refused_with_what_allows_it() -> None:
    with pytest.raises(InputError) as caught:
        setting_changes(settings(), settings(["trainer.steps"], **LONGER), "runs/r")
    assert str(caught.value) == (
        "runs/r: is the folder of a run with other settings (optim.lr was 0.1, now 0.2); choose another "
        "run.name, give the same settings, or change them for the rest of this run by "
        "run.change='[trainer.steps,optim.lr]'"
    )


@pytest.mark.parametrize("change", [["trainer.steps", "optim.lr"], ["trainer", "optim"]])
def test_a_change_that_is_named_is_returned(change: list[str]) -> None:
    found = setting_changes(settings(), settings(change, **LONGER), "r")
    assert found == {"trainer.steps": (100, 200), "optim.lr": (0.1, 0.2)}
    assert setting_changes(settings(**LONGER), settings(change, **LONGER), "r") == {}, "made before"


@pytest.mark.parametrize("name", ["optim.learning_rate", "optim.l", ""])
def test_a_name_of_no_setting_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"run.change: there is no setting '{name}'"):
        setting_changes(settings(), settings([name]), "r")


def test_data_may_move_but_not_change() -> None:
    moved = settings(data={"url": "s3://b"})
    assert setting_changes(settings(), moved, "r") == {}
    assert data_moved(settings(), moved)
    assert not data_moved(settings(), settings())

    def mixture(weight: float | None, url: str, **more: int) -> dict[str, Any]:
        return settings(data={"url": "", "sources": [{"url": url, "weight": weight, **more}]})

    assert setting_changes(mixture(1.0, "a"), mixture(1.0, "b"), "r") == {}
    assert data_moved(mixture(1.0, "a"), mixture(1.0, "b"))
    with pytest.raises(InputError, match=r"data.sources was \[1.0\], now \[2.0\]"):
        setting_changes(mixture(1.0, "a"), mixture(2.0, "a"), "r")
    assert setting_changes(mixture(1.0, "a"), mixture(None, "a"), "r") == {}, "an earlier version's default"
    with pytest.raises(InputError, match=r"data.sources was \[1.0\], now \[.*'chunk': 3"):
        setting_changes(mixture(None, "a"), mixture(None, "a", chunk=3), "r")


def test_settings_of_an_earlier_version_may_lack_the_sections() -> None:
    assert not data_moved({"data": None}, {"data": None})
    with pytest.raises(InputError, match=r"data.chunk was None, now 5"):
        setting_changes({"run": {"name": "r"}}, settings(), "r")
