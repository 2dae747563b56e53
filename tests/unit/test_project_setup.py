"""The Makefile's set-up on machines that are not as tidy as one's own; nothing is installed here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def make(programs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as an ordinary Debian user: `PATH` without the sbin folders."""
    environment = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin", "MUJOCO_GL": "osmesa"}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_an_installed_renderer_is_found_without_sbin_in_the_path(programs: Path) -> None:
    script(programs / "id", "echo 1000")
    done = make(programs, "renderer")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_virtual_environment_without_pip_is_made_again(programs: Path, tmp_path: Path) -> None:
    """What a Debian without python3-venv leaves behind: an interpreter and no pip."""
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    script(environment / "bin" / "python", "exit 1")
    python = script(programs / "some-python", f'[ "$1" = -c ] || {{ echo "$@" >{tmp_path}/asked; exit 3; }}')
    make(programs, f"{environment}/.installed", f"VENV={environment}", f"PYTHON={python}")
    assert (tmp_path / "asked").read_text().split() == ["-m", "venv", str(environment)]


def test_another_python_is_refused_before_anything_is_made(programs: Path, tmp_path: Path) -> None:
    python = script(programs / "python3.9", "exit 1")
    done = make(programs, f"{tmp_path}/venv/.installed", f"VENV={tmp_path}/venv", f"PYTHON={python}")
    assert "is not Python 3.11, 3.12 or 3.13" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_without_npm_azurite_is_left_out_with_a_word(programs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "azurite"
    done = make(programs, "azurite", f"AZURITE={folder}", "NPM=not-npm")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no not-npm: the tests of az:// will be skipped" in done.stdout
    failing = script(programs / "failing-npm", f"echo $@ >{tmp_path}/asked; exit 1")
    done = make(programs, "azurite", f"AZURITE={folder}", f"NPM={failing}")
    assert done.returncode == 0
    assert "could not be installed: the tests of az:// will be skipped" in done.stdout
    version = (tmp_path / "asked").read_text().partition("azurite@")[2].strip()
    assert not (folder / version).exists()
    script(programs / "npm", f"mkdir -p {folder}")
    for _ in range(2):  # once it is there, nothing is done
        done = make(programs, "azurite", f"AZURITE={folder}")
        assert (folder / version).exists()
    assert done.stdout == ""


def test_every_folder_of_tests_is_run(pytestconfig: pytest.Config) -> None:
    """pytest passes over some names by itself."""
    folders = [path for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.glob("test_*.py"))]
    passed_over = pytestconfig.getini("norecursedirs")
    assert not [path.name for path in folders for pattern in passed_over if path.match(pattern)]
    commands = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m pytest" in line]
    (options,) = [line.partition("-m pytest ")[2].split() for line in commands]
    assert options[-1] == "tests"
    assert not [option for option in options if option.startswith(("-k", "-m", "--ignore", "--deselect"))]
