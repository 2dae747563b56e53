"""`worldvla doctor` says which of LIBERO's tasks its assets serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.doctor import libero_check
from cluster.doctor.check_result import OK, WARN
from data.errors import InputError
from eval.simulator.libero.coverage import coverage
from eval.simulator.libero.names import LIBERO_SUITES

BOWL = """(define (problem LIBERO_Tabletop_Manipulation)
  (:fixtures main_table - table)
  (:objects bowl_1 bowl_2 - bowl
    plate_1 - plate))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """LIBERO's package with one task in each suite."""
    folder = tmp_path / "package"
    for suite in LIBERO_SUITES:
        (folder / "bddl_files" / suite).mkdir(parents=True)
        (folder / "bddl_files" / suite / "task.bddl").write_text(BOWL)
    (folder / "envs" / "problems").mkdir(parents=True)
    source = 'kwargs.update({"scene_xml": "scenes/libero_tabletop_base_style.xml"})'
    (folder / "envs" / "problems" / "libero_tabletop_manipulation.py").write_text(source)
    return folder


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    folder = tmp_path / "assets"
    for name in ("scenes", "stable_scanned_objects", "stable_hope_objects", "textures"):
        (folder / name).mkdir(parents=True)
    replaced = '<texture file="../textures/none.png"/><!-- <mesh file="none.stl"/> -->'
    (folder / "scenes" / "libero_tabletop_base_style.xml").write_text(f"<mujoco>{replaced}</mujoco>")
    for name in ("bowl", "plate"):
        (folder / "stable_scanned_objects" / name).mkdir()
        model = folder / "stable_scanned_objects" / name / f"{name}.xml"
        model.write_text('<mujoco><mesh name="m" file="visual.msh"/></mujoco>')
        (model.parent / "visual.msh").write_text("mesh")
    return folder


def served(assets: Path, package: Path) -> set[int]:
    return {each.served for each in coverage(assets, package)}


def test_a_task_is_served_by_its_scene_and_all_meshes_of_its_objects(assets: Path, package: Path) -> None:
    assert served(assets, package) == {1}
    mesh = assets / "stable_scanned_objects" / "plate" / "visual.msh"
    mesh.rename(mesh.with_suffix(".away"))
    assert served(assets, package) == {0}
    mesh.with_suffix(".away").rename(mesh)
    (assets / "scenes" / "libero_tabletop_base_style.xml").unlink()
    assert served(assets, package) == {0}


def test_the_check_names_suites_and_what_is_missing(
    assets: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBERO_ASSETS", str(assets))
    monkeypatch.setattr(libero_check, "package_folder", lambda: package)
    monkeypatch.setattr(libero_check, "pro_folder", lambda: package)
    monkeypatch.setattr(libero_check, "plus_folder", lambda: package)
    result = libero_check.libero()
    assert result.state == OK
    assert f"{assets}: tasks of spatial 1/1, object 1/1, goal 1/1, 10 1/1, 90 1/1" in result.found
    assert "LIBERO-Plus: camera, robot, language, noise, layout" in result.found

    def missing() -> Path:
        raise InputError("LIBERO-Pro is not installed")

    monkeypatch.setattr(libero_check, "pro_folder", missing)
    result = libero_check.libero()
    assert (result.state, result.remedy) == (WARN, "make libero (without LIBERO_ASSETS)")
    assert "LIBERO-Pro is not installed" in result.found
    monkeypatch.setenv("LIBERO_ASSETS", str(assets / "none"))
    result = libero_check.libero()
    assert (result.state, result.remedy) == (WARN, "make libero")
