"""The wheel that `pip install .` makes works from any folder, without the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("data", "pretrain", "eval", "cluster")
COMPOSE = """
import sys
import cluster, data
from cluster.config import RootConfig
from pretrain.installation import checkout, project_file
from pretrain.settings import compose, named_models, to_yaml
assert checkout() is None and project_file("constraints.txt").is_file()
print(cluster.__file__, data.__file__, *sys.path, sep="\\n")
print(*named_models())
print(to_yaml(compose("train", RootConfig, "train", ["experiment=demo", "data.url=d"])))
"""


@dataclass(frozen=True)
class Installed:
    """A wheel and the virtual environment that it is installed into."""

    wheel: Path
    environment: Path

    def run(self, program: str, *words: str, cwd: Path, told: str = "") -> str:
        """Output of a program of the environment, without this process's PYTHONPATH.

        Args:
            program: Its name.
            words: Of its command line.
            cwd: Its folder.
            told: Pattern of all that it may write to standard error.
        """
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [self.environment / "bin" / program, *words]
        done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert re.fullmatch(told, done.stderr), done.stderr
        return done.stdout


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A fresh environment with the wheel, which sees the dependencies that are installed here.

    A .pth file adds their folder, but the .pth files in there, which may name a checkout, are not read.
    """
    folder = tmp_path_factory.mktemp("packaging")
    environment = folder / "venv"
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python"]
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", wheel)
    return Installed(wheel, environment)


def test_the_wheel_holds_every_file_of_the_packages_configs_and_templates(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    tracked = [name for name in tracked if (ROOT / name).is_file()]
    expected = {name for name in tracked if name.partition("/")[0] in PACKAGES}
    expected |= {
        f"worldvla_files/{name}"
        for name in tracked
        if name.startswith(("configs/", "slurm/")) or name == "constraints.txt"
    }
    assert names == expected
    assert {"eval/report/templates/report.html.j2", "worldvla_files/configs/train.yaml"} <= names


def test_settings_are_composed_from_the_wheel(installed: Installed, tmp_path: Path) -> None:
    lines = installed.run("python", "-c", COMPOSE, cwd=tmp_path).splitlines()
    assert all(line.startswith(f"{installed.environment}/") for line in lines[:2])
    assert str(ROOT) not in lines
    assert "1b 300m 34b 7b micro tiny" in lines
    assert "  warmup_steps: 20" in lines, "from configs/optim/scratch.yaml, chosen by the experiment"


def test_commands_run_from_any_folder(installed: Installed, tmp_path: Path) -> None:
    for name in PACKAGES:  # a user's folder of the same name is not taken for the package
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the folder of the user')\n")
    text = installed.run("worldvla", "train", "--help", cwd=tmp_path)
    assert "experiment=demo|" in text
    assert "optim.name=adamw  (adamw | lion)" in text
    words = ["experiment=worldvla_libero_goal_256", "cluster=h100", "nodes=1", "--dry-run"]
    told = (
        r"  layout: the quickest that fits, by estimate: parallel\.tensor=.*\n  evaluations: none beside .*\n"
    )
    script = installed.run("worldvla", "submit", *words, cwd=tmp_path, told=told)
    assert "#SBATCH --nodes=1\n" in script
    assert f"cd {tmp_path} " in script
    assert f"source {installed.environment}/bin/activate\n" in script
    assert "export PYTHONPATH" not in script, "the environment has the packages"
